"""Wide residual networks."""

import keras

from kd_keras.errors import InputError, is_count
from kd_keras.models import layers as _layers

_FILTERS = (16, 32, 64)


def WideResNet(
    num_classes: int,
    input_shape: tuple[int, int, int],
    depth: int = 40,
    width: int = 2,
    dropout: float = 0.0,
) -> keras.Model:
    """A wide residual network WRN-depth-width (Zagoruyko & Komodakis, 1605.07146) of pre-activation blocks.

    A 3x3 convolution to 16 filters, then three stages of (depth − 4) / 6 blocks with 16, 32 and 64 times ``width``
    filters (table 1), then batch norm, ReLU and global average. Weights at 100 classes, those of the public
    distillation benchmarks RepDistiller and mdistiller: WRN-40-2 2.26 M, 40-1 0.57 M, 16-2 0.70 M, 16-1 0.18 M.

    It has no stem that shrinks the image, so it is slow on images much larger than 32x32; use ``resnet`` there.

    Taps: ``stage1 … stage3``, each stage's output after the batch norm and ReLU at the start of the next stage;
    ``stage1_pre …``, the same before that ReLU; ``pooled``, the global average (B, D).

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        depth: number of convolutions, the three stages' shortcuts counted, 6n + 4: 10, 16, 22, 28, 34, 40 …
        width: factor k on the filters of every block.
        dropout: share of channels' values dropped between a block's convolutions (section 2.4), in 0 <= dropout < 1.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the depth is not 6n + 4, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not is_count(depth, least=10) or (depth - 4) % 6:
        raise InputError(f"depth={depth!r} is not 6n + 4: choose one of 10, 16, 22, 28, 34, 40, …")
    if not is_count(width):
        raise InputError(f"width={width!r} is not a positive whole number: give the factor on the filters, such as 2")
    _layers.check_dropout(dropout)

    image, x = _layers.image_input(input_shape)
    x = _layers.conv(x, _FILTERS[0], 3, name="stem_conv")
    blocks = (depth - 4) // 6
    for stage, filters in enumerate(_FILTERS, start=1):
        for i in range(1, blocks + 1):
            x = _block(x, filters * width, 2 if stage > 1 and i == 1 else 1, dropout, stage, i)
    x = _layers.batch_norm(x, name="stage3_pre")
    x = _layers.relu(x, name="stage3")
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, _layers.logits(x, num_classes), name=f"wide_resnet{depth}_{width}")


def _block(x, filters, stride, dropout, stage, i):
    """Batch norm, ReLU, convolution, twice; a stage's first block has the taps of the previous stage."""
    name = f"stage{stage}_block{i}"
    before, after = (f"stage{stage - 1}_pre", f"stage{stage - 1}") if stage > 1 and i == 1 else (f"{name}_bn1", None)
    y = _layers.batch_norm(x, name=before)
    y = _layers.relu(y, name=after or f"{name}_relu1")
    if stride != 1 or x.shape[-1] != filters:
        # Where the shape changes, the shortcut starts after the activation, as in the authors' code.
        x = _layers.conv(y, filters, 1, stride=stride, name=f"{name}_shortcut_conv")
    y = _layers.conv(y, filters, 3, stride=stride, name=f"{name}_conv1")
    y = _layers.batch_norm(y, name=f"{name}_bn2")
    y = _layers.relu(y, name=f"{name}_relu2")
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_dropout")(y)
    y = _layers.conv(y, filters, 3, name=f"{name}_conv2")
    return keras.layers.Add(name=f"{name}_add")([x, y])
