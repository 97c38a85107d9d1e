"""Chest X-ray pneumonia: 5 856 radiographs of children, normal or not (Kermany et al., 2018), as on Kaggle."""

import os
import pathlib
import re

import numpy as np

from kd_keras.data.downloads import existing_folder
from kd_keras.data.image_files import ImageReader
from kd_keras.data.sources import Splits, carve
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
) -> Splits:
    """Chest radiographs of varying sizes: ``image_size`` is needed.

    Kaggle's ``val`` has 16 images, by which no choice can be made: they join ``train`` (5 216), and a validation split
    is carved from both, stratified, by patient where the file's name tells one. ``test`` (624) is as published; its
    files may number children anew, so whether one is in ``train`` as well cannot be told.

    Args:
        folder: holds ``train``, ``test`` and, where it is there, ``val``; or ``chest_xray``, which holds them.
        image_size: pixels, a side or (height, width), to which images are resized.
        channels: 3 for colour (grey values three times), 1 for grey.
        val_fraction: part of ``train`` and ``val`` that choices are made by, about; patients are not divided.
        keep_val: validate on Kaggle's 16 images instead.
        seed: of the split.
        cache: where the decoded images are kept, ``'none'``, ``'memory'`` or ``'disk'``: see `kd_keras.data.folder`.
        skip_bad_images: leave out files that cannot be decoded, with a warning, rather than stop.

    Raises:
        InputError: no such folder, another layout, a class without images, a value out of range, files that cannot be
            decoded.

    Reference: Kermany et al., "Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning",
    Cell 172 (2018); https://data.mendeley.com/datasets/rscbjbr9sj
    """
    reader = ImageReader(image_size, channels, cache, skip_bad_images)
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
        folder: see `ChestXray`. What the archive holds besides (the same images once more in ``chest_xray/chest_xray``,
            ``__MACOSX``, ``.DS_Store``) is passed over.

    Returns:
        Of ``train``, ``val`` (where it is there) and ``test``: paths, in their order, and places in `CLASS_NAMES`.

    Raises:
        InputError: another layout, or a class without images.
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
            here = root / split / name
            found = sorted(here.iterdir()) if here.is_dir() else []
            images = [
                str(path)
                for path in found
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
            ]
            if not images:
                raise InputError(f"{here} has no radiograph: {ADVICE}")
            listed[split] += [(image, label) for image in images]
    return listed


def patient(file: str) -> str:
    """The patient whom a file's name tells, ``person<id>`` or ``IM-<id>``; where it tells none, the name itself.

    The two series of normal images, ``IM-<id>`` and ``NORMAL2-IM-<id>``, are taken as numbered together: should they
    not be, two people are kept on one side of a split, which does no harm.
    """
    name = pathlib.PurePath(file).name
    match = _PATIENT.match(name)
    if not match:
        return name
    return f"person{match['person']}" if match["person"] else f"IM-{match['normal']}"
