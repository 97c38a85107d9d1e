"""Overhaul of feature distillation: pre-activations, a margin for the teacher's negatives, a partial distance."""

import keras
from keras import ops

from kd_keras._compat import replicas
from kd_keras.losses.base import add_state
from kd_keras.losses.features import FeatureLoss, FeatureProjector, mean_over_features


@keras.saving.register_keras_serializable(package="kd_keras", name="OFD")
class OFD(FeatureLoss):
    """Σ over pairs of mean d(max(F_t, m), r(F_s)) on pre-activations; d is 0 where r(F_s) ≤ max(F_t, m) ≤ 0.

    Elsewhere d is the squared difference. r is a 1×1 convolution and batch norm; m is, per channel, the mean of the
    teacher's negative pre-activations in all training batches so far.

    Args:
        weight: factor in the total, applied by the Distiller.
        pairs: ``'stage1_pre:stage1_pre'``, student:teacher; by default all stages before their activation, matched from
            the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the student's agree, or are as negative as the teacher's or more. The student's map is
        resized to the teacher's grid.

    Reference: Heo et al., arXiv:1904.01866, equations 2 to 5. There m comes from the batch norm before the activation,
    taken for a Gaussian, or is estimated on data, as here; and the sum over the neurons is taken, with the stages
    weighted 1, ½, ¼ … from the last, where here is the mean of each stage.
    """

    reads_labels = False
    ending = "_pre"

    def adapter(self, source, target, name):
        connector = Margin(target[-1], target[1:3], name=name)
        connector.build(source)
        return connector

    def compare(self, student, teacher, adapter, training):
        s = adapter(student, training=training)
        t = ops.maximum(teacher, adapter.margin(teacher, training))
        counts = ops.logical_or(s > t, t > 0)
        return mean_over_features(ops.where(counts, ops.square(t - s), 0.0))


@keras.saving.register_keras_serializable(package="kd_keras", name="OFDMargin")
class Margin(FeatureProjector):
    """The student's connector, and the mean of the teacher's negative values per channel.

    Args:
        channels: of the teacher's map.
        grid: (height, width) of the teacher's map.
    """

    def __init__(self, channels, grid, **kwargs):
        super().__init__(channels, grid, **{**kwargs, "batch_norm": True, "relu": False})

    def build(self, shape):
        super().build(shape)
        self.total, self.count = (
            add_state(self, name, (self.channels,)) for name in ("negative_total", "negative_count")
        )

    def margin(self, teacher, training):
        """(C,) means of the negatives so far, including this batch's; 0 where there was none."""
        negative = teacher < 0
        total = self.total + replicas.total(ops.sum(ops.where(negative, teacher, 0.0), axis=(0, 1, 2)))
        count = self.count + replicas.total(ops.sum(ops.cast(negative, "float32"), axis=(0, 1, 2)))
        if training:
            self.total.assign(total)
            self.count.assign(count)
        return total / ops.maximum(count, 1.0)
