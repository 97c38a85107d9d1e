"""Distillation losses, one a file: ``losses.KD`` is ``kd.py``'s class, and ``kd(…)`` on the command line."""

import importlib

from kd_keras import spec

# Each file's class under its own name; importing them all also registers them with Keras, for load_model.
_classes = [importlib.import_module(f"{__name__}.{name}").build for name in spec.names(__name__)]
globals().update({loss.__name__: loss for loss in _classes})
__all__ = sorted(loss.__name__ for loss in _classes)


def check(loss: spec.Spec) -> None:
    """Refuses a loss of an unknown name or argument, without building it."""
    spec.check(__name__, loss, ("samples",) if _keeps_samples(loss) else ())


def from_spec(loss: spec.Spec, samples: int):
    """The loss of a spec; one that keeps something of each training sample is told how many there are.

    Raises:
        InputError: unknown name or argument, or a value out of range.
    """
    return spec.build(__name__, loss, **({"samples": samples} if _keeps_samples(loss) else {}))


def _keeps_samples(loss: spec.Spec) -> bool:
    return "samples" in getattr(spec.builder(__name__, loss.name), "needs", ())
