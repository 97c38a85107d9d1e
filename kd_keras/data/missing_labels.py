"""Sources of which only some samples have a label; −1 stands for no label."""

from typing import Any

import numpy as np
import tensorflow as tf

from kd_keras.data.carving import draw
from kd_keras.data.sources import Source
from kd_keras.errors import InputError


def labelled_rows(source: Source) -> np.ndarray:
    """The rows of the samples that have a label, or of independent labels at least one, ascending."""
    known = source.labels >= 0
    return np.flatnonzero(known if known.ndim == 1 else known.any(axis=1))


def labelled(source: Source) -> Source:
    """The samples that have a label; the source itself where all have."""
    rows = labelled_rows(source)
    return source if len(rows) == len(source) else source.subset(rows)


def keep_labels(source: Source, n: int, seed: int) -> Source:
    """The same images, of which n keep their labels, drawn evenly over the classes.

    Args:
        source: all samples, labelled.
        n: number of labels that stay; for all of them the source itself is returned.
        seed: the same seed gives the same draw.

    Raises:
        InputError: the source has fewer than n samples, or n cannot hold every class.
    """
    rows = draw(source.labels, n, seed, "labelled examples")
    if len(rows) == len(source):
        return source
    labels = np.full_like(source.labels, -1)
    labels[rows] = source.labels[rows]
    return _Relabelled(source, labels)


def without_labels(source: Source) -> Source:
    """The same images without their labels."""
    return _Relabelled(source, np.full_like(source.labels, -1))


def join(first: Source, second: Source) -> Source:
    """The samples of both, those of the first before those of the second.

    Raises:
        InputError: their images are not of one shape.
    """
    if first.image_shape != second.image_shape:
        raise InputError(
            f"images of {first.image_shape} and {second.image_shape} can't be joined: resize them to one shape"
        )
    return _Joined(first, second)


class _Relabelled(Source):
    def __init__(self, source: Source, labels: np.ndarray) -> None:
        self._source, self.labels, self.image_shape = source, labels, source.image_shape
        with tf.device("CPU:0"):
            self._labels = tf.constant(labels)

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            return self._source.read(indices)[0], tf.gather(self._labels, indices)

    def name_of(self, row):
        return self._source.name_of(row)

    def _at(self, image_shape):
        return _Relabelled(self._source.at(image_shape), self.labels)

    @property
    def digests(self) -> np.ndarray:
        return self._source.digests


class _Joined(Source):
    def __init__(self, first: Source, second: Source) -> None:
        self._sources, self._first = (first, second), len(first)
        self.labels = np.concatenate([first.labels, second.labels])
        self.image_shape = first.image_shape

    def read(self, indices: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device("CPU:0"):
            indices = tf.cast(indices, tf.int64)
            places = tf.dynamic_partition(
                tf.range(tf.shape(indices)[0]), tf.cast(indices >= self._first, tf.int32), len(self._sources)
            )
            parts = [
                source.read(tf.gather(indices, place) - start)
                for source, place, start in zip(self._sources, places, (0, self._first), strict=True)
            ]
            return tuple(tf.dynamic_stitch(places, list(part)) for part in zip(*parts, strict=True))

    def name_of(self, row):
        first, second = self._sources
        return first.name_of(row) if row < self._first else second.name_of(row - self._first)

    def _at(self, image_shape):
        return _Joined(*(source.at(image_shape) for source in self._sources))

    @property
    def digests(self) -> np.ndarray:
        return np.concatenate([source.digests for source in self._sources])
