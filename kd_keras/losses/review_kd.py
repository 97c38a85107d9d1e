"""Knowledge review: each stage of the teacher teaches a fusion of the student's stages from there to the last."""

from typing import Any

import keras
from keras import ops

from kd_keras.losses.features import (
    FeatureLoss,
    average_pool,
    batch_norm_layer,
    match_from_end,
    mean_over_features,
    resize_nearest,
)
from kd_keras.schedules import ScheduleLike

_POOLS = (4, 2, 1)


@keras.saving.register_keras_serializable(package="kd_keras", name="ReviewKD")
class ReviewKD(FeatureLoss):
    """Σ over stages of HCL(fused student stage, teacher's stage).

    From the last stage backwards, the student's map (1×1 convolution, batch norm, to at most 512 channels) is fused
    with the result of the following stage, resized to its grid: two sigmoid attention maps weight the two. A 3×3
    convolution with batch norm gives the teacher's channels. HCL is the mean squared error of the maps and, with
    weights ½, ¼, ⅛, of both maps averaged to 4×4, 2×2 and 1×1, where they are larger, divided by the weights' sum.

    Args:
        weight: factor in the total, applied by the Distiller; 0.6 to 8 by the pair of networks in the CIFAR-100
            benchmarks, over 20 epochs of warm-up: ``weight=warmup(to=1.0, over=20)``.
        width: maximum number of channels of the fused maps.
        pairs: ``'stage1:stage1,stage2:stage2'``, student:teacher, in the order of depth; by default all stages, matched
            from the last, before their activation where both have such taps, and the pooled features, which count as a
            map of one pixel, where both have them.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the fused maps are equal to the teacher's. The fused map is resized to the teacher's grid.

    Reference: Chen et al., arXiv:2104.09044, sections 3.2 to 3.4; maps before the activation, and the pooled features
    as one of them, are those of the authors' code.
    """

    reads_labels = False
    takes = ("map", "vector")

    def __init__(
        self, *, weight: ScheduleLike = 1.0, width: int = 512, pairs: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.width = self._count("width", width)

    def default_pairs(self, student, teacher):
        before = all(any(name.endswith("_pre") for name in names) for names in (student, teacher))
        pairs = match_from_end(student, teacher, "_pre" if before else "")
        both = "pooled" in student and "pooled" in teacher
        return (*pairs, ("pooled", "pooled")) if both else pairs

    def build(self, student_shape, teacher_shape, labels_shape=None):
        self._width = None
        super().build(student_shape, teacher_shape)

    def adapter(self, source, target, name):
        source, target = (shape if len(shape) == 4 else (None, 1, 1, shape[-1]) for shape in (source, target))
        if self._width is None:
            last = self._shapes[0][self.pairs[-1][0]]
            self._width = min(self.width, last[-1])
        fusion = Fusion(self._width, target[-1], target[1:3], last=name == "_".join(self.pairs[-1]), name=name)
        fusion.build(source)
        return fusion

    def call(self, student, teacher, labels, training=None):
        total, following = 0.0, None
        for (s, t), adapter in zip(self.pairs[::-1], self.adapters[::-1], strict=True):
            fused, following = adapter(_as_map(student[s]), following, training=training)
            total += hcl(fused, _as_map(teacher[t]))
        return total

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def _as_map(x):
    return x if len(x.shape) == 4 else x[:, None, None, :]


def hcl(a, b):
    """Hierarchical context loss (B,) of two maps (B, H, W, C)."""
    total, sizes, factor = mean_over_features(ops.square(a - b)), 1.0, 1.0
    for size in _POOLS:
        if size >= a.shape[1]:
            continue
        factor /= 2
        pooled = (average_pool(x, (size, size)) for x in (a, b))
        total += factor * mean_over_features(ops.square(next(pooled) - next(pooled)))
        sizes += factor
    return total / sizes


@keras.saving.register_keras_serializable(package="kd_keras", name="ReviewKDFusion")
class Fusion(keras.layers.Layer):
    """Fuses a student's stage with the result of the following stage.

    Args:
        width: channels of the fused map.
        channels: of the teacher's map.
        grid: (height, width) of the teacher's map.
        last: whether no stage follows.
    """

    def __init__(self, width, channels, grid, last=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.width, self.channels, self.grid, self.last = width, channels, tuple(grid), last

    def build(self, shape):
        def conv(filters, size, name, shape, **kwargs):
            layer = keras.layers.Conv2D(filters, size, padding="same", name=name, dtype="float32", **kwargs)
            layer.build(shape)
            return layer

        def norm(filters, name):
            layer = batch_norm_layer(name=name)
            layer.build((*shape[:-1], filters))
            return layer

        inner = (*shape[:-1], self.width)
        self.enter, self.enter_norm = (
            conv(self.width, 1, "enter", shape, use_bias=False),
            norm(self.width, "enter_norm"),
        )
        self.leave = conv(self.channels, 3, "leave", inner, use_bias=False)
        self.leave_norm = norm(self.channels, "leave_norm")
        if not self.last:
            self.attend = conv(2, 1, "attend", (*shape[:-1], 2 * self.width), activation="sigmoid")
        self.built = True

    def call(self, features, following=None, training=None):
        """The map to compare with the teacher's, and the fused map for the preceding stage."""
        x = self.enter_norm(self.enter(features), training=training)
        if not self.last:
            following = resize_nearest(following, x.shape[1:3])
            weights = self.attend(ops.concatenate([x, following], axis=-1))
            x = x * weights[..., :1] + following * weights[..., 1:]
        out = resize_nearest(x, self.grid)
        return self.leave_norm(self.leave(out), training=training), x

    def get_config(self):
        options = {"width": self.width, "channels": self.channels, "grid": self.grid, "last": self.last}
        return {**super().get_config(), **options}
