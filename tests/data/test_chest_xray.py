"""Kaggle's layout of the chest X-rays, drawn small: validation from train by patient, the archive's oddities."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from kd_keras.data import chest_xray
from kd_keras.errors import InputError

SMALL = {"image_size": 8, "channels": 1}


def write(folder, name, rng):
    size = rng.integers(8, 14, 2)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)


def draw(root, patients=30):
    """Patients of 1 to 3 images; some of the normal ones in the second series."""
    rng = np.random.default_rng(0)
    for split, count, first in (("train", patients, 1), ("val", 4, 1000), ("test", 8, 1)):
        for number in range(first, first + count):
            for image in range(1 + number % 3):
                kind = "bacteria" if number % 2 else "virus"
                write(root / split / "PNEUMONIA", f"person{number}_{kind}_{10 * number + image}.jpeg", rng)
                series = "NORMAL2-IM" if number % 4 == 0 else "IM"
                write(root / split / "NORMAL", f"{series}-{number:04d}-{image:04d}.jpeg", rng)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("kaggle") / "chest_xray")


@pytest.fixture
def own(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "chest_xray")


def paths(split):
    return [pathlib.Path(split._source.paths[row]) for row in split._rows.numpy()]


def test_validation_is_carved_from_train_and_val_by_patient(tree):
    splits = chest_xray.ChestXray(str(tree), val_fraction=0.25, **SMALL)
    assert splits.class_names == ("NORMAL", "PNEUMONIA") and splits.image_shape == (8, 8, 1)
    assert {path.parts[-3] for path in paths(splits.test)} == {"test"}
    carved = paths(splits.train) + paths(splits.val)
    assert sorted(carved) == sorted([*tree.glob("train/*/*"), *tree.glob("val/*/*")])
    who = [{chest_xray.patient(path) for path in paths(split)} for split in (splits.train, splits.val)]
    assert not who[0] & who[1]
    for split in (splits.train, splits.val, splits.test):
        assert split.labels.tolist() == [chest_xray.CLASS_NAMES.index(path.parts[-2]) for path in paths(split)]
    shares = np.bincount(splits.val.labels) / np.bincount(np.concatenate([splits.val.labels, splits.train.labels]))
    assert np.all(np.abs(shares - 0.25) < 0.1)
    again = chest_xray.ChestXray(str(tree), val_fraction=0.25, **SMALL)
    assert paths(again.val) == paths(splits.val)


def test_kaggles_validation_can_be_kept(tree):
    splits = chest_xray.ChestXray(str(tree), keep_val=True, **SMALL)
    for split, name in ((splits.train, "train"), (splits.val, "val"), (splits.test, "test")):
        assert sorted(paths(split)) == sorted(tree.glob(f"{name}/*/*"))


@pytest.mark.parametrize(
    "name, patient",
    [
        ("person12_bacteria_48.jpeg", "person12"),
        ("person1949_virus_4880.jpeg", "person1949"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0539-0001-0002.jpeg", "IM-0539"),
        ("NORMAL2-IM-0395-0001-0002.jpeg", "IM-0395"),
        ("NORMAL-1049278-0001.jpeg", "NORMAL-1049278-0001.jpeg"),
    ],
)
def test_names_tell_patients(name, patient):
    assert chest_xray.patient(f"/somewhere/IM-0001-x/{name}") == patient


@pytest.mark.parametrize("form", ["nested", "doubled", "twice nested"])
def test_the_archives_oddities_are_passed_over(tree, tmp_path, form):
    root = tmp_path / "unpacked"
    below = {"nested": "chest_xray", "doubled": ".", "twice nested": "chest_xray/chest_xray"}[form]
    shutil.copytree(tree, root / below)
    if form == "doubled":
        shutil.copytree(tree, root / "chest_xray")
    for place in (root, root / below, root / below / "train", root / below / "train" / "NORMAL"):
        (place / ".DS_Store").write_bytes(b"x")
        (place / "__MACOSX" / "train").mkdir(parents=True, exist_ok=True)
    (root / below / "test" / "NORMAL" / "._IM-0001-0000.jpeg").write_bytes(b"x")
    (root / below / "test" / "NORMAL" / "moved.jpeg").symlink_to(tmp_path / "nowhere.jpeg")
    found = chest_xray.read(root)
    wanted = chest_xray.read(tree)
    assert list(found) == ["train", "val", "test"]
    for split, images in wanted.items():
        assert [(path.rpartition("/")[2], label) for path, label in found[split]] == [
            (path.rpartition("/")[2], label) for path, label in images
        ]


def test_without_val_and_mistakes(own):
    shutil.rmtree(own / "val")
    assert len(chest_xray.ChestXray(str(own), **SMALL).test) == len(list(own.glob("test/*/*")))
    with pytest.raises(InputError, match=r"keep_val=True, but .* has no val"):
        chest_xray.ChestXray(str(own), keep_val=True, **SMALL)
    with pytest.raises(InputError, match="set image_size"):
        chest_xray.ChestXray(str(own))
    with pytest.raises(InputError, match="keep_val='no': write True or False"):
        chest_xray.ChestXray(str(own), keep_val="no", **SMALL)
    broken = next((own / "train" / "NORMAL").iterdir())
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(InputError, match=rf"1 of \d+ images cannot be decoded: {broken}"):
        chest_xray.ChestXray(str(own), **SMALL)
    splits = chest_xray.ChestXray(str(own), skip_bad_images=True, **SMALL)
    assert broken not in paths(splits.train) + paths(splits.val)
    shutil.rmtree(own / "test" / "NORMAL")
    with pytest.raises(InputError, match="test/NORMAL has no radiograph: unpack https"):
        chest_xray.ChestXray(str(own), **SMALL)
    shutil.rmtree(own / "test")
    with pytest.raises(InputError, match="does not hold the folders train and test"):
        chest_xray.ChestXray(str(own), **SMALL)
