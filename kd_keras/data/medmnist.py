"""MedMNIST: small biomedical images of one size, one ``.npz`` file per data set (Yang et al., 2023)."""

import hashlib
import math
import os
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kd_keras import spec
from kd_keras.data.arrays import aligned, mapped_images
from kd_keras.data.decoding import fit
from kd_keras.data.downloads import fetch
from kd_keras.data.image_files import checked_size
from kd_keras.data.sources import NumpySource, Splits
from kd_keras.errors import InputError

BASE_URL = "https://zenodo.org/records/10519652/files/"
_SIZES = (28, 64, 128, 224)
_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left"),
    *("lung-right", "pancreas", "spleen"),
)
CLASS_NAMES = {
    "bloodmnist": (
        *("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte", "neutrophil"),
        "platelet",
    ),
    "breastmnist": ("malignant", "normal or benign"),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"),
        *("consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
    ),
    "dermamnist": (
        *("actinic keratosis", "basal cell carcinoma", "benign keratosis", "dermatofibroma", "melanoma"),
        *("melanocytic nevus", "vascular lesion"),
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "pathmnist": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
        *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "tissuemnist": (
        *("collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cells"),
        *("interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments"),
        "thick ascending limb",
    ),
}
_VOLUMES = "holds volumes, not images"
_REFUSED = {
    "retinamnist": "is graded (ordinal regression), not classified",
    **{f"{kind}mnist3d": _VOLUMES for kind in ("organ", "nodule", "adrenal", "fracture", "vessel", "synapse")},
}
_MOST_CLASSES = 2**16  # a larger label means damage, and might not fit the labels' type
_BLOCK_BYTES = 2**24  # decompressed at a time
_ADVICE = "fetch it from https://medmnist.com and give path='….npz'"


def MedMNIST(
    path: str | None = None,
    name: str | None = None,
    size: int = 28,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    cache: str = "memory",
) -> Splits:
    """One data set of MedMNIST, its training, validation and test images as published.

    Labels are classes, or of ChestMNIST and other files with labels (N, K) independent of each other (multi-label).

    Images are read in blocks: even the largest files (``pathmnist_224``: 16 GB) are in memory only once, and with
    ``cache='disk'`` not at all.

    Args:
        path: a data set's ``.npz`` file.
        name: instead of a path, the data set's name, ``'pneumoniamnist'``, which is read from Keras' cache or
            downloaded to it.
        size: with ``name``, side of the published images in pixels: 28, 64, 128 or 224.
        image_size: pixels, one side or (height, width), to which images are resized; by default they keep their size.
        channels: 3 for colour, 1 for grey; by default as in the file.
        cache: where decoded images are stored: ``'memory'``, or ``'disk'`` (written once to Keras' cache and mapped).

    Raises:
        InputError: the file is missing, damaged or has another layout; its task is not the classification of images
            (RetinaMNIST, the 3-D sets); a value is out of range; or the download fails.

    Reference: Yang et al., "MedMNIST v2", Scientific Data 10 (2023), arXiv:2110.14795; https://medmnist.com
    """
    if (path is None) == (name is None):
        raise InputError("medmnist takes either path='….npz' or name='pneumoniamnist': give one of them")
    if cache not in ("memory", "disk"):
        raise InputError(f"cache={cache!r}: give 'memory' or 'disk'")
    if channels not in (None, 1, 3):
        raise InputError(f"channels={channels!r}: give 3 for colour or 1 for grey")
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path={path!r} is not a path: give the file's name in quotes")
    file = _find(name, size) if path is None else pathlib.Path(path).expanduser()
    _refuse(file.stem)
    if not file.is_file():
        raise InputError(f"path={str(path)!r} is no file: {_ADVICE}")
    try:
        with zipfile.ZipFile(file) as archive:
            sources = [_source(archive, file, split, image_size, channels, cache) for split in ("train", "val", "test")]
    # zipfile: RuntimeError for a member with a password, NotImplementedError for an unknown compression.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{file} is corrupt or truncated ({error}): {_ADVICE}") from error
    is_multi = sources[0].labels.ndim == 2
    widths = {source.labels.shape[1:] for source in sources}
    if len(widths) > 1:
        raise InputError(f"{file}: its splits differ in the number of labels: {_ADVICE}")
    classes = sources[0].labels.shape[1] if is_multi else 1 + max(int(source.labels.max()) for source in sources)
    names = CLASS_NAMES.get(
        file.stem.lower().partition("_")[0], tuple(f"{'label' if is_multi else 'class'} {n}" for n in range(classes))
    )
    if classes > len(names) or (is_multi and classes < len(names)):
        raise InputError(f"{file} has labels up to {classes - 1} where {len(names)} classes belong: {_ADVICE}")
    if classes < 2:
        raise InputError(f"{file} has one class, where at least 2 belong: {_ADVICE}")
    there = sources[0].labels
    missing = np.setdiff1d(range(len(names)), np.flatnonzero(there.any(axis=0)) if is_multi else there)
    if len(missing):
        raise InputError(f"{file}: train has no image of {names[missing[0]]!r}, label {missing[0]}: {_ADVICE}")
    return Splits(*sources, names, sources[0].image_shape)


def _refuse(stem):
    name = stem.lower().partition("_")[0]
    if name in _REFUSED:
        usable = ", ".join(CLASS_NAMES)
        raise InputError(f"{name} {_REFUSED[name]}, which is not supported: take one of {usable}")


def _find(name, size):
    if not isinstance(name, str):
        raise InputError(f"name={name!r}: give a data set's name in quotes, such as 'pneumoniamnist'")
    _refuse(name)
    if name not in CLASS_NAMES:
        raise InputError(spec.unknown(name, "MedMNIST", sorted(CLASS_NAMES)))
    if size not in _SIZES:
        raise InputError(f"size={size!r}: MedMNIST is published in {', '.join(map(str, _SIZES))} pixels")
    target = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
    # Without a hash: reading an .npz checks the checksum of each array.
    return fetch(f"{BASE_URL}{target}?download=1", None, _ADVICE, target=target, subdir="medmnist")


def _source(archive, file, split, image_size, channels, cache):
    with _member(archive, file, f"{split}_images") as member:
        given, dtype = _head(member, file)
    labels = _labels(archive, file, split, given[0] if given else 0)
    if len(given) == 3:
        given = (*given, 1)
    if len(given) != 4 or given[-1] not in (1, 3) or dtype != np.uint8:
        belongs = f"uint8 ({len(labels)}, H, W) or ({len(labels)}, H, W, 3) belongs"
        raise InputError(f"{file}: {split}_images is {dtype} {given} where {belongs}: {_ADVICE}")
    shape = (*(checked_size(image_size) or given[1:3]), channels or given[-1])
    blocks = _blocks(archive, file, f"{split}_images", given, shape)
    if cache == "disk":
        stat = file.stat()
        known = repr((str(file.absolute()), stat.st_size, stat.st_mtime_ns, split, shape, tf.__version__)).encode()
        digest = hashlib.sha256(known)
        place = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:12]
        size = "x".join(map(str, shape))
        images = mapped_images(
            f"{file.stem}-{place}-{split}-{size}", digest.digest(), (given[0], *shape), lambda: blocks
        )
        return NumpySource(images, labels)
    images, start = aligned((given[0], *shape)), 0
    for block in blocks:
        images[start : start + len(block)] = block
        start += len(block)
    return NumpySource(images, labels)


def _labels(archive, file, split, count):
    """The labels of a split of ``count`` images; what can't be theirs is not unpacked."""
    with _member(archive, file, f"{split}_labels") as member:
        shape, dtype = _head(member, file)
        what = f"{file}: {split}_labels is {dtype} {shape}"
        if len(shape) not in (1, 2) or not math.prod(shape) or dtype.kind not in "ui":
            raise InputError(f"{what} where classes (N, 1) or labels (N, K) belong: {_ADVICE}")
        if shape[0] != count or math.prod(shape[1:]) > _MOST_CLASSES:
            raise InputError(f"{what} for {count} images: {_ADVICE}")
        size = math.prod(shape) * dtype.itemsize
        content = member.read(size + 1)
    if len(content) != size:
        raise InputError(f"{file}: {split}_labels is truncated, or longer than it says: {_ADVICE}")
    labels = np.frombuffer(content, dtype)
    if len(shape) == 2 and shape[1] > 1:
        if labels.min() < 0 or labels.max() > 1:
            raise InputError(f"{what}, several labels for each image, of which some are neither 0 nor 1: {_ADVICE}")
        return labels.reshape(shape).astype(np.int32)
    if not 0 <= labels.min() <= labels.max() < _MOST_CLASSES:
        raise InputError(f"{what} with no class, or one outside 0…{_MOST_CLASSES - 1}: {_ADVICE}")
    return labels.astype(np.int32)


def _member(archive, file, name):
    try:
        return archive.open(f"{name}.npy")
    except KeyError as error:
        raise InputError(f"{file} lacks {name}, so it is no file of MedMNIST: {_ADVICE}") from error


def _head(member, file) -> tuple[tuple[int, ...], np.dtype]:
    """Reads an array's header: its shape and type."""
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(member)
    # NumPy reads a header by Python's tokenizer and parser.
    except (ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} is corrupt or truncated ({str(error)[:200]}): {_ADVICE}") from error
    if any(size < 0 for size in shape):
        raise InputError(f"{file} is corrupt: an array has the shape {shape}: {_ADVICE}")
    if by_column or dtype.hasobject:
        raise InputError(f"{file} holds arrays of another layout than MedMNIST's: {_ADVICE}")
    return shape, dtype


def _blocks(archive, file, name, given, shape) -> Iterator[np.ndarray]:
    """The images in the requested shape, in blocks."""
    bytes_each = math.prod(given[1:])
    size = max(_BLOCK_BYTES // bytes_each, 1)
    with _member(archive, file, name) as member, tf.device("CPU:0"):
        _head(member, file)
        for at in range(0, given[0], size):
            count = min(size, given[0] - at)
            content = member.read(count * bytes_each)
            if len(content) < count * bytes_each:
                raise InputError(f"{file}: {name} is truncated: {_ADVICE}")
            block = np.frombuffer(content, np.uint8).reshape(count, *given[1:])
            yield block if given[1:] == shape else fit(tf.constant(block), shape).numpy()
