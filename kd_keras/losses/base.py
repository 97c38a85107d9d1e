"""What every loss term shares. How a term is weighted and averaged is the Distiller's business, not a loss's."""

import keras
from keras import ops

from kd_keras import schedules
from kd_keras._compat import replicas
from kd_keras.errors import InputError, check_switch, is_count, is_number
from kd_keras.losses import labels as label_forms

# What is saved with a compiled Distiller has to be known wherever the losses are.
schedules.learning_rate_class()


class Loss(keras.layers.Layer):
    """One term of a distillation loss.

    A term reads named intermediates (taps) of student and teacher and gives one value a sample. Called by itself it
    returns its unweighted value. It computes in float32 under any dtype policy; its trainable parts (projectors …)
    are made in `build`, and so are trained, mirrored and saved with the `Distiller` that holds it.

    Args:
        weight: factor of this term in the total, a number or a schedule; applied once, by the Distiller.
        **kwargs: `keras.layers.Layer`'s own, such as ``name``.

    Call arguments:
        student: dict of the student's taps: ``logits`` (B, K), ``stage1`` (B, H, W, C) …, ``pooled`` (B, D).
        teacher: dict of the teacher's taps, or an empty one for a term that needs no teacher.
        labels: classes (B,) or, after mixup and cutmix, class weights (B, K).

    Returns:
        (B,) values, or a scalar where the term is a statistic of the batch.
    """

    #: Whether samples are compared with each other: the Distiller then hands over real samples only, and `gathered`
    #: brings those of all replicas together.
    compares_samples = False
    #: Whether it means nothing until `pretrain` has been trained by.
    needs_pretraining = False
    #: Whether all that is read of the teacher's logits is their softmax at ``temperature``, or at 1 if there is none.
    one_temperature = True
    #: What it needs beside taps and labels: ``'index'`` to be called with the number of each sample in its split (B,),
    #: ``'samples'`` to be made with the size of the training split, which a run adds.
    needs = frozenset()

    def __init__(self, *, weight=1.0, name=None, **kwargs):
        kwargs.pop("dtype", None)
        super().__init__(name=name or type(self).__module__.rpartition(".")[2], dtype="float32", **kwargs)
        self.clock = None
        self._schedules = {}
        self.weight = self._schedule("weight", weight)

    def _schedule(self, key: str, value, *, positive: bool = False) -> schedules.Schedule:
        """Keeps a hyperparameter that may be a schedule; it is read by `now`, saved and logged under its key."""
        schedule = schedules.check(schedules.get(value), f"{self.name}'s {key}", positive=positive)
        self._schedules[key] = schedule
        return schedule

    def _switch(self, key: str, value) -> bool:
        """A hyperparameter that is on or off."""
        check_switch(f"{self.name}'s {key}", value)
        return value

    def _factor(self, key: str, value) -> float:
        """A factor of a part of the term."""
        if not is_number(value) or value < 0:
            raise InputError(f"{self.name}({key}={value!r}): give a number of at least 0")
        return float(value)

    def _count(self, key: str, value, least=1) -> int:
        """A whole number."""
        if not is_count(value, least):
            raise InputError(f"{self.name}({key}={value!r}): give a whole number of at least {least}")
        return value

    def now(self, schedule: schedules.Schedule):
        """A schedule's value at the Distiller's epoch and step; at the first ones where there is no Distiller."""
        epoch, step = (0, 0) if self.clock is None else self.clock()
        return schedule(epoch=epoch, step=step)

    @property
    def schedules(self) -> dict[str, schedules.Schedule]:
        """The hyperparameters that change while training, by key."""
        return {key: value for key, value in self._schedules.items() if not isinstance(value, schedules.constant)}

    def taps(self, student: list[str], teacher: list[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Which of the taps on offer are read, of the student and of the teacher.

        Args:
            student: names that the student offers.
            teacher: names that the teacher offers; None where there is no teacher yet.

        Raises:
            InputError: a tap that is asked for does not exist.
        """
        return ("logits",), ("logits",)

    def adapted(self, student: keras.Model, teacher: keras.Model | None) -> keras.Model:
        """The model to train in the student's place: for most losses the student as it is."""
        return student

    def pretrain_taps(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Which taps of student and teacher `pretrain` reads; None for a term that has no training of its own ahead."""
        return None

    def pretraining(self, on: bool) -> None:
        """Told when the training ahead begins, and when it ends."""

    def pretrained(self) -> bool:
        """Whether the training ahead, where it is needed, has been done."""
        return True

    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        """Makes the trainable parts for taps of these shapes (dicts of shapes by tap)."""
        self.built = True

    def get_build_config(self):
        shapes = getattr(self, "_shapes", None)
        return (
            super().get_build_config() if shapes is None else {"student_shape": shapes[0], "teacher_shape": shapes[1]}
        )

    def build_from_config(self, config):
        if config and not self.built:
            self.build(**config.get("shapes_dict", config))

    def get_config(self):
        return {**super().get_config(), **{k: schedules.to_config(v) for k, v in self._schedules.items()}}

    def compute_output_shape(self, *args, **kwargs):
        return (None,)


def standardize(logits):
    """Logits with mean 0 and (sample) standard deviation 1 a row: (z − mean) / (std + 1e-7).

    Source: arXiv:2403.01427, section 4; the sample standard deviation (ddof 1) is its code's.
    """
    num_classes = logits.shape[-1]
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    # Scaled by the largest entry first: the square of a large logit must not overflow, nor its root have no slope.
    scale = ops.stop_gradient(ops.maximum(ops.max(ops.abs(centred), axis=-1, keepdims=True), 1e-7))
    unit = centred / scale
    variance = ops.sum(ops.square(unit), axis=-1, keepdims=True) / (num_classes - 1)
    # A row of equal logits stays as it is: its slope of 1e7 would be a step to anywhere.
    return ops.where(scale > 1e-7, unit / (ops.sqrt(ops.maximum(variance, 1e-14)) + 1e-7 / scale), centred)


class LogitLoss(Loss):
    """A term on logits; the base of all that read them.

    Args:
        standardize: standardise each sample's logits first (arXiv:2403.01427). Void for two classes: every
            standardised logit is then ±0.71 whatever the teacher says, so it is refused there.
        squared: multiply by T², which keeps the size of the gradient, that falls as 1/T², next to that of the hard
            labels (arXiv:1503.02531, section 2). False is for work that prints its loss without it.
        **kwargs: see `Loss`.
    """

    def __init__(self, *, standardize=False, squared=True, **kwargs):
        super().__init__(**kwargs)
        self.standardize = self._switch("standardize", standardize)
        self.squared = self._switch("squared", squared)

    #: Hyperparameters of parts that say nothing of two classes, and why: key → reason.
    void_for_two = {}

    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        if student_shape is not None and student_shape["logits"][-1] == 2:
            if self.standardize:
                raise InputError(
                    f"{self.name}(standardize=True) is void for two classes: every standardised logit is ±0.71, "
                    "whatever the teacher says; leave standardize out"
                )
            for key, why in self.void_for_two.items():
                if value := getattr(self, key):
                    raise InputError(
                        f"{self.name}({key}={value}) is void for two classes: {why}; write {key}=0, or take kd"
                    )
        self.built = True

    def prepared(self, student, teacher):
        """The student's and the teacher's logits, each (B, K)."""
        z_s, z_t = student["logits"], teacher["logits"]
        return (standardize(z_s), standardize(z_t)) if self.standardize else (z_s, z_t)

    def get_config(self):
        return {**super().get_config(), "standardize": self.standardize, "squared": self.squared}


class ResponseLoss(LogitLoss):
    """A term on logits softened by a temperature; the base of ``kd``, ``soft_ce``, ``dkd`` …

    Args:
        temperature: T > 0, a number or a schedule.
        **kwargs: see `LogitLoss`.
    """

    def __init__(self, *, temperature=4.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = self._schedule("temperature", temperature, positive=True)

    def softened(self, student, teacher):
        """The factor of the term (T², or 1), and both log-softmax(z / T), each (B, K)."""
        z_s, z_t = self.prepared(student, teacher)
        temperature = self.now(self.temperature)
        factor = temperature**2 if self.squared else 1.0
        return factor, ops.log_softmax(z_s / temperature), ops.log_softmax(z_t / temperature)


def divergence(log_p_t, log_p_s):
    """KL(p_t ‖ p_s) of log-probabilities (B, K), (B,)."""
    return ops.sum(ops.exp(log_p_t) * (log_p_t - log_p_s), axis=-1)


def target(labels, num_classes):
    """(B, K) booleans, true at a sample's class; of class weights, at the largest."""
    return ops.one_hot(label_forms.classes(labels), num_classes, dtype="bool")


def split(log_p, target):
    """Log-probabilities (B, K) of all classes as those of the target and of the others.

    Returns:
        log p^y (B,), log(1 − p^y) (B,), and the others' log-probabilities among themselves (B, K); at the target the
        last mean nothing.
    """
    own = ops.sum(ops.where(target, log_p, 0.0), axis=-1)
    # Not log(1 − exp(own)), of which nothing is left where the target is sure.
    others = ops.where(target, -1e30, log_p)
    rest = ops.logsumexp(others, axis=-1)
    # At the target no more than at the others: where it is sure, its exponential would overflow.
    return own, rest, others - rest[:, None]


def unit(x, axis, least=1e-8):
    """Vectors along an axis with L2 norm 1; 0, and without a gradient, where the norm is below ``least``."""
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.where(square > least**2, ops.rsqrt(ops.maximum(square, least**2)), 0.0)


def kept(layer, name, shape, initializer="zeros"):
    """A weight of a layer that is not trained, the same on every replica, which each of them writes alike."""
    return layer.add_weight(
        name=name, shape=shape, initializer=initializer, trainable=False, aggregation="only_first_replica"
    )


def summed(x):
    """The sum of a tensor over the replicas, for what is not differentiated."""
    return replicas.total(x)


def gathered(x):
    """A tensor (B, …) of this replica with those of all others behind it, in one order on each; differentiable."""
    return replicas.gather(x)
