"""Losses from specs, and the classical pair of losses."""

from kd_keras import spec
from kd_keras.losses.base import Loss
from kd_keras.losses.ce import CE
from kd_keras.losses.kd import KD

_PACKAGE = "kd_keras.losses"


def check(loss: spec.Spec) -> None:
    """Refuses a loss of an unknown name or argument, without building it."""
    spec.check(_PACKAGE, loss, ("samples",) if _keeps_samples(loss) else ())


def from_spec(loss: spec.Spec, samples: int) -> Loss:
    """The loss of a spec; one that keeps something of each training sample is told how many there are.

    Raises:
        InputError: unknown name or argument, or a value out of range.
    """
    return spec.build(_PACKAGE, loss, **({"samples": samples} if _keeps_samples(loss) else {}))


def _keeps_samples(loss: spec.Spec) -> bool:
    return "samples" in getattr(spec.builder(_PACKAGE, loss.name), "needs", ())


def hinton(*, alpha: float = 0.9, temperature: float = 4.0) -> list[Loss]:
    """The classical pair of losses: (1 − alpha) · CE with the labels + alpha · KD with the teacher.

    Args:
        alpha: weight of the *soft* term, in [0, 1].
        temperature: T > 0 of the soft term.

    Reference: Hinton et al., arXiv:1503.02531.
    """
    return [CE(weight=1 - alpha), KD(weight=alpha, temperature=temperature)]
