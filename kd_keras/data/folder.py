"""Any folder of images: ``{train,val,test}/<class>/*``, or one tree ``<class>/*`` that is split here."""

import concurrent.futures
import os
import pathlib

import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras.data._files import existing_folder
from kd_keras.data._sources import ArraySource, FileSource, Splits, carve, carve_three, decode
from kd_keras.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAMED = 5  # bad files that a message names; the rest are counted


def build(
    path: str,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    in_memory: bool = False,
    skip_bad_images: bool = False,
) -> Splits:
    """Images in folders named for their classes.

    Every file is decoded once before training, so that a broken one is found in the first minutes and not in the
    last. Hidden files and other kinds than JPEG, PNG, GIF and BMP are passed over.

    Args:
        path: holds ``train/<class>/*`` and, where there are, ``val`` (``valid``, ``validation``) and ``test``;
            or ``<class>/*`` alone.
        image_size: pixels, a side or (height, width), to which images are resized; by default all have one size.
        channels: 3 for colour, 1 for grey.
        val_fraction: where there is no ``val``: part of ``train`` (or of all samples) taken for it, stratified.
        test_fraction: where there is no ``test``: part of ``train`` (or of all samples) taken for it, stratified.
        seed: of those splits.
        in_memory: keep the decoded images in memory.
        skip_bad_images: leave out files that cannot be decoded, with a warning, rather than stop.

    Raises:
        InputError: no such folder, fewer than two classes, an empty class, other classes in one split than in
            another, files of several sizes without ``image_size``, or files that cannot be decoded.
    """
    root = existing_folder(path, "path")
    if channels not in (1, 3):
        raise InputError(f"channels={channels!r}: give 3 for colour or 1 for grey")
    size = _checked_size(image_size)
    trees = _trees(root)
    names, listed = _list(trees)
    files = [file for split in listed.values() for file, _ in split]
    labels = np.array([label for split in listed.values() for _, label in split], np.int32)
    origin = np.repeat(np.array(list(listed)), [len(split) for split in listed.values()])

    bad = {}
    if size is None:
        size, bad = _common_size(files)
    shape = (*size, channels)
    # A file whose head is unreadable is not decoded again.
    good = np.array([index for index in range(len(files)) if index not in bad], np.int64)
    decoded, images = _decode_all([files[index] for index in good], shape, in_memory)
    bad |= {int(good[index]): "cannot be decoded" for index in np.flatnonzero(~decoded)}
    if bad:
        _report(files, bad, skip_bad_images)
    good = good[decoded]
    labels, origin = labels[good], origin[good]
    for split in listed:
        for label, name in enumerate(names):
            if not np.any((origin == split) & (labels == label)):
                raise InputError(f"{trees[split] / name} has no readable image: add images or remove the class")
    if in_memory:
        source = ArraySource(images[decoded] if not decoded.all() else images, labels)
    else:
        source = FileSource([files[index] for index in good], labels, shape)
    train, val, test = (source.subset(rows) for rows in _split(origin, labels, val_fraction, test_fraction, seed))
    return Splits(train, val, test, tuple(names), shape)


def _checked_size(image_size):
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if sides is None:
        return None
    if (
        not isinstance(sides, (tuple, list))
        or len(sides) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    ):
        raise InputError(f"image_size={image_size!r}: give pixels, as 64 or (height, width)")
    return tuple(sides)


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _trees(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folder of each split that is there; one tree of classes counts as ``train``."""
    trees = {}
    for folder in _folders(root):
        split = _SPLIT_NAMES.get(folder.name)
        if split in trees:
            raise InputError(f"{root} holds both {trees[split].name} and {folder.name}: keep one of them")
        if split is not None:
            trees[split] = folder
    # A class may be called "test"; without a train folder the names mean classes.
    if "train" not in trees:
        return {"train": root}
    return {split: trees[split] for split in ("train", "val", "test") if split in trees}


def _list(trees: dict[str, pathlib.Path]) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    names = [folder.name for folder in _folders(trees["train"])]
    if len(names) < 2:
        found = f"{len(names)} class folder{'' if len(names) == 1 else 's'}"
        raise InputError(f"{trees['train']} holds {found} where at least 2 belong: sort images as <class>/<image>")
    listed = {}
    for split, tree in trees.items():
        here = [folder.name for folder in _folders(tree)]
        if here != names:
            differing = ", ".join(sorted(set(here) ^ set(names))[:_NAMED])
            raise InputError(f"{tree} and {trees['train']} differ in the classes {differing}: give both the same")
        listed[split] = []
        for label, name in enumerate(names):
            with os.scandir(tree / name) as entries:
                found = sorted(
                    entry.path
                    for entry in entries
                    if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
                )
            if not found:
                kinds = ", ".join(_SUFFIXES)
                raise InputError(f"{tree / name} has no image ({kinds}): add images or remove the class")
            listed[split] += [(file, label) for file in found]
    return names, listed


def _common_size(files: list[str]) -> tuple[tuple[int, int], dict[int, str]]:
    """The size that all files have, from their heads, and those whose head is unreadable."""
    from PIL import Image

    def head(file):
        try:
            with Image.open(file) as image:
                return image.height, image.width
        except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files, by format
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(head, files, chunksize=64))
    readable = [(file, size) for file, size in zip(files, sizes, strict=True) if size is not None]
    if not readable:
        raise InputError(f"none of the {len(files)} images can be read, {files[0]} the first: check the files")
    first_file, first = readable[0]
    for file, size in readable:
        if size != first:
            (h, w), (first_h, first_w) = size, first
            differing = f"{file} is {h}×{w} pixels and {first_file} {first_h}×{first_w}"
            raise InputError(f"{differing}: set image_size to resize them, such as image_size=({first_h}, {first_w})")
    return first, {index: "cannot be read" for index, size in enumerate(sizes) if size is None}


def _decode_all(files: list[str], shape, keep: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Which files can be decoded, by the operation that training uses, and (where kept) their images."""
    decoded = np.zeros(len(files), bool)
    images = np.zeros((len(files), *shape), np.uint8) if keep else None

    def load(index, file):
        image = decode(file, shape)
        # A corner is enough to have the whole file decoded.
        return index, image if keep else image[:1, :1]

    dataset = tf.data.Dataset.from_tensor_slices(np.array(files, dtype=object).astype(str)).enumerate()
    dataset = dataset.map(load, num_parallel_calls=os.cpu_count() or 1, deterministic=False)
    dataset = dataset.ignore_errors().batch(256)
    options = tf.data.Options()
    options.autotune.enabled = False
    for indices, batch in dataset.with_options(options).as_numpy_iterator():
        decoded[indices] = True
        if keep:
            images[indices] = batch
    for index, file in enumerate(files):
        if decoded[index] and file.lower().endswith(".bmp") and _has_palette(file):
            decoded[index] = False
    return decoded, images


def _has_palette(file: str) -> bool:
    """Whether a BMP holds colours by number, which TensorFlow decodes as shades of grey without saying so."""
    from PIL import Image

    with Image.open(file) as image:
        return image.mode == "P"


def _report(files, bad, skip: bool) -> None:
    first = ", ".join(f"{files[index]} ({bad[index]})" for index in sorted(bad)[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    what = f"{len(bad)} of {len(files)} images cannot be used: {first}{more}"
    if not skip:
        raise InputError(f"{what}: mend or remove them, or leave them out with skip_bad_images=True")
    logging.warning("%s: they are left out", what)


def _split(origin, labels, val_fraction, test_fraction, seed):
    """Rows of train, val and test; what is missing is carved from train."""
    rows = {split: np.flatnonzero(origin == split) for split in ("train", "val", "test")}
    train = rows["train"]
    if not len(rows["val"]) and not len(rows["test"]):
        return [train[part] for part in carve_three(labels[train], val_fraction, test_fraction, seed)]
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        if not len(rows[split]):
            kept, held_out = carve(labels[train], fraction, seed)
            rows["train"], rows[split] = train[kept], train[held_out]
    return rows["train"], rows["val"], rows["test"]
