"""Data with several labels for each image: sources, splits, tables, ChestMNIST's layout, mixing."""

import numpy as np
import pytest
import tensorflow as tf
from absl import logging
from PIL import Image

from kd_keras import data, testing
from kd_keras.data import augmentations, batches
from kd_keras.data.carving import carve, carve_three, take
from kd_keras.errors import InputError

SHARES = np.array([0.004, 0.02, 0.1, 0.5, 0.9])
LABELS = (np.random.default_rng(0).random((2000, 5)) < SHARES).astype(int)


def source(labels=LABELS):
    images = np.random.default_rng(1).integers(0, 256, (len(labels), 2, 2, 1), dtype=np.uint8)
    return data.ArraySource(images, labels)


def test_a_source_of_several_labels_reads_them_and_they_are_in_its_fingerprint():
    whole = source()
    rows = whole.subset([3, 1])
    np.testing.assert_array_equal(rows.read([0, 1])[1], LABELS[[3, 1]])
    assert whole.labels.dtype == np.int32
    other = LABELS.copy()
    other[5, 2] = 1 - other[5, 2]
    assert len({whole.fingerprint, source(other).fingerprint}) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((3, 2), int), r"4 images need as many labels, \(4,\), or of several for each \(4, K\), not \(3, 2\)"),
        (np.zeros((4, 1), int), r"not \(4, 1\)"),
        (np.full((4, 2), 2), "0 or 1 for each, or -1"),
        (np.full((4, 2), 0.5), "0 or 1 for each, or -1"),
    ],
)
def test_a_source_refuses(labels, message):
    with pytest.raises(InputError, match=message):
        data.ArraySource(np.zeros((4, 2, 2, 1), np.uint8), labels)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.73])
def test_carve_keeps_each_labels_share(fraction):
    first, second = carve(LABELS, fraction, seed=3)
    assert len(second) == round(fraction * len(LABELS))
    assert sorted([*first, *second]) == list(range(len(LABELS)))
    counts = LABELS.sum(axis=0)
    # Of the rarest label there are a handful.
    assert np.all(np.abs(LABELS[second].sum(axis=0) - fraction * counts) <= 1 + 0.01 * counts)
    np.testing.assert_array_equal(second, carve(LABELS, fraction, seed=3)[1])
    assert not np.array_equal(second, carve(LABELS, fraction, seed=4)[1])


def test_carve_keeps_groups_whole():
    groups = np.arange(len(LABELS)) // 4
    first, second = carve(LABELS, 0.25, 0, groups)
    assert not set(groups[first]) & set(groups[second])
    shares = LABELS[second][:, 2:].sum(axis=0) / LABELS[:, 2:].sum(axis=0)
    np.testing.assert_allclose(shares, 0.25, atol=0.06)


def test_carve_names_the_label_that_is_too_rare():
    labels = LABELS.copy()
    labels[:, 1] = 0
    labels[7, 1] = 1
    with pytest.raises(InputError, match="label 1 has 1 sample where a split in two needs at least 2 of each label"):
        carve(labels, 0.2, 0)


def test_carve_three_has_every_label_on_every_side():
    for rows in carve_three(LABELS, 0.1, 0.2, 0):
        assert LABELS[rows].any(axis=0).all()


@pytest.mark.parametrize("n", [20, 100, 1999])
def test_take_is_exact_and_has_every_label(n):
    taken = take(source(), n, seed=0)
    counts = LABELS.sum(axis=0)
    assert len(taken) == n
    assert np.all(np.abs(taken.labels.sum(axis=0) - np.maximum(counts * n / len(LABELS), 1)) <= 1 + 0.05 * n)
    assert taken.labels.any(axis=0).all()


def test_take_refuses_what_cannot_hold_every_label():
    one_each = np.eye(5, dtype=int)
    with pytest.raises(InputError, match=r"4 examples cannot hold every label: none has label .; ask for more"):
        take(source(np.tile(one_each, (4, 1))), 4, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "b")}, r"of several for an image they are int32 \(2000, 5\)|int32 \(2000, 2\)"),
        ({"test": source(LABELS * [1, 1, 1, 1, 0])}, "test has no image with some of the labels"),
    ],
)
def test_the_contract_of_data_notices(change, message):
    whole = source()
    sources = {"train": whole, "val": whole.subset(range(1500)), "test": whole.subset(range(1000, 2000))}
    names = {"class_names": tuple("abcde"), "image_shape": (2, 2, 1)}
    testing.check_data(data.Splits(**sources, **names))
    with pytest.raises(AssertionError, match=message):
        testing.check_data(data.Splits(**{**sources, **names, **change}))


# ---- data sets


def test_digit_pairs():
    splits = data.DigitPairs(repeats=2, seed=1)
    testing.check_data(splits)
    digits = data.Digits(seed=1)
    assert splits.multi_label and splits.class_names == digits.class_names
    for name in ("train", "val", "test"):
        pairs, single = getattr(splits, name), getattr(digits, name)
        assert len(pairs) == 2 * len(single)
        sums = pairs.labels.sum(axis=1)
        assert set(sums) == {1, 2} and 0.05 < (sums == 1).mean() < 0.15
        images = pairs.read(np.arange(20))[0].numpy()
        known = {
            image.tobytes(): label
            for image, label in zip(*(x.numpy() for x in single.read(range(len(single)))), strict=True)
        }
        for image, label in zip(images, pairs.labels, strict=False):
            shown = set()
            for half in (image[:, :8], image[:, 8:]):
                crops = [half[top : top + 8].tobytes() for top in range(9)]
                shown |= {int(known[crop]) for crop in crops if crop in known}
            assert shown == set(np.flatnonzero(label))
    assert data.DigitPairs(seed=1).train.fingerprint != splits.train.fingerprint


def chest(tmp_path, **changes):
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 60), ("val", 20), ("test", 30)):
        labels = (rng.random((count, 14)) < 0.2).astype(np.uint8)
        labels[0] = 1
        arrays |= {f"{split}_images": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), f"{split}_labels": labels}
    path = tmp_path / "chestmnist.npz"
    np.savez_compressed(path, **{**arrays, **changes})
    return str(path), arrays


def test_chestmnist(tmp_path):
    path, arrays = chest(tmp_path)
    splits = data.MedMNIST(path)
    testing.check_data(splits)
    assert splits.num_classes == 14 and splits.class_names[0] == "atelectasis" and splits.class_names[13] == "hernia"
    np.testing.assert_array_equal(splits.test.read(range(30))[1], arrays["test_labels"])


def test_chestmnist_without_an_image_of_a_label_is_refused(tmp_path):
    path, arrays = chest(tmp_path)
    arrays["train_labels"][:, 3] = 0
    path, _ = chest(tmp_path, train_labels=arrays["train_labels"])
    with pytest.raises(InputError, match="train has no image of 'infiltration', label 3"):
        data.MedMNIST(path)


# ---- a folder with a table of labels

TABLE = [(f"{n:02d}.png", n % 2, int(n % 3 == 0), int(n > 14)) for n in range(30)]


def write(root, rows=TABLE, header="file,odd,third,late", images=True, folder=lambda n: ""):
    lines = [header]
    for n, (name, *labels) in enumerate(rows):
        path = root / folder(n) / name
        if images:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), n, np.uint8)).save(path)
        lines.append(",".join([str(path.relative_to(root)), *map(str, labels)]))
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(root)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_folder_with_a_table(tmp_path, cache):
    splits = data.Folder(write(tmp_path), labels="labels.csv", val_fraction=0.2, test_fraction=0.2, cache=cache)
    assert splits.multi_label and splits.class_names == ("odd", "third", "late")
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [18, 6, 6]
    testing.check_data(splits)
    for split in (splits.train, splits.val, splits.test):
        images, labels = split.read(range(len(split)))
        for n, label in zip(images.numpy()[:, 0, 0, 0], labels.numpy(), strict=True):
            assert tuple(label) == TABLE[n][1:]


def test_splits_of_a_table_are_folders(tmp_path):
    names = ["train", "train", "valid", "test"]
    splits = data.Folder(write(tmp_path, folder=lambda n: names[n % 4]), labels="labels.csv")
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [16, 7, 7]


def test_unknown_labels_and_images_that_the_table_does_not_name(tmp_path, caplog):
    rows = [list(row) for row in TABLE]
    rows[4][1] = -1
    path = write(tmp_path, rows)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "more.png")
    logging.set_verbosity(logging.WARNING)
    with caplog.at_level("WARNING"):
        splits = data.Folder(path, labels="labels.csv")
    assert sum((s.labels == -1).sum() for s in (splits.train, splits.val, splits.test)) == 1
    assert "1 images of" in caplog.text and "not in labels.csv" in caplog.text


def changed(at, column, text):
    rows = [list(row) for row in TABLE]
    rows[at][column] = text
    return rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": changed(3, 2, "yes")}, r"labels.csv, row 5, column 'third': 'yes' is no label: write 0 or 1, or -1"),
        ({"rows": changed(3, 2, "")}, "row 5, column 'third': '' is no label"),
        ({"rows": changed(3, 2, "0,1")}, "row 5: 5 columns where the header has 4"),
        ({"rows": changed(3, 0, "02.png")}, "row 5: '02.png' stands in row 4 already"),
        (
            {"rows": [(name, *labels, 0) for name, *labels in TABLE], "header": "f,a,b,c,none"},
            "column 'none': an image",
        ),
        ({"header": "file,a,a,b"}, "all different"),
        ({"header": "file,a"}, "at least two labels"),
        ({"rows": []}, "no row below its header"),
        ({"images": False}, r"names '00.png' \(and 29 others\), and .*00.png is no file"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_row_and_column(tmp_path, options, message):
    with pytest.raises(InputError, match=message) as error:
        data.Folder(write(tmp_path, **options), labels="labels.csv")
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"other.csv can't be read .*: give a CSV file"):
        data.Folder(write(tmp_path), labels="other.csv")


# ---- pipeline


@pytest.mark.parametrize("text", ["mixup(alpha=1.0)", "cutmix(alpha=1.0)"])
def test_mixing_mixes_independent_labels_and_leaves_unknown_ones_unknown(text):
    labels = np.array([[1, 1, 0, -1], [0, 1, 0, 1]] * 8, np.int32)
    images = np.zeros((16, 8, 8, 1), np.uint8)
    images[0::2] = 200
    (image, label), *_ = batches(
        data.ArraySource(images, labels), 16, training=True, augment=augmentations(text), num_classes=4
    )
    share = tf.reduce_mean(image, axis=(1, 2, 3)).numpy() / 200
    np.testing.assert_allclose(label[:, 0], share, atol=1e-5)
    np.testing.assert_allclose(label[:, 1], 1, atol=1e-6)
    np.testing.assert_array_equal(label[:, 2], 0)
    # Of two images of the second kind the label is known; in any other pair it is not.
    assert set(np.unique(label[:, 3])) <= {-1.0, 1.0} and -1 in label[:, 3]


def test_batches_of_independent_labels():
    _, label = next(iter(batches(source(), 7)))
    assert label.shape == (7, 5) and label.dtype == tf.int32
    np.testing.assert_array_equal(label, LABELS[:7])
