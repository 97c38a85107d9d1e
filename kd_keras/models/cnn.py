"""Plain convolutional networks: blocks of convolutions, then fully-connected layers."""

from collections.abc import Sequence

import keras

from kd_keras.errors import InputError, check_switch, is_count
from kd_keras.models import layers as _layers

_POOLS = ("max", "avg", "global")


def CNN(
    num_classes: int,
    input_shape: tuple[int, int, int],
    filters: Sequence[int] = (32, 64),
    convs: int | Sequence[int] = 1,
    dense: Sequence[int] = (256, 128),
    batch_norm: bool = True,
    pool: str = "max",
    dropout: float = 0.0,
) -> keras.Model:
    """A plain CNN of 3x3 convolutions, with one block for each member of ``filters``.

    Two of the studies that this package reimplements, S0 (a 10-convolution teacher and a 3-convolution student on
    CIFAR-10) and S4 (AlexNet to small CNNs), have these networks:

    - S4's student, two blocks of (conv, batch norm, ReLU, max pool) and three linear layers: the defaults, ``cnn()``.
    - S0's student, 3 convolutions + 1 pooling layer + 256 units: ``cnn(filters=(32, 64, 128), dense=(256,),
      pool='global')``.
    - S0's teacher, 10 convolutions + 1 pooling layer + 256 units: ``cnn(filters=(64, 128, 256), convs=(3, 3, 4),
      dense=(256,), pool='global')``.

    S0 states neither the filters nor the position of its one pooling layer. One 2x2 pooling of a 32x32 image would
    leave 16x16 maps, and almost all weights of the student in the first linear layer (8.4 M after 128 filters). So the
    one pooling is a global average, and strides shrink the maps; teacher and student have maps of equal size at each
    stage, which feature losses can compare.

    Taps: ``stage1 … stageN``, each block after its last ReLU and before its pooling; ``stage1_pre …``, the same
    before that ReLU; ``pooled``, the vector (B, D) that enters the fully-connected layers.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        filters: filters of each block's convolutions.
        convs: convolutions of each block, one number for all blocks or one for each.
        dense: units of the fully-connected layers before the classifier; ``()`` for none.
        batch_norm: whether batch normalisation follows each convolution, which then has no bias.
        pool: ``'max'`` or ``'avg'``: 2x2 pooling after every block, then flattened. ``'global'``: one global average
            pooling after the last block; the first convolution of every later block has stride 2.
        dropout: share of units dropped after each fully-connected layer, in 0 <= dropout < 1.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: a value is out of range, or the image is too small for the 2x2 poolings.
    """
    input_shape = _layers.check(num_classes, input_shape)
    filters = _layers.counts("filters", filters)
    convs = (convs,) * len(filters) if is_count(convs) else _layers.counts("convs", convs)
    dense = _layers.counts("dense", dense, least_length=0)
    if len(convs) != len(filters):
        raise InputError(
            f"convs={convs} has {len(convs)} members and filters={filters} {len(filters)}: "
            "give one number of convolutions for each block, or one for all"
        )
    check_switch("batch_norm", batch_norm)
    if pool not in _POOLS:
        raise InputError(f"pool={pool!r} is unknown: choose one of {', '.join(map(repr, _POOLS))}")
    _layers.check_dropout(dropout)
    if pool != "global" and min(input_shape[:2]) < 2 ** len(filters):
        raise InputError(
            f"filters={filters} pools {len(filters)} times, too often for a {input_shape[0]}x{input_shape[1]} image: "
            f"give at most {min(input_shape[:2]).bit_length() - 1} blocks, or pool='global'"
        )

    image, x = _layers.image_input(input_shape)
    for stage, (width, depth) in enumerate(zip(filters, convs, strict=True), start=1):
        for i in range(1, depth + 1):
            stride = 2 if pool == "global" and stage > 1 and i == 1 else 1
            x = _layers.stage_conv(
                x, width, stage=stage, i=i, last=i == depth, stride=stride, norm=batch_norm, use_bias=not batch_norm
            )
        if pool == "max":
            x = keras.layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
        elif pool == "avg":
            x = keras.layers.AveragePooling2D(2, name=f"stage{stage}_pool")(x)
    if pool == "global":
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    else:
        x = keras.layers.Flatten(name="pooled")(x)
    for i, units in enumerate(dense, start=1):
        x = _layers.hidden(x, units, i=i, share=dropout)
    return keras.Model(image, _layers.logits(x, num_classes), name="cnn")
