"""Reads CIFAR-10 and CIFAR-100 in all published forms: Python, binary, archive, TFDS.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and its web page's file layout.
"""

import contextlib
import dataclasses
import io
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Callable

import numpy as np

from kd_keras.data.carving import carve
from kd_keras.data.downloads import cache_folder, existing_folder, fetch
from kd_keras.data.sources import ArraySource, Splits
from kd_keras.errors import InputError, needs

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Form:
    """The layout of one of the two data sets in its files.

    Args:
        name: its name here and in TFDS, ``cifar10``.
        published: the stem of its archives, ``cifar-10``.
        python_folder: folder in the Python archive.
        binary_folder: folder in the binary archive.
        train: files of the training split, without ``.bin``.
        train_rows: images in each of them.
        test: file of the test split.
        test_rows: images in it.
        meta: Python file that holds the class names.
        label_key: key of the labels in the Python files.
        names_key: key of the class names in ``meta``.
        names_file: text file that holds them in the binary form.
        label_bytes: label bytes before each image of the binary form.
        label_byte: which of them is the label.
        tfds_label: the label's name in TFDS.
        num_classes: K.
        sha256: of the Python archive.
    """

    name: str
    published: str
    python_folder: str
    binary_folder: str
    train: tuple[str, ...]
    train_rows: int
    test: str
    test_rows: int
    meta: str
    label_key: str
    names_key: str
    names_file: str
    label_bytes: int
    label_byte: int
    tfds_label: str
    num_classes: int
    sha256: str

    @property
    def advice(self) -> str:
        """Which files the user can put where."""
        python = ", ".join((*self.train, self.test, self.meta))
        return (
            f"put {self.published}-python.tar.gz, or its files {python}, in a folder and name it: "
            f"--data='{self.name}(folder=…)'"
        )


def load(form: Form, folder: str | None, val_fraction: float, seed: int) -> Splits:
    """Reads the data set; the published training split gives train and a stratified validation split.

    Args:
        form: the data set.
        folder: holds the files in any published form; None takes Keras' cache, or downloads to it.
        val_fraction: part of the published training split.
        seed: of the split.

    Raises:
        InputError: files are missing, corrupt or truncated (named), or the download fails.
    """
    path = _download(form) if folder is None else existing_folder(folder)
    train, test, names = _read(form, path)
    for split, (_, labels) in (("train", train), ("test", test)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < form.num_classes:
            raise InputError(f"{path}: {split} has labels outside 0…{form.num_classes - 1}: download the files again")
    if len(names) != form.num_classes:
        raise InputError(f"{path}: {len(names)} class names where {form.num_classes} belong: download the files again")
    whole = ArraySource(*train)
    remaining, held_out = carve(train[1], val_fraction, seed)
    return Splits(whole.subset(remaining), whole.subset(held_out), ArraySource(*test), tuple(names), whole.image_shape)


def _download(form: Form) -> pathlib.Path:
    # Keras' name, so that both packages share one download.
    target = f"{form.published}-{'batches-py' if form.name == 'cifar10' else 'python'}-target"
    cached = cache_folder(target)
    if (cached / form.python_folder).is_dir():
        return cached
    return fetch(f"{BASE_URL}{form.published}-python.tar.gz", form.sha256, form.advice, target=target, extract=True)


def _read(form, folder):
    """Train (images, labels), test (images, labels) and class names from whichever form the folder holds."""
    for place in (folder, folder / form.python_folder, folder / form.binary_folder):
        if any((place / name).is_file() for name in (*form.train, form.meta)):
            return _read_python(form, lambda name, place=place: _file(place / name, form), place)
        if any((place / f"{name}.bin").is_file() for name in (*form.train, form.test)):
            return _read_binary(form, lambda name, place=place: _file(place / name, form), place)
    for kind, reader in (("python", _read_python), ("binary", _read_binary)):
        archive = folder / f"{form.published}-{kind}.tar.gz"
        if archive.is_file():
            return reader(form, _archive_reader(archive, form), archive)
    infos = [*folder.glob("dataset_info.json"), *folder.glob("*/dataset_info.json")]
    infos += folder.glob(f"{form.name}/*/dataset_info.json")
    if infos:
        return _read_tfds(form, max(infos).parent)
    raise InputError(f"{folder} holds no form of {form.name}: {form.advice}")


def _file(path, form) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is missing: {form.advice}")
    return path.read_bytes()


def _archive_reader(archive, form) -> Callable[[str], bytes]:
    # Members are read into memory and never unpacked, so that a path in the archive can do no harm.
    try:
        with tarfile.open(archive) as tar:
            held = {m.name.rpartition("/")[2]: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{archive} is corrupt or truncated ({error}): download it again") from error

    def read(name):
        if name not in held:
            raise InputError(f"{archive} lacks {name}: {form.advice}")
        return held[name]

    return read


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays, lists and text, nothing that could run code."""

    # What NumPy's own pickles name; the module was renamed in NumPy 2, the published files have the old name.
    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise InputError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self._ALLOWED[module, name]


def _unpickle(data: bytes, where: str) -> dict:
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except InputError as error:
        raise InputError(f"{where} is unsafe to load ({error}): fetch the published file") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        MemoryError,
    ) as error:
        # Damaged bytes can raise any of these, according to pickle's documentation.
        raise InputError(f"{where} is corrupt or truncated ({error}): download it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{where} holds no dictionary as the published file does: download it again")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}


def _read_python(form, read, place):
    def split(name, rows):
        where = f"{place}/{name}"
        content = _unpickle(read(name), where)
        data, labels = content.get("data"), content.get(form.label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or not isinstance(labels, list):
            raise InputError(f"{where} lacks 'data' (uint8) or {form.label_key!r}: fetch the published file")
        if data.shape != (rows, _PIXELS) or len(labels) != rows:
            mismatch = f"{data.shape} and {len(labels)} labels where ({rows}, {_PIXELS}) belong"
            raise InputError(f"{where} is corrupt or truncated ({mismatch}): download it again")
        return data, np.asarray(labels, np.int64)

    train = _joined(split(name, form.train_rows) for name in form.train)
    test = _joined([split(form.test, form.test_rows)])
    names = _unpickle(read(form.meta), f"{place}/{form.meta}").get(form.names_key)
    if not isinstance(names, list):
        raise InputError(f"{place}/{form.meta} lacks {form.names_key!r}: fetch the published file")
    return train, test, [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _read_binary(form, read, place):
    def split(name, rows):
        data = np.frombuffer(read(f"{name}.bin"), np.uint8)
        width = form.label_bytes + _PIXELS
        if len(data) != rows * width:
            mismatch = f"{len(data)} bytes where {rows * width} belong"
            raise InputError(f"{place}/{name}.bin is corrupt or truncated ({mismatch}): download it again")
        data = data.reshape(rows, width)
        return data[:, form.label_bytes :], data[:, form.label_byte].astype(np.int64)

    train = _joined(split(name, form.train_rows) for name in form.train)
    test = _joined([split(form.test, form.test_rows)])
    return train, test, read(form.names_file).decode("utf-8", "replace").split()


def _joined(parts):
    """Rows of planes (N, 3·32·32) as images (N, 32, 32, 3)."""
    data, labels = zip(*parts, strict=True)
    images = np.concatenate(data).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate(labels)


def _read_tfds(form, folder):
    with needs("TensorFlow Datasets", "tfds", f"{folder} is a TFDS folder, which"):
        import tensorflow_datasets as tfds
    import tensorflow as tf

    with _tfds_errors(folder, tf.errors.OpError):
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        held = set(features) if isinstance(features, tfds.features.FeaturesDict) else set()
        wanted = {"image", form.tfds_label}
        if not wanted <= held or features["image"].shape != (32, 32, 3):
            raise InputError(f"{folder} is no {form.name}: its features need {sorted(wanted)}, images of (32, 32, 3)")
        if not {"train", "test"} <= set(splits):
            raise InputError(f"{folder} has splits {sorted(splits)} where train and test belong: prepare it again")
        split = {}
        for name in ("train", "test"):
            images, labels = [], []
            # Only the two features used are decoded.
            decoders = tfds.decode.PartialDecoding({key: True for key in wanted})
            for batch in tfds.as_numpy(builder.as_dataset(split=name, batch_size=1000, decoders=decoders)):
                images.append(batch["image"])
                labels.append(batch[form.tfds_label])
            split[name] = np.concatenate(images), np.concatenate(labels)
            if len(split[name][1]) != splits[name].num_examples:
                mismatch = f"{len(split[name][1])} of {splits[name].num_examples} images"
                raise InputError(f"{folder}: split {name} is truncated ({mismatch}): prepare it again")
    return split["train"], split["test"], list(features[form.tfds_label].names)


@contextlib.contextmanager
def _tfds_errors(folder, op_error):
    try:
        yield
    except InputError:
        raise
    except (op_error, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} cannot be read as a TFDS folder ({reason}): prepare it again") from error
