"""Relational knowledge distillation: distances between two samples, and angles among three."""

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses import base as _base
from kd_keras.losses import relations as _relations


@keras.saving.register_keras_serializable(package="kd_keras", name="RKD")
class RKD(_relations.RelationalLoss):
    """Σ over pairs of distance·L(d_t, d_s) + angle·L(a_t, a_s), L the Huber loss (δ = 1), averaged.

    d_ij is ‖f_i − f_j‖ divided by the mean of those above 0; a_ijk the cosine of the angle at j between f_i and f_k.

    Args:
        weight: factor in the total, applied by the Distiller; 1 in the CIFAR-100 benchmarks.
        distance: factor of the distances.
        angle: factor of the angles, whose cost grows with B³; 0 leaves them out.
        pairs: ``'pooled:pooled'``, student:teacher; by default the pooled features.
        **kwargs: see `Loss`.

    Returns:
        A scalar, a statistic of the batch (of the global one where there are several replicas): the mean over B² pairs
        and B³ triples, those that repeat a sample too; 0 where distances and angles are equal.

    Raises:
        InputError: a factor below 0, or both 0.

    Source: Park et al., arXiv:1904.05068, equations 4 to 8; the factors of section 4.
    """

    def __init__(self, *, weight=1.0, distance=25.0, angle=50.0, pairs=None, **kwargs):
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.of_distance, self.of_angle = self._factor("distance", distance), self._factor("angle", angle)
        if self.of_distance == self.of_angle == 0:
            raise InputError(f"{self.name}(distance=0, angle=0) is always 0: give one of them")

    def relation(self, features):
        difference = features[:, None] - features[None]
        square = ops.sum(ops.square(difference), axis=-1)
        apart = square > 1e-12
        # The square root has no slope at 0, where a sample meets itself.
        distance = ops.where(apart, ops.sqrt(ops.maximum(square, 1e-12)), 0.0)
        count = ops.maximum(ops.sum(ops.cast(apart, "float32")), 1.0)
        scaled = distance / ops.maximum(ops.sum(distance) / count, 1e-12)
        if not self.of_angle:
            return scaled, None
        direction = _base.unit(difference, axis=-1, least=1e-6)
        return scaled, ops.einsum("ijd,ikd->ijk", direction, direction)

    def distance(self, student, teacher):
        total = self.of_distance * _huber(student[0] - teacher[0])
        return total + self.of_angle * _huber(student[1] - teacher[1]) if self.of_angle else total

    def get_config(self):
        return {**super().get_config(), "distance": self.of_distance, "angle": self.of_angle}


def _huber(difference):
    size = ops.abs(difference)
    return ops.mean(ops.where(size < 1, 0.5 * ops.square(difference), size - 0.5))
