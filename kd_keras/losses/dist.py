"""DIST: the student's probabilities correlate with the teacher's, within each sample and within each class."""

from typing import Any

import keras
from keras import ops

from kd_keras._compat import replicas
from kd_keras.losses.base import ResponseLoss
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
        (global) batch. A column or row that is constant counts as uncorrelated. ρ does not depend on the spread of
        the student's probabilities, so its gradient grows without bound as they become equal; below a spread of 3 % of
        their root mean square it is damped to at most that of 3 %.

    Raises:
        InputError: there are two classes and β > 0: ρ of two probabilities is ±1, whatever they are.

    Reference: Huang et al., arXiv:2205.10536, equations 8 to 10; defaults of section 4.
    """

    reads_labels = False
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
    return ops.sum(_direction(a, axis) * _direction(b, axis), axis=axis)


def _direction(p, axis):
    """Centred probabilities with norm 1; those that are equal but for rounding have none, and are 0."""
    centred = p - ops.mean(p, axis=axis, keepdims=True)
    square = ops.sum(ops.square(centred), axis=axis, keepdims=True)
    power = ops.sum(ops.square(p), axis=axis, keepdims=True) + 1e-20
    # Equal probabilities differ by 1e-7 of their size in float32.
    norm = ops.sqrt(square + 1e-10 * power)
    direction, spread = centred / norm, ops.minimum(norm / (0.03 * ops.sqrt(power)), 1.0)
    is_spread = ops.stop_gradient(square / ops.square(norm))
    damping = ops.stop_gradient(spread * ops.maximum(spread, 0.25))
    return damping * direction + ops.stop_gradient((is_spread - damping) * direction)
