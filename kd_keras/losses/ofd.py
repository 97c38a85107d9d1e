"""Overhaul of feature distillation: pre-activations, a margin for the teacher's negatives, a partial distance."""

import keras
from keras import ops

from kd_keras.losses import base as _base
from kd_keras.losses import features as _features


@keras.saving.register_keras_serializable(package="kd_keras", name="OFD")
class OFD(_features.FeatureLoss):
    """Σ over pairs of mean d(max(F_t, m), r(F_s)) on pre-activations; d is 0 where r(F_s) ≤ the other ≤ 0.

    Elsewhere d is the squared difference. r is a 1×1 convolution and batch norm; m is, a channel, the mean of the
    teacher's negative pre-activations, over all that were seen in training so far.

    Args:
        weight: factor in the total, applied by the Distiller.
        pairs: ``'stage1_pre:stage1_pre'``, student:teacher; by default all stages before their activation, matched from
            the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the student's agree, or are as negative as the teacher's or more. Where the grids differ,
        the student's map goes on the teacher's.

    Source: Heo et al., arXiv:1904.01866, equations 2 to 5. There m comes from the batch norm before the activation,
    taken for a Gaussian, or is estimated on data, as here; and the sum over the neurons is taken, with the stages
    weighing 1, ½, ¼ … from the last, where here is the mean of each stage.
    """

    ending = "_pre"

    def adapter(self, source, target, name):
        connector = Margin(target[-1], target[1:3], name=name)
        connector.build(source)
        return connector

    def compare(self, student, teacher, adapter, training):
        s = adapter(student, training=training)
        t = ops.maximum(teacher, adapter.margin(teacher, training))
        counts = ops.logical_or(s > t, t > 0)
        return _features.mean_over_features(ops.where(counts, ops.square(t - s), 0.0))


@keras.saving.register_keras_serializable(package="kd_keras", name="OFDMargin")
class Margin(_features.FeatureProjector):
    """The student's connector, and the mean of the teacher's negative values a channel.

    Args:
        channels: of the teacher's map.
        grid: (height, width) of the teacher's map.
    """

    def __init__(self, channels, grid, **kwargs):
        super().__init__(channels, grid, **{**kwargs, "batch_norm": True, "relu": False})

    def build(self, shape):
        super().build(shape)
        self.total, self.count = (
            _base.kept(self, name, (self.channels,)) for name in ("negative_total", "negative_count")
        )

    def margin(self, teacher, training):
        """(C,) means of the negatives seen so far, this batch's too; 0 where there was none."""
        negative = teacher < 0
        total = self.total + _base.summed(ops.sum(ops.where(negative, teacher, 0.0), axis=(0, 1, 2)))
        count = self.count + _base.summed(ops.sum(ops.cast(negative, "float32"), axis=(0, 1, 2)))
        if training:
            self.total.assign(total)
            self.count.assign(count)
        return total / ops.maximum(count, 1.0)
