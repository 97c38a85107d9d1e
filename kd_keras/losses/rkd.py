"""Relational knowledge distillation: distances between two samples, and angles among three."""

from typing import Any

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses.base import unit_norm
from kd_keras.losses.relations import RelationalLoss
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="RKD")
class RKD(RelationalLoss):
    """Σ over pairs of distance·L(d_t, d_s) + angle·L(a_t, a_s), L the Huber loss (δ = 1), averaged.

    d_ij is ‖f_i − f_j‖ divided by the mean of those above 0; a_ijk the cosine of the angle at j between f_i and f_k.

    Args:
        weight: factor in the total, applied by the Distiller; 1 in the CIFAR-100 benchmarks.
        distance: factor of the distances.
        angle: factor of the angles, whose cost grows with B³; 0 leaves them out.
        pairs: ``'pooled:pooled'``, student:teacher; by default the pooled features.
        **kwargs: see `Loss`.

    Returns:
        A scalar, a statistic of the (global) batch: the mean over B² pairs and B³ triples, including those that repeat
        a sample; 0 where distances and angles are equal.

    Raises:
        InputError: a factor is below 0, or both are 0.

    Reference: Park et al., arXiv:1904.05068, equations 4 to 8; the factors of section 4.
    """

    reads_labels = False

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        distance: float = 25.0,
        angle: float = 50.0,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.distance_factor, self.angle_factor = self._factor("distance", distance), self._factor("angle", angle)
        if self.distance_factor == self.angle_factor == 0:
            raise InputError(f"{self.name}(distance=0, angle=0) is always 0: give one of them")

    def relation(self, features):
        difference = features[:, None] - features[None]
        square = ops.sum(ops.square(difference), axis=-1)
        apart = square > 1e-12
        # The square root has no gradient at 0, the distance of a sample to itself.
        distance = ops.where(apart, ops.sqrt(ops.maximum(square, 1e-12)), 0.0)
        count = ops.maximum(ops.sum(ops.cast(apart, "float32")), 1.0)
        scaled = distance / ops.maximum(ops.sum(distance) / count, 1e-12)
        if not self.angle_factor:
            return scaled, None
        direction = unit_norm(difference, axis=-1, least=1e-6)
        return scaled, ops.einsum("ijd,ikd->ijk", direction, direction)

    def distance(self, student, teacher):
        total = self.distance_factor * _huber(student[0] - teacher[0])
        return total + self.angle_factor * _huber(student[1] - teacher[1]) if self.angle_factor else total

    def get_config(self):
        return {**super().get_config(), "distance": self.distance_factor, "angle": self.angle_factor}


def _huber(difference):
    size = ops.abs(difference)
    return ops.mean(ops.where(size < 1, 0.5 * ops.square(difference), size - 0.5))
