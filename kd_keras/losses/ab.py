"""Activation boundaries: which neurons are active, not how strongly."""

from typing import Any

import keras
from keras import ops

from kd_keras.losses.features import FeatureLoss, FeatureProjector, mean_over_features
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="AB")
class AB(FeatureLoss):
    """Σ over pairs of mean [t > 0]·max(0, m − r(s))² + [t ≤ 0]·max(0, m + r(s))² on pre-activations s and t.

    r is a connector: 1×1 convolution and batch norm.

    Args:
        weight: factor in the total, applied by the Distiller. The paper pretrains by this loss alone and then trains
            without it: `Distiller.pretrain`.
        margin: m.
        pairs: ``'stage1_pre:stage1_pre'``, student:teacher; by default all stages before their activation, matched from
            the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where every r(s) is beyond the margin on the teacher's side. The student's map is resized to the
        teacher's grid.

    Raises:
        InputError: the margin is below 0, or a model has no taps before the activation (its family says so).

    Reference: Heo et al., arXiv:1811.03233, equation 6. There the sum over the neurons is taken, and the stages are
    weighted 1, ½, ¼ … from the last; here the mean of each stage.
    """

    reads_labels = False
    pretrains = True
    ending = "_pre"

    def __init__(
        self, *, weight: ScheduleLike = 1.0, margin: float = 1.0, pairs: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.margin = self._factor("margin", margin)

    def adapter(self, source, target, name):
        connector = FeatureProjector(target[-1], target[1:3], batch_norm=True, name=name)
        connector.build(source)
        return connector

    def compare(self, student, teacher, adapter, training):
        s = adapter(student, training=training)
        below, above = ops.relu(self.margin - s), ops.relu(self.margin + s)
        return mean_over_features(ops.where(teacher > 0, ops.square(below), ops.square(above)))

    def get_config(self):
        return {**super().get_config(), "margin": self.margin}
