"""Distillation losses, one a file: ``losses.KD`` is ``kd.py``'s class, and ``kd(…)`` on the command line."""

import importlib

from kd_keras import spec

# Each file's class under its own name; importing them all also registers them with Keras, for load_model.
_classes = [importlib.import_module(f"{__name__}.{name}").build for name in spec.names(__name__)]
globals().update({loss.__name__: loss for loss in _classes})
__all__ = sorted(loss.__name__ for loss in _classes)
