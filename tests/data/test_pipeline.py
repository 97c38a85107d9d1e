"""The pipeline is a pure function of (seed, epoch, index)."""

import time

import numpy as np
import pytest
import tensorflow as tf

from kd_keras.data import ArraySource, Views, batches, order, steps_per_epoch
from kd_keras.data import augment as _augment
from kd_keras.data.sources import Source
from kd_keras.errors import InputError

N, BATCH = 50, 8
SOURCE = ArraySource(
    np.random.default_rng(0).integers(0, 256, (N, 12, 12, 3), dtype=np.uint8), np.arange(N, dtype=np.int64) % 5
)
PLAIN = (_augment.pad_crop(pixels=2), _augment.flip(), _augment.colour())
MIXING = (_augment.pad_crop(pixels=2), _augment.mixup(alpha=0.5), _augment.cutout(size=3), _augment.cutmix())


def stream(**kw):
    """The batches of training, as NumPy dictionaries."""
    kw = {"training": True, "augment": PLAIN, "num_classes": 5, "with_index": True, **kw}
    return list(batches(SOURCE, BATCH, **kw).as_numpy_iterator())


def by_index(some):
    return {int(i): x for batch in some for i, x in zip(batch["index"], batch["image"], strict=True)}


def assert_equal(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(a[key], b[key])


def test_steps_per_epoch():
    assert [steps_per_epoch(n, 8) for n in (1, 8, 9, 50)] == [1, 1, 2, 7]
    assert [steps_per_epoch(n, 8, drop_remainder=True) for n in (1, 8, 9, 50)] == [0, 1, 1, 6]


def test_in_order():
    dataset = batches(SOURCE, BATCH)
    assert dataset.cardinality() == 7
    images, labels = (np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True))
    np.testing.assert_array_equal(images, SOURCE.read(range(N))[0])
    np.testing.assert_array_equal(labels, SOURCE.labels)
    assert images.dtype == np.float32 and labels.dtype == np.int32
    assert [len(batch[1]) for batch in dataset] == [8] * 6 + [2]
    assert [len(batch[1]) for batch in batches(SOURCE, BATCH, drop_remainder=True)] == [8] * 6


def test_without_augmentation_images_labels_and_indices_belong_together():
    for batch in stream(augment=(), epochs=2):
        images, labels = SOURCE.read(batch["index"])
        np.testing.assert_array_equal(batch["image"], images)
        np.testing.assert_array_equal(batch["label"], labels)


def test_each_epoch_is_another_permutation():
    got = stream(epochs=3)
    assert len(got) == 21 and batches(SOURCE, BATCH, training=True, epochs=3, initial_epoch=1).cardinality() == 14
    assert [len(batch["index"]) for batch in got] == ([8] * 6 + [2]) * 3
    orders = [np.concatenate([batch["index"] for batch in got[at : at + 7]]).tolist() for at in (0, 7, 14)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    dropped = stream(epochs=2, drop_remainder=True)
    assert [len(batch["index"]) for batch in dropped] == [8] * 12
    assert len({int(i) for batch in dropped[:6] for i in batch["index"]}) == 48


@pytest.mark.parametrize("augment", [PLAIN, MIXING])
def test_repeats_with_the_seed_and_differs_without(augment):
    one = stream(augment=augment, seed=7, epochs=2)
    assert_equal(one, stream(augment=augment, seed=7, epochs=2))
    other = stream(augment=augment, seed=8, epochs=2)
    assert any((a["index"] != b["index"]).any() for a, b in zip(one, other, strict=True))
    a, b = by_index(one[:7]), by_index(other[:7])
    assert sum((a[i] != b[i]).any() for i in range(N)) > 45


@pytest.mark.parametrize("augment", [PLAIN, MIXING])
def test_resumed_stream_is_the_tail(augment):
    assert_equal(stream(augment=augment, epochs=4)[14:], stream(augment=augment, epochs=4, initial_epoch=2))


def test_view_depends_on_the_index_and_the_epoch_not_on_order_or_batch():
    small = batches(SOURCE, 3, training=True, augment=PLAIN, with_index=True, epochs=1)
    one, other = by_index(stream()), by_index(small.as_numpy_iterator())
    for i in range(N):
        np.testing.assert_array_equal(one[i], other[i])
    later = by_index(stream(epochs=2)[7:])
    assert sum((one[i] != later[i]).any() for i in range(N)) > 45


def test_samples_of_an_epoch_differ_in_their_views():
    same = ArraySource(np.repeat(SOURCE.read([0])[0].numpy(), N, axis=0), np.zeros(N))
    images = next(iter(batches(same, N, training=True, augment=PLAIN)))[0].numpy()
    assert len({image.tobytes() for image in images}) == N


def test_columns_are_not_shared_between_operations():
    # Two crops from one column pair would shift alike; twice the same flip would undo itself.
    images = by_index(stream(augment=(_augment.flip(), _augment.flip())))
    original = SOURCE.read(range(N))[0].numpy()
    unchanged = sum((images[i] == original[i]).all() for i in range(N))
    assert 12 < unchanged < 38


class Numbers:
    """A teacher cache whose taps are the view and the index themselves."""

    def __init__(self, views):
        self.views = views

    def read(self, view, index):
        return {"view": tf.fill(tf.shape(index), view), "logits": index}


def test_views_cycle_while_the_order_goes_on():
    views = Views(SOURCE, 2, PLAIN, seed=3)
    got = stream(epochs=4, cache=Numbers(views))
    epochs = [by_index(got[at : at + 7]) for at in range(0, 28, 7)]
    for i in range(N):
        np.testing.assert_array_equal(epochs[0][i], epochs[2][i])
        np.testing.assert_array_equal(epochs[1][i], epochs[3][i])
    assert sum((epochs[0][i] != epochs[1][i]).any() for i in range(N)) > 45
    assert any((a["index"] != b["index"]).any() for a, b in zip(got[:7], got[14:21], strict=True))
    # The order is that of the training's seed, the views are those of theirs.
    live = [batch for seed in (0, 3) for batch in stream(epochs=2, seed=seed)]
    assert all((a["index"] == b["index"]).all() for a, b in zip(got, live[:14], strict=False))
    for i in range(N):
        np.testing.assert_array_equal(by_index(live[14:21])[i], epochs[0][i])
    # Read in order, a view is the same to the bit.
    for view in (0, 1):
        images = np.concatenate(list(views.batches(view, 13).as_numpy_iterator()))
        np.testing.assert_array_equal(images, np.stack([epochs[view][i] for i in range(N)]))


def test_the_cache_is_asked_for_the_view_and_the_samples_that_are_shown():
    got = stream(epochs=3, initial_epoch=1, cache=Numbers(Views(SOURCE, 2, PLAIN)))
    for epoch, batch in zip(np.repeat([1, 2], 7), got, strict=True):
        np.testing.assert_array_equal(batch["teacher"]["logits"], batch["index"])
        np.testing.assert_array_equal(batch["teacher"]["view"], epoch % 2)


def test_without_chance_all_views_are_one():
    assert Views(SOURCE, 5).count == 1 and Views(SOURCE, 5, PLAIN).count == 5
    assert Views(SOURCE, 5, seed=1).identity() == Views(SOURCE, 2, seed=2).identity()
    assert Views(SOURCE, 5, PLAIN, seed=1).identity() != Views(SOURCE, 5, PLAIN, seed=2).identity()


def test_a_cache_of_other_samples_or_views_is_refused():
    cache = Numbers(Views(SOURCE, 2, PLAIN))
    other = ArraySource(255 - SOURCE.read(range(N))[0].numpy(), SOURCE.labels)
    copy = ArraySource(SOURCE.read(range(N))[0].numpy(), SOURCE.labels)
    batches(copy, BATCH, training=True, augment=PLAIN, cache=cache)
    for source, augment, what in (
        (other, PLAIN, "set of images"),
        (SOURCE.subset(range(N)[::-1]), PLAIN, "set of images"),
        (SOURCE, (_augment.flip(),), "augmentation"),
    ):
        with pytest.raises(InputError, match=f"was made with another {what}"):
            batches(source, BATCH, training=True, augment=augment, cache=cache)


class OnlyCalled(_augment.BatchOp):
    def __call__(self, images, labels, seed):
        return images, labels


@pytest.mark.parametrize("op", [OnlyCalled(), _augment.keras_cv()])
def test_views_that_do_not_repeat_are_refused(op):
    with pytest.raises(InputError, match=r"cannot hold with (onlycalled|kerascv)"):
        Views(SOURCE, 2, (*PLAIN, op))


# ---- views that are mixed ----

BEFORE, AFTER = PLAIN[:2], PLAIN[2:]
MIXED = [_augment.mixup(alpha=0.5), _augment.cutmix()]


def view_of(augment, view):
    images = np.concatenate(list(Views(SOURCE, 2, augment, seed=3).batches(view, 13).as_numpy_iterator()))
    return images.astype("float64")


@pytest.mark.parametrize("op", MIXED)
def test_a_view_mixes_each_sample_with_its_partner_in_that_view(op):
    """x = s·x_i + (1 − s)·x_j, for cutmix with s the share of the pixels; the labels likewise."""
    for view in (0, 1):
        mixed, plain = view_of((*BEFORE, op), view), view_of(BEFORE, view)
        rows = order.of_view(N, sum(one.columns for one in BEFORE), 3, view, op)
        partner, shares = rows.partners.index.numpy(), rows.partners.shares.numpy().astype("float64")
        assert sorted(partner) == list(range(N)) and (partner != range(N)).sum() > 40
        if op is MIXED[0]:
            share = shares[:, 0]
            expected = share[:, None, None, None] * plain + (1 - share[:, None, None, None]) * plain[partner]
        else:
            expected, share = plain.copy(), np.ones(N)
            for i, (own, y, x) in enumerate(shares):
                half = np.sqrt(1 - own) / 2
                (top, bottom), (left, right) = (
                    np.clip(np.round([12 * (c - half), 12 * (c + half)]), 0, 12) for c in (y, x)
                )
                place = np.s_[i, int(top) : int(bottom), int(left) : int(right)]
                expected[place] = plain[partner[i]][place[1:]]
                share[i] = 1 - (bottom - top) * (right - left) / 144
        np.testing.assert_allclose(mixed, expected, atol=1e-3)
        labels = share[:, None] * np.eye(5)[SOURCE.labels] + (1 - share[:, None]) * np.eye(5)[SOURCE.labels[partner]]
        cache = Numbers(Views(SOURCE, 2, (*BEFORE, op), seed=3))
        batches = stream(epochs=2, augment=(*BEFORE, op), cache=cache)[7 * view : 7 * view + 7]
        for batch in batches:
            np.testing.assert_allclose(batch["label"], labels[batch["index"]], atol=1e-6)
            np.testing.assert_allclose(batch["image"], expected[batch["index"]], atol=1e-3)


@pytest.mark.parametrize("op", MIXED)
def test_mixed_views_are_the_same_in_every_order_and_part(op):
    augment = (*BEFORE, op, *AFTER)
    views = Views(SOURCE, 2, augment, seed=3)
    got = stream(epochs=4, augment=augment, cache=Numbers(views))
    epochs = [by_index(got[at : at + 7]) for at in range(0, 28, 7)]
    for view in (0, 1):
        images = np.concatenate(list(views.batches(view, 13).as_numpy_iterator()))
        for i in range(N):
            np.testing.assert_array_equal(images[i], epochs[view][i])
            np.testing.assert_array_equal(images[i], epochs[view + 2][i])
    parts = [stream(epochs=4, augment=augment, cache=Numbers(views), shard=(worker, 3)) for worker in range(3)]
    for whole, *some in zip(got, *parts, strict=True):
        for key in ("image", "label", "index"):
            np.testing.assert_array_equal(whole[key], np.concatenate([part[key] for part in some]))
    assert Views(SOURCE, 5, (op,)).count == 5
    assert Views(SOURCE, 5, (op,), seed=1).identity() != Views(SOURCE, 5, (op,), seed=2).identity()


def test_a_view_is_mixed_once():
    with pytest.raises(InputError, match="holds with one of mixup, cutmix: leave the others out"):
        Views(SOURCE, 2, MIXED)


@pytest.mark.parametrize("count", [0, True, 1.5])
def test_a_number_of_views_that_is_none(count):
    with pytest.raises(InputError, match="views: give a whole number"):
        Views(SOURCE, count)


def test_mixing_gives_class_weights_and_differs_by_step():
    got = stream(augment=(_augment.mixup(alpha=1.0),), epochs=2)
    for batch in got:
        assert batch["label"].shape == (len(batch["index"]), 5) and batch["label"].dtype == np.float32
        np.testing.assert_allclose(batch["label"].sum(axis=1), 1.0, atol=1e-6)
    shares = {tuple(np.round(batch["label"].max(axis=1), 6)) for batch in got}
    assert len(shares) == len(got)


def test_images_stay_in_range_as_float32():
    for batch in stream(augment=MIXING):
        assert batch["image"].dtype == np.float32 and batch["image"].min() >= 0 and batch["image"].max() <= 255


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("augment", [PLAIN, MIXING])
def test_the_workers_parts_make_the_batch(augment, workers):
    parts = [stream(augment=augment, epochs=2, shard=(worker, workers)) for worker in range(workers)]
    # The last batch of 2 leaves one of three workers without a sample.
    together = [
        {key: np.concatenate([batch[key] for batch in same]) for key in same[0]} for same in zip(*parts, strict=True)
    ]
    assert_equal(together, stream(augment=augment, epochs=2))
    sizes = [len(batch["index"]) for part in parts for batch in part]
    assert max(sizes) == -(-BATCH // workers) and sum(sizes) == 2 * N


@pytest.mark.parametrize(("augment", "whole"), [(PLAIN, False), (MIXING, True)])
def test_a_worker_reads_its_own_part_alone_unless_partners_are_needed(augment, whole):
    asked = []

    class Counted(ArraySource):
        def read(self, indices):
            count = tf.numpy_function(lambda i: asked.append(len(i)) or np.int64(0), [indices], tf.int64)
            return super().read(indices + tf.ensure_shape(count, ()))

    source = Counted(SOURCE.read(range(N))[0].numpy(), SOURCE.labels)
    asked.clear()
    list(batches(source, BATCH, training=True, augment=augment, num_classes=5, shard=(1, 2)))
    assert sum(asked) == (N if whole else N // 2)


def test_autotune_is_off():
    options = batches(SOURCE, BATCH, training=True).options()
    assert options.autotune.enabled is False and options.deterministic is True


def test_static_shapes_are_known():
    image, label = batches(SOURCE, BATCH, training=True, augment=MIXING, num_classes=5).element_spec
    assert image.shape.as_list()[1:] == [12, 12, 3] and label.shape.as_list()[1:] == [5]
    assert image.dtype == tf.float32


@pytest.mark.parametrize("seconds", [0.7, 1.0, 1.4])
def test_an_iterator_dropped_midway_does_not_hang(seconds):
    # tf.data's autotuner would sleep for longer and longer, and be waited for: by chance, hence at several moments.
    iterator = iter(batches(SOURCE, BATCH, training=True, augment=PLAIN, epochs=10**6))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        next(iterator)
    started = time.monotonic()
    del iterator
    assert time.monotonic() - started < 0.4


class Counted(Source):
    """As many samples as ImageNet, which cost nothing to read."""

    def __init__(self, n=1_281_167):
        self.labels, self.image_shape = np.zeros(n, np.int32), (2, 2, 3)

    def read(self, indices):
        return tf.zeros((tf.size(indices), 2, 2, 3), tf.uint8), tf.cast(indices, tf.int32)


@pytest.mark.slow
def test_no_stall_between_epochs_of_as_many_samples_as_imagenet():
    size = 8192
    steps = steps_per_epoch(len(Counted()), size)
    augment = (_augment.pad_crop(pixels=1), _augment.flip(), _augment.colour())
    waits, last = [], time.perf_counter()
    for _ in batches(Counted(), size, training=True, augment=augment, epochs=4):
        now = time.perf_counter()
        waits.append(now - last)
        last = now
    between = [max(waits[epoch * steps - 1 : epoch * steps + 2]) for epoch in (1, 2, 3)]
    print(f"seconds at epoch ends: {np.round(between, 3)}; a batch: {np.median(waits):.4f}")
    assert np.median(between) < 0.2


def usual(images, labels, batch_size, epochs):
    """The pipeline that most examples of tf.data write: pad, crop and flip sample by sample."""

    def augment(image, label):
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]]), (32, 32, 3))
        return tf.cast(tf.image.random_flip_left_right(image), tf.float32), label

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images)).repeat(epochs)
    return dataset.map(augment, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def images_per_second(dataset):
    count, started = 0, None
    for _, labels in dataset:
        if started is None:  # the first batch pays for starting
            started = time.perf_counter()
        else:
            count += len(labels)
    return count / (time.perf_counter() - started)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_twice_the_images_a_second_of_the_usual_pipeline(mode):
    images = np.random.default_rng(0).integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    source, augment = ArraySource(images, labels), (_augment.pad_crop(pixels=4, mode=mode), _augment.flip())
    rates = {"usual": [], "ours": []}
    for _ in range(5):  # in turns, so that a busy moment of the machine meets both
        rates["usual"].append(images_per_second(usual(images, labels, 128, epochs=1)))
        rates["ours"].append(images_per_second(batches(source, 128, training=True, augment=augment, epochs=2)))
    medians = {name: np.median(rate) for name, rate in rates.items()}
    print(f"{mode}: images a second { ({name: round(rate) for name, rate in medians.items()}) }")
    assert medians["ours"] >= 2 * medians["usual"]


def test_nothing_is_left_of_a_finished_training():
    assert list(batches(SOURCE, BATCH, training=True, epochs=2, initial_epoch=2)) == []


@pytest.mark.parametrize(
    "kw, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": -1}, "epochs=-1"),
        ({"initial_epoch": 0.5}, "initial_epoch=0.5"),
        ({"training": False}, "only with training=True"),
        ({"augment": MIXING}, "give num_classes"),
        ({"batch_size": 51, "drop_remainder": True}, "no batch of 51"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
        ({"shard": (0, 2), "batch_size": 1}, "batches of 1"),
    ],
)
def test_mistakes_are_refused(kw, message):
    kw = {"batch_size": BATCH, "training": True, "augment": PLAIN, **kw}
    with pytest.raises(InputError, match=message):
        batches(SOURCE, kw.pop("batch_size"), **kw)
