"""Decoupled knowledge distillation: the target class and the other classes are weighted separately."""

from typing import Any

import keras
from keras import ops

from kd_keras.losses.base import ResponseLoss, divergence, split_target, target_mask
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="DKD")
class DKD(ResponseLoss):
    """α·T²·TCKD + β·T²·NCKD.

    With p = softmax(z / T) and y the label, TCKD is KL([p_t^y, 1 − p_t^y] ‖ [p_s^y, 1 − p_s^y]) and NCKD the KL between
    the softmaxes over all classes but y. KD is TCKD + (1 − p_t^y)·NCKD, so it suppresses NCKD where the teacher is
    certain.

    Args:
        weight: factor in the total, applied by the Distiller; 1 with 1·CE, after 20 epochs of warm-up:
            ``weight=warmup(to=1.0, over=20)``.
        alpha: α, of the target class.
        beta: β, of the other classes: 2, 6 or 8 in the paper, larger for a more certain teacher. 0 leaves NCKD out.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply by T², see `LogitLoss`.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where both softened distributions are equal. Of labels that are class weights, y is the largest.

    Raises:
        InputError: there are two classes and β > 0: NCKD is a softmax over one class, identically 0.

    Reference: Zhao et al., arXiv:2203.08679, equation 7; defaults of section 4.
    """

    reads_labels = True
    void_for_two = {"beta": "a softmax over the one other class is 1"}
    search = {**ResponseLoss.search, "beta": "x0.25..x4 log"}

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: ScheduleLike = 4.0,
        standardize: bool = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)
        self.alpha, self.beta = self._factor("alpha", alpha), self._factor("beta", beta)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        mask = target_mask(labels, log_p_t.shape[-1])
        (target_s, rest_s, others_s), (target_t, rest_t, others_t) = (split_target(x, mask) for x in (log_p_s, log_p_t))
        tckd = divergence(ops.stack([target_t, rest_t], axis=-1), ops.stack([target_s, rest_s], axis=-1))
        nckd = divergence(others_t, others_s)
        return factor * (self.alpha * tckd + self.beta * nckd)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
