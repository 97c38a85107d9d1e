"""The tf.data pipeline of every data set.

Order and augmentation are pure functions of (seed, epoch, index). So teacher and student see the same view, runs
repeat, a resumed run continues as if it had not stopped, and a teacher's outputs can be cached by view.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras.data import order
from kd_keras.data.augment import BatchOp, mix_labels
from kd_keras.data.missing_labels import labelled_rows
from kd_keras.data.sources import Source, resized
from kd_keras.errors import InputError, is_count, is_number


def steps_per_epoch(n: int, batch_size: int, drop_remainder: bool = False) -> int:
    """Number of batches per epoch.

    Args:
        n: samples.
        batch_size: samples per batch, on all devices together.
        drop_remainder: whether a smaller last batch is left out.
    """
    return n // batch_size if drop_remainder else -(-n // batch_size)


def batches(
    source: Source,
    batch_size: int,
    *,
    training: bool = False,
    seed: int = 0,
    epochs: int = 1,
    initial_epoch: int = 0,
    augment: Sequence[Any] = (),
    num_classes: int | None = None,
    cache: Any = None,
    views: "Views | None" = None,
    with_index: bool = False,
    drop_remainder: bool = False,
    length: int | None = None,
    unlabelled_ratio: float | None = None,
    image_shape: tuple[int, int, int] | None = None,
    teacher_shape: tuple[int, int, int] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches of a source.

    Without ``training``: one pass, in order. With it: the batches of the epochs ``initial_epoch`` to ``epochs`` - 1,
    each epoch in a different order. An epoch's batches do not depend on ``initial_epoch``.

    Args:
        source: what is read.
        batch_size: samples per batch.
        training: shuffle, augment and go through several epochs.
        seed: of order and augmentation.
        epochs: where training ends.
        initial_epoch: where training starts, or resumes.
        augment: operations of `kd_keras.data.augment`, applied in this order.
        num_classes: K; needed where an operation mixes labels.
        cache: a `kd_keras.TeacherCache` of this source: each epoch shows the next of its views, and the batches,
            dictionaries, contain the teacher's taps for it.
        views: the views of a cache without the cache, to compare trainings that differ in the teacher alone.
        with_index: return dictionaries ``{image, label, index}``, where the index is the sample's number in the source.
        drop_remainder: leave out a smaller last batch of each epoch.
        length: images in an epoch of training; by default each once. Where it is more, images are seen again, each
            time in another order and augmented anew; where it is less, an epoch goes on where the last one ended.
        unlabelled_ratio: images without a label (−1) for each one with a label, in every batch of training; by default
            images are shuffled, and each batch has about the share that the source has.
        image_shape: (H, W, C) of the images, where it is not the source's. Augmentation is that of the source's size.
        teacher_shape: add a field ``teacher_image``, the same views with this shape; see `Source.at`.
        shard: (w, n) returns worker w's part of each batch; the parts of all n workers in a row are the batch. Only the
            part is read, unless an operation mixes labels, whose partners come from the whole batch.

    Returns:
        A dataset of (image, label): float32 (B, H, W, C) in 0…255, and int32 (B,), or (B, K) of independent labels;
        where an operation mixes labels, float32 class weights, or mixed labels, (B, K). A sample without a label has
        −1, everywhere in (B, K), which it also has when it is mixed with one. With ``with_index`` or ``cache``, of
        dictionaries ``{image, label, index, teacher, teacher_image}`` with what was asked for.

    Raises:
        InputError: a value is out of range, or the cache was made with other samples or another augmentation.
    """
    for name, value, low in (("batch_size", batch_size, 1), ("epochs", epochs, 0), ("initial_epoch", initial_epoch, 0)):
        if not is_count(value, low):
            raise InputError(f"{name}={value!r}: give a whole number of at least {low}")
    if augment and not training:
        raise InputError("augmentation was asked of a pass in order: augment only with training=True")
    if not training and (length, unlabelled_ratio) != (None, None):
        raise InputError("length and unlabelled_ratio are those of training: give training=True, or leave them out")
    if length is not None and not is_count(length):
        raise InputError(f"length={length!r}: give a whole number of images of at least 1")
    for op in augment:
        if op.mixes_labels and num_classes is None:
            raise InputError(f"{_name(op)} mixes labels, which takes the number of classes: give num_classes")
    views = views if cache is None else cache.views
    if views is not None:
        _check_views(views, source, augment)
    worker, workers = shard
    if not 0 <= worker < workers <= batch_size:
        raise InputError(f"shard={shard} of batches of {batch_size}: give (w, n) with 0 <= w < n <= batch_size")
    size = len(source) if length is None else length
    steps = steps_per_epoch(size, batch_size, drop_remainder)
    if steps == 0:
        raise InputError(f"{size} samples make no batch of {batch_size}: lower the batch size or add samples")

    if training:
        groups, shares = _groups(source, unlabelled_ratio)
        repeats, mixing = (None, None) if views is None else (views.repeats, views.mixing)
        seen = order.Passes(groups, shares, size, seed, _columns(augment), repeats, mixing)
        dataset = seen.batches(batch_size, initial_epoch, epochs, drop_remainder)
        count = max(epochs - initial_epoch, 0) * steps
    else:
        dataset = order.in_order(len(source), batch_size, drop_remainder=drop_remainder)
        count = steps

    # In a view each sample has its partner; else partners come from the whole batch, which is read for them.
    mixes_batches = views is None and any(op.mixes_labels for op in augment)
    fields = {"image": _Seen(source, augment, image_shape, num_classes, in_view=views is not None)}
    if teacher_shape is not None:
        fields["teacher_image"] = _Seen(source, augment, teacher_shape, num_classes, in_view=views is not None)

    def load(rows):
        size = tf.shape(rows.index, tf.int64)[0]
        part = slice(worker * size // workers, (worker + 1) * size // workers)
        if workers > 1 and not mixes_batches:
            rows = rows.part(part)
        seen = {}
        for field, of in fields.items():
            image, label = of.read(rows)
            seen[field] = image[part] if workers > 1 and mixes_batches else image
        if workers > 1 and mixes_batches:
            rows, label = rows.part(part), label[part]
        index, view = rows.index, rows.view
        if cache is None and not with_index and len(seen) == 1:
            return seen["image"], label
        batch = {**seen, "label": label}
        if with_index:
            batch["index"] = index
        if cache is not None:
            batch["teacher"] = cache.read(view, index)
        return batch

    return _run(dataset, load, count, sharded=workers > 1)


class _Seen:
    """What one model sees of a source: augmented images of one shape."""

    def __init__(self, source, augment, image_shape=None, num_classes=None, in_view=False):
        image_shape, grid = tuple(image_shape or source.image_shape), tuple(source.image_shape[:2])
        on_grid = augment if image_shape[:2] == grid else [op.on(grid) for op in augment]
        can_be_drawn = None not in on_grid
        if not can_be_drawn:
            logging.warning(
                "%s can't show the same at another size: images are augmented at %s, and resized to %s",
                *(_name(augment[on_grid.index(None)]), source.image_shape, image_shape),
            )
        self._source, self._augment = (source.at(image_shape), on_grid) if can_be_drawn else (source, augment)
        self._enlarged, self._num_classes, self._in_view = None if can_be_drawn else image_shape, num_classes, in_view

    def read(self, rows: order.Rows):
        """Images (B, H, W, C), float32 in 0…255, and their labels."""
        image, label = self._augmented(rows)
        return tf.cast(image if self._enlarged is None else resized(image, self._enlarged), tf.float32), label

    def _augmented(self, rows):
        image, label = self._source.read(rows.index)
        mixes = [op for op in self._augment if op.mixes_labels]
        if mixes:
            label = self._class_weights(label)
        # In a view, what each sample is mixed with is read too, and augmented as far as that.
        other = None
        if mixes and self._in_view:
            other, other_label = self._source.read(rows.partners.index)
            other_label = self._class_weights(other_label)
        column = 0
        for number, op in enumerate(self._augment):
            here = slice(column, column + op.columns)
            if not op.mixes_labels:
                image = op(image, rows.noise[:, here])
                other = None if other is None else op(other, rows.partners.noise[:, here])
            elif self._in_view:
                image, share = op.mix(image, other, rows.partners.shares)
                label, other = mix_labels(label, other_label, share), None
            else:
                image, label = op(image, label, order.fold(rows.mix_seed, number))
            column += op.columns
        return image, label

    def _class_weights(self, label):
        """Labels as they are mixed: class weights; independent labels as they are."""
        if label.shape.rank == 1 and self._num_classes is not None:
            label = tf.where((label >= 0)[:, None], tf.one_hot(label, self._num_classes), -1.0)
        return tf.cast(label, tf.float32)


def _groups(source, unlabelled_ratio):
    """The rows that are passed through together, and the share of each group in a batch."""
    if unlabelled_ratio is None:
        return (np.arange(len(source)),), (1.0,)
    if not is_number(unlabelled_ratio) or unlabelled_ratio <= 0:
        raise InputError(f"unlabelled_ratio={unlabelled_ratio!r}: give a number above 0")
    labelled = labelled_rows(source)
    unlabelled = np.setdiff1d(np.arange(len(source)), labelled)
    if not len(labelled) or not len(unlabelled):
        raise InputError(
            f"unlabelled_ratio={unlabelled_ratio:g} takes images with and without labels, and there are "
            f"{len(labelled)} and {len(unlabelled)}: leave it out"
        )
    share = 1 / (1 + unlabelled_ratio)
    return (labelled, unlabelled), (share, 1 - share)


def _run(dataset, load, count, sharded=False):
    dataset = dataset.map(load, num_parallel_calls=os.cpu_count() or 1, deterministic=True)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(2)
    options = tf.data.Options()
    # An iterator that is deleted waits for its thread, which sleeps: seconds at the end of each fit.
    options.autotune.enabled = False
    options.deterministic = True
    if sharded:
        # TensorFlow would shard the shard.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _name(op) -> str:
    return type(op).__name__.lstrip("_").lower()


def _check_views(views, source, augment):
    cached, current = views.identity(), Views(source, views.count, augment, views.seed, views.image_shape).identity()
    differing = [key for key in cached if cached[key] != current[key]]
    if differing:
        raise InputError(f"the teacher cache was made with another {', '.join(differing)}: make one for these batches")


class Views:
    """The augmented views of a split that a teacher cache holds: the first ``count`` of each sample.

    View k of a sample is what training shows in its pass k with the same seed.

    Args:
        source: what is read.
        count: number of views of each sample; 1 where the augmentation is not random.
        augment: operations of `kd_keras.data.augment`, in this order.
        seed: of the views; the order of training has a separate seed.
        image_shape: (H, W, C) of the teacher's images, where it is not the source's.

    Raises:
        InputError: the count is not a whole number of at least 1, several operations mix images, or an operation's
            results do not repeat (a layer with its own random numbers).
    """

    def __init__(
        self,
        source: Source,
        count: int = 1,
        augment: Sequence[Any] = (),
        seed: int = 0,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        if not is_count(count):
            raise InputError(f"{count!r} views: give a whole number of at least 1")
        mixing = [op for op in augment if op.mixes_labels]
        if len(mixing) > 1:
            raise InputError(f"a teacher cache holds with one of {', '.join(map(_name, mixing))}: leave the others out")
        self.mixing = mixing[0] if mixing else None
        for op in augment:
            if not op.stateless or (op.mixes_labels and type(op).mix is BatchOp.mix):
                raise InputError(
                    f"a teacher cache cannot hold with {_name(op)}, whose results do not repeat: leave one of them out"
                )
        self.source, self.augment, self.seed = source, tuple(augment), seed
        self.count = count if _columns(augment) or mixing else 1
        self.image_shape = tuple(image_shape or source.image_shape)

    def __len__(self) -> int:
        return len(self.source)

    def identity(self) -> dict[str, Any]:
        """Everything that the views depend on, except their number. Labels are no part of it."""
        random = bool(_columns(self.augment) or self.mixing)
        shape = {} if self.image_shape == tuple(self.source.image_shape) else {"image shape": list(self.image_shape)}
        return {
            **shape,
            "set of images": self.source.images_fingerprint,
            "augmentation": [repr(op) for op in self.augment],
            "seed of the views": self.seed if random else None,
        }

    @property
    def repeats(self) -> tuple[int, int]:
        """Their number, and their seed."""
        return self.count, self.seed

    def batches(self, view: int, batch_size: int) -> tf.data.Dataset:
        """One view of every sample, in order: float32 images (B, H, W, C) in 0…255."""
        rows = order.of_view(len(self), _columns(self.augment), self.seed, view, self.mixing)
        dataset = order.in_order(len(self), batch_size, rows)
        seen = _Seen(self.source, self.augment, self.image_shape, in_view=True)

        def load(rows):
            return seen.read(rows)[0]

        return _run(dataset, load, steps_per_epoch(len(self), batch_size))


def _columns(augment) -> int:
    return sum(op.columns for op in augment)
