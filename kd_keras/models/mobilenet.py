"""MobileNets: inverted residuals of depthwise convolutions."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras

from kd_keras.errors import InputError
from kd_keras.models import applications as _applications
from kd_keras.models import layers as _layers


@dataclasses.dataclass(frozen=True)
class _Block:
    """One inverted residual; ``expansion`` is the factor from its input's channels to those of its depthwise part."""

    expansion: float
    filters: int
    kernel: int = 3
    stride: int = 1
    squeeze: bool = False
    activation: str = "relu6"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One version: the stem's filters, the blocks of each stage, and what follows before the classifier.

    ``head`` features enter the classifier: in v2 those of the last convolution, in v3 (``dense``) those of a
    fully-connected layer after the pooling, and the last convolution has six times its input's filters.
    """

    stem: int
    stages: tuple[tuple[_Block, ...], ...]
    activation: str
    head: int
    dense: bool


def _v2(expansion, filters, blocks, stride) -> tuple[_Block, ...]:
    return (_Block(expansion, filters, stride=stride), *(_Block(expansion, filters),) * (blocks - 1))


_SWISH = "hard_silu"
# 1801.04381, table 2; 1905.02244, tables 2 and 1.
_PLANS = {
    "v2": _Plan(
        stem=32,
        stages=(
            _v2(1, 16, 1, 1),
            _v2(6, 24, 2, 2),
            _v2(6, 32, 3, 2),
            _v2(6, 64, 4, 2) + _v2(6, 96, 3, 1),
            _v2(6, 160, 3, 2) + _v2(6, 320, 1, 1),
        ),
        activation="relu6",
        head=1280,
        dense=False,
    ),
    "v3_small": _Plan(
        stem=16,
        stages=(
            (_Block(1, 16, 3, 2, True, "relu"),),
            (_Block(72 / 16, 24, 3, 2, False, "relu"), _Block(88 / 24, 24, 3, 1, False, "relu")),
            (
                _Block(4, 40, 5, 2, True, _SWISH),
                *(_Block(6, 40, 5, 1, True, _SWISH),) * 2,
                *(_Block(3, 48, 5, 1, True, _SWISH),) * 2,
            ),
            (_Block(6, 96, 5, 2, True, _SWISH), *(_Block(6, 96, 5, 1, True, _SWISH),) * 2),
        ),
        activation=_SWISH,
        head=1024,
        dense=True,
    ),
    "v3_large": _Plan(
        stem=16,
        stages=(
            (_Block(1, 16, 3, 1, False, "relu"),),
            (_Block(4, 24, 3, 2, False, "relu"), _Block(3, 24, 3, 1, False, "relu")),
            (_Block(3, 40, 5, 2, True, "relu"), *(_Block(3, 40, 5, 1, True, "relu"),) * 2),
            (
                _Block(6, 80, 3, 2, False, _SWISH),
                _Block(2.5, 80, 3, 1, False, _SWISH),
                *(_Block(2.3, 80, 3, 1, False, _SWISH),) * 2,
                *(_Block(6, 112, 3, 1, True, _SWISH),) * 2,
            ),
            (_Block(6, 160, 5, 2, True, _SWISH), *(_Block(6, 160, 5, 1, True, _SWISH),) * 2),
        ),
        activation=_SWISH,
        head=1280,
        dense=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class _Published:
    """A network of keras.applications: the widths that it has weights for, and the layers that end its stages."""

    network: Callable[..., keras.Model]
    widths: tuple[float, ...]
    ends: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_V3 = {"include_preprocessing": False}  # Keras puts the preprocessing of version 3 into the network
_PUBLISHED = {
    "v2": _Published(
        keras.applications.MobileNetV2,
        (0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
        ("expanded_conv_project_BN", "block_2_add", "block_5_add", "block_12_add", "block_16_project_BN"),
    ),
    "v3_small": _Published(
        keras.applications.MobileNetV3Small,
        (0.75, 1.0),
        ("expanded_conv_project_bn", "expanded_conv_2_add", "expanded_conv_7_add", "expanded_conv_10_add"),
        _V3,
    ),
    "v3_large": _Published(
        keras.applications.MobileNetV3Large,
        (0.75, 1.0),
        (
            "expanded_conv_add",
            "expanded_conv_2_add",
            "expanded_conv_5_add",
            "expanded_conv_11_add",
            "expanded_conv_14_add",
        ),
        _V3,
    ),
}
_CIFAR_UNSTRIDED = 2  # how many of the five strides the CIFAR stem omits


def MobileNet(
    num_classes: int,
    input_shape: tuple[int, int, int],
    version: str = "v2",
    width: float = 1.0,
    stem: str | None = None,
    dropout: float = 0.0,
    pretrained: str | None = None,
) -> keras.Model:
    """A MobileNetV2 (Sandler et al., 1801.04381) or a MobileNetV3 (Howard et al., 1905.02244).

    Taps: ``stage1 … stageN``, the output of the last block before each halving of the maps and before the last 1x1
    convolution; v2 and v3_large have five stages, v3_small, whose first block halves at once, has four. An inverted
    residual ends in a linear projection without activation, so there is no ``stage1_pre``; ``pooled`` is the global
    average (B, D) of that last convolution after its activation.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        version: ``'v2'``, ``'v3_small'`` or ``'v3_large'``.
        width: factor on the filters of every convolution, rounded to multiples of 8 as in the papers. Below 1 it
            leaves the 1280 filters of v2's last convolution and the units of v3's fully-connected layer as they are.
        stem: ``'imagenet'``: as published, five convolutions with stride 2. ``'cifar'``: as usual for 32x32 images,
            the first two of these without stride, so that the last maps are 4x4. Default: ``'cifar'`` where the
            smaller side is below 64 pixels.
        dropout: share of units dropped before the classifier, in 0 <= dropout < 1; published networks are trained
            with 0.2.
        pretrained: ``'imagenet'``, or the path of a weights file: the network of keras.applications with its published
            weights and preprocessing, a global average and a new classifier, all trainable (v2 in
            ``width`` 0.35, 0.5, 0.75, 1.0, 1.3, 1.4; v3 in 0.75, 1.0, without its fully-connected layer).

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the published weights are not available, version or stem is unknown, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not isinstance(version, str) or version not in _PLANS:
        raise InputError(f"version={version!r} is unknown: choose one of {', '.join(map(repr, _PLANS))}")
    _layers.check_width(width)
    if pretrained is not None:
        _applications.check_published("stem", stem, (None, "imagenet"))
        if pretrained == "imagenet":
            _applications.check_published("width", width, _PUBLISHED[version].widths)
        return _pretrained(num_classes, input_shape, version, width, dropout, pretrained)
    stem = _layers.chosen_stem(stem, input_shape)
    _layers.check_dropout(dropout)
    plan = _PLANS[version]
    # Narrow networks keep the width of the classifier's input (1801.04381, section 6.1).
    head = _eights(plan.head * max(1, width))
    omitted = _CIFAR_UNSTRIDED if stem == "cifar" else 0

    image, x = _layers.image_input(input_shape)
    x = _layers.conv(x, _eights(plan.stem * width), 3, stride=1 if omitted else 2, name="stem_conv")
    x = _layers.batch_norm(x, name="stem_bn")
    x = _activation(x, plan.activation, name="stem_activation")
    strides = 1
    for stage, blocks in enumerate(plan.stages, start=1):
        for i, block in enumerate(blocks, start=1):
            strides += block.stride == 2
            stride = 1 if strides <= omitted else block.stride
            tap = f"stage{stage}" if i == len(blocks) else None
            x = _block(x, block, _eights(block.filters * width), stride, f"stage{stage}_block{i}", tap)
    x = _layers.conv(x, _eights(6 * x.shape[-1]) if plan.dense else head, 1, name="last_conv")
    x = _layers.batch_norm(x, name="last_bn")
    x = _activation(x, plan.activation, name="last_activation")
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    if plan.dense:
        x = _layers.hidden(x, head, i=1, activation=plan.activation)
    x = _layers.dropout(x, dropout)
    return keras.Model(image, _layers.logits(x, num_classes), name=f"mobilenet_{version}")


def _eights(filters: float) -> int:
    """The nearest multiple of 8, or the next one where that is more than 10 % less."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * filters else nearest + 8


def _activation(x, kind, name):
    if kind == "relu6":
        return keras.layers.ReLU(max_value=6, name=name)(x)
    if kind == "relu":
        return _layers.relu(x, name=name)
    return keras.layers.Activation(kind, name=name)(x)


def _block(x, block, filters, stride, name, tap):
    """Expansion, depthwise convolution, gate where the block has one, linear projection; ``tap`` names its output."""
    expanded = _eights(x.shape[-1] * block.expansion)
    joins = block.stride == 1 and x.shape[-1] == filters
    y = x
    if block.expansion != 1:
        y = _layers.conv(y, expanded, 1, name=f"{name}_expand_conv")
        y = _layers.batch_norm(y, name=f"{name}_expand_bn")
        y = _activation(y, block.activation, name=f"{name}_expand_activation")
    y = keras.layers.DepthwiseConv2D(
        block.kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        # He normal with the fan-in of one output: Keras counts all channels of a depthwise kernel.
        depthwise_initializer=keras.initializers.RandomNormal(stddev=math.sqrt(2) / block.kernel),
        name=f"{name}_depthwise_conv",
    )(y)
    y = _layers.batch_norm(y, name=f"{name}_depthwise_bn")
    y = _activation(y, block.activation, name=f"{name}_depthwise_activation")
    if block.squeeze:
        y = _layers.squeeze_excite(y, _eights(expanded / 4), name=f"{name}_se", gate="hard_sigmoid")
    y = _layers.conv(y, filters, 1, name=f"{name}_project_conv")
    y = _layers.batch_norm(y, name=f"{name}_project_bn" if joins or not tap else tap)
    return keras.layers.Add(name=tap or f"{name}_add")([x, y]) if joins else y


def _pretrained(num_classes, input_shape, version, width, dropout, pretrained):
    published = _PUBLISHED[version]
    return _applications.build_pretrained(
        num_classes,
        input_shape,
        pretrained,
        published.network,
        preprocessing=_applications.Preprocessing.TF,
        taps={layer: f"stage{stage}" for stage, layer in enumerate(published.ends, start=1)},
        name=f"mobilenet_{version}",
        dropout=dropout,
        alpha=float(width),  # part of the file name, in version 3 as it is printed
        **published.options,
    )
