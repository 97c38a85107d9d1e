"""Compression while a student is trained, one method a file: ``qat()`` on the command line is ``qat.py``'s ``build()``.

All by tensorflow-model-optimization, whose wrappers are put on a tf_keras twin of the student; see `_bridge`.
"""
