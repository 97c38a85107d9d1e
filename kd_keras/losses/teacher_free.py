"""Teacher-free knowledge distillation: an earlier copy of the student, or a virtual teacher."""

from typing import Any, Literal

import keras
from keras import ops

from kd_keras.errors import InputError, is_number, plain
from kd_keras.losses import labels as label_forms
from kd_keras.losses.base import ResponseLoss, divergence
from kd_keras.schedules import ScheduleLike

KINDS = ("self", "reg")


@keras.saving.register_keras_serializable(package="kd_keras", name="TeacherFree")
class TeacherFree(ResponseLoss):
    """(1 − α)·CE + α·T²·KL(p̃ ‖ softmax(z_s / T)), which includes the hard labels' part.

    With ``kind='self'``, p̃ is softmax(z_t / T) of a teacher of the student's architecture that was trained alone. With
    ``kind='reg'`` (regularisation) there is no teacher: p̃ is that of a virtual teacher that gives the label 0.99 and
    shares the rest evenly, softened like any other.

    Args:
        weight: factor in the total, applied by the Distiller.
        kind: ``'reg'`` or ``'self'``.
        alpha: α; by default 0.1 for ``reg`` and 0.95 for ``self``.
        temperature: T > 0, a number or a schedule; by default 20 for ``reg`` and 6 for ``self``.
        correct: the virtual teacher's probability of the label.
        standardize: standardise the logits first (arXiv:2403.01427); for ``self`` only.
        squared: whether to multiply by T², see `LogitLoss`.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, at least 0.

    Raises:
        InputError: the kind is unknown, or a value is out of range.

    Reference: Yuan et al., arXiv:1909.11723, equations 8 and 10. T² is not printed there; without it the term vanishes
    at T = 20. The authors' code for ``reg`` differs from equation 10, which is what is computed here: it softens the
    virtual teacher's *probabilities* as if they were logits, leaves the student unsoftened, and averages over the
    classes, which its factors of 50 and 100 compensate.
    """

    reads_labels = True
    search = {**ResponseLoss.search, "temperature": "2..40 log"}

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        kind: Literal["self", "reg"] = "reg",
        alpha: float | None = None,
        temperature: ScheduleLike | None = None,
        correct: float = 0.99,
        standardize: bool = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"teacher_free(kind={kind!r}): known are {', '.join(KINDS)}")
        if temperature is None:
            temperature = 20.0 if kind == "reg" else 6.0
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)
        self.kind = kind
        self.alpha = self._factor("alpha", (0.1 if kind == "reg" else 0.95) if alpha is None else alpha)
        if self.alpha > 1:
            raise InputError(f"{self.name}(alpha={alpha}): it is the share of the softened part: give at most 1")
        correct = plain(correct)
        if not is_number(correct) or not 0 < correct < 1:
            raise InputError(f"{self.name}(correct={correct!r}): give a probability between 0 and 1, such as 0.99")
        if kind == "reg" and standardize:
            raise InputError(f"{self.name}(standardize=True) has no effect with kind='reg': a virtual teacher has none")
        self.correct = correct

    def taps(self, student, teacher):
        return ("logits",), ("logits",) if self.kind == "self" else ()

    def call(self, student, teacher, labels):
        if self.kind == "reg":
            teacher = {"logits": self._virtual_logits(labels, student["logits"].shape[-1])}
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        soft = factor * divergence(log_p_t, log_p_s)
        return (1 - self.alpha) * label_forms.cross_entropy(labels, student["logits"]) + self.alpha * soft

    def _virtual_logits(self, labels, num_classes):
        """Logits (B, K) whose softmax at T = 1 is the virtual teacher's distribution: its log-probabilities."""
        weights = label_forms.class_weights(labels, num_classes)
        rest = (1 - self.correct) / (num_classes - 1)
        return ops.log(weights * (self.correct - rest) + rest)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "alpha": self.alpha, "correct": self.correct}
