"""Random-access sources, and the stratified ways to split them.

A source has a length, all its labels in memory, and ``read(indices)`` in batched TensorFlow operations. Order,
augmentation and sharding are the pipeline's business: with random access they can be functions of the index.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from kd_keras.data import arrays, fingerprints
from kd_keras.errors import InputError, is_count, is_number

# Enough draws to find one in which every class keeps its share; a draw costs milliseconds.
_GROUP_DRAWS = 50


class Source:
    """What every source offers: length, labels, image shape, subsets.

    Attributes:
        labels: int32 (N,).
        image_shape: (H, W, C).
    """

    labels: np.ndarray
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads a batch; works eagerly and inside ``Dataset.map``.

        Args:
            indices: integers (B,), each in [0, N).

        Returns:
            Images uint8 (B, H, W, C) and labels int32 (B,).
        """
        raise NotImplementedError

    @functools.cached_property
    def digests(self) -> np.ndarray:
        """A hash of each image, (N, 16) uint8; by default every image is read for it."""
        batches = (np.arange(start, min(start + 256, len(self))) for start in range(0, len(self), 256))
        return np.concatenate([fingerprints.of_images(self.read(rows)[0].numpy()) for rows in batches])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the samples: it differs where an image, a label or the image shape does."""
        parts = self.digests, self.labels, np.asarray(self.image_shape)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()

    def subset(self, indices: Any) -> "Source":
        """A source of the given samples, in the given order, that shares this one's memory.

        Args:
            indices: integers (M,), each in [0, N).

        Raises:
            InputError: an index lies outside the source.
        """
        return _Subset(self, indices)


class ArraySource(Source):
    """A source in memory.

    Args:
        images: uint8 (N, H, W, C).
        labels: integers (N,).

    Raises:
        InputError: shapes or types do not fit.
    """

    def __init__(self, images: np.ndarray, labels: Any):
        if images.ndim != 4 or images.dtype != np.uint8:
            raise InputError(f"images must be uint8 (N, H, W, C), not {images.dtype} {images.shape}: convert them")
        self.labels = np.asarray(labels, np.int32)
        if self.labels.shape != (len(images),):
            raise InputError(f"labels must be ({len(images)},) like the images, not {self.labels.shape}: give one each")
        self.image_shape = tuple(int(side) for side in images.shape[1:])
        # tf.data runs on the host: on an accelerator each map call would fetch the whole array back.
        with tf.device("CPU:0"):
            self._images = tf.constant(images)
            self._labels = tf.constant(self.labels)

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return tf.gather(self._images, indices), tf.gather(self._labels, indices)

    @functools.cached_property
    def digests(self) -> np.ndarray:
        return fingerprints.of_images(self._images.numpy())


class NumpySource(Source):
    """A source of images in a large NumPy array, in memory or mapped from a file, of which no copy is made.

    Args:
        images: uint8 (N, H, W, C), writable (nothing is written), from `kd_keras.arrays`.
        labels: integers (N,).
        digests: (N, 16) uint8, where they are known without reading all images; see `Source.digests`.
    """

    def __init__(self, images: np.ndarray, labels: Any, digests: np.ndarray | None = None):
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = tuple(int(side) for side in images.shape[1:])
        self._images, self._digests = arrays.Rows(images), digests
        with tf.device("CPU:0"):
            self._labels = tf.constant(self.labels)

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return self._images(indices), tf.gather(self._labels, indices)

    @functools.cached_property
    def digests(self) -> np.ndarray:
        return fingerprints.of_images(self._images.numpy()) if self._digests is None else self._digests


class FileSource(Source):
    """A source of image files, decoded when read.

    Args:
        paths: N files (JPEG, PNG, GIF or BMP).
        labels: integers (N,).
        image_shape: (H, W, C), C being 1 or 3; an image of another size is resized with antialiasing.
    """

    def __init__(self, paths: Sequence[str], labels: Any, image_shape: tuple[int, int, int]):
        self.paths = tuple(os.fspath(path) for path in paths)
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = tuple(image_shape)
        if self.labels.shape != (len(self.paths),):
            raise InputError(f"{len(self.paths)} files need as many labels, not {self.labels.shape}: give one each")
        with tf.device("CPU:0"):
            self._paths = tf.constant(np.asarray(self.paths, dtype=object), tf.string)
            self._labels = tf.constant(self.labels)

        # As a graph, so that files are decoded in parallel in eager use too.
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def decode_batch(paths):
            return tf.map_fn(
                lambda path: decode(path, self.image_shape),
                paths,
                fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
                parallel_iterations=os.cpu_count() or 1,
            )

        self._decode_batch = decode_batch

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return self._decode_batch(tf.gather(self._paths, indices)), tf.gather(self._labels, indices)

    @functools.cached_property
    def digests(self) -> np.ndarray:
        return fingerprints.of_files(self.paths)


class _Subset(Source):
    def __init__(self, source: Source, indices: Any):
        rows = np.asarray(indices, np.int64)
        if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(source)):
            raise InputError(
                f"subset of {len(source)} samples takes indices (M,) from 0 to {len(source) - 1}: check them"
            )
        self._source = source
        self.labels = source.labels[rows]
        self.image_shape = source.image_shape
        with tf.device("CPU:0"):
            self._rows = tf.constant(rows)

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return self._source.read(tf.gather(self._rows, indices))

    @functools.cached_property
    def digests(self) -> np.ndarray:
        return self._source.digests[self._rows.numpy()]


def decode_rgb(content: tf.Tensor) -> tf.Tensor:
    """The bytes of an image file, in its own size: uint8 (H, W, 3); `decode` says what is raised."""
    # Always by way of RGB: the decoder cannot turn CMYK, GIF or BMP into grey itself.
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def decode(path: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Reads one image file as TensorFlow operations.

    Args:
        path: string scalar.
        image_shape: (H, W, C), C being 1 or 3.

    Returns:
        uint8 (H, W, C): 16-bit values are scaled down, alpha is dropped, of an animation the first frame is taken.

    Raises:
        tf.errors.InvalidArgumentError: the file is no whole image.
    """
    return fit(decode_rgb(tf.io.read_file(path)), image_shape)


def fit(images: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Images in another size, with antialiasing, and in colour or grey.

    Args:
        images: uint8 (…, h, w, c), an image or a batch; c, which has to be known, being 1 or 3.
        image_shape: (H, W, C), C being 1 or 3.

    Returns:
        uint8 (…, H, W, C); what fits already is left as it is, to the bit.
    """
    height, width, channels = image_shape
    given = images.shape[-1]

    def resized():
        scaled = tf.image.resize(images, (height, width), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(scaled), 0.0, 255.0), tf.uint8)

    fits = tf.reduce_all(tf.equal(tf.shape(images)[-3:-1], (height, width)))
    images = tf.ensure_shape(tf.cond(fits, lambda: images, resized), (*images.shape[:-3], height, width, given))
    if given == 3 and channels == 1:
        # Whole numbers whose weights (ITU-R BT.601) sum to one, so that a grey file keeps its values exactly.
        weighted = tf.reduce_sum(tf.cast(images, tf.int32) * tf.constant([299, 587, 114]), axis=-1, keepdims=True)
        images = tf.cast((weighted + 500) // 1000, tf.uint8)
    return tf.repeat(images, 3, axis=-1) if given == 1 and channels == 3 else images


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set: three sources that share no sample.

    Args:
        train: what is learned from.
        val: what choices are made by.
        test: what is reported, looked at once.
        class_names: K names, in the order of the labels.
        image_shape: (H, W, C).
    """

    train: Source
    val: Source
    test: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def check_seed(seed: Any) -> None:
    """Raises InputError unless ``seed`` is one that NumPy and scikit-learn take."""
    if not is_count(seed, 0) or seed >= 2**32:
        raise InputError(f"seed={seed!r}: give a whole number from 0 to {2**32 - 1}")


def carve(labels: Any, fraction: float, seed: int, groups: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples in two, each class keeping its share.

    Args:
        labels: integers (N,).
        fraction: part of the samples (with groups: about that part) for the second split, between 0 and 1.
        seed: the same seed gives the same split.
        groups: (N,) patient (or other) of each sample; a group is never in both splits.

    Returns:
        Indices (int64, ascending) of the first split and of the second.

    Raises:
        InputError: fraction or seed is out of range, or a class has too few samples (or groups) to be in both splits.
    """
    labels = np.asarray(labels)
    check_seed(seed)
    if not is_number(fraction) or not 0 < fraction < 1:
        raise InputError(f"a split's fraction is {fraction!r}: give a number between 0 and 1, such as 0.1")
    classes, counts = np.unique(labels, return_counts=True)
    advice = "add samples, or change the fraction or the seed"
    if len(classes) == 0 or counts.min() < 2:
        what = f"class {classes[counts.argmin()]} has 1 sample" if len(classes) else "there are no samples"
        raise InputError(f"{what} where a split in two needs at least 2 of each class: {advice}")
    positions = np.arange(len(labels))
    if groups is None:
        second = max(round(fraction * len(labels)), 1)
        if min(second, len(labels) - second) < len(classes):
            small = f"{fraction} of {len(labels)} samples cannot hold {len(classes)} classes on both sides"
            raise InputError(f"too few samples: {small}: {advice}")
        first, second = train_test_split(positions, test_size=second, stratify=labels, random_state=seed)
    else:
        first, second = _carve_groups(labels, fraction, seed, np.asarray(groups), positions)
    for side in (first, second):
        missing = np.setdiff1d(classes, labels[side])
        if len(missing):
            count = counts[classes == missing[0]][0]
            few = f"class {missing[0]} has too few samples ({count}) or groups to be on both sides of a split"
            raise InputError(f"{few} at fraction {fraction}: {advice}")
    return np.sort(first), np.sort(second)


def _carve_groups(labels, fraction, seed, groups, positions):
    """Of several draws of whole groups, the one whose class shares are nearest to the fraction."""
    if len(groups) != len(labels):
        raise InputError(f"{len(labels)} samples need as many groups, not {len(groups)}: give one each")
    if len(np.unique(groups)) < 2:
        raise InputError("all samples are of one group: a split by group needs at least 2: add groups")
    draws = GroupShuffleSplit(n_splits=_GROUP_DRAWS, test_size=fraction, random_state=seed)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)

    def distance(draw):
        shares = np.bincount(codes[draw[1]], minlength=len(counts)) / counts
        # A class absent from one side spoils the draw whatever its other shares are.
        return np.any((shares == 0) | (shares == 1)), np.abs(shares - fraction).max()

    return min(draws.split(positions, labels, groups), key=distance)


def carve_three(
    labels: Any, val_fraction: float, test_fraction: float, seed: int, groups: Any = None
) -> tuple[np.ndarray, ...]:
    """Splits samples in train, validation and test; the fractions are of all samples, ``groups`` as in `carve`.

    Returns:
        Indices (int64, ascending) of train, validation and test.

    Raises:
        InputError: see `carve`; or the fractions leave nothing to train on.
    """
    labels = np.asarray(labels)
    rest, test = carve(labels, test_fraction, seed, groups)
    if not isinstance(val_fraction, (int, float)) or not 0 < val_fraction < 1 - test_fraction:
        raise InputError(
            f"val_fraction={val_fraction!r} and test_fraction={test_fraction!r} leave no train: sum below 1"
        )
    left = None if groups is None else np.asarray(groups)[rest]
    train, val = carve(labels[rest], val_fraction / (1 - test_fraction), seed, left)
    return rest[train], rest[val], test


def take(source: Source, n: int, seed: int) -> Source:
    """A stratified subset, for learning from fewer examples.

    Args:
        source: where to take from.
        n: how many samples; all of them is the source itself.
        seed: the same seed gives the same subset.

    Raises:
        InputError: the source has fewer than n samples, or n cannot hold every class.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= len(source):
        raise InputError(f"{n!r} examples asked of a split of {len(source)}: give a whole number up to {len(source)}")
    if n == len(source):
        return source
    classes, counts = np.unique(source.labels, return_counts=True)
    if n < len(classes):
        raise InputError(f"{n} examples cannot hold {len(classes)} classes: ask for at least {len(classes)}")
    # Largest remainder, but no class left out: a plain stratified draw drops rare classes when n is small.
    share = counts * n / len(source)
    quota = np.maximum(share.astype(int), 1)
    while quota.sum() > n:
        quota[quota.argmax()] -= 1
    remainder = np.where(quota < counts, share - quota, -np.inf)
    quota[np.argsort(-remainder, kind="stable")[: n - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(source.labels == label))[:size]
        for label, size in zip(classes, quota, strict=True)
    ]
    return source.subset(np.sort(np.concatenate(chosen)))
