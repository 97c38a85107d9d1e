"""Model families, one per file: `ResNet` of ``resnet.py`` is ``resnet(depth=20)`` on the command line.

A family of your own is checked by `kd_keras.testing.check_model`.
"""

from kd_keras import _lazy

__getattr__, __dir__, __all__ = _lazy.exports(__name__, _lazy.parts(__name__))
