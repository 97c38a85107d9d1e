"""Knowledge distillation by softened class probabilities."""

import keras
from keras import ops

from kd_keras.losses import _base


@keras.saving.register_keras_serializable(package="kd_keras", name="KD")
class KD(_base.ResponseLoss):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)).

    T² keeps the size of the gradient, which falls as 1/T², next to that of the hard labels.

    Args:
        weight: factor in the total, applied by the Distiller; 0.9 beside 0.1·CE on CIFAR-100.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427; there T is 2 and the weight 9).
        **kwargs: see `DistillationLoss`.

    Returns:
        (B,) values, 0 where both softened distributions are equal.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """

    def __init__(self, *, weight=1.0, temperature=4.0, standardize=False, **kwargs):
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, **kwargs)

    def call(self, student, teacher, labels):
        temperature, log_p_s, log_p_t = self.softened(student, teacher)
        return temperature**2 * ops.sum(ops.exp(log_p_t) * (log_p_t - log_p_s), axis=-1)


build = KD
