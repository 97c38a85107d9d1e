"""DIST: the student's probabilities correlate with the teacher's, within each sample and within each class."""

from typing import Any

import keras
from keras import ops

from kd_keras._compat import replicas
from kd_keras.losses.base import ResponseLoss, unit_norm
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="DIST")
class DIST(ResponseLoss):
    """τ²·[β·(1 − ρ(row b)) + γ·(1 − mean over classes of ρ(column))], ρ Pearson's correlation of softmax(z / τ).

    Args:
        weight: factor in the total, applied by the Distiller; 2 with 1·CE on CIFAR-100.
        beta: β, of the relations among classes, within a sample.
        gamma: γ, of the relations among samples, within a class.
        temperature: τ > 0, a number or a schedule; 4 on CIFAR-100, 1 on ImageNet.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply by τ².
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where student and teacher are equal. Each contains the mean over classes, a statistic of the
        (global) batch. A column or row that is constant counts as uncorrelated.

    Raises:
        InputError: there are two classes and β > 0: ρ of two probabilities is ±1, whatever they are.

    Reference: Huang et al., arXiv:2205.10536, equations 8 to 10; defaults of section 4.
    """

    compares_samples = True
    void_for_two = {"beta": "the correlation of two numbers with two others is ±1"}

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: ScheduleLike = 4.0,
        standardize: bool = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)
        self.beta, self.gamma = self._factor("beta", beta), self._factor("gamma", gamma)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        p_s, p_t = ops.exp(log_p_s), ops.exp(log_p_t)
        rows = 1 - _correlation(p_s, p_t, axis=-1)
        columns = 1 - ops.mean(_correlation(replicas.gather(p_s), replicas.gather(p_t), axis=0))
        return factor * (self.beta * rows + self.gamma * columns)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta, "gamma": self.gamma}


def _correlation(a, b, axis):
    a, b = (unit_norm(x - ops.mean(x, axis=axis, keepdims=True), axis) for x in (a, b))
    return ops.sum(a * b, axis=axis)
