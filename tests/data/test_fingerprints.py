"""Content hashes of data: what changes them, and what does not."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from kd_keras.data import fingerprints
from kd_keras.data.arrays import aligned
from kd_keras.data.folder import Folder
from kd_keras.data.sources import ArraySource, NumpySource, Source

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
LABELS = np.arange(6) % 2


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for split in ("train", "val", "test"):
        for number, (pixels, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            path = tmp_path / "data" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels + {"train": 0, "val": 1, "test": 2}[split]).save(path)
    return tmp_path / "data"


def prints(folder, **options):
    splits = Folder(str(folder), **options)
    return [source.fingerprint for source in (splits.train, splits.val, splits.test)]


def test_the_same_images_elsewhere_are_the_same_data(tree, tmp_path):
    before = prints(tree)
    assert len(set(before)) == 3
    shutil.copytree(tree, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "train" / "0" / "0.png", (1, 1))
    assert prints(tmp_path / "copy") == before == prints(tree, cache="memory") == prints(tree, cache="disk")


def test_exchanged_images_and_labels_change_their_split_alone(tree):
    before = prints(tree)
    first, second = tree / "train" / "0" / "0.png", tree / "train" / "1" / "1.png"
    first.rename(tree / "x.png"), second.rename(first), (tree / "x.png").rename(second)
    after = prints(tree)
    assert after[0] != before[0] and after[1:] == before[1:]
    assert prints(tree, image_size=8)[1] != before[1] and prints(tree, channels=1)[1] != before[1]


def test_unchanged_files_are_not_read_again(tree, monkeypatch):
    before, read = prints(tree), []
    digest = fingerprints._digest
    monkeypatch.setattr(fingerprints, "_digest", lambda path: read.append(path) or digest(path))
    assert prints(tree) == before and read == []
    (table,) = (tree.parent / "keras" / "datasets" / "kd_keras" / "fingerprints").iterdir()
    table.write_bytes(table.read_bytes()[:-1])
    assert prints(tree) == before and len(read) == 18


def test_names_and_sizes_stand_for_very_many_files(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "MOST_FILES", 3)
    before = prints(tree)
    shutil.copytree(tree, tmp_path / "copy")
    assert prints(tmp_path / "copy") == before
    path = tree / "train" / "0" / "0.png"
    path.write_bytes(path.read_bytes() + bytes(1))
    after = prints(tree)
    assert after[0] != before[0] and after[1:] == before[1:]


def test_every_kind_of_source_gives_the_same_hash():
    class Mine(Source):
        labels, image_shape = LABELS.astype(np.int32), (4, 4, 3)

        def read(self, indices):
            return ArraySource(IMAGES, LABELS).read(indices)

    array = aligned(IMAGES.shape)
    array[:] = IMAGES
    sources = [ArraySource(IMAGES, LABELS), NumpySource(array, LABELS), Mine()]
    assert len({source.fingerprint for source in sources}) == 1
    assert len({source.subset([1, 3]).fingerprint for source in sources}) == 1
    assert ArraySource(IMAGES, 1 - LABELS).fingerprint != sources[0].fingerprint
    assert sources[0].subset([1, 3]).fingerprint != sources[0].subset([3, 1]).fingerprint
