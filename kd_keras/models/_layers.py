"""What the model families share: checks of what the user gave, the way in, the way out, and one convolution."""

import math
from typing import Any

import keras
import tensorflow as tf

from kd_keras.errors import InputError

# Keras' default of 0.99 needs thousands of steps before evaluation can be trusted; runs here are often shorter.
BATCH_NORM_MOMENTUM = 0.9


def is_count(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is a whole number of at least ``least``; True and False are no numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float; True and False are no numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def counts(key: str, value: Any, least_length: int = 1) -> tuple[int, ...]:
    """``value`` as a tuple of positive whole numbers.

    Raises:
        InputError: it is none, or has fewer than ``least_length`` members.
    """
    if not isinstance(value, (tuple, list)) or len(value) < least_length or not all(is_count(v) for v in value):
        example = f"{key}=(32, 64)" if least_length else f"{key}=(256,) or {key}=()"
        raise InputError(f"{key}={value!r} is not a tuple of positive whole numbers: write for example {example}")
    return tuple(value)


def check(num_classes: int, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Checks what every builder takes and gives the shape back as a tuple.

    Raises:
        InputError: fewer than two classes, or a shape that is not (H, W, C) in positive whole numbers.
    """
    if not is_count(num_classes, least=2):
        raise InputError(f"num_classes={num_classes!r} is not a whole number of at least 2: give the number of classes")
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3 or not all(map(is_count, input_shape)):
        raise InputError(
            f"input_shape={input_shape!r} is not (H, W, C) in positive whole numbers: write for example (32, 32, 3)"
        )
    return tuple(input_shape)


def image_input(input_shape: tuple[int, int, int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The model's input, plain pixels in 0..255 (B, H, W, C), and the same scaled to -1..1."""
    image = keras.Input(input_shape, name="image", dtype="float32")
    return image, keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(image)


def logits(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """The classifier: (B, D) -> (B, K), in float32 under any policy, since softmax at low precision loses classes."""
    return keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)


def conv(x: keras.KerasTensor, filters: int, size: int, *, name: str, stride: int = 1, use_bias: bool = False):
    """A convolution with SAME padding, so that no image is too small, and He-normal weights (1502.01852)."""
    return keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def batch_norm(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """Batch normalisation over the last axis; over the global batch, where it is built for several replicas."""
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, synchronized=several, name=name)(x)


def relu(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """ReLU as a layer of its own, so that the maps before and after it can both be tapped."""
    return keras.layers.ReLU(name=name)(x)
