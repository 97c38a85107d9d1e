"""Losses from specs, and the classical pair of losses."""

from kd_keras import spec
from kd_keras.losses.base import Loss
from kd_keras.losses.ce import CE
from kd_keras.losses.kd import KD
from kd_keras.schedules import ScheduleLike

_PACKAGE = "kd_keras.losses"


def check(loss: spec.Spec) -> None:
    """Raises InputError for a loss of an unknown name or argument, without building it."""
    spec.check(_PACKAGE, loss, ("samples",) if _needs_samples(loss) else ())


def from_spec(loss: spec.Spec, samples: int) -> Loss:
    """Builds the loss of a spec; ``samples``, the size of the training split, is passed to losses that need it.

    Raises:
        InputError: the name or an argument is unknown, or a value is out of range.
    """
    made = spec.build(_PACKAGE, loss, **({"samples": samples} if _needs_samples(loss) else {}))
    return spec.check_kind(loss, made, Loss)


def _needs_samples(loss: spec.Spec) -> bool:
    return "samples" in getattr(spec.builder(_PACKAGE, loss.name), "needs", ())


def hinton(*, alpha: float = 0.9, temperature: ScheduleLike = 4.0) -> list[Loss]:
    """The classical pair of losses: (1 − alpha) · CE with the labels + alpha · KD with the teacher.

    Args:
        alpha: weight of the *soft* term, in [0, 1].
        temperature: T > 0 of the soft term, a number or a schedule.

    Reference: Hinton et al., arXiv:1503.02531.
    """
    return [CE(weight=1 - alpha), KD(weight=alpha, temperature=temperature)]
