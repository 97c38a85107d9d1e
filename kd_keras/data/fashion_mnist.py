"""Fashion-MNIST: 70 000 grey images of 28×28 in 10 classes (Xiao et al., 2017)."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from kd_keras.data.carving import carve
from kd_keras.data.downloads import cache_folder, existing_folder, fetch
from kd_keras.data.sources import ArraySource, Splits
from kd_keras.errors import InputError

BASE_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_MOST_BYTES = 2**32
_ADVICE = (
    f"put {', '.join(name for pair in _FILES.values() for name in pair)} (plain or .gz) in a folder and name it: "
    "--data='fashion_mnist(folder=…)'"
)


def FashionMNIST(folder: str | None = None, val_fraction: float = 0.1, seed: int = 0) -> Splits:
    """Fashion-MNIST, 28×28×1.

    Args:
        folder: holds the four published IDX files, plain or .gz; by default Keras' cache, to which they are downloaded
            once.
        val_fraction: part of the 60 000 training images for validation, stratified.
        seed: of this split.

    Raises:
        InputError: files are missing, corrupt or truncated, or the download fails.

    Reference: Xiao et al., "Fashion-MNIST", arXiv:1708.07747; https://github.com/zalandoresearch/fashion-mnist
    """
    place = None if folder is None else existing_folder(folder)
    train_images, train_labels = _read_split(place, "train")
    test = ArraySource(*_read_split(place, "test"))
    whole = ArraySource(train_images, train_labels)
    remaining, held_out = carve(train_labels, val_fraction, seed)
    return Splits(whole.subset(remaining), whole.subset(held_out), test, CLASS_NAMES, whole.image_shape)


def _read_split(folder, split):
    images_path, labels_path = (_find(folder, name) for name in _FILES[split])
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise InputError(f"{images_path} has shape {images.shape} where (N, 28, 28) belongs: download it again")
    if labels.shape != (len(images),):
        raise InputError(f"{labels_path} has shape {labels.shape} for {len(images)} images: download both files again")
    if not len(labels):
        raise InputError(f"{images_path} and {labels_path} hold no image: download both files again")
    if labels.max() >= len(CLASS_NAMES):
        raise InputError(f"{labels_path} has the label {labels.max()} where 0…9 belong: download it again")
    missing = np.setdiff1d(range(len(CLASS_NAMES)), labels)
    if len(missing):
        raise InputError(
            f"{labels_path} has no image of {CLASS_NAMES[missing[0]]!r}, label {missing[0]}: download it again"
        )
    return images[..., None], labels


def _find(folder: pathlib.Path | None, name: str) -> pathlib.Path:
    if folder is None:
        cached = cache_folder("fashion-mnist") / f"{name}.gz"
        # An earlier download of Keras is used; its compressed format has a checksum.
        return (
            cached
            if cached.is_file()
            else fetch(f"{BASE_URL}{name}.gz", None, _ADVICE, target=f"{name}.gz", subdir="fashion-mnist")
        )
    for place in (folder, folder / "fashion-mnist", folder / "FashionMNIST" / "raw"):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    raise InputError(f"{folder / name} is missing: {_ADVICE}")


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, plain or gzipped.

    Args:
        path: the file, gzipped if its name ends in ``.gz``.

    Returns:
        uint8, in the shape of the file's header.

    Raises:
        InputError: the file is corrupt or truncated.

    Reference: LeCun et al., http://yann.lecun.com/exdb/mnist/, "the IDX file format".
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            # Two zero bytes, the type (8: unsigned byte), the number of dimensions; then each dimension, big-endian.
            start = file.read(4)
            sizes = file.read(4 * start[3]) if len(start) == 4 else b""
            if start[:3] != b"\x00\x00\x08" or len(start) < 4 or len(sizes) < 4 * start[3]:
                raise InputError(f"{path} is no IDX file of bytes: download it again")
            shape = struct.unpack(f">{start[3]}I", sizes)
            if math.prod(shape) > _MOST_BYTES:
                raise InputError(f"{path} says that it holds {math.prod(shape)} bytes: download it again")
            # No more than it says is unpacked.
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is corrupt or truncated ({error}): download it again") from error
    if len(data) != math.prod(shape):
        mismatch = f"{len(data)} bytes or more where {math.prod(shape)} belong"
        raise InputError(f"{path} is corrupt or truncated ({mismatch}): download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)
