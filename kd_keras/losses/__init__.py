"""Distillation losses, one per file: `KD` of ``kd.py`` is ``kd(temperature=4.0)`` on the command line."""

from kd_keras import _lazy, spec

__getattr__, __dir__, __all__ = _lazy.exports(__name__, {})


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
