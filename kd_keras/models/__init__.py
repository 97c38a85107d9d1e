"""Model families, one per file: `ResNet` of ``resnet.py`` is ``resnet(depth=20)`` on the command line."""

from kd_keras import _lazy

__getattr__, __dir__, __all__ = _lazy.exports(__name__, {})
