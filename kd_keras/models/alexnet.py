"""AlexNet: five convolutions, then fully-connected layers."""

import keras

from kd_keras.models import layers as _layers

# Filters and kernel size of the convolutions of each stage; a pooling follows each stage.
_IMAGENET = (((64, 11),), ((192, 5),), ((384, 3), (256, 3), (256, 3)))
_CIFAR = (((64, 3),), ((192, 3),), ((384, 3), (256, 3), (256, 3)))
_UNITS = 4096
_SIDE = 6  # of the maps that enter the fully-connected layers at 224 pixels


def AlexNet(
    num_classes: int,
    input_shape: tuple[int, int, int],
    stem: str | None = None,
    width: float = 1.0,
    dropout: float = 0.5,
) -> keras.Model:
    """AlexNet (Krizhevsky et al., NeurIPS 2012) as it is used today, with one column and no local response
    normalisation (Krizhevsky, 1404.5997). Without batch norm it needs a smaller learning rate than the other families.

    Taps: ``stage1``, ``stage2``, ``stage3``, the first, the second and the fifth convolution after their ReLU and
    before the pooling that follows each; ``stage1_pre …``, the same before that ReLU; ``pooled``, the vector (B, D)
    that enters the fully-connected layers.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        stem: ``'imagenet'``: as published, a first convolution of 11x11 with stride 4, a second of 5x5, 3x3 pooling
            with stride 2. ``'cifar'``: as usual for 32x32 images, a first convolution of 3x3 with stride 2, a second
            of 3x3, 2x2 pooling. Default: ``'cifar'`` where the smaller side is below 64 pixels. Both have two
            fully-connected layers of 4096 units, times ``width``.
        width: factor on the filters of every convolution and on the units of the two fully-connected layers.
        dropout: share of units dropped after each of these two, in 0 <= dropout < 1.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the stem is unknown, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    stem = _layers.chosen_stem(stem, input_shape)
    _layers.check_width(width)
    _layers.check_dropout(dropout)
    stages, first_stride, window = (_IMAGENET, 4, 3) if stem == "imagenet" else (_CIFAR, 2, 2)

    image, x = _layers.image_input(input_shape)
    for stage, convs in enumerate(stages, start=1):
        for i, (filters, size) in enumerate(convs, start=1):
            stride = first_stride if stage == i == 1 else 1
            filters = _layers.scaled(filters, width)
            x = _layers.stage_conv(x, filters, size, stage=stage, i=i, last=i == len(convs), stride=stride)
        x = _layers.pool(x, window, name=f"stage{stage}_pool")
    x = _layers.flat(x, _SIDE)
    for i in (1, 2):
        x = _layers.hidden(x, _layers.scaled(_UNITS, width), i=i, share=dropout)
    return keras.Model(image, _layers.logits(x, num_classes), name="alexnet")
