"""Knowledge distillation by softened class probabilities."""

import keras

from kd_keras.losses import base as _base


@keras.saving.register_keras_serializable(package="kd_keras", name="KD")
class KD(_base.ResponseLoss):
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)).

    Args:
        weight: factor in the total, applied by the Distiller; 0.9 beside 0.1·CE on CIFAR-100.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427; there T is 2 and the weight 9).
        squared: whether to multiply by T², which keeps the size of the gradient, that falls as 1/T², next to that of
            the hard labels; False for work that prints its loss without it.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where both softened distributions are equal.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """

    def __init__(self, *, weight=1.0, temperature=4.0, standardize=False, squared=True, **kwargs):
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        return factor * _base.divergence(log_p_t, log_p_s)
