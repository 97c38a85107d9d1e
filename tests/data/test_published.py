"""CIFAR-10, CIFAR-100 and Fashion-MNIST in each published form, from small real files."""

import dataclasses
import gzip
import io
import os
import pickle
import shutil
import struct
import tarfile
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from kd_keras import spec
from kd_keras.data import cifar10, cifar100, fashion_mnist
from kd_keras.data import cifar_files as _cifar
from kd_keras.data.downloads import cache_folder
from kd_keras.errors import InputError

ROWS = 20
NAMES = {"cifar10": [f"kind{n}" for n in range(10)], "cifar100": [f"fine{n}" for n in range(100)]}
COARSE = [f"coarse{n}" for n in range(20)]
CLOSED = "http://127.0.0.1:9/"


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did, in whose pickles the data sets are published."""

    def save_bytes(self, value):
        head = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        self.write(head + value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_bytes}


def python2_pickle(value) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(value)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, monkeypatch):
    """The module, shrunk to files of a few rows, and the arrays that the files shall hold."""
    module = {"cifar10": cifar10, "cifar100": cifar100}[request.param]
    classes = len(NAMES[request.param])
    rows = ROWS if classes == 10 else 200
    form = dataclasses.replace(module.FORM, train_rows=rows, test_rows=rows)
    monkeypatch.setattr(module, "FORM", form)
    rng = np.random.default_rng(0)
    files = {
        name: (rng.integers(0, 256, (rows, 3072), dtype=np.uint8), np.arange(rows) % classes)
        for name in (*form.train, form.test)
    }
    return module, files


def write_python(module, files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    form = module.FORM
    for name, (data, labels) in files.items():
        content = {b"data": data, form.label_key.encode(): labels.tolist(), b"batch_label": b"x"}
        if form.name == "cifar100":
            content[b"coarse_labels"] = (labels % 20).tolist()
        (folder / name).write_bytes(python2_pickle(content))
    meta = {form.names_key.encode(): [name.encode() for name in NAMES[form.name]]}
    meta[b"coarse_label_names"] = [name.encode() for name in COARSE]
    (folder / form.meta).write_bytes(python2_pickle(meta))


def write_binary(module, files, folder):
    folder.mkdir(parents=True)
    form = module.FORM
    for name, (data, labels) in files.items():
        columns = [labels[:, None]] if form.name == "cifar10" else [labels[:, None] % 20, labels[:, None]]
        (folder / f"{name}.bin").write_bytes(np.concatenate([*columns, data], axis=1).astype(np.uint8).tobytes())
    (folder / form.names_file).write_text("\n".join(NAMES[form.name]) + "\n\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE))


def write_archive(module, files, folder):
    write_python(module, files, folder / "unpacked" / module.FORM.python_folder)
    with tarfile.open(folder / f"{module.FORM.published}-python.tar.gz", "w:gz") as tar:
        tar.add(folder / "unpacked" / module.FORM.python_folder, arcname=module.FORM.python_folder)
    shutil.rmtree(folder / "unpacked")


def write_tfds(module, files, folder):
    form = module.FORM

    def examples(names):
        for name in names:
            for row, label in zip(*files[name], strict=True):
                yield f"{name}{row[:9].tobytes().hex()}", row.reshape(3, 32, 32).transpose(1, 2, 0), label

    def generate(names):
        for key, image, label in examples(names):
            example = {"image": image, "label": int(label)}
            if form.name == "cifar100":
                example["coarse_label"] = int(label) % 20
            yield key, example

    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=NAMES[form.name]),
    }
    if form.name == "cifar100":
        features["coarse_label"] = tfds.features.ClassLabel(names=COARSE)

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = form.name
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": generate(form.train), "test": generate([form.test])}

        def _generate_examples(self):
            raise AssertionError("the splits generate")

    folder.mkdir(exist_ok=True)
    Tiny(data_dir=folder).download_and_prepare(download_dir=folder / "dl")
    assert (folder / form.name / "3.0.2" / "dataset_info.json").is_file()


WRITERS = {
    "python": write_python,
    "python_below": lambda module, files, folder: write_python(module, files, folder / module.FORM.python_folder),
    "binary": write_binary,
    "archive": write_archive,
    "tfds": write_tfds,
}


def contents(*sources):
    """Every image and label of some sources, in an order that does not depend on theirs."""
    rows = []
    for source in sources:
        images, labels = source.read(range(len(source)))
        rows += [(label, image.tobytes()) for image, label in zip(images.numpy(), labels.numpy(), strict=True)]
    return sorted(rows)


def build(module, **kwargs):
    return spec.builder("kd_keras.data", module.__name__.rpartition(".")[2])(**kwargs)


def expected(files, names):
    return sorted(
        (label, row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes())
        for name in names
        for row, label in zip(*files[name], strict=True)
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_each_form_reads_the_same(cifar, kind, tmp_path):
    module, files = cifar
    folder = tmp_path / "given"
    WRITERS[kind](module, files, folder)
    splits = build(module, folder=str(folder), val_fraction=0.5)
    assert contents(splits.train, splits.val) == expected(files, module.FORM.train)
    assert contents(splits.test) == expected(files, [module.FORM.test])
    assert splits.class_names == tuple(NAMES[module.FORM.name]) and splits.image_shape == (32, 32, 3)
    assert len(splits.val) == len(splits.train)


@pytest.mark.parametrize("kind", ["python", "binary", "tfds"])
def test_coarse_labels(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "FORM", dataclasses.replace(cifar100.FORM, train_rows=200, test_rows=200))
    data = np.random.default_rng(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    labels = np.arange(200) % 100
    WRITERS[kind](cifar100, {"train": (data, labels), "test": (data, labels)}, tmp_path / "given")
    splits = cifar100.CIFAR100(folder=str(tmp_path / "given"), coarse=True, val_fraction=0.5)
    assert splits.class_names == tuple(COARSE)
    assert contents(splits.test) == expected({"test": (data, labels % 20)}, ["test"])


def test_keras_cache_is_used_without_network(cifar, tmp_path, monkeypatch):
    module, files = cifar
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(_cifar, "BASE_URL", CLOSED)
    target = {"cifar10": "cifar-10-batches-py-target", "cifar100": "cifar-100-python-target"}[module.FORM.name]
    write_python(module, files, tmp_path / "datasets" / target / module.FORM.python_folder)
    assert contents(build(module, val_fraction=0.5).test) == expected(files, [module.FORM.test])


@pytest.mark.parametrize("name", ["test", "train"])
def test_truncated_pickle_is_named(cifar, name, tmp_path):
    module, files = cifar
    write_python(module, files, tmp_path)
    path = tmp_path / (module.FORM.test if name == "test" else module.FORM.train[-1])
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=f"{path.name} is corrupt or truncated"):
        build(module, folder=str(tmp_path))


def test_short_pickle_binary_and_archive_are_named(cifar, tmp_path):
    module, files = cifar
    test = module.FORM.test
    data, labels = files[test]
    write_python(module, {**files, test: (data[:-1], labels[:-1])}, tmp_path / "a")
    with pytest.raises(InputError, match=rf"/{test} is corrupt or truncated"):
        build(module, folder=str(tmp_path / "a"))
    write_binary(module, {**files, test: (data[:-1], labels[:-1])}, tmp_path / "b")
    with pytest.raises(InputError, match=rf"{test}.bin is corrupt or truncated"):
        build(module, folder=str(tmp_path / "b"))
    write_archive(module, files, tmp_path / "c")
    archive = tmp_path / "c" / f"{module.FORM.published}-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"python.tar.gz is corrupt or truncated"):
        build(module, folder=str(tmp_path / "c"))


def test_missing_file_wrong_label_and_empty_folder_are_refused(cifar, tmp_path):
    module, files = cifar
    with pytest.raises(InputError, match=rf"holds no form of {module.FORM.name}.*folder="):
        build(module, folder=str(tmp_path))
    write_python(module, files, tmp_path)
    (tmp_path / module.FORM.test).unlink()
    with pytest.raises(InputError, match=rf"{module.FORM.test} is missing"):
        build(module, folder=str(tmp_path))
    data, labels = files[module.FORM.test]
    write_python(module, {**files, module.FORM.test: (data, labels + 1)}, tmp_path)
    with pytest.raises(InputError, match="test has labels outside"):
        build(module, folder=str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        build(module, folder=str(tmp_path / "nowhere"))


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_pickle_is_refused_and_not_run(cifar, tmp_path):
    module, files = cifar
    write_python(module, files, tmp_path)
    (tmp_path / module.FORM.test).write_bytes(pickle.dumps(Malice(tmp_path / "owned")))
    with pytest.raises(InputError, match=r"unsafe to load.*mkdir"):
        build(module, folder=str(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_truncated_tfds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "FORM", dataclasses.replace(cifar10.FORM, train=("train",), test="test"))
    data = np.random.default_rng(0).integers(0, 256, (40, 3072), dtype=np.uint8)
    files = {"train": (data, np.arange(40) % 10), "test": (data, np.arange(40) % 10)}
    write_tfds(cifar10, files, tmp_path)
    record = next((tmp_path / "cifar10" / "3.0.2").glob("*test.tfrecord*"))
    record.write_bytes(record.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"3\.0\.2 cannot be read as a TFDS folder"):
        cifar10.CIFAR10(folder=str(tmp_path))


@pytest.mark.parametrize("module, holder", [(cifar10, _cifar), (cifar100, _cifar), (fashion_mnist, fashion_mnist)])
def test_failing_download_ends_soon_and_says_what_to_do(module, holder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(holder, "BASE_URL", CLOSED)
    name = module.__name__.rpartition(".")[2]
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"could not download .*--data='{name}\(folder=…\)'") as caught:
        build(module)
    assert time.monotonic() - start < 8
    wanted = "train-images-idx3-ubyte" if name == "fashion_mnist" else module.FORM.test
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_foreign_archive_in_the_cache_is_reported_not_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(_cifar, "BASE_URL", CLOSED)
    archive = cache_folder() / "cifar-10-batches-py-target_archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"the user's own")
    with pytest.raises(InputError, match="hash differs"):
        cifar10.CIFAR10()
    assert archive.read_bytes() == b"the user's own"


def idx(array) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, zipped):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, rows in (("train", 40), ("t10k", 20)):
        images = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        arrays[split] = images, (np.arange(rows) % 10).astype(np.uint8)
        for stem, array in zip(("images-idx3", "labels-idx1"), arrays[split], strict=True):
            name = f"{split}-{stem}-ubyte"
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("where", ["plain", "gz", "torchvision", "cache"])
def test_fashion_mnist_reads_idx(where, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "BASE_URL", CLOSED)
    below = {"torchvision": "FashionMNIST/raw", "cache": "datasets/fashion-mnist"}.get(where, "")
    arrays = write_fashion(tmp_path / below, zipped=where != "plain")
    splits = fashion_mnist.FashionMNIST(folder=None if where == "cache" else str(tmp_path), val_fraction=0.25)
    assert splits.image_shape == (28, 28, 1) and (len(splits.train), len(splits.val)) == (30, 10)
    images, labels = splits.test.read(range(20))
    np.testing.assert_array_equal(images[..., 0], arrays["t10k"][0])
    np.testing.assert_array_equal(labels, arrays["t10k"][1])
    assert np.bincount(splits.val.labels).tolist() == [1] * 10
    assert splits.class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("t10k-images-idx3-ubyte", lambda data: data[:-1], "corrupt or truncated"),
        ("t10k-labels-idx1-ubyte", lambda data: b"\x00\x00\x0d" + data[3:], "no IDX file"),
        ("t10k-labels-idx1-ubyte", lambda data: idx(np.zeros(3, np.uint8)), "for 20 images"),
        ("t10k-labels-idx1-ubyte", lambda data: idx(np.full(20, 10, np.uint8)), "label 10"),
        ("train-images-idx3-ubyte", lambda data: idx(np.zeros((40, 8, 8), np.uint8)), "28, 28"),
        (
            "train-images-idx3-ubyte",
            lambda data: data + b"more",
            "corrupt or truncated .31361 bytes or more",
        ),
        ("train-images-idx3-ubyte", lambda data: data[:4] + b"\xff" * 12, "says that it holds 7922"),
        (
            "train-labels-idx1-ubyte",
            lambda data: idx((np.arange(40) % 9).astype("u1")),
            "no image of 'Ankle boot', label 9",
        ),
    ],
)
def test_fashion_mnist_names_a_damaged_file(name, change, message, tmp_path):
    write_fashion(tmp_path, zipped=False)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        fashion_mnist.FashionMNIST(folder=str(tmp_path))


def test_fashion_mnist_without_images_is_named(tmp_path):
    write_fashion(tmp_path, zipped=False)
    for name, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
        (tmp_path / f"t10k-{name}-ubyte").write_bytes(idx(np.zeros(shape, np.uint8)))
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte and .*t10k-labels-idx1-ubyte hold no image"):
        fashion_mnist.FashionMNIST(folder=str(tmp_path))


def test_fashion_mnist_names_a_truncated_gz_and_a_missing_file(tmp_path):
    write_fashion(tmp_path, zipped=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte.gz is corrupt or truncated"):
        fashion_mnist.FashionMNIST(folder=str(tmp_path))
    path.unlink()
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is missing"):
        fashion_mnist.FashionMNIST(folder=str(tmp_path))
