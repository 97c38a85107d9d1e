"""What ``kd-keras check-data`` says of a data set."""

import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from kd_keras import data
from kd_keras.errors import InputError
from kd_keras.run.brought import NO_TRAINING
from kd_keras.run.config import Config
from kd_keras.run.session import Session
from kd_keras.run.settings import make, read_flags
from kd_keras.spec import Spec

_SPLITS = ("train", "val", "test")


def check(path: pathlib.Path | None, flags: Sequence[str], looks_near: bool) -> bool:
    """Prints a data set's counts and doubts.

    Args:
        path: a folder of images, or None where the flags have ``--data``.
        flags: of `kd_keras.run`, those that concern the data.
        looks_near: whether near duplicates are looked for.

    Returns:
        Whether something is doubtful.

    Raises:
        InputError: the data can't be read, or are not named once.
    """
    given, _ = read_flags(Config, ["kd-keras check-data", *flags])
    if (path is None) == ("data" not in given):
        raise InputError("check-data takes a folder or --data: kd-keras check-data photos --image_size=224")
    if path is not None:
        given = {"skip_bad_images": "true", **given, "data": str(Spec("folder", {"path": str(path.expanduser())}))}
    with tempfile.TemporaryDirectory(prefix="kd_keras-") as folder:
        session = Session(make(Config, {**NO_TRAINING, "workdir": folder, **given}), tells_doubts=False)
    splits = session.splits
    session.console.print(_table(splits))
    doubts = [*data.doubts(splits), *_counts(splits), *(data.lookalikes(splits) if looks_near else ())]
    for sentence in doubts:
        session.console.print(f"- {sentence}")
    session.console.print(f"{len(doubts)} doubts" if doubts else "nothing doubtful was found")
    return bool(doubts)


def _of_class(splits, name: str) -> np.ndarray:
    """Images of each class, or with each label, in a split."""
    labels = getattr(splits, name).labels
    if splits.multi_label:
        return (labels > 0).sum(axis=0)
    return np.bincount(labels[labels >= 0], minlength=splits.num_classes)


def _table(splits) -> Table:
    table = Table("label" if splits.multi_label else "class", *_SPLITS, box=None)
    for name, *counts in zip(splits.class_names, *(_of_class(splits, name) for name in _SPLITS), strict=True):
        table.add_row(str(name), *map(str, counts))
    table.add_section()
    table.add_row(
        f"images of {'×'.join(map(str, splits.image_shape))}", *(str(len(getattr(splits, s))) for s in _SPLITS)
    )
    if splits.unlabelled is not None:
        table.add_row("without labels", str(len(splits.unlabelled)), "", "")
    return table


def _counts(splits) -> list[str]:
    """Sentences on classes that have too few images to learn from, or to be measured by."""
    sentences = []
    for split in _SPLITS:
        counts = _of_class(splits, split)
        few = [str(splits.class_names[k]) for k in np.flatnonzero(counts < (2 if split == "train" else 1))]
        if few:
            what = "one image or none" if split == "train" else "no image"
            sentences.append(f"{', '.join(few[:5])}{' …' * (len(few) > 5)}: {what} in {split}")
    train = _of_class(splits, "train")
    if train.min() and train.max() / train.min() >= 10:
        least, most = splits.class_names[int(train.argmin())], splits.class_names[int(train.argmax())]
        sentences.append(
            f"{most} has {train.max() / train.min():.0f} times as many training images as {least}: look at the figures "
            "of each class, not at the accuracy alone"
        )
    return sentences
