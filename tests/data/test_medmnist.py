"""MedMNIST's files: as published, resized, damaged, refused; the real PneumoniaMNIST where it is there."""

import os
import pathlib
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from kd_keras.data import medmnist
from kd_keras.errors import InputError
from tests.conftest import ROOT

REAL = pathlib.Path(os.environ.get("KD_KERAS_DATA", ROOT.parent / "shared" / "data")) / "pneumoniamnist.npz"
ROWS = {"train": 30, "val": 10, "test": 20}


def arrays(shape=(6, 7), classes=2, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for split, rows in ROWS.items():
        made[f"{split}_images"] = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(rows)[:, None] % classes).astype(np.uint8)
    return made


def write(path, made, compressed=True):
    (np.savez_compressed if compressed else np.savez)(path, **made)
    return str(path)


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_images_and_labels_are_those_of_the_file(tmp_path, monkeypatch, shape, compressed, cache):
    # Several blocks, the last one smaller.
    monkeypatch.setattr(medmnist, "_BLOCK_BYTES", 7 * int(np.prod(shape)) + 1)
    made = arrays(shape)
    splits = medmnist.MedMNIST(write(tmp_path / "pneumoniamnist.npz", made, compressed), cache=cache)
    assert splits.class_names == ("normal", "pneumonia") and splits.image_shape == (*shape, 1)[:3]
    for name in ROWS:
        split = getattr(splits, name)
        images, labels = split.read(np.arange(len(split)))
        np.testing.assert_array_equal(images, made[f"{name}_images"].reshape(images.shape))
        np.testing.assert_array_equal(labels, made[f"{name}_labels"][:, 0])


def test_channels_and_size(tmp_path):
    made = arrays((8, 8, 3), classes=8)
    path = write(tmp_path / "bloodmnist_64.npz", made)
    grey = medmnist.MedMNIST(path, channels=1)
    weights = np.array([299, 587, 114])
    wanted = (made["val_images"].astype(int) @ weights + 500) // 1000
    np.testing.assert_array_equal(grey.val.read(range(10))[0][..., 0], wanted)
    assert grey.num_classes == 8 and grey.class_names[7] == "platelet"
    small = medmnist.MedMNIST(path, image_size=(4, 2))
    assert small.image_shape == (4, 2, 3)
    means = made["val_images"].astype(float).mean((1, 2, 3))
    assert np.abs(small.val.read(range(10))[0].numpy().astype(float).mean((1, 2, 3)) - means).max() < 12
    one = write(tmp_path / "breastmnist.npz", arrays())
    coloured = medmnist.MedMNIST(one, channels=3).val.read(range(10))[0].numpy()
    wanted = np.repeat(arrays()["val_images"][..., None], 3, axis=-1)
    np.testing.assert_array_equal(coloured, wanted, strict=True)


def test_unknown_files_count_their_classes(tmp_path):
    splits = medmnist.MedMNIST(write(tmp_path / "mine.npz", arrays(classes=5)))
    assert splits.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_disk_cache_is_written_once_until_the_file_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "mine.npz", arrays())
    first = medmnist.MedMNIST(path, cache="disk")
    original = medmnist._blocks
    # Nothing is read any more: the mapped images serve.
    monkeypatch.setattr(medmnist, "_blocks", lambda *args: iter(()))
    again = medmnist.MedMNIST(path, cache="disk")
    np.testing.assert_array_equal(again.test.read([3])[0][0, ..., 0], arrays()["test_images"][3])
    assert again.train.fingerprint == first.train.fingerprint
    monkeypatch.setattr(medmnist, "_blocks", original)
    write(tmp_path / "mine.npz", arrays(seed=1))
    other = medmnist.MedMNIST(path, cache="disk")
    np.testing.assert_array_equal(other.test.read([3])[0][0, ..., 0], arrays(seed=1)["test_images"][3])
    assert other.train.fingerprint != first.train.fingerprint


def test_a_large_file_is_held_once(tmp_path, monkeypatch):
    made = arrays()
    made["train_images"] = np.zeros((600, 224, 224), np.uint8)
    made["train_labels"] = np.arange(600)[:, None] % 2
    path = write(tmp_path / "mine.npz", made, compressed=False)
    size = made.pop("train_images").nbytes
    del made
    monkeypatch.setattr(medmnist, "_BLOCK_BYTES", 2**20)
    # The source's own memory is a map, of which tracemalloc is not told; so what it counts would be a second copy.
    tracemalloc.start()
    splits = medmnist.MedMNIST(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(splits.train) == 600 and most < 2**23 < size / 3


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("chestmnist", {}, "chestmnist.npz: train has no image of .effusion., label 2"),
        ("retinamnist_128", {}, r"retinamnist is graded \(ordinal regression\)"),
        ("organmnist3d", {}, "organmnist3d holds volumes"),
        ("mine", {"train_labels": np.zeros((30, 14), np.uint8)}, "its splits differ in the number of labels"),
        ("mine", {"train_labels": np.full((30, 14), 2)}, "of which some are neither 0 nor 1"),
        ("mine", {"train_labels": np.zeros((30, 1), np.float32)}, r"float32 \(30, 1\) where classes \(N, 1\)"),
        ("mine", {"val_labels": np.zeros((9, 1), np.uint8)}, r"val_labels is uint8 \(9, 1\) for 10 images"),
        ("mine", {"val_labels": np.full((10, 1), -1)}, "with no class, or one outside 0…65535"),
        # As int32 it would be class 0.
        ("mine", {"val_labels": np.full((10, 1), 2**40)}, "with no class, or one outside 0…65535"),
        ("mine", {"train_labels": np.zeros((30, 1), int)}, "train has no image of 'class 1', label 1"),
        ("mine", {"val_images": np.zeros((10, 6, 7, 6), np.uint8)}, r"\(10, 6, 7, 6\) where"),
        ("mine", {"val_images": np.zeros((10, 6, 7), np.float32)}, "float32"),
        ("pneumoniamnist", {"test_labels": np.full((20, 1), 2)}, "labels up to 2 where 2 classes belong"),
        ("mine", {"test_labels": np.array([None] * 20)}, "another layout"),
    ],
)
def test_other_tasks_and_layouts_are_refused(tmp_path, name, change, message):
    with pytest.raises(InputError, match=message) as caught:
        medmnist.MedMNIST(write(tmp_path / f"{name}.npz", {**arrays(), **change}))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "mine.npz"
    write(path, arrays(), compressed=False)
    whole = path.read_bytes()
    at = whole.index(arrays()["val_images"].tobytes())
    for damaged in (whole[:-50], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"mine\.npz is corrupt or truncated"):
            medmnist.MedMNIST(str(path))
    np.savez(path, images=np.zeros(3))
    with pytest.raises(InputError, match="lacks train_images, so it is no file of MedMNIST"):
        medmnist.MedMNIST(str(path))


def head(shape, descr="|u1", text=None):
    """The start of an array's file, whatever follows."""
    text = (text or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}") + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train_images", head(None, text="{'descr': '|u1', 'shape': (6, 8"), "corrupt or truncated"),
        ("train_images", head(None, text="(" * 5000), "corrupt or truncated"),
        ("train_images", head((30, -6, -7)) + bytes(1260), r"corrupt: an array has the shape \(30, -6, -7\)"),
        ("train_labels", head((30, 1), "<u8") + bytes(237), "train_labels is truncated"),
        ("train_labels", head((30, 1)) + bytes(31), "or longer than it says"),
        ("train_labels", head((2**28, 1)) + bytes(1000), r"train_labels is uint8 \(268435456, 1\) for 30 images"),
    ],
)
def test_a_damaged_array_is_named(tmp_path, name, content, message):
    path = write(tmp_path / "mine.npz", arrays())
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, content if member == f"{name}.npy" else old)
    with pytest.raises(InputError, match=rf"mine\.npz.*{message}") as caught:
        medmnist.MedMNIST(str(path))
    assert len(str(caught.value)) < 600


def test_what_zipfile_cannot_open_is_named(tmp_path):
    path = pathlib.Path(write(tmp_path / "mine.npz", arrays()))
    whole = path.read_bytes()
    # The two places of a member's flags and of its compression: bit 0 says that it is encrypted, 9 is Deflate64.
    for offsets, value in (((6, 8), 1), ((8, 10), 9)):
        content = bytearray(whole)
        for signature, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
            for match in re.finditer(re.escape(signature), whole):
                content[match.start() + offset] = value
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"mine\.npz is corrupt or truncated"):
            medmnist.MedMNIST(str(path))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({}, "either path='….npz' or name="),
        ({"path": "a.npz", "name": "octmnist"}, "either path="),
        ({"path": 5}, "path=5 is not a path: give the file's name in quotes"),
        ({"path": "nowhere.npz"}, "path='nowhere.npz' is no file: fetch it from https://medmnist.com"),
        ({"name": "pneumonia"}, "unknown name 'pneumonia' in MedMNIST"),
        ({"name": "retinamnist"}, "graded"),
        ({"name": "octmnist", "size": 32}, "size=32: MedMNIST is published in 28, 64, 128, 224 pixels"),
        ({"path": "a.npz", "channels": 2}, "channels=2"),
        ({"path": "a.npz", "cache": "none"}, "cache='none'"),
    ],
)
def test_mistakes_are_refused(keys, message):
    with pytest.raises(InputError, match=message):
        medmnist.MedMNIST(**keys)


def test_a_name_is_looked_up_in_keras_cache_or_downloaded(keras_home, monkeypatch):
    monkeypatch.setattr(medmnist, "BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(InputError, match=r"could not download .*pneumoniamnist_64\.npz.*fetch it from https") as caught:
        medmnist.MedMNIST(name="pneumoniamnist", size=64)
    assert "\n" not in str(caught.value)
    folder = keras_home / "datasets" / "medmnist"
    write(folder / "pneumoniamnist_64.npz", arrays((64, 64)))
    assert medmnist.MedMNIST(name="pneumoniamnist", size=64).image_shape == (64, 64, 1)


@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there")
def test_the_real_pneumoniamnist():
    splits = medmnist.MedMNIST(str(REAL))
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [4708, 524, 624]
    assert splits.class_names == ("normal", "pneumonia") and splits.image_shape == (28, 28, 1)
    assert np.bincount(splits.test.labels).tolist() == [234, 390]
    with np.load(REAL) as data:
        np.testing.assert_array_equal(splits.test.read(range(624))[0][..., 0], data["test_images"])
