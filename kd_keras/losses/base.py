"""The bases of losses: `Loss`, and `LogitLoss` and `ResponseLoss` for losses on logits.

The Distiller weights and averages; a loss returns values per sample.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kd_keras import schedules
from kd_keras.errors import InputError, check_switch, is_count, is_number, plain
from kd_keras.losses import labels as label_forms
from kd_keras.schedules import Schedule, ScheduleLike

# A compiled Distiller is saved with its learning rate schedule, so that class is registered wherever losses are.
schedules.learning_rate_class()

#: Tensors by the name of the tap: ``logits`` (B, K), ``stage1`` (B, H, W, C) …, ``pooled`` (B, D).
Taps = Mapping[str, Any]


class Loss(keras.layers.Layer):
    """One term of a distillation loss.

    A loss reads named intermediates (taps) of student and teacher and returns one value per sample, unweighted. It
    computes in float32 under any dtype policy. Its trainable parts, such as projectors, are made in `build`; they are
    trained, mirrored and saved with the `Distiller` that holds the loss.

        @keras.saving.register_keras_serializable(package="mine")
        class LogitDistance(Loss):
            def call(self, student, teacher, labels):
                return ops.mean(ops.square(student["logits"] - teacher["logits"]), axis=-1)

    Args:
        weight: factor of this term in the total, a number or a schedule. The Distiller applies it, once.
        **kwargs: arguments of `keras.layers.Layer`, such as ``name``.

    Call arguments:
        student: the student's taps by name.
        teacher: the teacher's taps by name; empty for a loss that reads none.
        labels: classes (B,), or class weights (B, K) after mixup and cutmix; for multi-label heads (B, K), each label
            from 0 to 1, or −1 where it is not known.

    Returns:
        (B,) values, or a scalar where the loss is a statistic of the batch.
    """

    #: The heads that the loss is for: ``'softmax'``, one class for each image, ``'multilabel'``, independent labels, or
    #: both. A Distiller refuses models of another head.
    heads: frozenset[str] = frozenset({"softmax"})
    #: Whether `call` reads the labels; None where it is not said, and tried out on a few samples.
    reads_labels: bool | None = None
    #: Whether samples are compared with each other. The Distiller then passes real samples only, no padding.
    compares_samples = False
    #: Whether the loss means nothing until its pretraining was done.
    needs_pretraining = False
    #: Whether the loss reads no more of the teacher's logits than their softmax at ``temperature`` (1 without one).
    one_temperature = True
    #: What is needed besides taps and labels: ``'index'`` to be called with each sample's number in its split (B,),
    #: ``'sample_weight'`` to be called with the samples' weights (B,) or None, ``'samples'`` to be made with the size
    #: of the training split, which a run fills in.
    needs: frozenset[str] = frozenset()
    #: The ranges that ``--search=auto`` of a sweep takes, by key: ``'1..20 log'``, or ``'x0.1..x10 log'`` for multiples
    #: of the value that the flags give.
    search: Mapping[str, str] = {"weight": "x0.1..x10 log"}

    def __init__(self, *, weight: ScheduleLike = 1.0, name: str | None = None, **kwargs: Any) -> None:
        kwargs.pop("dtype", None)
        super().__init__(name=name or _name_of(type(self)), dtype="float32", **kwargs)
        self.clock = None
        self._schedules: dict[str, Schedule] = {}
        self._positive: set[str] = set()
        self.weight = self._schedule("weight", weight)

    def _schedule(self, key: str, value: ScheduleLike, *, positive: bool = False) -> Schedule:
        """Reads a hyperparameter that may be a schedule; `get_config` and the logs hold it under its key."""
        schedule = schedules.check(schedules.get(value), f"{self.name}'s {key}", positive=positive)
        self._schedules[key] = schedule
        self._positive |= {key} if positive else set()
        return schedule

    def check_schedules(self, **training: Any) -> None:
        """Raises InputError where a schedule leaves its range in a training; see `schedules.check_during`."""
        for key, schedule in self.schedules.items():
            what = f"{self.name}'s {key}"
            schedules.check_during(schedule, what, positive=key in self._positive, **training)

    def _switch(self, key: str, value: Any) -> bool:
        """Reads a hyperparameter that is True or False."""
        check_switch(f"{self.name}'s {key}", plain(value))
        return plain(value)

    def _factor(self, key: str, value: Any) -> float:
        """Reads a factor, at least 0."""
        value = plain(value)
        if not is_number(value) or value < 0:
            raise InputError(f"{self.name}({key}={value!r}): give a number of at least 0")
        return float(value)

    def _count(self, key: str, value: Any, least: int = 1) -> int:
        """Reads a whole number."""
        value = plain(value)
        if not is_count(value, least):
            raise InputError(f"{self.name}({key}={value!r}): give a whole number of at least {least}")
        return value

    def now(self, schedule: Schedule) -> Any:
        """A schedule's value at the Distiller's epoch and step, or at the first ones without a Distiller."""
        epoch, step = (0, 0) if self.clock is None else self.clock()
        return schedule(epoch=epoch, step=step)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The hyperparameters that change during training, by key."""
        return {key: value for key, value in self._schedules.items() if not isinstance(value, schedules.constant)}

    def taps(self, student: list[str], teacher: list[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the taps that are read, of the student and of the teacher.

        Args:
            student: taps that the student offers.
            teacher: taps that the teacher offers; None without a teacher.

        Raises:
            InputError: a tap that the loss asks for does not exist.
        """
        return ("logits",), ("logits",)

    def adapted(self, student: keras.Model, teacher: keras.Model | None) -> keras.Model:
        """The model to train in place of the student; most losses return the student."""
        return student

    def pretrain_taps(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Names of the taps of student and teacher that `pretrain` reads; None for a loss without pretraining."""
        return None

    def pretraining(self, on: bool) -> None:
        """Called when pretraining starts and ends."""

    def pretrained(self) -> bool:
        """Whether pretraining, where it is needed, was done."""
        return True

    def build(self, student_shape: Any = None, teacher_shape: Any = None, labels_shape: Any = None) -> None:
        """Makes the trainable parts for taps of these shapes (dicts by name)."""
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        shapes = getattr(self, "_shapes", None)
        return (
            super().get_build_config() if shapes is None else {"student_shape": shapes[0], "teacher_shape": shapes[1]}
        )

    def build_from_config(self, config: dict[str, Any]) -> None:
        if config and not self.built:
            self.build(**config.get("shapes_dict", config))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{key: schedules.to_config(value) for key, value in self._schedules.items()}}

    def renewed(self) -> "Loss":
        """A new loss of the same settings, without anything that a Distiller has made or trained in this one.

        Raises:
            InputError: `get_config` leaves out an argument of the class.
        """
        config, arguments = self.get_config(), inspect.signature(type(self).__init__).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        lost = [a.name for a in arguments if a.kind in named and a.name != "self" and a.name not in config]
        if lost:
            raise InputError(
                f"the loss {self.name} is in use in another Distiller and can't be copied, since its get_config leaves "
                f"out {', '.join(lost)}: give each Distiller a loss of its own, or complete get_config"
            )
        return type(self).from_config(config)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> tuple[None]:
        return (None,)


def _name_of(loss_class: type) -> str:
    """A loss of the package is called after its file, one of the user's after its class: ``MyLoss`` is my_loss."""
    module = loss_class.__module__
    if module.startswith("kd_keras."):
        return module.rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", loss_class.__name__).lower()


class HardLabelLoss(Loss):
    """A loss of the student's logits and the labels alone.

    Args:
        label_smoothing: ε in [0, 1), which moves the labels towards no label in particular.
        **kwargs: see `Loss`.

    Raises:
        InputError: ε is out of range.
    """

    reads_labels = True
    # The hard labels' weight stays as it is: those of the other terms are searched against it.
    search = {}

    def __init__(self, *, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        label_smoothing = plain(label_smoothing)
        if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing < 1:
            raise InputError(f"{self.name}(label_smoothing={label_smoothing}): it lies in [0, 1)")
        self.label_smoothing = label_smoothing

    def taps(self, student: list[str], teacher: list[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("logits",), ()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


class LogitLoss(Loss):
    """A loss on logits.

    Args:
        standardize: standardise each sample's logits first (arXiv:2403.01427). Refused for two classes, where every
            standardised logit is ±0.71 whatever the teacher says.
        squared: multiply by T². The gradient falls as 1/T²; this keeps its size next to that of the hard labels
            (arXiv:1503.02531, section 2). Some papers print their loss without it.
        **kwargs: see `Loss`.
    """

    #: Hyperparameters of parts that say nothing about two classes: key → reason.
    void_for_two: Mapping[str, str] = {}

    def __init__(self, *, standardize: bool = False, squared: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.standardize = self._switch("standardize", standardize)
        self.squared = self._switch("squared", squared)

    def build(self, student_shape: Any = None, teacher_shape: Any = None, labels_shape: Any = None) -> None:
        if student_shape is not None and student_shape["logits"][-1] == 2:
            if self.standardize:
                raise InputError(
                    f"{self.name}(standardize=True) is void for two classes: every standardised logit is ±0.71, "
                    "whatever the teacher says; leave standardize out"
                )
            for key, reason in self.void_for_two.items():
                if value := getattr(self, key):
                    raise InputError(
                        f"{self.name}({key}={value}) is void for two classes: {reason}; write {key}=0, or take kd"
                    )
        self.built = True

    def prepared(self, student: Taps, teacher: Taps) -> tuple[Any, Any]:
        """The logits (B, K) of student and teacher, standardised if asked for."""
        z_s, z_t = student["logits"], teacher["logits"]
        return (standardize(z_s), standardize(z_t)) if self.standardize else (z_s, z_t)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "standardize": self.standardize, "squared": self.squared}


class ResponseLoss(LogitLoss):
    """A loss on logits that are softened by a temperature, such as `KD` and `DKD`.

    Args:
        temperature: T > 0, a number or a schedule.
        **kwargs: see `LogitLoss`.
    """

    search = {**LogitLoss.search, "temperature": "1..20 log"}

    def __init__(self, *, temperature: ScheduleLike = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = self._schedule("temperature", temperature, positive=True)

    def softened(self, student: Taps, teacher: Taps) -> tuple[Any, Any, Any]:
        """The factor of the loss (T², or 1), and log-softmax(z / T) of student and teacher, each (B, K)."""
        z_s, z_t = self.prepared(student, teacher)
        temperature = self.now(self.temperature)
        factor = temperature**2 if self.squared else 1.0
        return factor, ops.log_softmax(z_s / temperature), ops.log_softmax(z_t / temperature)


def standardize(logits):
    """Logits with mean 0 and sample standard deviation 1 per row: (z − mean) / (std + 1e-7).

    Reference: arXiv:2403.01427, section 4; the sample standard deviation (ddof 1) is its code's.
    """
    num_classes = logits.shape[-1]
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    # In float32 the mean of equal logits is off by 1e-7 of them.
    least = 1e-6 * ops.maximum(ops.max(ops.abs(logits), axis=-1, keepdims=True), 1.0)
    # Divided by the largest entry first: the square of a large logit overflows, and the root at 0 has no gradient.
    scale = ops.stop_gradient(ops.maximum(ops.max(ops.abs(centred), axis=-1, keepdims=True), least))
    scaled = centred / scale
    variance = ops.sum(ops.square(scaled), axis=-1, keepdims=True) / (num_classes - 1)
    # A row of equal logits stays as it is: its gradient would be 1e7.
    return ops.where(scale > least, scaled / (ops.sqrt(ops.maximum(variance, 1e-14)) + 1e-7 / scale), centred)


def divergence(log_p_t, log_p_s):
    """KL(p_t ‖ p_s) (B,) of log-probabilities (B, K), at least 0; a class of which p_t is 0 counts 0."""
    # Minus infinity times 0 is not a number. Not `maximum`, which on a CPU makes -1e30 of NaN too.
    log_p_t, log_p_s = (ops.where(ops.isinf(log_p), -1e30, log_p) for log_p in (log_p_t, log_p_s))
    p_t, difference = ops.exp(log_p_t), log_p_s - log_p_t
    # Σ p_t·(e^d − 1 − d), d = log p_s − log p_t: no term is below 0. Σ −p_t·d is the same, as both distributions sum
    # to 1, but its terms cancel where the distributions are nearly equal, which those of a high temperature are.
    near = ops.clip(difference, -1.0, 1.0)
    far = ops.exp(log_p_s) - p_t - p_t * difference
    return ops.sum(ops.where(ops.abs(difference) < 1, p_t * (ops.expm1(near) - near), far), axis=-1)


def target_mask(labels, num_classes):
    """(B, K) booleans, true at a sample's class; for class weights, at the largest."""
    return ops.one_hot(label_forms.classes(labels), num_classes, dtype="bool")


def split_target(log_p, mask):
    """Splits log-probabilities (B, K) into the target class and the other classes.

    Args:
        log_p: log-probabilities (B, K).
        mask: booleans (B, K) of `target_mask`.

    Returns:
        log p^y (B,), log(1 − p^y) (B,), and the other classes' log-probabilities among themselves (B, K), whose values
        at the target are meaningless.
    """
    log_target = ops.sum(ops.where(mask, log_p, 0.0), axis=-1)
    # Not log(1 − exp(log_target)), which loses all digits where the target is certain.
    others = ops.where(mask, -1e30, log_p)
    log_rest = ops.logsumexp(others, axis=-1)
    return log_target, log_rest, others - log_rest[:, None]


def unit_norm(x, axis, least=1e-8):
    """Vectors along an axis with L2 norm 1; 0, and without gradient, where the norm is below ``least``."""
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.where(square > least**2, ops.rsqrt(ops.maximum(square, least**2)), 0.0)


def add_state(layer, name, shape, initializer="zeros"):
    """Adds a weight that is not trained and that every replica writes with the same value."""
    return layer.add_weight(
        name=name, shape=shape, initializer=initializer, trainable=False, aggregation="only_first_replica"
    )
