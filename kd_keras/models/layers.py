"""What the model families share: checks of arguments, the input, the classifier, and blocks of layers."""

from typing import Any

import keras

from kd_keras._compat import replicas
from kd_keras.errors import InputError, is_count, is_number

# Keras' default of 0.99 needs thousands of steps before evaluation is accurate; runs here are often shorter.
BATCH_NORM_MOMENTUM = 0.9
STEMS = ("cifar", "imagenet")


def counts(key: str, value: Any, least_length: int = 1) -> tuple[int, ...]:
    """``value`` as a tuple of positive whole numbers.

    Raises:
        InputError: it is not such a tuple, or has fewer than ``least_length`` members.
    """
    if not isinstance(value, (tuple, list)) or len(value) < least_length or not all(is_count(v) for v in value):
        example = f"{key}=(32, 64)" if least_length else f"{key}=(256,) or {key}=()"
        raise InputError(f"{key}={value!r} is not a tuple of positive whole numbers: write for example {example}")
    return tuple(value)


def check(num_classes: int, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Checks the arguments of every builder and returns the shape as a tuple.

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


def chosen_stem(stem: str | None, input_shape: tuple[int, int, int]) -> str:
    """The given stem, or for None that of the image's size: ``'cifar'`` below 64 pixels on the smaller side.

    Raises:
        InputError: the stem is unknown.
    """
    if stem is not None and stem not in STEMS:
        raise InputError(f"stem={stem!r} is unknown: choose one of {', '.join(map(repr, STEMS))}, or None")
    return stem or ("cifar" if min(input_shape[:2]) < 64 else "imagenet")


def check_width(width: Any) -> None:
    """Raises InputError unless ``width`` is a positive number."""
    if not is_number(width) or width <= 0:
        raise InputError(f"width={width!r} is not a positive number: give the factor on the filters, such as 0.5")


def check_dropout(dropout: Any) -> None:
    """Raises InputError unless ``dropout`` is a share below 1."""
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout!r} is not in 0 <= dropout < 1: give the share of units to drop")


def scaled(filters: int, width: float) -> int:
    """``filters`` times ``width``, at least one."""
    return max(1, round(filters * width))


def image_input(input_shape: tuple[int, int, int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The model's input, plain pixels in 0..255 (B, H, W, C), and the same scaled to -1..1."""
    image = keras.Input(input_shape, name="image", dtype="float32")
    return image, keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(image)


def logits(x: keras.KerasTensor, num_classes: int) -> keras.KerasTensor:
    """The classifier: (B, D) -> (B, K), in float32 under any policy, because softmax at low precision loses classes."""
    return keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)


def conv(x: keras.KerasTensor, filters: int, size: int, *, name: str, stride: int = 1, use_bias: bool = False):
    """A convolution with SAME padding, which no image is too small for, and He-normal weights (1502.01852)."""
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
    """Batch normalisation over the last axis; over the global batch with several replicas."""
    is_replicated = replicas.count() > 1
    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, synchronized=is_replicated, name=name)(x)


def relu(x: keras.KerasTensor, *, name: str) -> keras.KerasTensor:
    """ReLU as a separate layer, so that the maps before and after it are taps."""
    return keras.layers.ReLU(name=name)(x)


def stage_conv(
    x: keras.KerasTensor,
    filters: int,
    size: int = 3,
    *,
    stage: int,
    i: int,
    last: bool,
    stride: int = 1,
    norm: bool = False,
    use_bias: bool = True,
) -> keras.KerasTensor:
    """A stage's ``i``-th convolution, batch norm if asked for, ReLU; the last of a stage has the taps' names."""
    name = f"stage{stage}_conv{i}"
    before, after = (f"stage{stage}_pre", f"stage{stage}") if last else (f"stage{stage}_bn{i}", f"stage{stage}_relu{i}")
    x = conv(x, filters, size, stride=stride, use_bias=use_bias, name=before if last and not norm else name)
    if norm:
        x = batch_norm(x, name=before)
    return relu(x, name=after)


def imagenet_stem(x: keras.KerasTensor, filters: int, size: int = 7) -> keras.KerasTensor:
    """Convolution with stride 2, batch norm, ReLU, 3x3 max pooling with stride 2: a quarter of the image's side."""
    x = conv(x, filters, size, stride=2, name="stem_conv")
    x = batch_norm(x, name="stem_bn")
    x = relu(x, name="stem_relu")
    return keras.layers.MaxPooling2D(3, strides=2, padding="same", name="stem_pool")(x)


def pool(x: keras.KerasTensor, size: int, *, name: str, kind: str = "max") -> keras.KerasTensor:
    """``'max'`` or ``'avg'`` pooling with stride 2; a map smaller than the window is padded."""
    layer = keras.layers.MaxPooling2D if kind == "max" else keras.layers.AveragePooling2D
    padding = "valid" if min(x.shape[1:3]) >= size else "same"
    return layer(size, strides=2, padding=padding, name=name)(x)


def flat(x: keras.KerasTensor, side: int) -> keras.KerasTensor:
    """Flattens maps to the vector ``pooled``; larger ones are first averaged to ``side``x``side`` (adaptive)."""
    if max(x.shape[1:3]) > side:
        sides = tuple(min(size, side) for size in x.shape[1:3])
        x = keras.layers.AdaptiveAveragePooling2D(sides, name="adaptive_pool")(x)
    return keras.layers.Flatten(name="pooled")(x)


def dropout(x: keras.KerasTensor, share: float, *, name: str = "dropout") -> keras.KerasTensor:
    """Dropout, or nothing where its share is 0."""
    return keras.layers.Dropout(share, name=name)(x) if share else x


def hidden(x: keras.KerasTensor, units: int, *, i: int, share: float = 0.0, activation: str = "relu"):
    """The ``i``-th fully-connected layer before the classifier, then dropout of a ``share`` of its units."""
    x = keras.layers.Dense(units, activation=activation, kernel_initializer="he_normal", name=f"dense{i}")(x)
    return dropout(x, share, name=f"dropout{i}")


def squeeze_excite(x: keras.KerasTensor, reduced: int, *, name: str, gate: str = "sigmoid") -> keras.KerasTensor:
    """Scales each channel by a gate that is computed from all channels (1709.01507, section 3)."""
    # The two fully-connected layers are 1x1 convolutions: the same sums without a reshape in the TFLite file.
    y = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    y = conv(y, reduced, 1, use_bias=True, name=f"{name}_reduce")
    y = relu(y, name=f"{name}_relu")
    y = conv(y, x.shape[-1], 1, use_bias=True, name=f"{name}_expand")
    y = keras.layers.Activation(gate, name=f"{name}_gate")(y)
    return keras.layers.Multiply(name=f"{name}_scale")([x, y])
