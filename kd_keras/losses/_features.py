"""What losses on feature maps share: which stage of the student meets which of the teacher, and the projector."""

import re

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kd_keras.errors import InputError


def parse_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """``'stage1:stage1,stage2:stage3'`` as ((student, teacher), …).

    Raises:
        InputError: not of that form.
    """
    pairs = tuple(tuple(part.strip() for part in pair.split(":")) for pair in str(text).split(","))
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise InputError(f"pairs={text!r} cannot be read: write 'stage1:stage1,stage2:stage3', student:teacher")
    return pairs


def match_from_end(student: list[str], teacher: list[str]) -> tuple[tuple[str, str], ...]:
    """Pairs the stages of both from the last one backwards, in the order of depth.

    Raises:
        InputError: one of them offers no stage.
    """
    stages = [sorted(_stages(names), key=lambda name: int(name[5:])) for names in (student, teacher)]
    for whose, found in zip(("student", "teacher"), stages, strict=True):
        if not found:
            raise InputError(f"the {whose} offers no stages (stage1, stage2 …): name its taps by pairs='…:…'")
    count = min(map(len, stages))
    return tuple(zip(stages[0][-count:], stages[1][-count:], strict=True))


def _stages(names):
    return [name for name in names if re.fullmatch(r"stage\d+", name)]


def require(whose: str, name: str, offered: list[str]) -> None:
    """Raises InputError where a tap is not on offer."""
    if name not in offered:
        shown = [n for n in offered if n in ("logits", "pooled") or n.startswith("stage")] or offered[-8:]
        raise InputError(f"the {whose} has no tap {name!r}: it offers {', '.join(shown)} and every other layer's name")


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
        if self.grid is None:
            self.projection = keras.layers.Dense(channels, name="projection", dtype="float32")
        else:
            self.projection = keras.layers.Conv2D(channels, 1, name="projection", dtype="float32")
        self.norm = None
        if batch_norm:
            # Over the global batch, so that the loss does not depend on the number of replicas.
            several = tf.distribute.get_strategy().num_replicas_in_sync > 1
            self.norm = keras.layers.BatchNormalization(
                momentum=0.9, synchronized=several, name="norm", dtype="float32"
            )

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


def resize(features, grid):
    """A map (B, H, W, C) on another grid, bilinear and without aliasing; unchanged where it has that grid."""
    if grid is None or tuple(features.shape[1:3]) == tuple(grid):
        return features
    # By two matrices: TensorFlow's antialiased resizing runs neither on GPUs nor under XLA.
    rows, columns = (_interpolation(*sizes) for sizes in zip(features.shape[1:3], grid, strict=True))
    return ops.einsum("qw,bpwc->bpqc", columns, ops.einsum("ph,bhwc->bpwc", rows, features))


def _interpolation(size: int, target: int):
    """(target, size) weights of linear interpolation between pixel centres, widened where the grid shrinks."""
    centres = (np.arange(target) + 0.5) * size / target
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(size / target, 1)
    weights = np.maximum(0, 1 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")
