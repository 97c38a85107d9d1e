"""The order and the random numbers of training images: pure functions of (seed, epoch, index).

A training passes through its images again and again, each pass in another order and with other random numbers. An epoch
is one pass, or as many images as it is said to have.
"""

import dataclasses

import numpy as np
import tensorflow as tf

# Folded into the seed, so that order, views and mixing do not share random numbers.
_ORDER, _VIEW, _MIX = range(3)


@dataclasses.dataclass(frozen=True)
class Passes:
    """In which order, and with which random numbers, a training sees the samples of a source.

    Attributes:
        groups: the rows of the source, in groups that each pass on their own: all in one, or those with and those
            without labels.
        shares: of each group in an epoch, and so in each batch; they sum to 1.
        length: images in an epoch.
        seed: of order and mixing.
        columns: random numbers of a sample.
        views: (number, seed) of the views, where passes repeat them; None for new ones in each pass.
    """

    groups: tuple[np.ndarray, ...]
    shares: tuple[float, ...]
    length: int
    seed: int
    columns: int = 0
    views: tuple[int, int] | None = None

    @property
    def is_one_pass(self) -> bool:
        """Whether an epoch is one pass, in which every sample is seen in the same view."""
        return len(self.groups) == 1 and len(self.groups[0]) == self.length

    def batches(self, batch_size: int, initial_epoch: int, epochs: int, drop_remainder: bool) -> tf.data.Dataset:
        """Batches of (index (B,), noise (B, columns), seed for mixing (2,), view), epoch after epoch.

        The view is a scalar where an epoch is one pass, else (B,).
        """

        steps = self.length // batch_size if drop_remainder else -(-self.length // batch_size)

        def of_epoch(epoch):
            index, random, view = self._epoch(epoch)
            mixing = fold(fold(_pair(self.seed), _MIX), epoch)

            def batch(step):
                here = slice(step * batch_size, (step + 1) * batch_size)
                return index[here], random[here], fold(mixing, step), view[0] if self.is_one_pass else view[here]

            return tf.data.Dataset.range(steps).map(batch)

        return tf.data.Dataset.range(initial_epoch, max(epochs, initial_epoch)).flat_map(of_epoch)

    def _epoch(self, epoch):
        """(index, noise, view) of an epoch's samples."""
        lengths = [round(self.length * share) for share in self.shares[:-1]]
        lengths.append(self.length - sum(lengths))
        streams = [self._stream(*group, epoch) for group in zip(self.groups, lengths, strict=True)]
        if len(streams) == 1:
            return streams[0]
        # Spread evenly, so that each batch has its share of both.
        turn = np.diff(np.arange(self.length + 1, dtype=np.int64) * lengths[0] // self.length).astype(bool)
        places = [np.flatnonzero(turn).astype(np.int32), np.flatnonzero(~turn).astype(np.int32)]
        return tuple(tf.dynamic_stitch(places, list(parts)) for parts in zip(*streams, strict=True))

    def _stream(self, rows, length, epoch):
        """What an epoch sees of one group, whose passes go on from epoch to epoch."""
        count = len(rows)
        begin = epoch * length
        numbers = tf.range(begin // count, (begin + max(length, 1) - 1) // count + 1)

        def one_pass(number):
            order = fold(fold(_pair(self.seed), _ORDER), number)
            index = tf.random.experimental.stateless_shuffle(tf.constant(rows, tf.int64), order)
            view, seed = (number, self.seed) if self.views is None else (number % self.views[0], self.views[1])
            table = noise(self._count, self.columns, seed, view)
            return index, tf.gather(table, index), tf.fill((count,), view)

        passes = tf.map_fn(one_pass, numbers, fn_output_signature=(tf.int64, tf.float32, tf.int64))
        here = begin % count
        return tuple(tf.reshape(part, (-1, *part.shape[2:]))[here : here + length] for part in passes)

    @property
    def _count(self):
        return sum(map(len, self.groups))


def in_order(n: int, batch_size: int, random=None, drop_remainder: bool = False) -> tf.data.Dataset:
    """The same batches of all samples once, in the order of the source; by default without random numbers."""
    dataset = tf.data.Dataset.range(n).batch(batch_size, drop_remainder)
    rows = tf.zeros((n, 0)) if random is None else random
    return dataset.map(lambda index: (index, tf.gather(rows, index), tf.zeros((2,), tf.int64), tf.zeros((), tf.int64)))


def noise(n: int, columns: int, seed: int, view) -> tf.Tensor:
    """The random numbers (n, columns) of a view: row i belongs to sample i, in whatever order samples are read."""
    return tf.random.stateless_uniform((n, columns), fold(fold(_pair(seed), _VIEW), view))


def fold(seed, number):
    """Another seed, (2,), for each number."""
    return tf.random.fold_in(seed, tf.cast(number, tf.int64))


def _pair(seed):
    return tf.constant([seed, 0], tf.int64)
