"""Activation boundaries: which neurons are active, not by how much."""

import keras
from keras import ops

from kd_keras.losses import features as _features


@keras.saving.register_keras_serializable(package="kd_keras", name="AB")
class AB(_features.FeatureLoss):
    """Σ over pairs of mean [t > 0]·max(0, m − r(s))² + [t ≤ 0]·max(0, m + r(s))² on pre-activations s and t.

    r is a connector: 1×1 convolution and batch norm.

    Args:
        weight: factor in the total, applied by the Distiller. The paper trains by this term alone first, and then
            without it: `Distiller.pretrain`.
        margin: m.
        pairs: ``'stage1_pre:stage1_pre'``, student:teacher; by default all stages before their activation, matched from
            the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where every r(s) is beyond the margin on the teacher's side. Where the grids differ, the
        student's map goes on the teacher's.

    Raises:
        InputError: a margin below 0; or a model has no taps before the activation (its family says so).

    Source: Heo et al., arXiv:1811.03233, equation 6. There the sum over the neurons is taken, and the stages weigh
    1, ½, ¼ … from the last; here the mean of each stage.
    """

    pretrains = True
    ending = "_pre"

    def __init__(self, *, weight=1.0, margin=1.0, pairs=None, **kwargs):
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.margin = self._factor("margin", margin)

    def adapter(self, source, target, name):
        connector = _features.FeatureProjector(target[-1], target[1:3], batch_norm=True, name=name)
        connector.build(source)
        return connector

    def compare(self, student, teacher, adapter, training):
        s = adapter(student, training=training)
        below, above = ops.relu(self.margin - s), ops.relu(self.margin + s)
        return _features.mean_over_features(ops.where(teacher > 0, ops.square(below), ops.square(above)))

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
