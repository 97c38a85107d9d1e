"""Values that change while training: temperatures, loss weights, learning rates.

A schedule is a frozen function of the number of epochs or steps done (``per``), counted from 0. It takes a Python
number or a scalar tensor, so the same object is read in eager code and compiled into a training step.

Wherever a schedule is taken, a plain number is one too, and a `Spec` names one of this module's:
``temperature=exponential_decay(start=0.5, rate=0.95, floor=0.3)``.
"""

import dataclasses
import math
from typing import Any, Literal

from kd_keras import spec
from kd_keras.errors import InputError

__all__ = ["complement", "constant", "cosine", "exponential_decay", "linear", "warmup"]

Per = Literal["epoch", "step"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The base: a value at each epoch or step. ``str()`` gives the text from which `get` makes an equal one."""

    def __post_init__(self):
        if getattr(self, "per", "epoch") not in ("epoch", "step"):
            raise InputError(f"{type(self).__name__}(per={self.per!r}): per is 'epoch' or 'step'")

    def __call__(self, *, epoch, step):
        """The value after ``epoch`` whole epochs and ``step`` steps (both from 0; numbers or scalar tensors)."""
        return self._at(epoch if self.per == "epoch" else step)

    def __str__(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return f"{type(self).__name__}({', '.join(f'{k}={_text(v)}' for k, v in fields.items() if v is not None)})"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, Schedule) else repr(value)


@dataclasses.dataclass(frozen=True, kw_only=False)
class constant(Schedule):
    """Always ``value``."""

    value: float

    def __call__(self, *, epoch, step):
        return self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class linear(Schedule):
    """A straight line from ``start`` to ``end`` within ``over`` epochs or steps, and ``end`` from then on."""

    start: float
    end: float
    over: float | None = None
    per: Per = "epoch"

    def _at(self, t):
        return self.start + (self.end - self.start) * _progress(t, self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class cosine(Schedule):
    """Half a cosine from ``start`` to ``end`` within ``over`` epochs or steps, and ``end`` from then on.

    Source: SGDR without restarts (arXiv:1608.03983, equation 5).
    """

    start: float
    end: float = 0.0
    over: float | None = None
    per: Per = "epoch"

    def _at(self, t):
        return self.end + (self.start - self.end) * 0.5 * (1.0 + _cos(math.pi * _progress(t, self)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class exponential_decay(Schedule):
    """``max(floor, start · rate^t)``, t in epochs or steps."""

    start: float
    rate: float
    floor: float = 0.0
    per: Per = "epoch"

    def _at(self, t):
        return _maximum(self.start * self.rate**t, self.floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class warmup(Schedule):
    """``to``, reached in equal parts: times min((t + 1) / over, 1). ``to`` is a number or another schedule."""

    to: Any = 1.0
    over: float = 1
    per: Per = "epoch"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "to", get(self.to))
        if self.over <= 0:
            raise InputError(f"warmup(over={self.over}): over is a positive number of epochs or steps")

    def __call__(self, *, epoch, step):
        t = epoch if self.per == "epoch" else step
        return self.to(epoch=epoch, step=step) * _minimum((t + 1) / self.over, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=False)
class complement(Schedule):
    """1 − ``of``: the other side of a pair of weights."""

    of: Any

    def __post_init__(self):
        object.__setattr__(self, "of", get(self.of))

    def __call__(self, *, epoch, step):
        return 1.0 - self.of(epoch=epoch, step=step)


def get(value: Any) -> Schedule:
    """Makes a schedule of a number, a `Spec`, a spec's text or a schedule.

    Raises:
        InputError: none of these, or a spec that names no schedule.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return constant(value=value)
    if isinstance(value, str):
        value = spec.parse(value)
    if isinstance(value, spec.Spec):
        return spec.build("kd_keras.schedules", value)
    raise InputError(f"{value!r} is neither a number nor a schedule: known schedules are {', '.join(__all__)}")


def to_config(schedule: Schedule) -> float | str:
    """The number or text from which `get` makes the same schedule."""
    return schedule.value if isinstance(schedule, constant) else str(schedule)


def check(schedule: Schedule, what: str, *, positive: bool = False, total: float | None = None) -> Schedule:
    """Fills in ``over`` with ``total`` and refuses values that cannot be.

    Args:
        schedule: what to check.
        what: how the value is called in the message, such as ``"temperature"``.
        positive: the value has to stay above 0 (else: at least 0).
        total: the length of the training in the schedule's unit, where it is known.

    Raises:
        InputError: ``over`` is not known, or the value goes below 0 (or reaches it).
    """
    if hasattr(schedule, "over") and schedule.over is None:
        if total is None:
            raise InputError(f"{what}={schedule} lacks over: say within how many {schedule.per}s it runs its course")
        schedule = dataclasses.replace(schedule, over=total)
    if getattr(schedule, "over", 1) <= 0:
        raise InputError(f"{what}={schedule}: over is a positive number of {schedule.per}s")
    for t in (0, 1, 1000):
        try:
            value = schedule(epoch=t, step=t)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            wanted = "above 0" if positive else "0 or more"
            raise InputError(f"{what}={to_config(schedule)} reaches {value:g}: it has to stay {wanted}")
    return schedule


def to_keras(schedule: Schedule, *, epochs: int, steps_per_epoch: int):
    """The learning rate as Keras takes it: a float, or one of `keras.optimizers.schedules`, per step.

    Args:
        schedule: any schedule of this module; ``over`` defaults to the whole training.
        epochs: length of the training.
        steps_per_epoch: steps an epoch.

    Returns:
        A float or a `keras.optimizers.schedules.LearningRateSchedule`. A decay ``per='epoch'`` moves smoothly with
        the steps, but for the exponential one, which goes in stairs.

    Raises:
        InputError: a schedule that has no counterpart there.
    """
    from keras.optimizers import schedules as keras_schedules

    def steps(value):
        return max(1, round(value * (steps_per_epoch if schedule.per == "epoch" else 1)))

    if isinstance(schedule, constant):
        return schedule.value
    if isinstance(schedule, warmup):
        after = schedule.to
        if isinstance(after, (constant, cosine)):
            # Keras' own warm-up sits in its cosine decay; alpha=1 keeps it level afterwards.
            start = after.value if isinstance(after, constant) else after.start
            alpha = 1.0 if isinstance(after, constant) else after.end / after.start
            over = epochs * steps_per_epoch
            if isinstance(after, cosine) and after.over is not None:
                over = after.over * (steps_per_epoch if after.per == "epoch" else 1)
            ramp = steps(schedule.over)
            return keras_schedules.CosineDecay(
                0.0, max(1, round(over) - ramp), alpha=alpha, warmup_target=start, warmup_steps=ramp
            )
    if isinstance(schedule, (linear, cosine)):
        over = schedule.over
        if over is None:
            over = epochs if schedule.per == "epoch" else epochs * steps_per_epoch
        if isinstance(schedule, cosine):
            return keras_schedules.CosineDecay(schedule.start, steps(over), alpha=schedule.end / schedule.start)
        return keras_schedules.PolynomialDecay(schedule.start, steps(over), end_learning_rate=schedule.end)
    if isinstance(schedule, exponential_decay) and schedule.floor == 0:
        return keras_schedules.ExponentialDecay(schedule.start, steps(1), schedule.rate, staircase=True)
    raise InputError(
        f"learning_rate={schedule} has no counterpart among Keras' schedules: use constant, linear, "
        "cosine, exponential_decay without floor, or warmup of a constant or a cosine"
    )


def _progress(t, schedule):
    if schedule.over is None:
        raise InputError(f"{schedule} lacks over: say within how many {schedule.per}s it runs its course")
    return _minimum(t / schedule.over, 1.0)


def _minimum(a, b):
    return min(a, b) if _is_number(a) else _ops().minimum(a, b)


def _maximum(a, b):
    return max(a, b) if _is_number(a) else _ops().maximum(a, b)


def _cos(a):
    return math.cos(a) if _is_number(a) else _ops().cos(a)


def _is_number(value) -> bool:
    return isinstance(value, (int, float))


def _ops():
    # Late: this module is read for `--help`, which must not wait for TensorFlow.
    from keras import ops

    return ops
