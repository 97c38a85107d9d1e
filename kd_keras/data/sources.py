"""Random-access sources of images and labels.

A source has a length, all its labels in memory, and ``read(indices)`` in batched TensorFlow operations. The pipeline
orders, augments and shards: random access makes these functions of the index.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kd_keras.data import arrays, fingerprints
from kd_keras.data.decoding import decode
from kd_keras.errors import InputError


class Source:
    """The base of sources: length, labels, image shape, subsets.

    Attributes:
        labels: classes int32 (N,), −1 for a sample without a label; or independent labels (N, K): 0, 1, or −1 where a
            label is not known.
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
            Images uint8 (B, H, W, C) and labels int32 (B,), or (B, K).
        """
        raise NotImplementedError

    def name_of(self, row: int) -> str:
        """What a message calls a sample: its file, or its number."""
        return f"number {row}"

    @functools.cached_property
    def digests(self) -> np.ndarray:
        """A hash of each image, (N, 16) uint8; by default every image is read for it."""
        batches = (np.arange(start, min(start + 256, len(self))) for start in range(0, len(self), 256))
        return np.concatenate([fingerprints.of_images(self.read(rows)[0].numpy()) for rows in batches])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the samples: it differs where an image, a label or the image shape does."""
        return _hash(self.digests, self.labels, np.asarray(self.image_shape))

    @functools.cached_property
    def images_fingerprint(self) -> str:
        """A hash of the images, whatever their labels."""
        return _hash(self.digests, np.asarray(self.image_shape))

    def at(self, image_shape: tuple[int, int, int]) -> "Source":
        """The same samples with images of another size, or grey for colour; of files, decoded at that size.

        Args:
            image_shape: (H, W, C).

        Raises:
            InputError: the channels are neither those that there are, nor grey (1) for colour (3) or the reverse.
        """
        return self if tuple(image_shape) == tuple(self.image_shape) else self._at(tuple(image_shape))

    def _at(self, image_shape: tuple[int, int, int]) -> "Source":
        return _Resized(self, image_shape)

    def subset(self, indices: Any) -> "Source":
        """A source of the given samples in the given order, which shares this source's memory.

        Args:
            indices: integers (M,), each in [0, N).

        Raises:
            InputError: an index is outside the source.
        """
        return _Subset(self, indices)


class ArraySource(Source):
    """A source in memory.

    Args:
        images: uint8 (N, H, W, C).
        labels: classes, integers (N,), or independent labels (N, K) of 0, 1 and −1.

    Raises:
        InputError: a shape or type is wrong.
    """

    def __init__(self, images: np.ndarray, labels: Any) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise InputError(f"images must be uint8 (N, H, W, C), not {images.dtype} {images.shape}: convert them")
        self.labels = _checked(labels, len(images), "images")
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
    """A source of images in a large NumPy array, in memory or mapped from a file, without a copy of it.

    Args:
        images: uint8 (N, H, W, C), writable (nothing is written), from `kd_keras.data.arrays`.
        labels: integers (N,).
        digests: (N, 16) uint8, where they are known without reading all images; see `Source.digests`.
        files: the files that the images were decoded from, which have them in other sizes.
    """

    def __init__(
        self, images: np.ndarray, labels: Any, digests: np.ndarray | None = None, files: "FileSource | None" = None
    ) -> None:
        self._files = files
        self.labels = _checked(labels, len(images), "images")
        self.image_shape = tuple(int(side) for side in images.shape[1:])
        self._images, self._digests = arrays.Rows(images), digests
        with tf.device("CPU:0"):
            self._labels = tf.constant(self.labels)

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return self._images(indices), tf.gather(self._labels, indices)

    def name_of(self, row):
        return super().name_of(row) if self._files is None else self._files.name_of(row)

    def _at(self, image_shape):
        return super()._at(image_shape) if self._files is None else self._files.at(image_shape)

    @functools.cached_property
    def digests(self) -> np.ndarray:
        return fingerprints.of_images(self._images.numpy()) if self._digests is None else self._digests


class FileSource(Source):
    """A source of image files, decoded when read.

    Args:
        paths: N files (JPEG, PNG, GIF or BMP).
        labels: integers (N,).
        image_shape: (H, W, C), C being 1 or 3; an image of another size is resized with antialiasing.
        orientations: (N,) EXIF orientation of each file, 1 to 8, by which its image is turned; by default none is.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Any,
        image_shape: tuple[int, int, int],
        orientations: Any = None,
    ) -> None:
        self.paths = tuple(os.fspath(path) for path in paths)
        self.labels = _checked(labels, len(self.paths), "files")
        self.image_shape = tuple(image_shape)
        orientations = np.ones(len(self.paths)) if orientations is None else orientations
        self._orientations = np.asarray(orientations, np.uint8)
        turns = bool(np.any(self._orientations > 1))
        with tf.device("CPU:0"):
            # Bytes: the name of a file need not be UTF-8.
            self._paths = tf.constant(np.asarray([os.fsencode(path) for path in self.paths], dtype=object), tf.string)
            self._turns = tf.constant(self._orientations)
            self._labels = tf.constant(self.labels)

        # A graph, so that files are decoded in parallel in eager code too.
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string), tf.TensorSpec((None,), tf.uint8)])
        def decode_batch(paths, orientations):
            return tf.map_fn(
                lambda file: decode(file[0], self.image_shape, file[1] if turns else None),
                (paths, orientations),
                fn_output_signature=tf.TensorSpec(self.image_shape, tf.uint8),
                parallel_iterations=os.cpu_count() or 1,
            )

        self._decode_batch = decode_batch

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            files = tf.gather(self._paths, indices), tf.gather(self._turns, indices)
            return self._decode_batch(*files), tf.gather(self._labels, indices)

    def name_of(self, row):
        return self.paths[row]

    def _at(self, image_shape):
        return FileSource(self.paths, self.labels, image_shape, self._orientations)

    @functools.cached_property
    def digests(self) -> np.ndarray:
        digests = fingerprints.of_files(self.paths)
        # Turned images are others than those of the same file before it was turned, which earlier versions read.
        turned = np.flatnonzero(self._orientations > 1)
        if len(turned):
            digests = digests.copy()
            digests[turned, 0] ^= self._orientations[turned]
        return digests


def _checked(labels, count, what) -> np.ndarray:
    """Labels of the right shape and type, int32 (N,) or (N, K)."""
    labels = np.asarray(labels)
    if labels.shape[:1] != (count,) or labels.ndim > 2 or labels.shape[1:] in ((0,), (1,)):
        raise InputError(
            f"{count} {what} need as many labels, ({count},), or of several for each ({count}, K), not {labels.shape}"
        )
    if labels.ndim == 2 and not np.isin(labels, (-1, 0, 1)).all():
        raise InputError("labels (N, K) are 0 or 1 for each, or -1 where one is not known: these hold other numbers")
    return labels.astype(np.int32)


class _Subset(Source):
    def __init__(self, source: Source, indices: Any) -> None:
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

    def name_of(self, row):
        return self._source.name_of(int(self._rows[row]))

    def _at(self, image_shape):
        return _Subset(self._source.at(image_shape), self._rows.numpy())

    @functools.cached_property
    def digests(self) -> np.ndarray:
        return self._source.digests[self._rows.numpy()]


def resized(images: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Images (B, h, w, c) as float32 (B, H, W, C), with antialiasing; grey and colour (1 and 3) of each other."""
    images, (*size, channels) = tf.cast(images, tf.float32), image_shape
    if tuple(size) != tuple(images.shape[1:3]):
        images = tf.image.resize(images, size, antialias=True)
    if channels == images.shape[3]:
        return images
    return tf.image.grayscale_to_rgb(images) if channels == 3 else tf.image.rgb_to_grayscale(images)


class _Resized(Source):
    def __init__(self, source: Source, image_shape: tuple[int, int, int]) -> None:
        channels = source.image_shape[2], image_shape[2]
        if channels[0] != channels[1] and set(channels) != {1, 3}:
            raise InputError(f"images of {channels[0]} channels can't be had with {channels[1]}: only grey for colour")
        self._source, self.image_shape, self.labels = source, image_shape, source.labels

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            images, labels = self._source.read(indices)
            images = tf.cast(tf.round(tf.clip_by_value(resized(images, self.image_shape), 0.0, 255.0)), tf.uint8)
            return images, labels

    def name_of(self, row):
        return self._source.name_of(row)

    @property
    def digests(self) -> np.ndarray:
        return self._source.digests


def _hash(*arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set: three sources without a common sample.

    Args:
        train: samples for training.
        val: samples for choosing models and settings.
        test: samples for the reported result.
        class_names: K names, of the classes or of the independent labels, in their order.
        image_shape: (H, W, C).
        unlabelled: further samples for training, whose labels are all −1, for none; or None.
    """

    train: Source
    val: Source
    test: Source
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    unlabelled: Source | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether the labels are independent of each other, (N, K), instead of one class for each image."""
        return self.train.labels.ndim == 2
