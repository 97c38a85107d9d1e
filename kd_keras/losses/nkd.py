"""Normalised knowledge distillation: the target class by its soft label, the others normalised among themselves."""

import keras
from keras import ops

from kd_keras.losses import base as _base


@keras.saving.register_keras_serializable(package="kd_keras", name="NKD")
class NKD(_base.ResponseLoss):
    """−p_t^y log p_s^y − γ·λ²·Σ_{i≠y} p̂_t^i log p̂_s^i.

    The first term is at temperature 1; p̂ is the softmax of z / λ over all classes but the label y.

    Args:
        weight: factor in the total, applied by the Distiller; 1 beside 1·CE.
        temperature: λ > 0, a number or a schedule; 3 on CIFAR-100.
        gamma: γ; 3.5 on CIFAR-100. 0 leaves the second term out.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply the second term by λ².
        **kwargs: see `Loss`.

    Returns:
        (B,) values. At p_s = p_t the second term is at its least, γλ² times the teacher's entropy over the other
        classes; the first has its least, 0, at p_s^y = 1. Of labels that are class weights, y is the largest.

    Raises:
        InputError: two classes with γ > 0: a softmax over one class is 1, and the second term 0.

    Source: Yang et al., arXiv:2303.13005, equation 9; defaults of section 4.
    """

    one_temperature = False
    void_for_two = {"gamma": "a softmax over the one other class is 1"}

    def __init__(self, *, weight=1.0, temperature=1.0, gamma=1.5, standardize=False, squared=True, **kwargs):
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)
        self.gamma = self._factor("gamma", gamma)

    def call(self, student, teacher, labels):
        z_s, z_t = self.prepared(student, teacher)
        target = _base.target(labels, z_t.shape[-1])
        own_s, own_t = (_base.split(ops.log_softmax(z), target)[0] for z in (z_s, z_t))
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        others_s, others_t = (_base.split(x, target)[2] for x in (log_p_s, log_p_t))
        of_others = ops.sum(ops.where(target, 0.0, ops.exp(others_t) * others_s), axis=-1)
        return -ops.exp(own_t) * own_s - self.gamma * factor * of_others

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}
