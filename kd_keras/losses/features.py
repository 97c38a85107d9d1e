"""The base of losses on features, and how maps of different channels and grids are compared."""

import math
import re
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from kd_keras._compat import replicas
from kd_keras.errors import InputError
from kd_keras.losses.base import Loss
from kd_keras.schedules import ScheduleLike

#: (student's tap, teacher's tap) of each pair.
Pairs = tuple[tuple[str, str], ...]


def parse_pairs(text: str) -> Pairs:
    """Reads ``'stage1:stage1,stage2:stage3'``, student:teacher.

    Raises:
        InputError: the text is not of that form.
    """
    pairs = tuple(tuple(part.strip() for part in pair.split(":")) for pair in str(text).split(","))
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise InputError(f"pairs={text!r} cannot be read: write 'stage1:stage1,stage2:stage3', student:teacher")
    return pairs


def stages_in(names: Iterable[str], ending: str = "") -> list[str]:
    """The taps that are stages (``stage1``, or with an ending ``stage1_pre``), from the first to the last."""
    matches = (re.fullmatch(rf"stage(\d+){ending}", name) for name in names)
    return [match[0] for match in sorted(filter(None, matches), key=lambda match: int(match[1]))]


def match_from_end(student: list[str], teacher: list[str], ending: str = "") -> Pairs:
    """Pairs the stages of student and teacher from the last one backwards, in the order of depth.

    Args:
        student: taps that the student offers.
        teacher: taps that the teacher offers.
        ending: of the stages' names: ``'_pre'`` pairs ``stage1_pre``, ``stage2_pre`` …

    Raises:
        InputError: student or teacher offers no stage.
    """
    stages = []
    for whose, names in (("student", student), ("teacher", teacher)):
        stages.append(stages_in(names, ending))
        if not stages[-1]:
            raise InputError(
                f"the {whose} offers no stages (stage1{ending}, stage2{ending} …): name its taps by pairs='…:…'"
            )
    count = min(map(len, stages))
    return tuple(zip(stages[0][-count:], stages[1][-count:], strict=True))


def require_tap(whose: str, name: str, offered: list[str]) -> None:
    """Raises InputError where student or teacher (``whose``) does not offer a tap."""
    if f"{name}#1" in offered:
        count = sum(other.rpartition("#")[0] == name for other in offered)
        raise InputError(f"the {whose} calls {name!r} {count} times: name one of the calls, {name}#1 to {name}#{count}")
    if name not in offered:
        whole = [n for n in offered if "[" not in n]
        shown = [n for n in whole if n in ("logits", "pooled") or n.startswith("stage")] or whole[-8:]
        raise InputError(f"the {whose} has no tap {name!r}: it offers {', '.join(shown)} and every other layer's name")


class FeatureLoss(Loss):
    """A loss that is a sum over pairs of taps, one of the student and one of the teacher.

    A subclass defines the value of a pair (`compare`) and what is trained for it (`adapter`).

        @keras.saving.register_keras_serializable(package="mine")
        class MapDistance(FeatureLoss):
            def compare(self, student, teacher, adapter, training):
                return mean_over_features(ops.square(student - teacher))

    Args:
        weight: see `Loss`.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default `default_pairs`.
        **kwargs: see `Loss`.

    Raises:
        InputError: a tap does not exist, or the two of a pair cannot be compared.
    """

    heads = frozenset({"softmax", "multilabel"})
    #: What the taps of a pair may be: ``'map'`` (B, H, W, C), ``'vector'`` (B, D).
    takes: tuple[str, ...] = ("map",)
    #: Whether the paper pretrains the student by this loss alone.
    pretrains = False
    #: Ending of the names of the stages that are paired by default.
    ending = ""

    def __init__(self, *, weight: ScheduleLike = 1.0, pairs: str | None = None, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        self.pairs = None if pairs is None else parse_pairs(pairs)
        self._given_pairs = pairs

    def renewed(self) -> Loss:
        new = super().renewed()
        # The pairs in the config are those that were chosen for these models.
        new.pairs = None if self._given_pairs is None else parse_pairs(self._given_pairs)
        new._given_pairs = self._given_pairs
        return new

    def default_pairs(self, student: list[str], teacher: list[str]) -> Pairs:
        """All stages, matched from the last."""
        return match_from_end(student, teacher, self.ending)

    def adapter(self, source: tuple, target: tuple, name: str) -> keras.layers.Layer | None:
        """The layer that is trained for a pair of taps of these shapes (None, …), built; None for nothing."""
        return None

    def compare(self, student, teacher, adapter, training):
        """The value of a pair, (B,) or a scalar."""
        raise NotImplementedError

    def taps(self, student: list[str], teacher: list[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self.pairs is None:
            if teacher is None:
                return (), ()
            self.pairs = self.default_pairs(student, teacher)
        for name, _ in self.pairs:
            require_tap("student", name, student)
        for _, name in self.pairs:
            if teacher is not None:
                require_tap("teacher", name, teacher)
        return self._tap_names()

    def _tap_names(self):
        return tuple(dict.fromkeys(s for s, _ in self.pairs)), tuple(dict.fromkeys(t for _, t in self.pairs))

    def pretrain_taps(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        return self._tap_names() if self.pretrains and self.pairs is not None else None

    def pretrain(self, student, teacher, labels):
        """The value that pretraining minimises: by default that of the loss itself."""
        return self(student, teacher, labels, training=True)

    def build(self, student_shape: Any, teacher_shape: Any, labels_shape: Any = None) -> None:
        self.taps(list(student_shape), list(teacher_shape))
        self._shapes = ({s: student_shape[s] for s, _ in self.pairs}, {t: teacher_shape[t] for _, t in self.pairs})
        self.adapters = []
        for s, t in self.pairs:
            source, target = tuple(student_shape[s]), tuple(teacher_shape[t])
            self._check(s, source, t, target)
            # A layer's name may not have the slashes and brackets of a tap's.
            self.adapters.append(self.adapter(source, target, re.sub(r"[^\w.]+", "_", f"{s}_{t}")))
        self.built = True

    def _check(self, s, source, t, target):
        kinds = {2: "vector", 4: "map"}
        if len(source) != len(target) or kinds.get(len(source)) not in self.takes:
            words = {"map": "both have to be maps (B, H, W, C)", "vector": "both vectors (B, D)"}
            wanted = ", or ".join(words[kind] for kind in self.takes)
            raise InputError(f"{self.name} cannot match {s} {source} with {t} {target}: {wanted}")
        if None in source[1:] or None in target[1:]:
            raise InputError(f"{self.name} needs to know the sizes of {s} {source} and {t} {target}: fix the input's")

    def call(self, student, teacher, labels, training=None):
        return sum(
            self.compare(student[s], teacher[t], adapter, training)
            for (s, t), adapter in zip(self.pairs, self.adapters, strict=True)
        )

    def get_config(self) -> dict[str, Any]:
        pairs = None if self.pairs is None else ",".join(f"{s}:{t}" for s, t in self.pairs)
        return {**super().get_config(), "pairs": pairs}


def flatten(features):
    """Features (B, …) as vectors (B, D)."""
    # The batch size is taken from the tensor, not written as -1: a replica may have no sample.
    return ops.reshape(features, (ops.shape(features)[0], math.prod(features.shape[1:])))


def mean_over_features(x):
    """The mean (B,) of a tensor (B, …) over all axes but the samples."""
    return ops.mean(x, axis=tuple(range(1, len(x.shape))))


def on_one_grid(a, b):
    """Two maps (B, H, W, C), each resized to the smaller height and the smaller width."""
    grid = tuple(min(sizes) for sizes in zip(a.shape[1:3], b.shape[1:3], strict=True))
    return resize(a, grid), resize(b, grid)


@keras.saving.register_keras_serializable(package="kd_keras", name="FeatureProjector")
class FeatureProjector(keras.layers.Layer):
    """Brings a feature map to another map's channels (1×1 convolution) and grid (bilinear resizing).

    Args:
        channels: channels of the target.
        grid: (height, width) of the target; None for vectors (B, D).
        batch_norm: whether batch norm follows the convolution.
        relu: whether a ReLU ends it.

    Reference: the regressor of FitNets (arXiv:1412.6550, section 2.2), which has a larger window there.
    """

    def __init__(self, channels, grid=None, batch_norm=False, relu=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.channels, self.grid = channels, None if grid is None else tuple(grid)
        self.batch_norm, self.relu = batch_norm, relu
        # A bias before a batch norm has no effect.
        options = {"use_bias": not batch_norm, "name": "projection", "dtype": "float32"}
        self.projection = (
            keras.layers.Dense(channels, **options)
            if self.grid is None
            else keras.layers.Conv2D(channels, 1, **options)
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
        options = {"channels": self.channels, "grid": self.grid, "batch_norm": self.batch_norm, "relu": self.relu}
        return {**super().get_config(), **options}


def batch_norm_layer(name: str, dtype: str | None = "float32") -> keras.layers.Layer:
    """Batch norm over the global batch, so that a loss does not depend on the number of replicas."""
    # The papers' code is PyTorch's, whose epsilon is 1e-5; Keras' 1e-3 damps maps with a small variance.
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, synchronized=replicas.count() > 1, name=name, dtype=dtype
    )


def resize(features, grid):
    """A map (B, H, W, C) on another grid, bilinear and antialiased; unchanged where it has that grid."""
    if grid is None or tuple(features.shape[1:3]) == tuple(grid):
        return features
    # By two matrices, because TensorFlow's antialiased resizing runs neither on GPUs nor under XLA.
    rows, columns = (_interpolation(*sizes) for sizes in zip(features.shape[1:3], grid, strict=True))
    return ops.einsum("qw,bpwc->bpqc", columns, ops.einsum("ph,bhwc->bpwc", rows, features))


def resize_nearest(features, grid):
    """A map (B, H, W, C) on another grid, each pixel that of the nearest centre."""
    if tuple(features.shape[1:3]) == tuple(grid):
        return features
    rows, columns = (
        np.floor((np.arange(target) + 0.5) * size / target).astype("int32")
        for size, target in zip(features.shape[1:3], grid, strict=True)
    )
    return ops.take(ops.take(features, rows, axis=1), columns, axis=2)


def average_pool(features, grid):
    """A map (B, H, W, C) on a smaller grid, each pixel the mean over the pixels that it overlaps."""
    rows, columns = (_overlap(*sizes) for sizes in zip(features.shape[1:3], grid, strict=True))
    return ops.einsum("qw,bpwc->bpqc", columns, ops.einsum("ph,bhwc->bpwc", rows, features))


def _overlap(size: int, target: int):
    """(target, size) weights: pixel i is the mean from floor(i·size / target) to ceil((i + 1)·size / target)."""
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
