"""The order and the random numbers of training images: pure functions of (seed, epoch, index).

A training passes through its images again and again, each pass in another order and with other random numbers. An epoch
is one pass, or as many images as it is said to have.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# Folded into the seed, so that order, views and mixing do not share random numbers.
_ORDER, _VIEW, _MIX = range(3)


class Partners(NamedTuple):
    """What the samples of a mixed view are mixed with.

    Attributes:
        index: the sample (B,) that each is mixed with.
        noise: the random numbers of those.
        shares: the random numbers of the mixing (B, …).
    """

    index: Any
    noise: Any
    shares: Any


class Rows(NamedTuple):
    """What a batch is made of.

    Attributes:
        index: the samples (B,).
        noise: their random numbers (B, columns).
        mix_seed: the seed (2,) for mixing within the batch.
        view: the number of their view: a scalar where an epoch is one pass, else (B,).
        partners: the `Partners` where views are mixed, else ().
    """

    index: Any
    noise: Any
    mix_seed: Any
    view: Any
    partners: Any = ()

    def part(self, here: slice, mix_seed: Any = None) -> "Rows":
        """Some of the samples, mixed with another seed where one is given."""
        view = self.view if self.view.shape.rank == 0 else self.view[here]
        mix_seed = self.mix_seed if mix_seed is None else mix_seed
        partners = Partners(*(part[here] for part in self.partners)) if self.partners else ()
        return Rows(self.index[here], self.noise[here], mix_seed, view, partners)


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
        mixing: the operation that mixes the samples of a view, or None.
    """

    groups: tuple[np.ndarray, ...]
    shares: tuple[float, ...]
    length: int
    seed: int
    columns: int = 0
    views: tuple[int, int] | None = None
    mixing: Any = None

    @property
    def is_one_pass(self) -> bool:
        """Whether an epoch is one pass, in which every sample is seen in the same view."""
        return len(self.groups) == 1 and len(self.groups[0]) == self.length

    def batches(self, batch_size: int, initial_epoch: int, epochs: int, drop_remainder: bool) -> tf.data.Dataset:
        """The `Rows` of the batches, epoch after epoch."""
        steps = self.length // batch_size if drop_remainder else -(-self.length // batch_size)

        def of_epoch(epoch):
            index, random, view, *partners = self._epoch(epoch)
            mixing = fold(fold(_pair(self.seed), _MIX), epoch)
            partners = Partners(*partners) if partners else ()
            rows = Rows(index, random, mixing, view[0] if self.is_one_pass else view, partners)

            def batch(step):
                here = slice(step * batch_size, (step + 1) * batch_size)
                return rows.part(here, fold(mixing, step))

            return tf.data.Dataset.range(steps).map(batch)

        return tf.data.Dataset.range(initial_epoch, max(epochs, initial_epoch)).flat_map(of_epoch)

    def _epoch(self, epoch):
        """(index, noise, view) of an epoch's samples, and the fields of their `Partners`."""
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
            seen = of_view(self._count, self.columns, seed, view, self.mixing, index)
            return index, seen.noise, tf.fill((count,), view), *seen.partners

        kinds = (tf.int64, tf.float32, tf.int64, *([] if self.mixing is None else [tf.int64, tf.float32, tf.float32]))
        passes = tf.map_fn(one_pass, numbers, fn_output_signature=kinds)
        here = begin % count
        return tuple(tf.reshape(part, (-1, *part.shape[2:]))[here : here + length] for part in passes)

    @property
    def _count(self):
        return sum(map(len, self.groups))


def in_order(n: int, batch_size: int, rows: Rows | None = None, drop_remainder: bool = False) -> tf.data.Dataset:
    """The same `Rows` of all samples once, in the order of the source; by default without random numbers."""
    dataset = tf.data.Dataset.range(n).batch(batch_size, drop_remainder)
    rows = of_view(n, 0, 0, 0) if rows is None else rows
    return dataset.map(lambda index: rows.part(slice(index[0], index[-1] + 1)))


def of_view(n: int, columns: int, seed: int, view, mixing: Any = None, index: Any = None) -> Rows:
    """The `Rows` of the samples of a view, of all in their order or of those in ``index``."""
    index = tf.range(n, dtype=tf.int64) if index is None else index
    table = noise(n, columns, seed, view)
    partners = ()
    if mixing is not None:
        partner, shares = mixing.draw(n, fold(fold(_pair(seed), _MIX), view))
        partner = tf.gather(tf.cast(partner, tf.int64), index)
        partners = Partners(partner, tf.gather(table, partner), tf.gather(shares, index))
    return Rows(index, tf.gather(table, index), tf.zeros((2,), tf.int64), tf.cast(view, tf.int64), partners)


def noise(n: int, columns: int, seed: int, view) -> tf.Tensor:
    """The random numbers (n, columns) of a view: row i belongs to sample i, in whatever order samples are read."""
    return tf.random.stateless_uniform((n, columns), fold(fold(_pair(seed), _VIEW), view))


def fold(seed, number):
    """Another seed, (2,), for each number."""
    return tf.random.fold_in(seed, tf.cast(number, tf.int64))


def _pair(seed):
    return tf.constant([seed, 0], tf.int64)
