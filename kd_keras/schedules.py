"""Values that change during training: temperatures, loss weights, learning rates.

A schedule is a frozen function of the number of completed epochs or steps (``per``), counted from 0. It takes a Python
number or a scalar tensor, so the same object works in eager code and in a compiled training step.

Where a schedule is expected, a number is accepted too, and so is a spec of one of this module's:
``temperature=exponential_decay(start=0.5, rate=0.95, floor=0.3)``.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, TypeAlias

from kd_keras import spec
from kd_keras.errors import InputError, plain

__all__ = ["complement", "constant", "cosine", "exponential_decay", "linear", "warmup"]

Per = Literal["epoch", "step"]
#: The range of what logits are divided by, and losses multiplied by the square of: float32 holds it.
DIVISORS = (1e-6, 1e6)
# Steps of a training at which a schedule is looked at.
_LOOKED_AT = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The base of schedules. ``str()`` returns the text from which `get` makes an equal schedule."""

    #: The field that sets how high the schedule is, a number or another schedule; None where none does.
    height: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if getattr(self, "per", "epoch") not in ("epoch", "step"):
            raise InputError(f"{type(self).__name__}(per={self.per!r}): per is 'epoch' or 'step'")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            optional = field.type == (float | None) and value is None
            if field.type in (float, float | None) and not optional and not _is_number(value):
                raise InputError(f"{type(self).__name__}({field.name}={_text(value)}): {field.name} is a number")

    def __call__(self, *, epoch, step):
        """The value after ``epoch`` whole epochs and ``step`` steps (both from 0; numbers or scalar tensors)."""
        return self._at(epoch if self.per == "epoch" else step)

    def __str__(self) -> str:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return f"{type(self).__name__}({', '.join(f'{k}={_text(v)}' for k, v in fields.items() if v is not None)})"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (Schedule, spec.Spec)) else repr(value)


#: What is taken wherever a schedule is: see `get`.
ScheduleLike: TypeAlias = Schedule | float | str | spec.Spec


@dataclasses.dataclass(frozen=True, kw_only=False)
class constant(Schedule):
    """Always ``value``."""

    height = "value"

    value: float

    def __call__(self, *, epoch, step):
        return self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class linear(Schedule):
    """Linear from ``start`` to ``end`` over ``over`` epochs or steps, then constant at ``end``."""

    height = "start"

    start: float
    end: float
    over: float | None = None
    per: Per = "epoch"

    def _at(self, t):
        return self.start + (self.end - self.start) * _progress(t, self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class cosine(Schedule):
    """Half a cosine from ``start`` to ``end`` over ``over`` epochs or steps, then constant at ``end``.

    Reference: SGDR without restarts (arXiv:1608.03983, equation 5).
    """

    height = "start"

    start: float
    end: float = 0.0
    over: float | None = None
    per: Per = "epoch"

    def _at(self, t):
        return self.end + (self.start - self.end) * 0.5 * (1.0 + _cos(math.pi * _progress(t, self)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class exponential_decay(Schedule):
    """``max(floor, start · rate^t)``, t in epochs or steps."""

    height = "start"

    start: float
    rate: float
    floor: float = 0.0
    per: Per = "epoch"

    def _at(self, t):
        return _maximum(self.start * self.rate**t, self.floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class warmup(Schedule):
    """Linear warm-up: ``to``, a number or another schedule, times min((t + 1) / over, 1)."""

    height = "to"

    to: Any = 1.0
    over: float = 1
    per: Per = "epoch"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "to", get(self.to))
        if self.over <= 0:
            raise InputError(f"warmup(over={self.over}): over is a positive number of epochs or steps")

    def __call__(self, *, epoch, step):
        t = epoch if self.per == "epoch" else step
        return self.to(epoch=epoch, step=step) * _minimum((t + 1) / self.over, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=False)
class complement(Schedule):
    """1 − ``of``, the other of two weights with the sum 1."""

    of: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", get(self.of))

    def __call__(self, *, epoch, step):
        return 1.0 - self.of(epoch=epoch, step=step)


def get(value: Any) -> Schedule:
    """Makes a schedule of a number, a `Spec`, a spec's text or a schedule.

    Raises:
        InputError: it is none of these, or a spec that names no schedule.
    """
    if isinstance(value, Schedule):
        return value
    if _is_number(value := plain(value)):
        return constant(value=value)
    if isinstance(value, str):
        value = spec.parse(value)
    if isinstance(value, spec.Spec):
        return spec.check_kind(value, spec.build("kd_keras.schedules", value), Schedule)
    raise InputError(f"{value!r} is neither a number nor a schedule: known schedules are {', '.join(__all__)}")


def to_config(schedule: Schedule) -> float | str:
    """The number or text from which `get` makes the same schedule."""
    return schedule.value if isinstance(schedule, constant) else str(schedule)


def check(schedule: Schedule, what: str, *, positive: bool = False, total: float | None = None) -> Schedule:
    """Sets a missing ``over`` to ``total``, and refuses values that are impossible whatever the training.

    It looks at the first epochs, at the end of each ``over``, and at the thousandth; see also `check_during`.

    Args:
        schedule: the schedule to check.
        what: name of the value in the message, such as ``"temperature"``.
        positive: whether the value has to stay above 0, not only at least 0.
        total: length of the training in the schedule's unit, if it is known.

    Raises:
        InputError: ``over`` is missing, or the value falls below 0 (or to 0).
    """

    def complete(part):
        if hasattr(part, "over") and part.over is None:
            if total is None:
                raise InputError(f"{what}={part} lacks over: say over how many {part.per}s it runs")
            part = dataclasses.replace(part, over=total)
        if getattr(part, "over", 1) <= 0:
            raise InputError(f"{what}={part}: over is a positive number of {part.per}s")
        return part

    ends = []

    def note(part):
        ends.append(getattr(part, "over", None))
        return part

    schedule = _map(note, _map(complete, schedule))
    for t in (0, 1, 1000, *(end for end in ends if end is not None)):
        try:
            value = schedule(epoch=t, step=t)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            wanted = "above 0" if positive else "0 or more"
            raise InputError(f"{what}={to_config(schedule)} reaches {value:g}: it has to stay {wanted}")
    return schedule


def check_during(
    schedule: Schedule,
    what: str,
    *,
    epochs: range,
    first_step: int = 0,
    steps_per_epoch: int = 1,
    positive: bool = False,
) -> None:
    """Refuses a schedule that leaves its range during a training; computed in float32, as the training does.

    Args:
        schedule: a complete schedule.
        what: name of the value in the message, such as ``"temperature"``.
        epochs: the epochs of the training.
        first_step: the first step of the first epoch.
        steps_per_epoch: steps in each epoch.
        positive: whether the value is divided by and squared, and so has to lie in `DIVISORS`, not only be at least 0.

    Raises:
        InputError: at some step the value is out of its range, or not finite.
    """
    count = len(epochs) * steps_per_epoch
    if isinstance(schedule, constant) or not count:
        return
    ops = _ops()
    # Schedules are monotonic between the ends of their `over`, and smooth: so many steps tell.
    taken = sorted({count * i // _LOOKED_AT for i in range(_LOOKED_AT)} | {count - 1})
    at_epoch, at_step = [epochs[i // steps_per_epoch] for i in taken], [first_step + i for i in taken]
    values = schedule(epoch=ops.convert_to_tensor(at_epoch, "float32"), step=ops.convert_to_tensor(at_step, "float32"))
    values = ops.convert_to_numpy(values).reshape(-1).tolist()
    least, most = DIVISORS if positive else (0, 3e38)
    # A schedule that does not move gives one value for all.
    for epoch, step, value in zip(at_epoch, at_step, values * (len(taken) if len(values) == 1 else 1), strict=True):
        if not least <= value <= most:
            wanted = f"between {least:g} and {most:g}" if positive else "finite, and 0 or more"
            raise InputError(
                f"{what}={to_config(schedule)} is {value:g} in epoch {epoch}, step {step} (both from 0): it has to "
                f"stay {wanted}; give the schedule a floor, or another end"
            )


def to_keras(schedule: Schedule, *, epochs: int, steps_per_epoch: int):
    """The learning rate for Keras: a float, or a `LearningRateSchedule` that is evaluated at every step.

    Args:
        schedule: any schedule of this module; ``over`` defaults to the whole training.
        epochs: length of the training.
        steps_per_epoch: steps per epoch.

    Returns:
        A float or a `keras.optimizers.schedules.LearningRateSchedule`, which is saved with the optimizer: that of Keras
        with the same formula, else one that evaluates this schedule. A schedule ``over`` a number of epochs changes at
        each step; exponential_decay ``per='epoch'`` changes once per epoch.

    Raises:
        InputError: the learning rate falls below 0, or ``over`` is not positive.
    """

    def by_step(part):
        if not hasattr(part, "over"):
            return part
        if part.over is None:
            return dataclasses.replace(part, over=epochs * steps_per_epoch, per="step")
        return dataclasses.replace(part, over=part.over * (steps_per_epoch if part.per == "epoch" else 1), per="step")

    schedule = check(_map(by_step, schedule), "learning_rate")
    if isinstance(schedule, constant):
        return float(schedule.value)
    from keras.optimizers import schedules as keras_schedules

    if isinstance(schedule, cosine) and schedule.start > 0:
        return keras_schedules.CosineDecay(schedule.start, schedule.over, alpha=schedule.end / schedule.start)
    if isinstance(schedule, linear):
        return keras_schedules.PolynomialDecay(schedule.start, schedule.over, end_learning_rate=schedule.end)
    if isinstance(schedule, exponential_decay) and schedule.floor == 0:
        steps = steps_per_epoch if schedule.per == "epoch" else 1
        return keras_schedules.ExponentialDecay(schedule.start, steps, schedule.rate, staircase=True)
    return learning_rate_class()(str(schedule), steps_per_epoch)


@functools.cache
def learning_rate_class() -> type:
    """The class of a schedule as a learning rate, made and registered for `load_model` when it is first needed."""
    import keras

    @keras.saving.register_keras_serializable(package="kd_keras", name="LearningRate")
    class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, schedule: str, steps_per_epoch: int):
            super().__init__()
            self.schedule, self.steps_per_epoch = get(schedule), steps_per_epoch

        def __call__(self, step):
            step = keras.ops.cast(step, "float32")
            value = self.schedule(epoch=keras.ops.floor(step / self.steps_per_epoch), step=step)
            return keras.ops.cast(value, "float32")

        def get_config(self):
            return {"schedule": str(self.schedule), "steps_per_epoch": self.steps_per_epoch}

    return LearningRate


def _map(change, schedule):
    """Applies ``change`` to the schedules inside a schedule, then to the schedule."""
    values = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
    inner = {key: _map(change, value) for key, value in values.items() if isinstance(value, Schedule)}
    return change(dataclasses.replace(schedule, **inner))


def _progress(t, schedule):
    if schedule.over is None:
        raise InputError(f"{schedule} lacks over: say over how many {schedule.per}s it runs")
    return _minimum(t / schedule.over, 1.0)


def _minimum(a, b):
    return min(a, b) if _is_number(a) else _ops().minimum(a, b)


def _maximum(a, b):
    return max(a, b) if _is_number(a) else _ops().maximum(a, b)


def _cos(a):
    return math.cos(a) if _is_number(a) else _ops().cos(a)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ops():
    # Late, because `--help` imports this module and must not wait for TensorFlow.
    from keras import ops

    return ops
