"""Sources read what they were given; splits are stratified, disjoint and repeat."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kd_keras.data import ArraySource, batches, digits
from kd_keras.data.arrays import aligned
from kd_keras.data.carving import carve, carve_three, take
from kd_keras.data.sources import NumpySource
from kd_keras.errors import InputError

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def test_package_does_not_import_tensorflow():
    code = "import sys, kd_keras.data; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [ArraySource, NumpySource])
@pytest.mark.parametrize("mode", ["eager", "map"])
def test_read_gathers_and_subset_composes(kind, mode):
    images = aligned((100, 2, 3, 1))
    images[:] = np.arange(100 * 2 * 3 * 1, dtype=np.uint8).reshape(images.shape)
    source = kind(images, LABELS).subset(np.arange(99, -1, -1)).subset([0, 50, 98])
    assert len(source) == 3 and source.image_shape == (2, 3, 1) and source.labels.tolist() == [2, 0, 0]
    indices = tf.constant([2, 0], tf.int64)
    if mode == "eager":
        read, labels = source.read(indices)
    else:
        read, labels = next(iter(tf.data.Dataset.from_tensors(indices).map(source.read)))
    np.testing.assert_array_equal(read, images[[1, 99]])
    assert labels.numpy().tolist() == [0, 2] and labels.dtype == tf.int32 and read.dtype == tf.uint8


def anonymous_megabytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' account of memory")
def test_a_mapped_file_is_not_copied_into_memory(tmp_path):
    with open(tmp_path / "images", "wb") as file:
        file.truncate(2**30)  # holes, which take no disk
    images = np.memmap(tmp_path / "images", np.uint8, "r+", shape=(2**16, 64, 64, 4))
    before = anonymous_megabytes()
    source = NumpySource(images, np.zeros(len(images)))
    for _ in batches(source.subset(np.arange(0, 2**16, 8)), 64, training=True):
        pass
    assert anonymous_megabytes() - before < 200


@pytest.mark.slow
def test_a_program_ends_while_an_array_is_read():
    # Threads of tf.data that call Python, which is on its way out, would hang here.
    code = """
import numpy as np
from kd_keras.data import batches
from kd_keras.data.arrays import aligned
from kd_keras.data.sources import NumpySource
source = NumpySource(aligned((512, 64, 64, 3)), np.zeros(512))
iterators = [iter(batches(source, 64, training=True, epochs=10**6)) for _ in range(3)]
print([next(iterator)[0].shape[0] for iterator in iterators])
del iterators[0]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[64, 64, 64]\n"


@pytest.mark.parametrize("indices", [[100], [-1], [[0]]])
def test_subset_refuses_indices_outside(indices):
    with pytest.raises(InputError, match="from 0 to 99"):
        ArraySource(np.zeros((100, 1, 1, 1), np.uint8), LABELS).subset(indices)


def test_numpy_source_refuses_memory_that_tensorflow_cannot_read():
    with pytest.raises(ValueError, match="multiple of 64"):
        NumpySource(aligned((3, 2, 2, 1))[1:], [0, 1])


def test_array_source_refuses_wrong_types():
    with pytest.raises(InputError, match="float64"):
        ArraySource(np.zeros((2, 1, 1, 1)), [0, 1])
    with pytest.raises(InputError, match="labels"):
        ArraySource(np.zeros((2, 1, 1, 1), np.uint8), [0])


def test_carve_is_stratified_disjoint_and_repeats():
    train, val = carve(LABELS, 0.2, seed=3)
    assert np.bincount(LABELS[val]).tolist() == [12, 6, 2]
    assert sorted([*train, *val]) == list(range(100))
    again, other = carve(LABELS, 0.2, seed=3), carve(LABELS, 0.2, seed=4)
    np.testing.assert_array_equal(val, again[1])
    assert val.tolist() != other[1].tolist()


def test_carve_keeps_groups_whole_and_shares_near():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    labels = rng.integers(0, 3, 600)
    train, val = carve(labels, 0.25, seed=1, groups=groups)
    assert not set(groups[train]) & set(groups[val])
    assert sorted([*train, *val]) == list(range(600))
    shares = np.bincount(labels[val]) / np.bincount(labels)
    assert np.all(np.abs(shares - 0.25) < 0.05)
    np.testing.assert_array_equal(val, carve(labels, 0.25, seed=1, groups=groups)[1])


@pytest.mark.parametrize(
    "labels, fraction, groups, message",
    [
        ([0, 0, 0, 1], 0.5, None, "class 1 has 1 sample"),
        ([], 0.5, None, "no samples"),
        ([0] * 500 + [1] * 3, 0.1, None, "class 1 has too few samples"),
        ([0, 0, 1, 1], 0.1, None, "cannot hold 2 classes"),
        ([0, 0, 1, 1], 1.5, None, "between 0 and 1"),
        ([0, 0, 1, 1], 0.5, [7, 7, 7, 7], "one group"),
        ([0, 0, 0, 1, 1], 0.5, [0, 1, 2, 3, 3], "class 1 has too few"),
    ],
)
def test_carve_refuses(labels, fraction, groups, message):
    with pytest.raises(InputError, match=message) as caught:
        carve(labels, fraction, 0, groups)
    assert "\n" not in str(caught.value)


def test_carve_three_takes_fractions_of_all():
    train, val, test = carve_three(LABELS, 0.1, 0.3, seed=0)
    assert (len(train), len(val), len(test)) == (60, 10, 30)
    assert sorted([*train, *val, *test]) == list(range(100))
    with pytest.raises(InputError, match="sum below 1"):
        carve_three(LABELS, 0.7, 0.3, seed=0)


@pytest.mark.parametrize("n", [3, 4, 10, 37, 99])
def test_take_is_exact_and_stratified(n):
    source = ArraySource(np.zeros((100, 1, 1, 1), np.uint8), LABELS)
    counts = np.bincount(take(source, n, seed=0).labels, minlength=3)
    assert counts.sum() == n and counts.min() >= 1
    assert np.all(np.abs(counts - n * np.array([0.6, 0.3, 0.1])) <= 1.0)


def test_take_repeats_and_refuses():
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    source = ArraySource(images, LABELS)
    drawn = [take(source, 20, seed).read(range(20))[0].numpy().ravel().tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 20
    assert take(source, 100, 0) is source
    for n in (2, 0, 101, 2.5):
        with pytest.raises(InputError):
            take(source, n, 0)


def test_digits():
    splits = digits.Digits(seed=1)
    assert splits.image_shape == (8, 8, 1) and splits.num_classes == 10 and splits.class_names[3] == "3"
    sizes = [len(split) for split in (splits.train, splits.val, splits.test)]
    assert sum(sizes) == 1797 and abs(sizes[1] - 270) <= 1 and sizes[2] == 359
    images = np.concatenate([split.read(range(len(split)))[0] for split in (splits.train, splits.val, splits.test)])
    assert images.max() == 255 and images.dtype == np.uint8 and set(np.unique(images)) >= {0, 16, 128, 239}
    assert np.bincount(splits.test.labels).min() >= 34
