"""ShuffleNets, version 1 and 2."""

from collections.abc import Sequence

import keras

from kd_keras.errors import InputError, is_count
from kd_keras.models import layers as _layers

_VERSIONS = ("v1", "v2")
_STEM = 24
# Version 1, table 1: filters of the first stage for each number of groups; every later stage has twice as many.
_V1_FILTERS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
# Version 2, table 5: filters of the stages and of the last convolution for each width.
_V2_FILTERS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def ShuffleNet(
    num_classes: int,
    input_shape: tuple[int, int, int],
    version: str = "v2",
    width: float = 1.0,
    groups: int | None = None,
    units: Sequence[int] = (4, 8, 4),
    stem: str | None = None,
) -> keras.Model:
    """A ShuffleNet: version 1 (Zhang et al., 1707.01083) or 2 (Ma et al., 1807.11164).

    Weights as published: version 2 at 1000 classes 1.37 M (width 0.5), 2.28 M (1.0), 3.50 M (1.5), 7.39 M (2.0);
    version 1 with 3 groups 1.87 M. With the CIFAR stem and 100 classes those of the public distillation benchmarks
    RepDistiller and mdistiller: version 1 0.95 M, version 2 1.36 M. As in the paper, version 1 has no ReLU after its
    depthwise convolutions; those benchmarks have one.

    Taps: ``stage1 … stage3``, the last unit of the papers' stages 2 to 4; ``stage1_pre …``, in version 1, the same
    before that unit's ReLU (version 2 has none: half of a unit's output bypasses it); ``pooled``, the global average
    (B, D), in version 2 after one more 1x1 convolution.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C).
        version: ``'v1'`` or ``'v2'``.
        width: factor on the filters of every stage; in version 2 one of 0.5, 1.0, 1.5, 2.0.
        groups: groups of version 1's 1x1 convolutions: 1, 2, 3, 4 or 8, by default 3. Version 2 has none.
        units: units of each of the three stages.
        stem: ``'imagenet'``: 3x3 convolution with stride 2, then 3x3 max pooling with stride 2. ``'cifar'``: 1x1
            convolution, no stride. Default: ``'cifar'`` where the smaller side is below 64 pixels.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: version, width, groups or stem is unknown, or ``units`` does not have three members.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if version not in _VERSIONS:
        raise InputError(f"version={version!r} is unknown: choose one of {', '.join(map(repr, _VERSIONS))}")
    _layers.check_width(width)
    stem = _layers.chosen_stem(stem, input_shape)
    if version == "v2":
        if groups is not None:
            raise InputError(
                f"groups={groups!r} is for version='v1': version 2 has no grouped convolutions, leave it out"
            )
        if width not in _V2_FILTERS:
            raise InputError(
                f"width={width!r} is unknown in version 2: choose one of {', '.join(map(str, _V2_FILTERS))}"
            )
    else:
        groups = 3 if groups is None else groups
        if not is_count(groups) or groups not in _V1_FILTERS:
            raise InputError(f"groups={groups!r} is unknown: choose one of {', '.join(map(str, _V1_FILTERS))}")

    units = _layers.counts("units", units)
    if len(units) != 3:
        raise InputError(f"units={units} has {len(units)} members: give the units of three stages, such as (4, 8, 4)")

    image, x = _layers.image_input(input_shape)
    x = _v1(x, width, groups, units, stem) if version == "v1" else _v2(x, width, units, stem)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, _layers.logits(x, num_classes), name=f"shufflenet_{version}")


def _v1(x, width, groups, units, stem):
    # Filters in groups have to be divisible by their number; the published widths are.
    x = _stem(x, _multiple(_STEM * width, groups), stem)
    for stage, count in enumerate(units, start=1):
        filters = _multiple(_V1_FILTERS[groups] * 2 ** (stage - 1) * width, 4 * groups)
        for i in range(1, count + 1):
            x = _v1_unit(x, filters, groups, stem, stage, i, last=i == count)
    return x


def _v1_unit(x, filters, groups, stem, stage, i, last):
    """Figure 2: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or with stride 2 concatenated."""
    name = f"stage{stage}_unit{i}"
    stride = 2 if i == 1 else 1
    new = filters - x.shape[-1] if stride == 2 else filters
    # The first unit's hidden filters are a quarter of its output in the paper, of its new channels in the benchmarks.
    hidden = _multiple((filters if stem == "imagenet" else new) / 4, groups)
    # The stem has too few channels to be grouped (section 3.2).
    y = _grouped(x, hidden, 1 if stage == i == 1 else groups, name=f"{name}_conv1")
    y = _layers.batch_norm(y, name=f"{name}_bn1")
    y = _layers.relu(y, name=f"{name}_relu1")
    y = _shuffled(y, groups, name=f"{name}_shuffle")
    y = _depthwise(y, stride, name=f"{name}_conv2")
    y = _layers.batch_norm(y, name=f"{name}_bn2")
    y = _grouped(y, new, groups, name=f"{name}_conv3")
    y = _layers.batch_norm(y, name=f"{name}_bn3")
    before, after = (f"stage{stage}_pre", f"stage{stage}") if last else (f"{name}_joined", f"{name}_relu")
    if stride == 2:
        x = keras.layers.AveragePooling2D(3, strides=2, padding="same", name=f"{name}_pool")(x)
        x = keras.layers.Concatenate(name=before)([x, y])
    else:
        x = keras.layers.Add(name=before)([x, y])
    return _layers.relu(x, name=after)


def _v2(x, width, units, stem):
    *stages, end = _V2_FILTERS[width]
    x = _stem(x, _STEM, stem)
    for stage, (filters, count) in enumerate(zip(stages, units, strict=True), start=1):
        for i in range(1, count + 1):
            x = _v2_unit(x, filters // 2, stage, i, last=i == count)
    return _pointwise(x, end, "end")


def _v2_unit(x, filters, stage, i, last):
    """Figure 3 (c) and (d): one half of the channels is convolved, the other bypasses it; with stride 2 all are."""
    name = f"stage{stage}_unit{i}"
    if i == 1:
        bypass = _depthwise(x, 2, name=f"{name}_kept_conv1")
        bypass = _layers.batch_norm(bypass, name=f"{name}_kept_bn1")
        bypass, y, stride = _pointwise(bypass, filters, f"{name}_kept", 2), x, 2
    else:
        bypass, y, stride = _half(x, 0, name=f"{name}_kept"), _half(x, 1, name=f"{name}_worked"), 1
    y = _pointwise(y, filters, name, 1)
    y = _depthwise(y, stride, name=f"{name}_conv2")
    y = _layers.batch_norm(y, name=f"{name}_bn2")
    y = _pointwise(y, filters, name, 3)
    x = keras.layers.Concatenate(name=f"{name}_concat")([bypass, y])
    return _shuffled(x, 2, name=f"{name}_shuffle", out=f"stage{stage}" if last else None)


def _stem(x, filters, kind):
    return _layers.imagenet_stem(x, filters, 3) if kind == "imagenet" else _pointwise(x, filters, "stem")


def _pointwise(x, filters, name, i=""):
    """1x1 convolution, batch norm, ReLU."""
    x = _layers.conv(x, filters, 1, name=f"{name}_conv{i}")
    x = _layers.batch_norm(x, name=f"{name}_bn{i}")
    return _layers.relu(x, name=f"{name}_relu{i}")


def _depthwise(x, stride, name):
    return keras.layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=keras.initializers.VarianceScaling(2 / 9),
        name=name,
    )(x)


def _grouped(x, filters, groups, name):
    """A 1x1 convolution in groups: channels g·i … of the input make those of the output."""
    if groups == 1:
        return _layers.conv(x, filters, 1, name=name)
    height, width, channels = x.shape[1:]
    x = keras.layers.Reshape((height, width, groups, channels // groups), name=f"{name}_split")(x)
    # A matrix product, because TensorFlow runs grouped convolutions on CPUs only through XLA, and far slower.
    x = keras.layers.EinsumDense(
        "bhwgi,gio->bhwgo",
        output_shape=(height, width, groups, filters // groups),
        # He normal for the inputs of one group, which Keras cannot infer from the kernel's shape.
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=(2 * groups / channels) ** 0.5),
        name=name,
    )(x)
    return keras.layers.Reshape((height, width, filters), name=f"{name}_join")(x)


def _shuffled(x, groups, name, out=None):
    """Shuffles channels: the first of every group, then the second of every group … (1707.01083, section 3.1)."""
    height, width, channels = x.shape[1:]
    x = keras.layers.Reshape((height, width, groups, channels // groups), name=f"{name}_split")(x)
    x = keras.layers.Permute((1, 2, 4, 3), name=f"{name}_permute")(x)
    return keras.layers.Reshape((height, width, channels), name=out or name)(x)


def _half(x, which, name):
    """The first (0) or second (1) half of the channels."""
    height, width, channels = x.shape[1:]
    x = keras.layers.Reshape((height, width, 2, channels // 2), name=f"{name}_split")(x)
    x = keras.layers.Cropping3D((0, 0, (which, 1 - which)), name=f"{name}_crop")(x)
    return keras.layers.Reshape((height, width, channels // 2), name=name)(x)


def _multiple(filters, of):
    """The largest multiple of ``of`` that is at most ``filters``, at least ``of``."""
    return max(1, int(filters) // of) * of
