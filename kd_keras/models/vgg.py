"""VGG networks: 3x3 convolutions in five stages, with batch normalisation or without."""

import keras

from kd_keras.errors import InputError, check_switch, is_count
from kd_keras.models import applications as _applications
from kd_keras.models import layers as _layers

_FILTERS = (64, 128, 256, 512, 512)
# Convolutions of each stage.
_PLANS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_PUBLISHED = {16: keras.applications.VGG16, 19: keras.applications.VGG19}
_UNITS = 4096
_SIDE = 7  # of the maps that enter the fully-connected layers at 224 pixels
_CIFAR_POOLINGS = 3


def VGG(
    num_classes: int,
    input_shape: tuple[int, int, int],
    depth: int = 11,
    batch_norm: bool = True,
    stem: str | None = None,
    width: float = 1.0,
    dropout: float | None = None,
    pretrained: str | None = None,
) -> keras.Model:
    """A VGG network (Simonyan & Zisserman, 1409.1556), columns A, B, D and E of table 1.

    ``depth`` 8 is not in the paper: one convolution per stage, a student of the public distillation benchmarks
    RepDistiller and mdistiller. Convolutions have a bias with batch norm too, as in the published networks.

    Taps: ``stage1 … stage5``, the last convolution of each stage after its ReLU and before its pooling;
    ``stage1_pre …``, the same before that ReLU; ``pooled``, the vector (B, D) that enters the fully-connected layers.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        depth: 8, 11, 13, 16 or 19.
        batch_norm: whether batch normalisation follows each convolution.
        stem: ``'imagenet'``: as published, 2x2 max pooling after each of the five stages, the last maps flattened,
            two fully-connected layers of 4096 units. ``'cifar'``: as in the benchmarks, 2x2 max pooling after each of
            the first three stages, one global average, no fully-connected layer but the classifier. Default:
            ``'cifar'`` where the smaller side is below 64 pixels.
        width: factor on the filters of every convolution and on the units of the fully-connected layers.
        dropout: share of units dropped before the classifier and between the fully-connected layers, in
            0 <= dropout < 1. Default: as published, 0.5 with ``'imagenet'``, none with ``'cifar'`` or ``pretrained``.
        pretrained: ``'imagenet'``, or the path of a weights file: the network of keras.applications with its published
            weights and preprocessing, a global average and a new classifier, all trainable (``depth`` 16,
            19 with ``batch_norm=False``; not its fully-connected layers).

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the published weights are not available, depth or stem is unknown, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not is_count(depth) or depth not in _PLANS:
        raise InputError(f"depth={depth!r} is unknown: choose one of {', '.join(map(repr, _PLANS))}")
    check_switch("batch_norm", batch_norm)
    if pretrained is not None:
        _applications.check_published("depth", depth, _PUBLISHED)
        _applications.check_published("batch_norm", batch_norm, (False,))
        _applications.check_published("stem", stem, (None, "imagenet"))
        _applications.check_published("width", width, (1.0,))
        return _pretrained(num_classes, input_shape, depth, 0.0 if dropout is None else dropout, pretrained)
    stem = _layers.chosen_stem(stem, input_shape)
    _layers.check_width(width)
    if dropout is None:
        dropout = 0.5 if stem == "imagenet" else 0.0
    _layers.check_dropout(dropout)

    image, x = _layers.image_input(input_shape)
    for stage, (filters, convs) in enumerate(zip(_FILTERS, _PLANS[depth], strict=True), start=1):
        filters = _layers.scaled(filters, width)
        for i in range(1, convs + 1):
            x = _layers.stage_conv(x, filters, stage=stage, i=i, last=i == convs, norm=batch_norm)
        if stem == "imagenet" or stage <= _CIFAR_POOLINGS:
            x = _layers.pool(x, 2, name=f"stage{stage}_pool")
    if stem == "imagenet":
        x = _layers.flat(x, _SIDE)
        for i in (1, 2):
            x = _layers.hidden(x, _layers.scaled(_UNITS, width), i=i, share=dropout)
    else:
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
        x = _layers.dropout(x, dropout)
    name = f"vgg{depth}{'_bn' if batch_norm else ''}"
    return keras.Model(image, _layers.logits(x, num_classes), name=name)


def _pretrained(num_classes, input_shape, depth, dropout, pretrained):
    # Keras has each ReLU inside its convolution, so that there is nothing to tap before it.
    convs = enumerate(_PLANS[depth], start=1)
    return _applications.build_pretrained(
        num_classes,
        input_shape,
        pretrained,
        _PUBLISHED[depth],
        preprocessing=_applications.Preprocessing.CAFFE,
        first_conv="block1_conv1",
        taps={f"block{stage}_conv{last}": f"stage{stage}" for stage, last in convs},
        name=f"vgg{depth}",
        dropout=dropout,
    )
