"""Any folder of images: ``{train,val,test}/<class>/*``, one tree ``<class>/*`` that is split, or a table of labels."""

import os
import pathlib

import numpy as np
from absl import logging

from kd_keras.data import label_tables
from kd_keras.data.carving import carve, carve_three
from kd_keras.data.downloads import existing_folder
from kd_keras.data.image_files import ImageReader
from kd_keras.data.sources import Splits
from kd_keras.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_UNLABELLED = "unlabelled"
_NAMED = 5  # classes that a message lists
_CRUMBS = ("__MACOSX", "@eaDir")  # what archives of macOS and network storage leave


def Folder(
    path: str,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    cache: str = "none",
    skip_bad_images: bool = False,
    unlabelled: str | None = None,
    labels: str | None = None,
    max_image_pixels: int | None = None,
) -> Splits:
    """Images in folders named for their classes, or with several labels for each in a table.

    Every file is decoded once before training, so that broken files are found early. The result is stored in Keras'
    cache, and unchanged files are not checked again. Hidden files and formats other than JPEG, PNG, GIF and BMP are
    ignored.

    Args:
        path: holds ``train/<class>/*`` and optionally ``val`` (or ``valid``, ``validation``) and ``test``; or only
            ``<class>/*``.
        image_size: pixels, one side or (height, width), to which images are resized; by default all have the same size.
        channels: 3 for colour, 1 for grey.
        val_fraction: without a ``val`` folder: part of ``train`` (or of all samples) for validation, stratified.
        test_fraction: without a ``test`` folder: part of ``train`` (or of all samples) for testing, stratified.
        seed: of these splits.
        cache: where decoded images are stored: ``'none'`` (files are decoded each time they are read), ``'memory'``,
            or ``'disk'`` (N · H · W · C bytes, written once to Keras' cache, ``$KERAS_HOME/datasets``, and mapped from
            there by later runs; a warning says how many bytes).
        skip_bad_images: leave out files that cannot be decoded, with a warning, instead of stopping.
        unlabelled: folder, in ``path`` or elsewhere, of further images for training that have no label, at any depth.
        labels: a CSV file in ``path``, for images with several labels: the first column is the image's file, below
            ``path``, the others are 0 or 1 (−1: not known), and the header names them. Files below ``train``, ``val``
            or ``test`` are those splits. Images that the table does not name are left out.
        max_image_pixels: files whose headers say more are refused before they are decoded; by default 100 million.

    Raises:
        InputError: the folder does not exist, has fewer than two classes, an empty class, different classes in its
            splits, files of different sizes without ``image_size`` or files that cannot be decoded; or the disk has no
            room for ``cache='disk'``; or the table of labels is not of that form, or names a file that is not there.
    """
    root = existing_folder(path, "path")
    reader = ImageReader(image_size, channels, cache, skip_bad_images, max_image_pixels)
    further = None if unlabelled is None else existing_folder(root / unlabelled, "unlabelled")
    others = [] if further is None else _images_below(further)
    if labels is not None:
        return _of_table(root, labels, reader, (val_fraction, test_fraction, seed), others)
    trees = _trees(root, further)
    names, listed = _list(trees, further)
    if others:
        listed[_UNLABELLED] = [(file, -1) for file in others]
    files = [file for split in listed.values() for file, _ in split]
    labels = np.array([label for split in listed.values() for _, label in split], np.int32)
    origin = np.repeat(np.array(list(listed)), [len(split) for split in listed.values()])

    source, usable = reader.source(files, labels)
    labels, origin = labels[usable], origin[usable]
    for split in trees:
        for label, name in enumerate(names):
            if not np.any((origin == split) & (labels == label)):
                raise InputError(f"{trees[split] / name} has no readable image: add images or remove the class")
    train, val, test = (
        source.subset(rows) for rows in _split(origin, labels, names, val_fraction, test_fraction, seed)
    )
    rest = None if further is None else source.subset(np.flatnonzero(origin == _UNLABELLED))
    return Splits(train, val, test, tuple(names), source.image_shape, rest)


def _of_table(root, table, reader, fractions, others) -> Splits:
    """Images with the labels (N, K) of a table, and others without."""
    if not isinstance(table, str):
        raise InputError(f"labels={table!r}: give the name of a CSV file in quotes, such as labels='labels.csv'")
    names, listed, labels = label_tables.read(root / table)
    missing = [name for name in listed if not (root / name).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise InputError(
            f"{root / table} names {missing[0]!r}{more}, and {root / missing[0]} is no file: mend the table"
        )
    tops = [pathlib.PurePath(name).parts for name in listed]
    origin = np.array([_SPLIT_NAMES.get(parts[0], "train") if len(parts) > 1 else "train" for parts in tops])
    if not (origin == "train").any():
        raise InputError(f"{root / table} names no image to train on: all are below {', '.join(sorted(set(origin)))}")
    files = [root / name for name in listed]
    if both := {path.resolve() for path in files} & {pathlib.Path(path).resolve() for path in others}:
        raise InputError(f"{min(both)} is both in {root / table} and in the folder of images without labels")
    _tell_others(root, root / table, [*files, *others])
    labels = np.concatenate([labels, np.full((len(others), len(names)), -1, np.int32)])
    origin = np.concatenate([origin, np.repeat(_UNLABELLED, len(others))])
    source, usable = reader.source([*files, *others], labels)
    rows = _split(origin[usable], labels[usable], names, *fractions)
    rest = source.subset(np.flatnonzero(origin[usable] == _UNLABELLED)) if others else None
    return Splits(*(source.subset(part) for part in rows), tuple(names), source.image_shape, rest)


def _tell_others(root, table, files) -> None:
    """Warns of images that a table does not name."""
    named = {pathlib.Path(file).resolve() for file in files}
    images = (path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
    if others := sum(path.resolve() not in named for path in images):
        logging.warning("%d images of %s are not in %s: they are left out", others, root, table.name)


def _folders(root: pathlib.Path, but: pathlib.Path | None = None) -> list[pathlib.Path]:
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = (entry for entry in folders if entry.name not in _CRUMBS)
    return sorted(entry for entry in folders if but is None or entry.resolve() != but.resolve())


def _images_below(folder: pathlib.Path) -> list[str]:
    """All images in a folder and in those inside it, sorted."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.name.lower().endswith(_SUFFIXES))
    visible = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    images = sorted(str(folder / path) for path in visible if (folder / path).is_file())
    if not images:
        raise InputError(f"{folder} has no image ({', '.join(_SUFFIXES)}): add images or leave out unlabelled")
    return images


def _trees(root: pathlib.Path, unlabelled: pathlib.Path | None) -> dict[str, pathlib.Path]:
    """The folder of each existing split; a single tree of classes counts as ``train``."""
    trees = {}
    for folder in _folders(root, unlabelled):
        split = _SPLIT_NAMES.get(folder.name)
        if split in trees:
            raise InputError(f"{root} holds both {trees[split].name} and {folder.name}: keep one of them")
        if split is not None:
            trees[split] = folder
    # A class may be called "test"; without a train folder the names mean classes.
    if "train" not in trees:
        return {"train": root}
    return {split: trees[split] for split in ("train", "val", "test") if split in trees}


def _list(
    trees: dict[str, pathlib.Path], unlabelled: pathlib.Path | None
) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    names = [folder.name for folder in _folders(trees["train"], unlabelled)]
    if len(names) < 2:
        count = f"{len(names)} class folder{'' if len(names) == 1 else 's'}"
        raise InputError(f"{trees['train']} holds {count} where at least 2 belong: sort images as <class>/<image>")
    listed = {}
    for split, tree in trees.items():
        classes = [folder.name for folder in _folders(tree, unlabelled)]
        if classes != names:
            differing = ", ".join(sorted(set(classes) ^ set(names))[:_NAMED])
            raise InputError(f"{tree} and {trees['train']} differ in the classes {differing}: give both the same")
        listed[split] = []
        for label, name in enumerate(names):
            with os.scandir(tree / name) as entries:
                images = sorted(entry.path for entry in entries if _is_image(entry))
            if not images:
                kinds = ", ".join(_SUFFIXES)
                raise InputError(f"{tree / name} has no image ({kinds}): add images or remove the class")
            listed[split] += [(file, label) for file in images]
    return names, listed


def _is_image(entry: os.DirEntry) -> bool:
    try:
        return entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
    except OSError as error:  # links in a circle
        raise InputError(f"{entry.path} can't be read ({error.strerror}): remove it") from error


def _split(origin, labels, names, val_fraction, test_fraction, seed):
    """Rows of train, val and test; missing splits are carved from train."""
    rows = {split: np.flatnonzero(origin == split) for split in ("train", "val", "test")}
    train = rows["train"]
    if not len(rows["val"]) and not len(rows["test"]):
        return [train[part] for part in carve_three(labels[train], val_fraction, test_fraction, seed, names=names)]
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        if not len(rows[split]):
            remaining, held_out = carve(labels[train], fraction, seed, names=names)
            rows["train"], rows[split] = train[remaining], train[held_out]
    return rows["train"], rows["val"], rows["test"]
