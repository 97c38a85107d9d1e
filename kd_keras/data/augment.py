"""Augmentation, named in ``--augment='pad_crop(pixels=4) + flip() + mixup(alpha=0.2)'``.

Each function returns an operation of one of two kinds. The pipeline passes in the random numbers, so an operation's
result is a function of (seed, epoch, index) alone:

- per sample (``mixes_labels`` False): ``op(images, noise)``, noise uniform in [0, 1), ``op.columns`` numbers per
  sample;
- per batch (``mixes_labels`` True): ``op(images, labels, seed)``, which also mixes the labels.

Images are uint8 or float32 (B, H, W, C) in 0…255, and stay uint8 where possible: a quarter of the bytes. The operations
are one file because each is a few lines and they share their random numbers and boxes.
"""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from kd_keras import spec
from kd_keras.errors import InputError, needs

__all__ = ["colour", "cutmix", "cutout", "flip", "keras_cv", "mixup", "pad_crop", "resized_crop"]


class SampleOp:
    """An operation on each image separately.

    Attributes:
        columns: random numbers per sample.
        stateless: whether the result depends on the arguments alone.
    """

    columns = 0
    mixes_labels = False
    stateless = True

    def on(self, grid: tuple[int, int]) -> "SampleOp | None":
        """The operation for the same images in another size, so that both show the same; None where there is none.

        Args:
            grid: (height, width) of the images that the operation's pixels are of.
        """
        return dataclasses.replace(self, grid=grid) if hasattr(self, "grid") else self

    def __call__(self, images: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Augments a batch.

        Args:
            images: uint8 or float32 (B, H, W, C), 0…255.
            noise: float32 (B, columns), uniform in [0, 1).

        Returns:
            Images (B, H, W, C), 0…255.
        """
        raise NotImplementedError


class BatchOp:
    """An operation that mixes images, and their labels, within a batch; in the views of a teacher cache, within a pass.

    Of its own it has `draw` and `mix`. One that has only ``__call__`` can't be cached.
    """

    columns = 0
    mixes_labels = True
    stateless = True

    on = SampleOp.on

    def draw(self, count: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws what is mixed.

        Args:
            count: N, samples of the batch or of the pass.
            seed: integers (2,).

        Returns:
            Each sample's partner, a permutation (N,), and its random numbers, float32 (N, …).
        """
        raise NotImplementedError

    def mix(self, images: tf.Tensor, others: tf.Tensor, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes images with their partners' images.

        Args:
            images: uint8 or float32 (B, H, W, C), 0…255.
            others: their partners', likewise.
            numbers: random numbers (B, …), from `draw`.

        Returns:
            Mixed images (B, H, W, C), and the share (B,) that is left of the own image.
        """
        raise NotImplementedError

    def __call__(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Augments a batch.

        Args:
            images: uint8 or float32 (B, H, W, C), 0…255.
            labels: float32 class weights (B, K).
            seed: integers (2,).

        Returns:
            Images (B, H, W, C), and class weights float32 (B, K) of the same sum.
        """
        partners, numbers = self.draw(tf.shape(images)[0], seed)
        mixed, share = self.mix(images, tf.gather(images, partners), numbers)
        return mixed, mix_labels(labels, tf.gather(labels, partners), share)


def augmentations(text: str | Sequence[spec.Spec]) -> list:
    """Builds the operations that a text names, such as ``'pad_crop(pixels=4) + flip()'``; none for ``''`` or
    ``'none'``.

    Args:
        text: the text, or the specs that it was parsed to.

    Raises:
        InputError: an operation or key is unknown, or a value is out of range.
    """
    specs = spec.parse_many(text) if isinstance(text, str) else text
    return [spec.check_kind(given, spec.build(__name__, given), SampleOp, BatchOp) for given in specs]


def _number(op: str, key: str, value: Any, low: float, high: float = float("inf"), whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        bounds = f"of at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise InputError(f"{op}({key}={value!r}): give {kind} {bounds}")


def pad_crop(pixels: int = 4, mode: str = "reflect") -> SampleOp:
    """Pads each side and crops to the original size at a random place: a shift of up to ``pixels``.

    Args:
        pixels: padding of each side.
        mode: content of the padding, ``'reflect'`` (the image, mirrored at its edge) or ``'zero'``.

    Raises:
        InputError: a value is out of range.

    Reference: He et al., "Deep Residual Learning", arXiv:1512.03385, section 4.2.
    """
    _number("pad_crop", "pixels", pixels, 0, whole=True)
    if mode not in ("reflect", "zero"):
        raise InputError(f"pad_crop(mode={mode!r}): give 'reflect' or 'zero'")
    return _PadCrop(pixels, mode)


@dataclasses.dataclass(frozen=True)
class _PadCrop(SampleOp):
    pixels: int
    mode: str
    grid: tuple[int, int] | None = dataclasses.field(default=None, repr=False)

    columns = 2

    def __call__(self, images, noise):
        batch, height, width, channels = _shape(images)
        sides = self.grid or (height, width)
        if self.mode == "reflect" and all(isinstance(side, int) for side in sides):
            _number("pad_crop", "pixels", self.pixels, 0, min(sides) - 1, whole=True)
        shift = tf.cast(noise * (2 * self.pixels + 1), tf.int32) - self.pixels
        shift = _on_grid(shift, self.grid, height, width)
        rows = shift[:, :1] + tf.range(height)
        columns = shift[:, 1:] + tf.range(width)
        pixels = tf.reshape(images, (-1, channels))
        if self.mode == "reflect":
            rows, columns = _reflect(rows, height), _reflect(columns, width)
        # One gather of pixels by flat position, without a padded copy: three times as fast as padding and slicing.
        first = tf.range(batch)[:, None] * height
        positions = (first + rows)[:, :, None] * width + columns[:, None, :]
        if self.mode == "zero":
            # The padding is one additional pixel: half the time of a mask over the channels.
            inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
            positions = tf.where(inside, positions, batch * height * width)
            pixels = tf.concat([pixels, tf.zeros((1, channels), pixels.dtype)], axis=0)
        return tf.ensure_shape(tf.gather(pixels, positions), images.shape)


def _on_grid(places, grid, height, width):
    """Places (B, 2) in pixels of a grid as places in an image of another size."""
    if grid is None:
        return places
    factors = tf.cast([height, width], tf.float32) / tf.cast(grid, tf.float32)
    return tf.cast(tf.round(tf.cast(places, tf.float32) * factors), tf.int32)


def _shape(images):
    """The four sizes, as Python numbers where they are static."""
    dynamic = tf.shape(images)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(images.shape)]


def _inside(index, size):
    return (index >= 0) & (index < size)


def _reflect(index, size):
    return size - 1 - tf.abs(size - 1 - tf.abs(index))


def resized_crop(area: float = 0.08, ratio: float = 1.333) -> SampleOp:
    """Cuts a random rectangle out of each image and enlarges it, bilinearly, to the image's size.

    A side that would be longer than the image's is as long: such a rectangle is smaller than drawn.

    Args:
        area: smallest share of the image's area; shares are drawn uniformly from this to 1.
        ratio: largest ratio of a side's share of the image's width to its share of the height, or the reverse; drawn
            uniformly in its logarithm.

    Raises:
        InputError: a value is out of range.

    Reference: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6. The rectangle's ratio is
        that of an image which was resized to ``--image_size``, not of the file's.
    """
    _number("resized_crop", "area", area, 0.001, 1)
    _number("resized_crop", "ratio", ratio, 1, 100)
    return _ResizedCrop(float(area), float(ratio))


@dataclasses.dataclass(frozen=True)
class _ResizedCrop(SampleOp):
    area: float
    ratio: float

    columns = 4

    def __call__(self, images, noise):
        batch, height, width, _ = _shape(images)
        share = self.area + (1 - self.area) * noise[:, 0]
        bias = tf.pow(tf.constant(self.ratio, tf.float32), noise[:, 1] - 0.5)  # √(width / height)
        sides = tf.minimum(tf.sqrt(share)[:, None] * tf.stack([1 / bias, bias], axis=1), 1)
        first = noise[:, 2:] * (1 - sides)
        # From centre to centre of the outermost pixels, as a share of the distance between those of the image.
        pixels = tf.cast([height, width], tf.float32)
        start = tf.maximum((first + sides / (2 * pixels)) * pixels - 0.5, 0) / (pixels - 1)
        end = tf.minimum((first + sides - sides / (2 * pixels)) * pixels - 0.5, pixels - 1) / (pixels - 1)
        cut = tf.image.crop_and_resize(images, tf.concat([start, end], axis=1), tf.range(batch), (height, width))
        if images.dtype == tf.uint8:
            cut = tf.cast(tf.round(cut), tf.uint8)
        return tf.ensure_shape(cut, images.shape)


def flip() -> SampleOp:
    """Mirrors each image left to right with probability 1/2."""
    return _Flip()


@dataclasses.dataclass(frozen=True)
class _Flip(SampleOp):
    columns = 1

    def __call__(self, images, noise):
        # Partition and stitch image by image: selecting pixel by pixel takes three times as long.
        mirrored = tf.cast(noise[:, 0] < 0.5, tf.int32)
        unchanged, turned = tf.dynamic_partition(images, mirrored, 2)
        positions = tf.dynamic_partition(tf.range(tf.shape(images)[0]), mirrored, 2)
        return tf.ensure_shape(tf.dynamic_stitch(positions, [unchanged, tf.reverse(turned, [2])]), images.shape)


def colour(brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2) -> SampleOp:
    """Multiplies brightness, contrast (about the image's mean) and saturation (about each pixel's mean).

    Args:
        brightness: the factor is uniform in 1 ± this.
        contrast: likewise.
        saturation: likewise; grey images have none.

    Raises:
        InputError: a value is not in 0…1.

    Reference: Howard, "Some Improvements on Deep CNN Based Image Classification", arXiv:1312.5402, section 2.1.
    """
    for key, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        _number("colour", key, value, 0, 1)
    return _Colour(brightness, contrast, saturation)


@dataclasses.dataclass(frozen=True)
class _Colour(SampleOp):
    brightness: float
    contrast: float
    saturation: float

    columns = 3

    def __call__(self, images, noise):
        factors = 1.0 + (2.0 * noise - 1.0) * (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = (factors[:, at, None, None, None] for at in range(3))
        images = tf.cast(images, tf.float32) * brightness
        mean = tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
        images = mean + (images - mean) * contrast
        grey = tf.reduce_mean(images, axis=-1, keepdims=True)
        return tf.clip_by_value(grey + (images - grey) * saturation, 0.0, 255.0)


def cutout(size: int = 8) -> SampleOp:
    """Blackens a square whose centre is anywhere in the image; at an edge, part of it is outside.

    Args:
        size: side of the square, in pixels.

    Raises:
        InputError: the size is not a whole number of at least 1.

    Reference: DeVries & Taylor, "Improved Regularization … with Cutout", arXiv:1708.04552, section 3.2.
    """
    _number("cutout", "size", size, 1, whole=True)
    return _Cutout(size)


@dataclasses.dataclass(frozen=True)
class _Cutout(SampleOp):
    size: int
    grid: tuple[int, int] | None = dataclasses.field(default=None, repr=False)

    columns = 2

    def __call__(self, images, noise):
        _, height, width, channels = _shape(images)
        low = tf.cast(noise * tf.cast(self.grid or [height, width], tf.float32), tf.int32) - self.size // 2
        low, high = (_on_grid(places, self.grid, height, width) for places in (low, low + self.size))
        hole = _box(low, high, height, width, channels)
        flat = tf.reshape(images, tf.shape(hole))
        return tf.reshape(flat * tf.cast(~hole, images.dtype), tf.shape(images))


def _box(low, high, height, width, channels):
    """Whether each value lies in the box from low to high (B, 2), high excluded: bool (B, H, W · C).

    With the channels in the last axis, because broadcasting a mask over them takes longer than applying it.
    """
    rows, columns = tf.range(height), tf.range(width * channels) // channels
    in_rows = (rows >= low[:, :1]) & (rows < high[:, :1])
    in_columns = (columns >= low[:, 1:]) & (columns < high[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None, :]


def mixup(alpha: float = 0.2) -> BatchOp:
    """Mixes each image and its label with those of another sample of the batch.

    Args:
        alpha: the share follows Beta(alpha, alpha), drawn for each image.

    Raises:
        InputError: alpha is not positive.

    Reference: Zhang et al., "mixup", arXiv:1710.09412, section 2.
    """
    _check_alpha("mixup", alpha)
    return _Mixup(alpha)


def cutmix(alpha: float = 1.0) -> BatchOp:
    """Replaces a box of each image by that of another image, and the label in proportion to the pixels.

    Args:
        alpha: the remaining share follows Beta(alpha, alpha), drawn for each image; it is larger where the box crosses
            an edge.

    Raises:
        InputError: alpha is not positive.

    Reference: Yun et al., "CutMix", arXiv:1905.04899, section 3.1, equations 1 and 2.
    """
    _check_alpha("cutmix", alpha)
    return _Cutmix(alpha)


def _check_alpha(op, alpha):
    _number(op, "alpha", alpha, 0)
    if alpha == 0:
        raise InputError(f"{op}(alpha=0): give a positive number, or leave {op} out")


def _draw(alpha, count, seed):
    """Partners, a permutation (B,) of the batch, and shares (B,) from Beta(alpha, alpha)."""
    seeds = tf.random.split(seed, 3)
    partners = tf.random.experimental.stateless_shuffle(tf.range(count), seeds[0])
    own, partner = (tf.random.stateless_gamma([count], seeds[at], alpha) for at in (1, 2))
    # For a tiny alpha both gammas may underflow to zero: the share is then 0, a possible value of Beta.
    return partners, tf.math.divide_no_nan(own, own + partner)


def mix_labels(labels: tf.Tensor, others: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Class weights (B, K) mixed with their partners'; ``share`` (B,) is that of the own ones."""
    mixed = share[:, None] * labels + (1.0 - share[:, None]) * others
    # A label of −1 is not known, and neither is a mixture with it.
    return tf.where(tf.minimum(labels, others) < 0, -1.0, mixed)


@dataclasses.dataclass(frozen=True)
class _Mixup(BatchOp):
    alpha: float

    def draw(self, count, seed):
        partners, share = _draw(self.alpha, count, seed)
        return partners, share[:, None]

    def mix(self, images, others, numbers):
        images, others, share = tf.cast(images, tf.float32), tf.cast(others, tf.float32), numbers[:, 0]
        weight = share[:, None, None, None]
        return weight * images + (1.0 - weight) * others, share


@dataclasses.dataclass(frozen=True)
class _Cutmix(BatchOp):
    alpha: float
    grid: tuple[int, int] | None = dataclasses.field(default=None, repr=False)

    def draw(self, count, seed):
        seeds = tf.random.split(seed, 2)
        partners, share = _draw(self.alpha, count, seeds[0])
        return partners, tf.concat([share[:, None], tf.random.stateless_uniform((count, 2), seeds[1])], axis=1)

    def mix(self, images, others, numbers):
        _, height, width, channels = _shape(images)
        sides, share = tf.cast(self.grid or [height, width], tf.float32), numbers[:, 0]
        centre = numbers[:, 1:] * sides
        half = tf.sqrt(1.0 - share)[:, None] * sides / 2.0
        low, high = tf.cast(tf.round(centre - half), tf.int32), tf.cast(tf.round(centre + half), tf.int32)
        low, high = (_on_grid(places, self.grid, height, width) for places in (low, high))
        box = _box(low, high, height, width, channels)
        # The share is counted again, because the box may exceed the image.
        remaining = 1.0 - tf.reduce_mean(tf.cast(box[:, :, ::channels], tf.float32), axis=(1, 2))
        flat, other = (tf.reshape(part, tf.shape(box)) for part in (images, others))
        return tf.reshape(tf.where(box, other, flat), tf.shape(images)), remaining


def keras_cv(layer: str | spec.Spec = "RandAugment") -> SampleOp:
    """A preprocessing layer of KerasCV, which draws its own random numbers.

    A teacher cache and an exact resume are not possible with it; a warning says so.

    Args:
        layer: the layer's class and its arguments, ``'GridMask'`` or ``RandAugment(magnitude=0.3)``; its
            ``value_range`` is (0, 255) unless given.

    Raises:
        InputError: KerasCV is not installed or has no such layer, or the layer refuses its arguments.
    """
    layer_spec = spec.parse(layer) if isinstance(layer, str) else layer
    with needs("KerasCV", "augment", "keras_cv(…)"):
        import keras_cv as package
    if not isinstance(layer_spec, spec.Spec):
        raise InputError(f"keras_cv(layer={layer!r}): give a layer of KerasCV, such as 'RandAugment'")
    layer_class = getattr(package.layers, layer_spec.name, None)
    # These change labels or the image's size; the pipeline has mixup and cutmix with its own random numbers.
    if layer_spec.name in ("MixUp", "CutMix", "FourierMix", "Mosaic"):
        raise InputError(
            f"keras_cv(layer={layer_spec.name!r}) mixes labels: take mixup(alpha=0.2) or cutmix(alpha=1.0)"
        )
    bases = (package.layers.BaseImageAugmentationLayer, package.layers.VectorizedBaseImageAugmentationLayer)
    if not inspect.isclass(layer_class) or not issubclass(layer_class, bases):
        raise InputError(
            f"keras_cv(layer={layer_spec.name!r}): KerasCV has no such preprocessing layer, e.g. 'RandAugment'"
        )
    kwargs = dict(layer_spec.kwargs)
    if "value_range" in inspect.signature(layer_class.__init__).parameters:
        kwargs.setdefault("value_range", (0, 255))
    try:
        # Under a mixed policy the layer would return float16.
        instance = layer_class(dtype="float32", **kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"keras_cv: {layer_spec} cannot be made ({re.sub(chr(10), ' ', str(error))})") from error
    logging.log_first_n(
        logging.WARNING,
        "keras_cv(…) draws its own random numbers: a teacher cache and an exact resume are not possible with it",
        1,
    )
    return _KerasCV(instance)


@dataclasses.dataclass(frozen=True)
class _KerasCV(SampleOp):
    layer: Any

    stateless = False

    def on(self, grid):
        # Its random numbers and its pixels are its own.
        return None

    def __call__(self, images, noise):
        del noise  # the layer draws its own
        augmented = self.layer(tf.cast(images, tf.float32), training=True)
        return tf.ensure_shape(tf.cast(augmented, tf.float32), images.shape)
