"""Densely connected networks: the ImageNet family and the CIFAR family."""

import keras

from kd_keras.errors import InputError, is_count
from kd_keras.models import applications as _applications
from kd_keras.models import layers as _layers


def _cifar(depth: int) -> tuple[tuple[int, ...], int]:
    return ((depth - 4) // 6,) * 3, 12


# Layers of each dense block, and the growth rate.
_PLANS = {
    121: ((6, 12, 24, 16), 32),
    169: ((6, 12, 32, 32), 32),
    201: ((6, 12, 48, 32), 32),
    **{depth: _cifar(depth) for depth in (22, 40, 100)},
}
_PUBLISHED = {
    121: keras.applications.DenseNet121,
    169: keras.applications.DenseNet169,
    201: keras.applications.DenseNet201,
}
_BOTTLENECK = 4  # a layer's 1x1 convolution has four times the filters of its 3x3 (1608.06993, section 3)


def DenseNet(
    num_classes: int,
    input_shape: tuple[int, int, int],
    depth: int = 121,
    stem: str | None = None,
    growth: int | None = None,
    dropout: float = 0.0,
    pretrained: str | None = None,
) -> keras.Model:
    """A DenseNet-BC (Huang et al., 1608.06993): bottlenecks, and transitions that halve the channels.

    - ``depth`` 121, 169, 201: section 3, table 1, four dense blocks.
    - ``depth`` 22, 40, 100: the 6n+4 family of section 4 for CIFAR, three dense blocks of n layers each.

    Taps: ``stage1 … stageN`` (four or three stages), the output of each dense block after the batch norm and the ReLU
    that follow it and before the transition's convolution and pooling (the block's own output is a concatenation
    without activation); ``stage1_pre …``, the same before that ReLU; ``pooled``, the global average (B, D).

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        depth: one of these.
        stem: ``'imagenet'``: 7x7 convolution with stride 2, batch norm, ReLU, 3x3 max pooling with stride 2.
            ``'cifar'``: 3x3 convolution, no stride, no batch norm. Default: ``'cifar'`` where the smaller side is
            below 64 pixels.
        growth: k, channels that each layer adds; the stem has 2k. Default: 32 for depth 121, 169, 201, else 12.
        dropout: share of values dropped after each 3x3 convolution of a dense block, in 0 <= dropout < 1; the paper
            uses 0.2 without augmentation.
        pretrained: ``'imagenet'``, or the path of a weights file: the network of keras.applications with its published
            weights and preprocessing, a global average and a new classifier, all trainable (``depth`` 121,
            169, 201). ``dropout`` then precedes the classifier.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the published weights are not available, depth or stem is unknown, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not is_count(depth) or depth not in _PLANS:
        raise InputError(f"depth={depth!r} is unknown: choose one of {', '.join(map(repr, _PLANS))}")
    if pretrained is not None:
        _applications.check_published("depth", depth, _PUBLISHED)
        _applications.check_published("stem", stem, (None, "imagenet"))
        _applications.check_published("growth", growth, (None, 32))
        return _pretrained(num_classes, input_shape, depth, dropout, pretrained)
    stem = _layers.chosen_stem(stem, input_shape)
    if growth is not None and not is_count(growth):
        raise InputError(f"growth={growth!r} is not a positive whole number: give one, such as 12, or None")
    _layers.check_dropout(dropout)
    blocks, default_growth = _PLANS[depth]
    growth = growth or default_growth

    image, x = _layers.image_input(input_shape)
    if stem == "imagenet":
        x = _layers.imagenet_stem(x, 2 * growth)
    else:
        x = _layers.conv(x, 2 * growth, 3, name="stem_conv")
    for stage, layers in enumerate(blocks, start=1):
        for i in range(1, layers + 1):
            x = _dense_layer(x, growth, dropout, name=f"stage{stage}_layer{i}")
        x = _layers.batch_norm(x, name=f"stage{stage}_pre")
        x = _layers.relu(x, name=f"stage{stage}")
        if stage < len(blocks):
            x = _layers.conv(x, x.shape[-1] // 2, 1, name=f"stage{stage}_transition_conv")
            x = _layers.pool(x, 2, kind="avg", name=f"stage{stage}_transition_pool")
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, _layers.logits(x, num_classes), name=f"densenet{depth}")


def _dense_layer(x, growth, dropout, name):
    """Appends ``growth`` new channels to the input."""
    y = _layers.batch_norm(x, name=f"{name}_bn1")
    y = _layers.relu(y, name=f"{name}_relu1")
    y = _layers.conv(y, _BOTTLENECK * growth, 1, name=f"{name}_conv1")
    y = _layers.batch_norm(y, name=f"{name}_bn2")
    y = _layers.relu(y, name=f"{name}_relu2")
    y = _layers.conv(y, growth, 3, name=f"{name}_conv2")
    y = _layers.dropout(y, dropout, name=f"{name}_dropout")
    return keras.layers.Concatenate(name=f"{name}_concat")([x, y])


def _pretrained(num_classes, input_shape, depth, dropout, pretrained):
    after = {"pool2_relu": "stage1", "pool3_relu": "stage2", "pool4_relu": "stage3", "relu": "stage4"}
    before = {name.replace("relu", "bn"): f"{tap}_pre" for name, tap in after.items()}
    return _applications.build_pretrained(
        num_classes,
        input_shape,
        pretrained,
        _PUBLISHED[depth],
        preprocessing=_applications.Preprocessing.TORCH,
        taps={**after, **before},
        name=f"densenet{depth}",
        dropout=dropout,
    )
