"""Knowledge distillation by softened class probabilities."""

from typing import Any

import keras

from kd_keras.losses.base import ResponseLoss, divergence
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="KD")
class KD(ResponseLoss):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)).

        losses = [kd_keras.losses.CE(weight=0.1), kd_keras.losses.KD(weight=0.9, temperature=4.0)]

    Args:
        weight: factor in the total, applied by the Distiller; 0.9 with 0.1·CE on CIFAR-100.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427, where T is 2 and the weight 9).
        squared: whether to multiply by T², see `LogitLoss`.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where both softened distributions are equal.

    Reference: Hinton et al., arXiv:1503.02531, section 2.
    """

    reads_labels = False

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        temperature: ScheduleLike = 4.0,
        standardize: bool = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        return factor * divergence(log_p_t, log_p_s)
