"""The pipeline is a pure function of (seed, epoch, index)."""

import numpy as np
import pytest
import tensorflow as tf

from kd_keras.data import ArraySource, _augment, batches, steps_per_epoch
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


def test_views_cycle_while_the_order_goes_on():
    got = stream(epochs=4, views=2)
    epochs = [by_index(got[at : at + 7]) for at in range(0, 28, 7)]
    for i in range(N):
        np.testing.assert_array_equal(epochs[0][i], epochs[2][i])
        np.testing.assert_array_equal(epochs[1][i], epochs[3][i])
    assert sum((epochs[0][i] != epochs[1][i]).any() for i in range(N)) > 45
    assert any((a["index"] != b["index"]).any() for a, b in zip(got[:7], got[14:21], strict=True))
    first = by_index(stream(epochs=1))
    np.testing.assert_array_equal(first[3], epochs[0][3])


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


def test_nothing_is_left_of_a_finished_training():
    assert list(batches(SOURCE, BATCH, training=True, epochs=2, initial_epoch=2)) == []


@pytest.mark.parametrize(
    "kw, message",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": -1}, "epochs=-1"),
        ({"initial_epoch": 0.5}, "initial_epoch=0.5"),
        ({"training": False}, "only with training=True"),
        ({"views": 0}, "views=0"),
        ({"augment": MIXING, "views": 2, "num_classes": 5}, "views=2 cannot hold with mixup"),
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
