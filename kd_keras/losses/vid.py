"""Variational information distillation: the student's features predict the teacher's, with a learned variance."""

import math

import keras
from keras import ops

from kd_keras.losses.features import FeatureLoss, mean_over_features, resize

_MIN_VARIANCE = 1e-5
_INITIAL_VARIANCE = 5.0


@keras.saving.register_keras_serializable(package="kd_keras", name="VID")
class VID(FeatureLoss):
    """Σ over pairs of mean ½[(μ(F_s) − F_t)² / σ² + log σ²].

    μ is three 1×1 convolutions with ReLUs between them; σ² = softplus(v) + 1e-5 is one number per channel of the
    teacher's map, 5 at the start. Both are trained.

    Args:
        weight: factor in the total, applied by the Distiller; 1 in the CIFAR-100 benchmarks.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default all stages, matched from the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values of any sign: where μ(F_s) = F_t, the mean of ½ log σ². The student's map is resized to the teacher's
        grid.

    Reference: Ahn et al., arXiv:1904.05835, equations 5 and 6.
    """

    reads_labels = False

    def adapter(self, source, target, name):
        gaussian = Gaussian(target[-1], target[1:3], name=name)
        gaussian.build(source)
        return gaussian

    def compare(self, student, teacher, adapter, training):
        mean, variance = adapter(student)
        return mean_over_features(0.5 * (ops.square(mean - teacher) / variance + ops.log(variance)))


@keras.saving.register_keras_serializable(package="kd_keras", name="VIDGaussian")
class Gaussian(keras.layers.Layer):
    """Predicts a teacher's map from a student's map (B, h, w, c): mean (B, H, W, C) and variance (C,).

    Args:
        channels: C.
        grid: (H, W).
    """

    def __init__(self, channels, grid, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.channels, self.grid = channels, tuple(grid)
        self.layers = [
            keras.layers.Conv2D(channels, 1, activation=activation, name=f"mean{i + 1}", dtype="float32")
            for i, activation in enumerate(("relu", "relu", None))
        ]

    def build(self, shape):
        for layer in self.layers:
            layer.build(shape)
            shape = (*shape[:-1], self.channels)
        start = math.log(math.expm1(_INITIAL_VARIANCE - _MIN_VARIANCE))
        self.spread = self.add_weight(
            name="spread", shape=(self.channels,), initializer=keras.initializers.Constant(start)
        )
        self.built = True

    def call(self, features):
        x = resize(features, self.grid)
        for layer in self.layers:
            x = layer(x)
        return x, ops.softplus(self.spread) + _MIN_VARIANCE

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "grid": self.grid}
