"""Chest X-ray pneumonia: 5 856 radiographs of children, normal or not (Kermany et al., 2018), as on Kaggle."""

import os
import pathlib
import re

import numpy as np

from kd_keras.data.carving import carve
from kd_keras.data.downloads import existing_folder
from kd_keras.data.image_files import ImageReader
from kd_keras.data.sources import Splits
from kd_keras.errors import InputError, check_switch

CLASS_NAMES = ("NORMAL", "PNEUMONIA")
_SUFFIXES = (".jpeg", ".jpg", ".png")
_NESTED = "chest_xray"
# person12_bacteria_48.jpeg; IM-0115-0001.jpeg, NORMAL2-IM-0395-0001-0002.jpeg
_PATIENT = re.compile(r"person(?P<person>\d+)_|(?:NORMAL2?-)?IM-(?P<normal>\d+)-")
ADVICE = (
    "unpack https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia and name its folder, which holds "
    "{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg"
)


def ChestXray(
    folder: str,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    val_fraction: float = 0.1,
    keep_val: bool = False,
    seed: int = 0,
    cache: str = "none",
    skip_bad_images: bool = False,
    max_image_pixels: int | None = None,
) -> Splits:
    """Chest radiographs of varying sizes: ``image_size`` is needed.

    Kaggle's ``val`` has 16 images, too few to choose a model by: they join ``train`` (5 216), and a validation split is
    carved from both, stratified, by patient where the file's name contains one. ``test`` (624) is as published. Its
    files may number the children independently, so a child may be in ``train`` as well.

    Args:
        folder: holds ``train``, ``test`` and optionally ``val``; or ``chest_xray``, which holds them.
        image_size: pixels, one side or (height, width), to which images are resized.
        channels: 3 for colour (grey values three times), 1 for grey.
        val_fraction: approximate part of ``train`` and ``val`` for validation; patients are not divided.
        keep_val: validate on Kaggle's 16 images.
        seed: of the split.
        cache: where decoded images are stored, ``'none'``, ``'memory'`` or ``'disk'``: see `kd_keras.data.folder`.
        skip_bad_images: leave out files that cannot be decoded, with a warning, instead of stopping.
        max_image_pixels: files whose headers say more are refused before they are decoded; by default 100 million.

    Raises:
        InputError: the folder does not exist or has another layout, a class has no images, a value is out of range, or
            files cannot be decoded.

    Reference: Kermany et al., "Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning",
    Cell 172 (2018); https://data.mendeley.com/datasets/rscbjbr9sj
    """
    reader = ImageReader(image_size, channels, cache, skip_bad_images, max_image_pixels)
    check_switch("keep_val", keep_val)
    listed = read(existing_folder(folder))
    if keep_val and "val" not in listed:
        raise InputError(f"keep_val=True, but {folder} has no val: leave it out to carve one from train")
    files = [file for split in listed.values() for file, _ in split]
    labels = np.array([label for split in listed.values() for _, label in split], np.int32)
    origin = np.repeat(np.array(list(listed)), [len(split) for split in listed.values()])
    source, usable = reader.source(files, labels)
    origin, patients = origin[usable], np.array([patient(files[place]) for place in usable])
    for split in listed:
        for label, name in enumerate(CLASS_NAMES):
            if not np.any((origin == split) & (source.labels == label)):
                raise InputError(f"{folder}: {split}/{name} has no readable image: {ADVICE}")
    test = np.flatnonzero(origin == "test")
    if keep_val:
        train, val = (np.flatnonzero(origin == split) for split in ("train", "val"))
    else:
        rest = np.flatnonzero(origin != "test")
        train, val = (rest[rows] for rows in carve(source.labels[rest], val_fraction, seed, groups=patients[rest]))
    train, val, test = (source.subset(rows) for rows in (train, val, test))
    return Splits(train, val, test, CLASS_NAMES, source.image_shape)


def read(folder: str | os.PathLike) -> dict[str, list[tuple[str, int]]]:
    """Lists the radiographs.

    Args:
        folder: see `ChestXray`. The rest of the archive (the same images again in ``chest_xray/chest_xray``,
            ``__MACOSX``, ``.DS_Store``) is ignored.

    Returns:
        For ``train``, ``val`` (if it exists) and ``test``: sorted paths, and positions in `CLASS_NAMES`.

    Raises:
        InputError: the folder has another layout, or a class has no images.
    """
    folder = pathlib.Path(folder)
    places = (folder, folder / _NESTED, folder / _NESTED / _NESTED)
    root = next((place for place in places if (place / "train").is_dir()), None)
    if root is None or not (root / "test").is_dir():
        raise InputError(f"{folder} does not hold the folders train and test: {ADVICE}")
    listed = {}
    for split in ("train", "val", "test"):
        if not (root / split).is_dir():
            continue
        listed[split] = []
        for label, name in enumerate(CLASS_NAMES):
            class_folder = root / split / name
            paths = sorted(class_folder.iterdir()) if class_folder.is_dir() else []
            images = [
                str(path)
                for path in paths
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
            ]
            if not images:
                raise InputError(f"{class_folder} has no radiograph: {ADVICE}")
            listed[split] += [(image, label) for image in images]
    return listed


def patient(file: str) -> str:
    """The patient in a file's name, ``person<id>`` or ``IM-<id>``; the name itself if it contains none.

    The two series of normal images, ``IM-<id>`` and ``NORMAL2-IM-<id>``, are assumed to share their numbers. If they do
    not, two people are on the same side of a split, which is harmless.
    """
    name = pathlib.PurePath(file).name
    match = _PATIENT.match(name)
    if not match:
        return name
    return f"person{match['person']}" if match["person"] else f"IM-{match['normal']}"
