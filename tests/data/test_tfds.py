"""Sets of TensorFlow Datasets, prepared here from small builders; and the builders of MURA and the chest X-rays."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from kd_keras import spec
from kd_keras.data import chest_xray, mura, tfds
from kd_keras.data.tfds_builders.chest_xray import ChestXray
from kd_keras.data.tfds_builders.mura import Mura
from kd_keras.errors import InputError
from tests.data import test_chest_xray
from tests.data.test_mura import draw_mura

core, features = tensorflow_datasets.core, tensorflow_datasets.features
KINDS = ["ant", "bee", "cat"]
CHANGES = {
    "image": lambda: features.Text(),
    "label": lambda: features.Scalar(np.int64),
    "many": lambda: features.Sequence(features.ClassLabel(names=KINDS)),
}


def pictures(count, size=(5, 6, 3), seed=0, varying=False):
    """Images with their label, 0 … 2 in turn, and a group of two neighbours."""
    rng = np.random.default_rng([seed, count])
    for number in range(count):
        height, width, channels = (size[0] + number % 3, size[1], size[2]) if varying else size
        yield rng.integers(0, 256, (height, width, channels), dtype=np.uint8), number % 3, f"group{number // 6}"


def prepare(folder, name, splits, shape=(5, 6, 3), varying=False, other=None, labels=lambda label: label):
    """Prepares a set of these splits (name: count) in ``folder``, by a builder that nobody else knows."""
    feature = features.Image(shape=(None, None, shape[2]) if varying else shape)

    class Tiny(core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = core.Version("1.0.0")

        def _info(self):
            known = {
                "image": feature,
                "label": features.ClassLabel(names=KINDS),
                "parity": features.ClassLabel(names=["even", "odd"]),
                "group": features.Text(),
            }
            if other:
                known["label" if other == "many" else other] = CHANGES[other]()
            return core.DatasetInfo(
                builder=self, features=features.FeaturesDict(known), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            for number, (image, label, group) in enumerate(pictures(count, shape, varying=varying)):
                example = {"image": image, "label": labels(label), "parity": label % 2, "group": group}
                if other:
                    example["label" if other == "many" else other] = {"image": "x", "label": 1, "many": [1]}[other]
                yield number, example

    Tiny.name = name
    Tiny(data_dir=folder).download_and_prepare()
    return {"name": name, "data_dir": str(folder)}


def contents(*sources):
    rows = []
    for source in sources:
        images, labels = source.read(np.arange(len(source)))
        rows += [(int(label), image.tobytes()) for image, label in zip(images.numpy(), labels.numpy(), strict=True)]
    return sorted(rows)


def expected(*counts, **keys):
    return sorted((label, image.tobytes()) for count in counts for image, label, _ in pictures(count, **keys))


def test_its_own_splits_are_kept(tmp_path):
    keys = prepare(tmp_path, "tiny", {"train": 40, "validation": 9, "test": 12})
    splits = tfds.TFDS(**keys)
    assert splits.class_names == tuple(KINDS) and splits.image_shape == (5, 6, 3)
    for split, count in ((splits.train, 40), (splits.val, 9), (splits.test, 12)):
        assert contents(split) == expected(count)
    # By the name on the command line too.
    again = spec.build("kd_keras.data", spec.parse(f"tfds('tiny', data_dir={str(tmp_path)!r})"))
    assert again.train.fingerprint == splits.train.fingerprint != splits.val.fingerprint


def test_missing_splits_are_carved_stratified(tmp_path):
    keys = prepare(tmp_path, "tiny", {"train": 60})
    splits = tfds.TFDS(**keys, val_fraction=0.2, test_fraction=0.3)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [30, 12, 18]
    assert contents(splits.train, splits.val, splits.test) == expected(60)
    assert np.bincount(splits.val.labels).tolist() == [4, 4, 4]
    keys = prepare(tmp_path, "other", {"train": 60, "test": 9})
    splits = tfds.TFDS(**keys, val_fraction=0.2)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [48, 12, 9]
    assert contents(splits.train, splits.val) == expected(60)


def test_splits_and_label_can_be_named(tmp_path):
    keys = prepare(tmp_path, "tiny", {"learn": 30, "train": 40, "test": 12})
    splits = tfds.TFDS(
        **keys, label="parity", train_split="learn[:20]", val_split="learn[20:]", test_split="train[:50%]"
    )
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [20, 10, 20]
    assert splits.class_names == ("even", "odd")
    wanted = [(label % 2, image) for label, image in expected(30)]
    assert contents(splits.train, splits.val) == sorted(wanted)


def test_groups_are_kept_together(tmp_path):
    keys = prepare(tmp_path, "tiny", {"train": 90})
    groups = {image.tobytes(): group for image, _, group in pictures(90)}
    splits = tfds.TFDS(**keys, group="group", val_fraction=0.2, test_fraction=0.2)
    found = [{groups[image] for _, image in contents(s)} for s in (splits.train, splits.val, splits.test)]
    assert all(found) and not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]
    assert sum(map(len, found)) == 15


@pytest.mark.parametrize("given, channels", [(1, 3), (3, 1), (4, None), (1, None)])
def test_sizes_and_channels(tmp_path, given, channels):
    keys = prepare(tmp_path, "tiny", {"train": 30, "test": 9}, (6, 8, given), varying=True)
    with pytest.raises(InputError, match="'tiny' has images of varying sizes: set image_size"):
        tfds.TFDS(**keys)
    splits = tfds.TFDS(**keys, image_size=(4, 5), channels=channels)
    wanted = channels or min(given, 3)
    assert splits.image_shape == (4, 5, wanted)
    images, _ = splits.test.read(np.arange(9))
    means = sorted(float(image[..., :3].mean()) for image, *_ in pictures(9, (6, 8, given), varying=True))
    assert images.shape == (9, 4, 5, wanted)
    np.testing.assert_allclose(sorted(images.numpy().astype(float).mean((1, 2, 3))), means, atol=15)


def test_images_are_written_once_until_the_data_change(tmp_path, monkeypatch):
    keys = prepare(tmp_path / "a", "tiny", {"train": 30, "test": 9})
    first = tfds.TFDS(**keys)
    original = tfds.fit
    monkeypatch.setattr(tfds, "fit", lambda *args: pytest.fail("decoded again"))
    again = tfds.TFDS(**keys)
    assert contents(again.test) == expected(9) and again.train.fingerprint == first.train.fingerprint
    assert tfds.TFDS(**keys, label="parity").test.fingerprint != first.test.fingerprint
    monkeypatch.setattr(tfds, "fit", original)
    shutil.rmtree(tmp_path / "a" / "tiny")
    prepare(tmp_path / "a", "tiny", {"train": 33, "test": 9})
    assert contents(*(getattr(tfds.TFDS(**keys), split) for split in ("train", "val"))) == expected(33)


@pytest.mark.parametrize(
    "change, keys, message",
    [
        ({"other": "image"}, {}, "its feature 'image' is a Text where Image belongs"),
        ({"other": "label"}, {}, "its feature 'label' is a Scalar where ClassLabel belongs"),
        ({"other": "many"}, {}, "its feature 'label' is a Sequence where ClassLabel belongs"),
        ({"labels": lambda label: -1}, {}, r"labels outside 0…2, as where they are not published: name another by"),
        ({}, {"label": "kind"}, "no feature 'kind' for the label: it has group, image, label, parity"),
        ({}, {"group": "patient"}, "no feature 'patient' for the group"),
        ({}, {"group": "image"}, "no single value, by which samples could be grouped"),
        ({}, {"train_split": "learn"}, "split 'learn' of 'tiny' cannot be read .*: name one of train"),
        ({}, {"train_split": 7}, r"train_split=7 is not text: write for example train_split='train\[:50%\]'"),
        ({}, {"val_split": "train[20:]"}, r"'train' and 'train\[20:\]' share samples: give splits that have none"),
        ({}, {"train_split": "train[:20]", "test_split": "train[19:]"}, "share samples"),
        ({}, {"seed": -1}, "seed=-1: give a whole number from 0"),
        ({}, {"download": "no"}, "download='no': write True or False"),
        ({}, {"channels": 2}, "channels=2"),
        ({}, {"image_size": 0}, "image_size=0"),
        ({}, {"val_fraction": 2}, "val_fraction=2"),
        ({}, {"name": "tiny/config"}, "is no data set that TensorFlow Datasets knows"),
        ({}, {"name": "mnist:9.9.9"}, r"'mnist:9.9.9' is no data set .* cannot be loaded at version 9.9.9"),
        ({}, {"name": "mnst"}, r"\(Dataset mnst not found.\): take a name of tensorflow.org/datasets/catalog, or name"),
        ({}, {"name": 7}, "name=7"),
        ({}, {"data_dir": "/nowhere"}, "data_dir='/nowhere' does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, keys, message):
    given = prepare(tmp_path, "tiny", {"train": 30}, **change)
    with pytest.raises(InputError, match=message) as caught:
        tfds.TFDS(**{**given, **keys})
    assert "\n" not in str(caught.value)


def test_a_truncated_record_is_told(tmp_path):
    keys = prepare(tmp_path, "tiny", {"train": 30})
    (record,) = tmp_path.glob("tiny/1.0.0/*train.tfrecord*")
    record.write_bytes(record.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"split 'train' of 'tiny' cannot be read .*prepare it again"):
        tfds.TFDS(**keys)


@pytest.mark.parametrize("name", ["mnist", "mura"])
def test_what_is_not_prepared_is_told_at_once(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"'{name}' is not prepared in .*add download=True .*tfds.load") as caught:
        tfds.TFDS(name, data_dir=str(tmp_path))
    assert time.monotonic() - start < 5 and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_manual_folder_is_told(tmp_path):
    with pytest.raises(InputError, match="'mura' could not be prepared") as caught:
        tfds.TFDS("mura", data_dir=str(tmp_path), download=True)
    assert "\n" not in str(caught.value)


def test_builders_are_no_names_and_not_imported_at_start():
    code = """
import sys
import kd_keras.data
from kd_keras import spec
print(*spec.names("kd_keras.data"))
assert not {"tensorflow", "tensorflow_datasets"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert {"tfds", "mura", "chest_xray", "medmnist"} <= names and not any(name.startswith("_") for name in names)


# ---- the builders ----


def load(name, manual, folder):
    config = tensorflow_datasets.download.DownloadConfig(manual_dir=manual)
    return tensorflow_datasets.load(
        name, data_dir=folder, with_info=True, download_and_prepare_kwargs={"download_config": config}
    )


def ordered(name, split, folder):
    """A split in the order of its files, as the spec reads it."""
    config = tensorflow_datasets.ReadConfig(interleave_cycle_length=1)
    return tensorflow_datasets.load(name, split=split, data_dir=folder, read_config=config)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """MURA and the chest X-rays, drawn small and prepared by ``tfds.load``."""
    folder = tmp_path_factory.mktemp("prepared")
    made = draw_mura.draw(folder / "mura", patients=35, size=(9, 16))
    xrays = test_chest_xray.draw(folder / "chest_xray", patients=12)
    data, info = {}, {}
    data["mura"], info["mura"] = load("mura", made, folder / "data")
    data["chest_xray"], info["chest_xray"] = load("chest_xray", folder, folder / "data")
    return folder, {"mura": made, "chest_xray": xrays}, data, info


def test_load_gives_muras_images_and_labels(prepared):
    _, folders, data, info = prepared
    assert issubclass(Mura, core.GeneratorBasedBuilder) and info["mura"].supervised_keys == ("image", "body_part")
    assert info["mura"].features["body_part"].names == list(mura.BODY_PARTS)
    listed = mura.read(folders["mura"])
    for split, name in (("train", "train"), ("valid", "validation")):
        found = sorted(
            (one["body_part"], one["abnormal"], one["patient"], one["study"], one["image"][..., 0].tobytes())
            for one in data["mura"][name].as_numpy_iterator()
        )
        wanted = sorted(
            (one.body_part, one.abnormal, one.patient.encode(), one.study.encode(), Image.open(one.path).tobytes())
            for one in listed[split]
        )
        assert found == wanted


def test_load_gives_the_chest_xrays(prepared):
    _, folders, data, info = prepared
    assert issubclass(ChestXray, core.GeneratorBasedBuilder)
    assert info["chest_xray"].features["label"].names == list(chest_xray.CLASS_NAMES)
    listed = chest_xray.read(folders["chest_xray"])
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        found = sorted((one["label"], one["patient"].decode()) for one in data["chest_xray"][name].as_numpy_iterator())
        assert found == sorted((label, chest_xray.patient(path)) for path, label in listed[split])


def test_the_spec_reads_what_the_builders_prepared(prepared):
    folder, folders, _, _ = prepared
    splits = tfds.TFDS(
        "mura", str(folder / "data"), label="abnormal", image_size=8, channels=1, test_split="validation"
    )
    listed = mura.read(folders["mura"])
    assert splits.class_names == mura.FINDINGS and len(splits.test) == len(listed["valid"])
    # The validation split is taken, so one is carved from train, by patient without being asked.
    assert len(splits.train) + len(splits.val) == len(listed["train"])
    patients = [one["patient"] for one in tensorflow_datasets.as_numpy(ordered("mura", "train", folder / "data"))]
    train, val = ({patients[row] for row in split._rows.numpy()} for split in (splits.train, splits.val))
    assert train and val and not train & val
    splits = tfds.TFDS("chest_xray", str(folder / "data"), image_size=8)
    assert len(splits.val) == len(chest_xray.read(folders["chest_xray"])["val"])
    assert splits.class_names == chest_xray.CLASS_NAMES and splits.image_shape == (8, 8, 3)
