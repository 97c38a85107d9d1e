"""Compression steps that train, one per file: `QAT` of ``qat.py`` is ``qat()`` on the command line.

They use tensorflow-model-optimization, which wraps a tf_keras copy of the student; see `kd_keras.compress.bridge`.

    smaller = compress.prepare(student, compress.Prune(sparsity=0.8), steps=epochs * steps_per_epoch)
    distiller = Distiller(student=smaller.model, teacher=teacher, losses=hinton())
    distiller.compile(…); distiller.fit(…)
    smaller.finish()                                   # the student has the pruned weights
"""

from kd_keras import _lazy

__getattr__, __dir__, __all__ = _lazy.exports(
    __name__,
    {
        **_lazy.parts(__name__),
        "Prepared": "wrapped",
        "Step": "base",
        "imitate": "wrapped",
        "prepare": "wrapped",
    },
)
