"""Correlation congruence: a Gaussian kernel between samples, by its Taylor series."""

import math
from typing import Any

import keras
from keras import ops

from kd_keras.losses.base import unit_norm
from kd_keras.losses.relations import RelationalLoss
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="CC")
class CC(RelationalLoss):
    """Σ over pairs of ‖C_t − C_s‖²_F / B², C_ij = e^(−2γ) Σ_{p ≤ order} (2γ)^p / p! · (f_iᵀf_j)^p, f of L2 norm 1.

    Args:
        weight: factor in the total, applied by the Distiller.
        gamma: γ of the kernel exp(−γ‖f_i − f_j‖²), which the series approximates.
        order: of the series.
        pairs: ``'pooled:pooled'``, student:teacher; by default the pooled features.
        **kwargs: see `Loss`.

    Returns:
        A scalar, a statistic of the (global) batch; 0 where the correlations are equal.

    Raises:
        InputError: a value is out of range.

    Reference: Peng et al., arXiv:1904.01802, equations 4 to 7, γ 0.4 and order 2. A public benchmark's file of this
    name computes something else, and its weight of 0.02 is for that.
    """

    reads_labels = False

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        gamma: float = 0.4,
        order: int = 2,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.gamma, self.order = self._factor("gamma", gamma), self._count("order", order)

    def relation(self, features):
        features = unit_norm(features, axis=-1)
        cosines = features @ ops.transpose(features)
        series = sum((2 * self.gamma) ** p / math.factorial(p) * cosines**p for p in range(1, self.order + 1))
        return math.exp(-2 * self.gamma) * (1 + series)

    def distance(self, student, teacher):
        return ops.mean(ops.square(student - teacher))

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma, "order": self.order}
