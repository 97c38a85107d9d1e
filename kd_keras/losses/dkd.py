"""Decoupled knowledge distillation: the target class and the other classes, weighted apart."""

import keras
from keras import ops

from kd_keras.losses import base as _base


@keras.saving.register_keras_serializable(package="kd_keras", name="DKD")
class DKD(_base.ResponseLoss):
    """α·T²·TCKD + β·T²·NCKD.

    With p = softmax(z / T) and y the label, TCKD is KL([p_t^y, 1 − p_t^y] ‖ [p_s^y, 1 − p_s^y]) and NCKD the KL between
    the softmaxes over all classes but y. KD is TCKD + (1 − p_t^y)·NCKD: it silences NCKD where the teacher is sure.

    Args:
        weight: factor in the total, applied by the Distiller; 1 beside 1·CE, over 20 epochs of warm-up:
            ``weight=warmup(to=1.0, over=20)``.
        alpha: α, of the target class.
        beta: β, of the others: 2, 6 or 8 in the paper, more for a surer teacher. 0 leaves NCKD out.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply by T².
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where both softened distributions are equal. Of labels that are class weights, y is the largest.

    Raises:
        InputError: two classes with β > 0: NCKD is a softmax over one class, identically 0.

    Source: Zhao et al., arXiv:2203.08679, equation 7; defaults of section 4.
    """

    void_for_two = {"beta": "a softmax over the one other class is 1"}

    def __init__(self, *, weight=1.0, alpha=1.0, beta=8.0, temperature=4.0, standardize=False, squared=True, **kwargs):
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)
        self.alpha, self.beta = self._factor("alpha", alpha), self._factor("beta", beta)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        target = _base.target(labels, log_p_t.shape[-1])
        (own_s, rest_s, others_s), (own_t, rest_t, others_t) = (_base.split(x, target) for x in (log_p_s, log_p_t))
        of_target = ops.exp(own_t) * (own_t - own_s) + ops.exp(rest_t) * (rest_t - rest_s)
        of_others = ops.sum(ops.where(target, 0.0, ops.exp(others_t) * (others_t - others_s)), axis=-1)
        return factor * (self.alpha * of_target + self.beta * of_others)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
