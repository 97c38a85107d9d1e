"""MURA v1.1: 40 561 radiographs of seven parts of the arm, each study normal or abnormal (Rajpurkar et al., 2018).

Stanford ML Group licenses it for research; it is not downloaded automatically.

Patients: MURA numbers its 11 184 + 783 patients from patient00001 to patient11967 across all body parts, so the same
number under two ``XR_`` folders is the same person; both are on the same side of a split.
"""

import collections
import csv
import dataclasses
import os
import pathlib
import re

import numpy as np

from kd_keras.data.carving import carve, check_seed
from kd_keras.data.downloads import existing_folder
from kd_keras.data.image_files import ImageReader
from kd_keras.data.sources import Splits
from kd_keras.errors import InputError, is_count

BODY_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
FINDINGS = ("normal", "abnormal")
SPLITS = ("train", "valid")
_LABELS = {"body_part": BODY_PARTS, "abnormal": FINDINGS}
_BALANCES = ("none", "cap", "oversample")
_NAMED = 5  # missing files that a message lists
_FOLDER = "MURA-v1.1"
_PATH = re.compile(r"XR_(?P<part>[A-Z]+)/(?P<patient>patient\d+)/(?P<study>study\d+(?:_(?P<finding>\w+))?)/[^/.][^/]*")
_FOUND_IN_NAMES = {"negative": 0, "positive": 1}
ADVICE = (
    f"ask for {_FOLDER} at https://stanfordmlgroup.github.io/competitions/mura and name its folder, which holds "
    "{train,valid}/XR_<PART>/patient<id>/study<k>_{positive,negative}/image<j>.png"
)


@dataclasses.dataclass(frozen=True)
class Radiograph:
    """One image of MURA.

    Args:
        path: the file.
        body_part: position in `BODY_PARTS`.
        abnormal: 1 where its study was labelled abnormal (positive), else 0.
        patient: ``patient<id>``, one person across all body parts.
        study: ``study<k>_…``, one examination of that patient's body part.
    """

    path: str
    body_part: int
    abnormal: int
    patient: str
    study: str


def MURA(
    folder: str,
    label: str = "body_part",
    balance: str = "none",
    per_class: int | None = None,
    val_fraction: float = 0.1,
    val_per_class: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    seed: int = 0,
    cache: str = "none",
    skip_bad_images: bool = False,
    max_image_pixels: int | None = None,
) -> Splits:
    """MURA's radiographs, of varying sizes: ``image_size`` is needed.

    MURA's ``valid`` split (3 197 images of 783 other patients) is used as the test split, because MURA's test split is
    not published. Validation is carved from ``train``, by patient and as stratified as whole patients allow.

    A class-balanced set of, for example, 2 201 training and 250 validation images per class is ``balance='oversample',
    per_class=2201, val_per_class=250``: forearm and humerus have fewer than 2 201 (1 825 and 1 272 including those for
    validation), so their images are repeated; ``balance='cap'`` leaves these two classes smaller.

    Args:
        folder: holds ``train`` and ``valid`` (or ``MURA-v1.1``, which holds them). Where it has the published CSV files
            (``train_image_paths.csv``, ``train_labeled_studies.csv`` …), these list the images, else the tree does.
        label: ``'body_part'`` for the 7 parts, or ``'abnormal'`` for normal and abnormal.
        balance: of the training classes: ``'none'`` keeps all images; ``'cap'`` draws ``per_class`` images of each
            class that has more; ``'oversample'`` gives each class exactly ``per_class`` images, drawn where it has more
            and repeated where it has fewer.
        per_class: training images per class; by default as many as the smallest (``'cap'``) or the largest
            (``'oversample'``) class has.
        val_fraction: approximate part of ``train`` for validation; patients are not divided.
        val_per_class: instead of a fraction, the number of validation images per class; other images of their patients
            are left out.
        image_size: pixels, one side or (height, width), to which images are resized.
        channels: 3 for colour (grey values three times), 1 for grey.
        seed: of the split and of the images that are drawn or repeated.
        cache: where decoded images are stored, ``'none'``, ``'memory'`` or ``'disk'``: see `kd_keras.data.folder`.
        skip_bad_images: leave out files that cannot be decoded, with a warning, instead of stopping.
        max_image_pixels: files whose headers say more are refused before they are decoded; by default 100 million.

    Raises:
        InputError: the folder does not exist or has another layout, a CSV contradicts the tree or lists missing files,
            a patient is in both splits, a class has no images or too few, a value is out of range, or files cannot be
            decoded.

    Reference: Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs",
    arXiv:1712.06957; section 2 for the split by patient.
    """
    if label not in tuple(_LABELS):  # a list, or a name without quotes, is not hashable
        raise InputError(f"label={label!r}: give one of {', '.join(map(repr, _LABELS))}")
    if balance not in _BALANCES:
        raise InputError(f"balance={balance!r}: give one of {', '.join(map(repr, _BALANCES))}")
    if balance == "none" and per_class is not None:
        raise InputError(f"per_class={per_class!r} has no effect with balance='none': give 'cap' or 'oversample'")
    for name, value in (("per_class", per_class), ("val_per_class", val_per_class)):
        if value is not None and not is_count(value):
            raise InputError(f"{name}={value!r}: give a whole number of images, such as 250")
    check_seed(seed)
    reader = ImageReader(image_size, channels, cache, skip_bad_images, max_image_pixels)
    names = _LABELS[label]
    listed = read(existing_folder(folder))
    _refuse_shared_patients(folder, listed)
    radiographs = [radiograph for split in SPLITS for radiograph in listed[split]]
    labels = np.array([getattr(radiograph, label) for radiograph in radiographs], np.int32)
    source, usable = reader.source([radiograph.path for radiograph in radiographs], labels)
    in_train = usable < len(listed["train"])
    for split, rows in zip(SPLITS, (in_train, ~in_train), strict=True):
        missing = np.setdiff1d(range(len(names)), source.labels[rows])
        if len(missing):
            raise InputError(f"{folder}: {split} has no readable image of {names[missing[0]]}: {ADVICE}")
    train, patients = np.flatnonzero(in_train), np.array([radiographs[place].patient for place in usable])[in_train]
    labels = source.labels[in_train]
    if val_per_class is None:
        remaining, held_out = carve(labels, val_fraction, seed, groups=patients)
    else:
        remaining, held_out = _carve_per_class(labels, val_per_class, seed, patients, names)
    remaining = remaining[_balanced(labels[remaining], balance, per_class, seed)]
    test = source.subset(np.flatnonzero(~in_train))
    return Splits(source.subset(train[remaining]), source.subset(train[held_out]), test, names, source.image_shape)


def read(folder: str | os.PathLike) -> dict[str, list[Radiograph]]:
    """Lists MURA's radiographs.

    Args:
        folder: see `MURA`.

    Returns:
        The radiographs of each of `SPLITS`, in the order of their paths, the same with the CSV files and without.

    Raises:
        InputError: the folder has another layout, or a CSV contradicts the tree or lists missing files.
    """
    folder = pathlib.Path(folder)
    root = next((place for place in (folder, folder / _FOLDER) if (place / "train").is_dir()), None)
    if root is None or not (root / "valid").is_dir():
        raise InputError(f"{folder} does not hold the folders train and valid: {ADVICE}")
    return {split: _read_split(root, split) for split in SPLITS}


def _refuse_shared_patients(folder, listed):
    # MURA as published has none; a tree that was edited by hand can have some.
    train, valid = ({radiograph.patient for radiograph in listed[split]} for split in SPLITS)
    if shared := sorted(train & valid):
        named = ", ".join(shared[:_NAMED]) + (" …" if len(shared) > _NAMED else "")
        what = f"{folder}: {len(shared)} patients are in train and in valid ({named}), so test images would be known"
        raise InputError(f"{what}: keep each patient in one of them")


def _read_split(root, split):
    listing = root / f"{split}_image_paths.csv"
    if listing.is_file():
        # As published: MURA-v1.1/train/XR_…; the folder may have another name.
        paths = _visible(_below(row[0], split, listing) for row in _rows(listing))
        missing = [path for path in paths if not (root / split / path).is_file()]
        if missing:
            named = ", ".join(missing[:_NAMED]) + (" …" if len(missing) > _NAMED else "")
            what = f"{len(missing)} of the {len(paths)} files that {listing} names are missing from {root / split}"
            raise InputError(f"{what} ({named}): unpack {_FOLDER} again, or remove the CSV to take what is there")
        if len(set(paths)) < len(paths):
            twice = next(path for path, count in collections.Counter(paths).items() if count > 1)
            raise InputError(f"{listing} names {twice} twice: download it again, or remove it")
    else:
        paths = _visible(_walk(root / split))
    if not paths:
        raise InputError(f"{root / split} has no radiograph: {ADVICE}")
    studies = root / f"{split}_labeled_studies.csv"
    published = _published(studies, split, paths) if studies.is_file() else {}
    return [_radiograph(root / split, path, published) for path in paths]


def _published(file, split, paths) -> dict[str, int]:
    """Study → its label, as the CSV says; it has to know all studies of the images."""
    labels = {}
    for number, row in enumerate(_rows(file), 1):
        if len(row) != 2 or row[1].strip() not in ("0", "1"):
            what = f"{file}, row {number}, is {','.join(row)!r} where a study and its label, 0 or 1, belong"
            raise InputError(f"{what}: download it again, or remove it")
        labels[_below(row[0], split, file).rstrip("/")] = int(row[1])
    unknown = sorted({path.rpartition("/")[0] for path in paths} - labels.keys())
    if unknown:
        named = ", ".join(unknown[:_NAMED]) + (" …" if len(unknown) > _NAMED else "")
        raise InputError(f"{file} lacks {len(unknown)} studies ({named}): download it again, or remove it")
    return labels


def _visible(paths):
    # macOS adds ._image1.png to image1.png.
    return sorted(path for path in paths if not path.rpartition("/")[2].startswith("."))


def _rows(file):
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            return [row for row in csv.reader(lines) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as CSV ({error}): download it again, or remove it") from error


def _below(path, split, file):
    _, separator, below = f"/{path.strip()}".partition(f"/{split}/")
    if not separator:
        raise InputError(f"{file} names {path!r}, which is not below {split}/: download it again, or remove it")
    return below


def _walk(folder):
    """Images below a split's folder, relative to it with ``/``; other files and folders are ignored."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.glob("XR_*/patient*/study*/*")
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and path.is_file()
    ]


def _radiograph(folder, path, published):
    match = _PATH.fullmatch(path)
    part = match["part"].lower() if match else None
    if part not in BODY_PARTS:
        raise InputError(f"{folder / path} is not of MURA's layout, XR_<PART>/patient<id>/study<k>_…/…: {ADVICE}")
    by_name = _FOUND_IN_NAMES.get(match["finding"])
    by_csv = published.get(path.rpartition("/")[0])
    abnormal = by_name if by_csv is None else by_csv
    if abnormal is None:
        raise InputError(f"{folder / path}: neither its study's name nor a CSV says positive or negative: {ADVICE}")
    if by_name not in (None, abnormal):
        raise InputError(f"{folder / path}: its study's name and the CSV of labels disagree: download {_FOLDER} again")
    return Radiograph(str(folder / path), BODY_PARTS.index(part), abnormal, match["patient"], match["study"])


def _carve_per_class(labels, per_class, seed, patients, names):
    """Rows of train, and of a validation split with ``per_class`` images per class; no patient is in both."""
    rng = np.random.default_rng(seed)
    _, codes = np.unique(patients, return_inverse=True)
    counts = np.zeros((codes.max() + 1, len(names)), int)
    np.add.at(counts, (codes, labels), 1)
    taken, order = np.zeros(len(counts), bool), rng.permutation(len(counts))
    # The rarest class first: its patients also have images of other classes.
    for place in np.argsort(counts.sum(0), kind="stable"):
        for patient in order[counts[order, place] > 0]:
            if counts[taken, place].sum() >= per_class:
                break
            taken[patient] = True
    of_val = taken[codes]
    for place, name in enumerate(names):
        if counts[taken, place].sum() < per_class or not np.any(labels[~of_val] == place):
            few = f"{name} has {counts[:, place].sum()} images of {np.count_nonzero(counts[:, place])} patients"
            raise InputError(f"{few}, too few for val_per_class={per_class} and for training: lower val_per_class")
    drawn = [rng.permutation(np.flatnonzero(of_val & (labels == place)))[:per_class] for place in range(len(names))]
    return np.flatnonzero(~of_val), np.sort(np.concatenate(drawn))


def _balanced(labels, balance, per_class, seed):
    """Positions of the samples for training."""
    if balance == "none":
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    sizes = [len(class_rows) for class_rows in rows]
    count = per_class or (min(sizes) if balance == "cap" else max(sizes))
    if balance == "cap":
        chosen = [class_rows[:count] for class_rows in rows]
    else:
        # All images of a class are repeated equally often, except for a remainder.
        chosen = [np.resize(class_rows, count) for class_rows in rows]
    return np.sort(np.concatenate(chosen))
