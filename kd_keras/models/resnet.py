"""Residual networks: the ImageNet family, the CIFAR family, squeeze-and-excitation."""

import dataclasses

import keras

from kd_keras.errors import InputError, is_count
from kd_keras.models import applications as _applications
from kd_keras.models import layers as _layers


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One depth: filters of the stem and of each stage, blocks of each stage, and the kind of block."""

    stem: int
    filters: tuple[int, ...]
    blocks: tuple[int, ...]
    bottleneck: bool = False


def _imagenet(*blocks: int, bottleneck: bool = False) -> _Plan:
    return _Plan(64, (64, 128, 256, 512), blocks, bottleneck)


def _cifar(depth: int, stem: int = 16, filters: tuple[int, ...] = (16, 32, 64)) -> _Plan:
    return _Plan(stem, filters, ((depth - 2) // 6,) * 3)


_PLANS = {
    18: _imagenet(2, 2, 2, 2),
    34: _imagenet(3, 4, 6, 3),
    50: _imagenet(3, 4, 6, 3, bottleneck=True),
    101: _imagenet(3, 4, 23, 3, bottleneck=True),
    152: _imagenet(3, 8, 36, 3, bottleneck=True),
    **{depth: _cifar(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "8x4": _cifar(8, 32, (64, 128, 256)),
    "32x4": _cifar(32, 32, (64, 128, 256)),
}
_PUBLISHED = {
    50: keras.applications.ResNet50,
    101: keras.applications.ResNet101,
    152: keras.applications.ResNet152,
}
_EXPANSION = 4  # a bottleneck's last convolution has four times the filters of its others (1512.03385, table 1)


def ResNet(
    num_classes: int,
    input_shape: tuple[int, int, int],
    depth: int | str = 18,
    stem: str | None = None,
    se_ratio: int | None = None,
    width: float = 1.0,
    pretrained: str | None = None,
) -> keras.Model:
    """A residual network (He et al., 1512.03385), optionally with squeeze-and-excitation (Hu et al., 1709.01507).

    - ``depth`` 18, 34 (basic blocks), 50, 101, 152 (bottlenecks): section 4.1, table 1. A bottleneck's stride is on
      its 3x3 convolution, as in the networks published today ("v1.5"), not on the first 1x1 as in the paper.
    - ``depth`` 8, 14, 20, 32, 44, 56, 110: the 6n+2 family of section 4.2, three stages of 16, 32, 64 filters. Where
      a stage changes the shape the shortcut is a 1x1 convolution (option B), as in the public distillation
      benchmarks RepDistiller and mdistiller; the paper pads with zeros (option A) and so has slightly fewer weights.
    - ``depth`` '8x4', '32x4': the wide variants of these benchmarks: a stem of 32 filters, stages of 64, 128, 256.

    Taps: ``stage1 … stageN`` (four stages in the ImageNet family, three in the CIFAR family), each stage's last block
    after its ReLU; ``stage1_pre …``, the sum before that ReLU; ``pooled``, the global average (B, D).

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        depth: one of these.
        stem: ``'imagenet'``: 7x7 convolution with stride 2, then 3x3 max pooling with stride 2. ``'cifar'``: 3x3
            convolution, no stride. Default: ``'cifar'`` where the smaller side is below 64 pixels.
        se_ratio: reduction r of squeeze-and-excitation in every block (the paper's r is 16); None for none.
        width: factor on the number of filters of every convolution.
        pretrained: ``'imagenet'``, or the path of a weights file: the network of keras.applications with its published
            weights and preprocessing, a global average and a new classifier, all trainable (``depth`` 50,
            101, 152; their strides are on the first 1x1 convolution of a bottleneck, as in the paper).

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the published weights are not available, depth or stem is unknown, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    # 18.0 == 18 would be found in the table, and a list is not hashable.
    if not isinstance(depth, (int, str)) or depth not in _PLANS:
        raise InputError(f"depth={depth!r} is unknown: choose one of {', '.join(map(repr, _PLANS))}")
    if pretrained is not None:
        _applications.check_published("depth", depth, _PUBLISHED)
        _applications.check_published("stem", stem, (None, "imagenet"))
        _applications.check_published("se_ratio", se_ratio, (None,))
        _applications.check_published("width", width, (1.0,))
        return _pretrained(num_classes, input_shape, depth, pretrained)
    stem = _layers.chosen_stem(stem, input_shape)
    if se_ratio is not None and not is_count(se_ratio):
        raise InputError(f"se_ratio={se_ratio!r} is not a positive whole number: give one, such as 16, or None")
    _layers.check_width(width)
    plan = _PLANS[depth]

    image, x = _layers.image_input(input_shape)
    x = _stem(x, _layers.scaled(plan.stem, width), stem)
    for stage, (filters, blocks) in enumerate(zip(plan.filters, plan.blocks, strict=True), start=1):
        for i in range(1, blocks + 1):
            stride = 2 if stage > 1 and i == 1 else 1
            x = _block(x, _layers.scaled(filters, width), stride, plan.bottleneck, se_ratio, stage, i, last=i == blocks)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    name = f"{'se_' if se_ratio else ''}resnet{depth}"
    return keras.Model(image, _layers.logits(x, num_classes), name=name)


def _stem(x, filters, kind):
    if kind == "imagenet":
        return _layers.imagenet_stem(x, filters)
    x = _layers.conv(x, filters, 3, name="stem_conv")
    x = _layers.batch_norm(x, name="stem_bn")
    return _layers.relu(x, name="stem_relu")


def _block(x, filters, stride, bottleneck, se_ratio, stage, i, last):
    """One residual block; the last of a stage has the names of the taps."""
    name = f"stage{stage}_block{i}"
    if bottleneck:
        convs = ((filters, 1, 1), (filters, 3, stride), (filters * _EXPANSION, 1, 1))
    else:
        convs = ((filters, 3, stride), (filters, 3, 1))
    out = convs[-1][0]

    y = x
    for j, (width, size, step) in enumerate(convs, start=1):
        y = _layers.conv(y, width, size, stride=step, name=f"{name}_conv{j}")
        y = _layers.batch_norm(y, name=f"{name}_bn{j}")
        if j < len(convs):
            y = _layers.relu(y, name=f"{name}_relu{j}")
    if se_ratio is not None:
        y = _layers.squeeze_excite(y, max(1, out // se_ratio), name=f"{name}_se")
    if stride != 1 or x.shape[-1] != out:
        x = _layers.conv(x, out, 1, stride=stride, name=f"{name}_shortcut_conv")
        x = _layers.batch_norm(x, name=f"{name}_shortcut_bn")
    x = keras.layers.Add(name=f"stage{stage}_pre" if last else f"{name}_add")([x, y])
    return _layers.relu(x, name=f"stage{stage}" if last else f"{name}_relu")


def _pretrained(num_classes, input_shape, depth, pretrained):
    ends = {stage: f"conv{stage + 1}_block{blocks}" for stage, blocks in enumerate(_PLANS[depth].blocks, start=1)}
    after = {f"{end}_out": f"stage{stage}" for stage, end in ends.items()}
    before = {f"{end}_add": f"stage{stage}_pre" for stage, end in ends.items()}
    return _applications.build_pretrained(
        num_classes,
        input_shape,
        pretrained,
        _PUBLISHED[depth],
        preprocessing=_applications.Preprocessing.CAFFE,
        first_conv="conv1_conv",
        taps={**after, **before},
        name=f"resnet{depth}",
    )
