"""Cross-entropy with the teacher's soft targets."""

from typing import Any

import keras
from keras import ops

from kd_keras.losses.base import ResponseLoss
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="SoftCE")
class SoftCE(ResponseLoss):
    """−T² · Σ_k softmax(z_t / T)_k log softmax(z_s / T)_k: `KD` plus the teacher's entropy, with the same gradient.

    Args:
        weight: factor in the total, applied by the Distiller.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply by T², see `LogitLoss`.
        **kwargs: see `Loss`.

    Returns:
        (B,) values; the minimum is T² times the entropy of the teacher's softened distribution.

    Reference: Hinton et al., arXiv:1503.02531, section 2.
    """

    reads_labels = False

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        temperature: ScheduleLike = 1.0,
        standardize: bool = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        return -factor * ops.sum(ops.exp(log_p_t) * log_p_s, axis=-1)
