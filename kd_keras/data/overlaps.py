"""Looks for what makes results doubtful: images in two splits, equal images with other labels, one class twice."""

import unicodedata

import numpy as np

from kd_keras.data.sources import Splits

_NAMED = 3  # images that a sentence names


def doubts(splits: Splits) -> list[str]:
    """A sentence on each two splits that share images, on equal images with different labels, and on names of classes
    that differ in case, in spaces or in the form of their Unicode only.

    Images are equal where their digests are: the bytes of their files, or their pixels where they come from no file of
    their own. Near duplicates: `likeness`.
    """
    sources = {name: getattr(splits, name) for name in ("train", "val", "test")}
    if splits.unlabelled is not None:
        sources["unlabelled"] = splits.unlabelled
    digests = {name: sortable(source.digests) for name, source in sources.items()}
    sentences = []
    for held_out in ("test", "val"):
        for name in ("train", "unlabelled", "val"):
            if name not in sources or name == held_out:
                continue
            shared = np.flatnonzero(np.isin(digests[held_out], digests[name]))
            if len(shared):
                which = listed(sources[held_out], shared)
                sentences.append(
                    f"{len(shared)} of the {len(sources[held_out])} {held_out} images are in {name} too ({which}): "
                    f"figures of the {held_out} split are too good; remove these images from one of the two"
                )
    return [*sentences, *_conflicts(sources, digests), *_twins(splits.class_names)]


def _conflicts(sources, digests) -> list[str]:
    """Equal images that have different labels, in whichever splits."""
    labelled = [name for name in sources if name != "unlabelled"]
    every = np.concatenate([digests[name] for name in labelled])
    labels = np.concatenate([sources[name].labels for name in labelled])
    order = np.argsort(every, kind="stable")
    ordered = every[order]
    equal = ordered[1:] == ordered[:-1]
    rows = labels.reshape(len(labels), -1)[order]
    known = (rows[1:] >= 0) & (rows[:-1] >= 0)
    differing = np.flatnonzero(equal & np.any(known & (rows[1:] != rows[:-1]), axis=1))
    if not len(differing):
        return []
    ends = np.cumsum([len(digests[name]) for name in labelled])

    def called(row):
        at = int(np.searchsorted(ends, row, side="right"))
        name = labelled[at]
        return f"{sources[name].name_of(int(row - ends[at] + len(digests[name])))} in {name}"

    told = ", ".join(f"{called(order[at])} and {called(order[at + 1])}" for at in differing[:_NAMED])
    more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return [f"{len(differing)} pairs of equal images have different labels ({told}{more}): correct the labels"]


def _twins(names) -> list[str]:
    """A sentence on names that look the same to a reader."""
    first = {}
    pairs = []
    for name in names:
        other = first.setdefault(" ".join(unicodedata.normalize("NFKC", str(name)).casefold().split()), name)
        if other != name:
            pairs.append(f"{other!r} and {name!r}")
    if not pairs:
        return []
    told = ", ".join(pairs[:_NAMED])
    return [f"the classes {told} differ in case, spaces or Unicode form only: merge them if they are one"]


def sortable(digests: np.ndarray) -> np.ndarray:
    """Digests (N, 16) uint8 as (N,) values that can be sorted."""
    return np.ascontiguousarray(digests).view("V16").ravel()


def listed(source, rows) -> str:
    """Names of the first of a source's rows, and how many there are more."""
    names = ", ".join(source.name_of(int(row)) for row in rows[:_NAMED])
    return names + (f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else "")
