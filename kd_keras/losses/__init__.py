"""Distillation losses, one per file: `KD` of ``kd.py`` is ``kd(temperature=4.0)`` on the command line.

A loss of your own extends `Loss`, `ResponseLoss` (logits), `FeatureLoss` (feature maps) or `RelationalLoss` (how
samples relate), and is checked by `kd_keras.testing.check_loss`.
"""

from kd_keras import _lazy

__getattr__, __dir__, __all__ = _lazy.exports(
    __name__,
    {
        **_lazy.parts(__name__),
        "FeatureLoss": "features",
        "LogitLoss": "base",
        "Loss": "base",
        "RelationalLoss": "relations",
        "ResponseLoss": "base",
        "check": "building",
        "from_spec": "building",
        "hinton": "building",
    },
)
