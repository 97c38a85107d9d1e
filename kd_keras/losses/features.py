"""What losses on feature maps share: which stage of the student meets which of the teacher, and the projector."""

import math
import re
from collections.abc import Iterable

import keras
import numpy as np
from keras import ops

from kd_keras._compat import replicas
from kd_keras.errors import InputError
from kd_keras.losses import base as _base


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """``'stage1:stage1,stage2:stage3'`` as ((student, teacher), …).

    Raises:
        InputError: not of that form.
    """
    pairs = tuple(tuple(part.strip() for part in pair.split(":")) for pair in str(text).split(","))
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise InputError(f"pairs={text!r} cannot be read: write 'stage1:stage1,stage2:stage3', student:teacher")
    return pairs


def stages_in(names: Iterable[str], ending: str = "") -> list[str]:
    """Those of some taps that are stages (``stage1``, or with an ending ``stage1_pre``), from the first to the last."""
    matches = (re.fullmatch(rf"stage(\d+){ending}", name) for name in names)
    return [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]


def match_from_end(student: list[str], teacher: list[str], ending: str = "") -> tuple[tuple[str, str], ...]:
    """Pairs the stages of both from the last one backwards, in the order of depth.

    Args:
        student: taps on offer.
        teacher: taps on offer.
        ending: of the stages' names: ``'_pre'`` pairs ``stage1_pre``, ``stage2_pre`` …

    Raises:
        InputError: one of them offers no stage.
    """
    stages = []
    for whose, names in (("student", student), ("teacher", teacher)):
        found = stages_in(names, ending)
        if not found:
            raise InputError(
                f"the {whose} offers no stages (stage1{ending}, stage2{ending} …): name its taps by pairs='…:…'"
            )
        stages.append(found)
    count = min(map(len, stages))
    return tuple(zip(stages[0][-count:], stages[1][-count:], strict=True))


def require(whose: str, name: str, offered: list[str]) -> None:
    """Raises InputError where a tap is not on offer."""
    if name not in offered:
        shown = [n for n in offered if n in ("logits", "pooled") or n.startswith("stage")] or offered[-8:]
        raise InputError(f"the {whose} has no tap {name!r}: it offers {', '.join(shown)} and every other layer's name")


class FeatureLoss(_base.Loss):
    """A term that is a sum over pairs of taps, one of the student's and one of the teacher's.

    A subclass says what a pair's value is (`compare`), and what is trained for it (`adapter`).

    Args:
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default `default_pairs`.
        **kwargs: see `Loss`.

    Raises:
        InputError: a tap that does not exist, or two that cannot be compared.
    """

    #: What a pair may be: ``'map'`` (B, H, W, C), ``'vector'`` (B, D).
    takes = ("map",)
    #: Whether the paper trains by this term alone ahead of everything else.
    pretrains = False
    #: Of the names of the stages that are paired by default.
    ending = ""

    def __init__(self, *, weight=1.0, pairs=None, **kwargs):
        super().__init__(weight=weight, **kwargs)
        self.pairs = None if pairs is None else parse_pairs(pairs)

    def default_pairs(self, student: list[str], teacher: list[str]) -> tuple[tuple[str, str], ...]:
        """All stages, matched from the last."""
        return match_from_end(student, teacher, self.ending)

    def adapter(self, source: tuple, target: tuple, name: str) -> keras.layers.Layer | None:
        """What is trained for a pair of taps of these shapes (None, …), built; None for nothing."""
        return None

    def compare(self, student, teacher, adapter, training):
        """The value of a pair, (B,) or a scalar."""
        raise NotImplementedError

    def taps(self, student, teacher):
        if self.pairs is None:
            if teacher is None:
                return (), ()
            self.pairs = self.default_pairs(student, teacher)
        for name, _ in self.pairs:
            require("student", name, student)
        for _, name in self.pairs:
            if teacher is not None:
                require("teacher", name, teacher)
        return self._read()

    def _read(self):
        return tuple(dict.fromkeys(s for s, _ in self.pairs)), tuple(dict.fromkeys(t for _, t in self.pairs))

    def pretrain_taps(self):
        if not self.pretrains or self.pairs is None:
            return None
        return self._read()

    def pretrain(self, student, teacher, labels):
        """The value that is trained by ahead of everything else: by default this term's own."""
        return self(student, teacher, labels, training=True)

    def build(self, student_shape, teacher_shape, labels_shape=None):
        self.taps(list(student_shape), list(teacher_shape))
        self._shapes = ({s: student_shape[s] for s, _ in self.pairs}, {t: teacher_shape[t] for _, t in self.pairs})
        self.adapters = []
        for s, t in self.pairs:
            source, target = tuple(student_shape[s]), tuple(teacher_shape[t])
            self._check(s, source, t, target)
            self.adapters.append(self.adapter(source, target, f"{s}_{t}"))
        self.built = True

    def _check(self, s, source, t, target):
        forms = {2: "vector", 4: "map"}
        if len(source) != len(target) or forms.get(len(source)) not in self.takes:
            words = {"map": "both have to be maps (B, H, W, C)", "vector": "both vectors (B, D)"}
            wanted = ", or ".join(words[form] for form in self.takes)
            raise InputError(f"{self.name} cannot match {s} {source} with {t} {target}: {wanted}")
        if None in source[1:] or None in target[1:]:
            raise InputError(f"{self.name} needs to know the sizes of {s} {source} and {t} {target}: fix the input's")

    def call(self, student, teacher, labels, training=None):
        return sum(
            self.compare(student[s], teacher[t], adapter, training)
            for (s, t), adapter in zip(self.pairs, self.adapters, strict=True)
        )

    def get_config(self):
        pairs = None if self.pairs is None else ",".join(f"{s}:{t}" for s, t in self.pairs)
        return {**super().get_config(), "pairs": pairs}


def flat(features):
    """Features (B, …) as vectors (B, D)."""
    # The number of samples is left to the other sizes: a replica may have none.
    return ops.reshape(features, (ops.shape(features)[0], math.prod(features.shape[1:])))


def mean_over_features(x):
    """The mean of a tensor (B, …) over all but the samples, (B,)."""
    return ops.mean(x, axis=tuple(range(1, len(x.shape))))


def on_one_grid(a, b):
    """Two maps (B, H, W, C) on the smaller of their grids, each side by itself."""
    grid = tuple(min(sizes) for sizes in zip(a.shape[1:3], b.shape[1:3], strict=True))
    return resize(a, grid), resize(b, grid)


@keras.saving.register_keras_serializable(package="kd_keras", name="FeatureProjector")
class FeatureProjector(keras.layers.Layer):
    """Brings a feature map to another's channels (1×1 convolution) and grid (bilinear resizing).

    Args:
        channels: channels of the target.
        grid: (height, width) of the target; None for vectors (B, D).
        batch_norm: batch norm after the convolution.
        relu: ReLU at the end.

    Source: the regressor of FitNets (arXiv:1412.6550, section 2.2), there over a larger window.
    """

    def __init__(self, channels, grid=None, batch_norm=False, relu=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.channels, self.grid = channels, None if grid is None else tuple(grid)
        self.batch_norm, self.relu = batch_norm, relu
        # A bias ahead of a batch norm would be taken off again.
        own = {"use_bias": not batch_norm, "name": "projection", "dtype": "float32"}
        self.projection = (
            keras.layers.Dense(channels, **own) if self.grid is None else keras.layers.Conv2D(channels, 1, **own)
        )
        self.norm = batch_norm_layer(name="norm") if batch_norm else None

    def build(self, shape):
        self.projection.build(shape)
        if self.norm is not None:
            self.norm.build((*shape[:-1], self.channels))
        self.built = True

    def call(self, features, training=None):
        # Resizing and a 1×1 convolution commute; resizing first is cheaper where the grid shrinks.
        x = self.projection(resize(features, self.grid))
        if self.norm is not None:
            x = self.norm(x, training=training)
        return ops.relu(x) if self.relu else x

    def get_config(self):
        own = {"channels": self.channels, "grid": self.grid, "batch_norm": self.batch_norm, "relu": self.relu}
        return {**super().get_config(), **own}


def batch_norm_layer(name: str, dtype: str | None = "float32") -> keras.layers.Layer:
    """Batch norm over the global batch, so that a loss does not depend on the number of replicas."""
    several = replicas.count() > 1
    return keras.layers.BatchNormalization(momentum=0.9, synchronized=several, name=name, dtype=dtype)


def resize(features, grid):
    """A map (B, H, W, C) on another grid, bilinear and without aliasing; unchanged where it has that grid."""
    if grid is None or tuple(features.shape[1:3]) == tuple(grid):
        return features
    # By two matrices: TensorFlow's antialiased resizing runs neither on GPUs nor under XLA.
    rows, columns = (_interpolation(*sizes) for sizes in zip(features.shape[1:3], grid, strict=True))
    return ops.einsum("qw,bpwc->bpqc", columns, ops.einsum("ph,bhwc->bpwc", rows, features))


def nearest(features, grid):
    """A map (B, H, W, C) on another grid, each pixel that of the nearest centre."""
    if tuple(features.shape[1:3]) == tuple(grid):
        return features
    rows, columns = (
        np.floor((np.arange(target) + 0.5) * size / target).astype("int32")
        for size, target in zip(features.shape[1:3], grid, strict=True)
    )
    return ops.take(ops.take(features, rows, axis=1), columns, axis=2)


def averaged(features, grid):
    """A map (B, H, W, C) on a smaller grid, each pixel the mean over what it overlaps."""
    rows, columns = (_overlap(*sizes) for sizes in zip(features.shape[1:3], grid, strict=True))
    return ops.einsum("qw,bpwc->bpqc", columns, ops.einsum("ph,bhwc->bpwc", rows, features))


def _overlap(size: int, target: int):
    """(target, size) weights: pixel i is the mean from floor(i·size / target) up to ceil((i + 1)·size / target)."""
    weights = np.zeros((target, size))
    for i in range(target):
        weights[i, i * size // target : -(-(i + 1) * size // target)] = 1
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def _interpolation(size: int, target: int):
    """(target, size) weights of linear interpolation between pixel centres, widened where the grid shrinks."""
    centres = (np.arange(target) + 0.5) * size / target
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(size / target, 1)
    weights = np.maximum(0, 1 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
