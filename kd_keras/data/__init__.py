"""Data sets, one a file: ``build(**keys)`` gives `Splits` of random-access sources, which `batches` turns into tf.data.

The names below are imported when first used, so that importing this package does not import TensorFlow.
"""

import importlib

_HOME = {
    "ArraySource": "sources",
    "FileSource": "sources",
    "Splits": "sources",
    "Views": "pipeline",
    "augmentations": "augment",
    "take": "sources",
    "batches": "pipeline",
    "steps_per_epoch": "pipeline",
}
__all__ = ["ArraySource", "FileSource", "Splits", "Views", "augmentations", "batches", "steps_per_epoch", "take"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
