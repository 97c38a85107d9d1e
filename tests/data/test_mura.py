"""MURA's layout, drawn small: by CSV or tree, split by patient, balanced."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kd_keras import spec
from kd_keras.data import mura
from kd_keras.errors import InputError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import draw_mura

SMALL = {"image_size": 8, "channels": 1}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return draw_mura.draw(tmp_path_factory.mktemp("mura"), size=(9, 16))


@pytest.fixture
def own(tree, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(tree, tmp_path / "MURA-v1.1")


def paths(split):
    return [pathlib.Path(split._source.paths[row]) for row in split._rows.numpy()]


def patients(split):
    return {path.parts[-3] for path in paths(split)}


def counts(split):
    return np.bincount(split.labels).tolist()


def of_path(path):
    """Body part and finding that a path tells."""
    return mura.BODY_PARTS.index(path.parts[-4][3:].lower()), int(path.parts[-2].endswith("_positive"))


def test_mistakes_in_drawing_are_one_line(tmp_path):
    def drawn(*words):
        line = [sys.executable, str(ROOT / "tools" / "draw_mura.py"), str(tmp_path), *words]
        return subprocess.run(line, capture_output=True, text=True)

    assert "take 7 at least, one a body part" in drawn("--patients=6").stderr
    assert drawn("--patients=7", "--valid_patients=7").stdout.strip() == str(tmp_path / "MURA-v1.1")
    assert {one.body_part for one in mura.read(tmp_path)["train"]} == set(range(7))
    again = drawn()
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert f"{tmp_path} cannot be drawn in ([Errno 17] File exists" in again.stderr


def test_labels_are_what_the_paths_tell(tree):
    for place, label in enumerate(("body_part", "abnormal")):
        splits = mura.MURA(str(tree), label=label, **SMALL)
        for split in (splits.train, splits.val, splits.test):
            assert split.labels.tolist() == [of_path(path)[place] for path in paths(split)]
    assert splits.class_names == ("normal", "abnormal") and splits.image_shape == (8, 8, 1)
    assert mura.MURA(str(tree), **SMALL).class_names == mura.BODY_PARTS


def test_images_are_those_of_the_files(tree):
    splits = mura.MURA(str(tree), image_size=(5, 6))
    images, _ = splits.val.read([0])
    whole = np.asarray(Image.open(paths(splits.val)[0]))
    assert images.shape == (1, 5, 6, 3) and abs(float(np.mean(images)) - whole.mean()) < 5


@pytest.mark.parametrize("form", ["tree", "parent", "renamed", "paths alone"])
def test_csv_and_tree_give_the_same(tree, own, form):
    wanted = {}
    for split in mura.SPLITS:
        lines = (own / f"{split}_image_paths.csv").read_text().split()
        wanted[split] = sorted(line.partition("/")[2] for line in lines)
    folder = own
    if form in ("tree", "parent"):
        for file in own.glob("*.csv"):
            file.unlink()
        # Beside the images, as unpacked on macOS and looked at in a browser.
        study = next(own.glob("train/XR_HAND/*/*"))
        for name in ("._image1.png", ".DS_Store", "Thumbs.db", "notes.txt"):
            (study / name).write_bytes(b"x")
        (own / "train" / ".DS_Store").write_bytes(b"x")
        folder = own.parent if form == "parent" else own
    elif form == "renamed":
        folder = own.rename(own.with_name("radiographs"))
    else:
        for split in mura.SPLITS:
            (own / f"{split}_labeled_studies.csv").unlink()
    listed, original = mura.read(folder), mura.read(tree)
    for split in mura.SPLITS:
        assert ["/".join(pathlib.Path(one.path).parts[-5:]) for one in listed[split]] == wanted[split]
        fields = [[(one.body_part, one.abnormal, one.patient) for one in of[split]] for of in (listed, original)]
        assert fields[0] == fields[1]


def test_labels_may_come_from_the_csv_alone(own):
    before = mura.read(own)["valid"]
    for study in sorted(own.glob("valid/*/*/*")):
        study.rename(study.with_name(study.name.partition("_")[0]))
    for file in own.glob("valid_*.csv"):
        file.write_text(file.read_text().replace("_positive", "").replace("_negative", ""))
    assert [one.abnormal for one in mura.read(own)["valid"]] == [one.abnormal for one in before]
    (own / "valid_labeled_studies.csv").unlink()
    with pytest.raises(InputError, match="neither its study's name nor a CSV says positive"):
        mura.read(own)


@pytest.mark.parametrize("label", ["body_part", "abnormal"])
@pytest.mark.parametrize("keys", [{"val_fraction": 0.3}, {"val_per_class": 3}, {"balance": "oversample"}])
def test_no_patient_is_in_two_splits(tree, label, keys):
    several = {}
    for path in tree.glob("train/*/patient*"):
        several.setdefault(path.name, []).append(path)
    assert sum(len(places) > 1 for places in several.values()) > 10
    for seed in range(3):
        splits = mura.MURA(str(tree), label=label, seed=seed, **keys, **SMALL)
        train, val, test = (patients(split) for split in (splits.train, splits.val, splits.test))
        assert not train & val and not train & test and not val & test and val
        assert {path.parts[-5] for path in paths(splits.test)} == {"valid"}
        assert {path.parts[-5] for path in paths(splits.train) + paths(splits.val)} == {"train"}


def test_splits_repeat_and_validation_is_near_its_share(tree):
    first, again, other = (mura.MURA(str(tree), val_fraction=0.3, seed=seed, **SMALL) for seed in (1, 1, 2))
    assert paths(first.val) == paths(again.val) != paths(other.val)
    shares = np.array(counts(first.val)) / (np.array(counts(first.val)) + counts(first.train))
    assert np.all(np.abs(shares - 0.3) < 0.2)
    assert len(first.train) + len(first.val) == len(list(tree.glob("train/*/*/*/*.png")))


def test_balance(tree):
    plain = np.array(counts(mura.MURA(str(tree), **SMALL).train))
    assert len(set(plain)) > 1
    for keys, wanted in (
        ({"balance": "cap"}, np.full(7, plain.min())),
        ({"balance": "cap", "per_class": 24}, np.minimum(plain, 24)),
        ({"balance": "oversample"}, np.full(7, plain.max())),
        ({"balance": "oversample", "per_class": 24}, np.full(7, 24)),
        ({"balance": "oversample", "per_class": 90}, np.full(7, 90)),
    ):
        train = mura.MURA(str(tree), **keys, **SMALL).train
        assert counts(train) == wanted.tolist()
        seen = np.unique(train._rows.numpy(), return_counts=True)[1]
        if keys["balance"] == "cap":
            assert seen.max() == 1
        else:
            # Each image about as often as the others of its class.
            assert seen.max() <= np.ceil(wanted / plain).max()
            assert len(seen) == np.minimum(plain, wanted).sum()


def test_the_balanced_set_of_the_study(tree):
    splits = mura.MURA(str(tree), balance="oversample", per_class=22, val_per_class=3, **SMALL)
    assert counts(splits.train) == [22] * 7 and counts(splits.val) == [3] * 7
    assert len(set(paths(splits.val))) == 21
    # The rest of the validation patients' images are left out, not trained on.
    assert len(set(paths(splits.train))) + 21 < len(list(tree.glob("train/*/*/*/*.png")))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"label": "hand"}, r"label='hand': give one of 'body_part', 'abnormal'"),
        ({"label": spec.Spec("abnormal")}, r"label=abnormal\(\): give one of 'body_part', 'abnormal'"),
        ({"seed": -1}, "seed=-1: give a whole number from 0 to 4294967295"),
        ({"seed": 0.5, "val_per_class": 3}, "seed=0.5: give a whole number"),
        ({"skip_bad_images": "no"}, "skip_bad_images='no': write True or False"),
        ({"balance": True}, "balance=True: give one of"),
        ({"per_class": 5}, "per_class=5 has no effect with balance='none'"),
        ({"balance": "cap", "per_class": 0}, "per_class=0: give a whole number"),
        ({"val_per_class": 2.5}, "val_per_class=2.5: give a whole number"),
        ({"val_per_class": 500}, r"has \d+ images of \d+ patients, too few for val_per_class=500"),
        ({"val_fraction": 2}, "between 0 and 1"),
        ({"image_size": None}, "set image_size"),
    ],
)
def test_values_out_of_range_are_refused(tree, keys, message):
    with pytest.raises(InputError, match=message) as caught:
        mura.MURA(str(tree), **{**SMALL, **keys})
    assert "\n" not in str(caught.value)


def contradict(root):
    file = root / "train_labeled_studies.csv"
    file.write_text(file.read_text().replace("_positive/,1", "_positive/,0", 1))


def lose(root):
    for number, path in enumerate(sorted(root.glob("valid/*/*/*/*.png"))):
        if number < 7:
            path.unlink()


def another_folder(root):
    file = root / "valid_image_paths.csv"
    file.write_text(file.read_text().replace("/valid/", "/test/"))


def relabelled(old, new):
    def change(root):
        file = root / "train_labeled_studies.csv"
        file.write_text(file.read_text().replace(old, new, 1))

    return change


def halve(root):
    file = root / "train_labeled_studies.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[: len(lines) // 2]))


def twice(root):
    file = root / "train_image_paths.csv"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")


def without_hands(root):
    shutil.rmtree(root / "valid" / "XR_HAND")
    for file in root.glob("*.csv"):
        file.unlink()


def known_patient(root):
    without_hands(root)
    there = next(root.glob("train/*/patient00001"))
    shutil.copytree(there, root / "valid" / there.parent.name / there.name)


def foot(root):
    without_hands(root)
    shutil.copytree(root / "valid" / "XR_WRIST", root / "valid" / "XR_FOOT")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: shutil.rmtree(root / "valid"), "does not hold the folders train and valid: ask for MURA-v1.1"),
        (contradict, "study's name and the CSV of labels disagree"),
        (relabelled("_positive/,1", "_positive/,nan"), r"row \d+, is .*_positive/,nan' where a study and its label"),
        (relabelled("_positive/,1", "_positive/,"), "where a study and its label, 0 or 1, belong"),
        (relabelled("_positive/,1", "_positive/"), "where a study and its label, 0 or 1, belong"),
        (halve, r"train_labeled_studies.csv lacks \d+ studies .*: download it again, or remove it"),
        (twice, "train_image_paths.csv names .* twice: download it again"),
        (lose, r"7 of the \d+ files that .*valid_image_paths.csv names are missing .*image\d.png …\)"),
        (another_folder, "names 'MURA-v1.1/test/.*which is not below valid/"),
        (lambda root: (root / "train_image_paths.csv").write_bytes(b"\xff\xfe,"), "cannot be read as CSV"),
        (lambda root: (root / "train_image_paths.csv").write_text(""), "train has no radiograph"),
        (without_hands, "valid has no readable image of hand"),
        (foot, "XR_FOOT.* is not of MURA's layout"),
        (known_patient, r"1 patients are in train and in valid \(patient00001\), so test images would be known: keep"),
    ],
)
def test_another_layout_is_refused(own, damage, message):
    damage(own)
    with pytest.raises(InputError, match=message) as caught:
        mura.MURA(str(own), **SMALL)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named_and_can_be_left_out(own):
    path = next(own.glob("train/XR_HAND/*/*/image1.png"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=rf"1 of \d+ images cannot be decoded: {path}"):
        mura.MURA(str(own), **SMALL)
    splits = mura.MURA(str(own), skip_bad_images=True, **SMALL)
    assert path not in paths(splits.train) + paths(splits.val)
    for split in (splits.train, splits.val, splits.test):
        assert split.labels.tolist() == [of_path(one)[0] for one in paths(split)]
