"""Normalised knowledge distillation: the target class by its soft label, the other classes among themselves."""

from typing import Any

import keras
from keras import ops

from kd_keras.losses.base import ResponseLoss, split_target, target_mask
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="NKD")
class NKD(ResponseLoss):
    """−p_t^y log p_s^y − γ·λ²·Σ_{i≠y} p̂_t^i log p̂_s^i.

    The first term is at temperature 1; p̂ is the softmax of z / λ over all classes but the label y.

    Args:
        weight: factor in the total, applied by the Distiller; 1 with 1·CE.
        temperature: λ > 0, a number or a schedule; 3 on CIFAR-100.
        gamma: γ; 3.5 on CIFAR-100. 0 leaves the second term out.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply the second term by λ².
        **kwargs: see `Loss`.

    Returns:
        (B,) values. At p_s = p_t the second term has its minimum, γλ² times the teacher's entropy over the other
        classes; the first has its minimum, 0, at p_s^y = 1. Of labels that are class weights, y is the largest.

    Raises:
        InputError: there are two classes and γ > 0: a softmax over one class is 1, and the second term 0.

    Reference: Yang et al., arXiv:2303.13005, equation 9; defaults of section 4.
    """

    reads_labels = True
    one_temperature = False
    void_for_two = {"gamma": "a softmax over the one other class is 1"}
    search = {**ResponseLoss.search, "gamma": "x0.25..x4 log"}

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        temperature: ScheduleLike = 1.0,
        gamma: float = 1.5,
        standardize: bool = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)
        self.gamma = self._factor("gamma", gamma)

    def call(self, student, teacher, labels):
        z_s, z_t = self.prepared(student, teacher)
        mask = target_mask(labels, z_t.shape[-1])
        target_s, target_t = (split_target(ops.log_softmax(z), mask)[0] for z in (z_s, z_t))
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        others_s, others_t = (split_target(x, mask)[2] for x in (log_p_s, log_p_t))
        of_others = ops.sum(ops.where(mask, 0.0, ops.exp(others_t) * others_s), axis=-1)
        return -ops.exp(target_t) * target_s - self.gamma * factor * of_others

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}
