"""Stratified splits and subsets, by group where there are groups; of one class or of several labels for each sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from kd_keras.data.sources import Source
from kd_keras.errors import InputError, is_count, is_number

# Draws, of milliseconds each, among which one keeps the classes' shares.
_GROUP_DRAWS = 50


def check_seed(seed: Any) -> None:
    """Raises InputError unless ``seed`` is one that NumPy and scikit-learn take."""
    if not is_count(seed, 0) or seed >= 2**32:
        raise InputError(f"seed={seed!r}: give a whole number from 0 to {2**32 - 1}")


def carve(
    labels: Any, fraction: float, seed: int, groups: Any = None, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples in two, stratified by class.

    Args:
        labels: classes (N,), or independent labels (N, K).
        fraction: part of the samples for the second split, between 0 and 1; with groups, approximately.
        seed: the same seed gives the same split.
        groups: (N,) group, such as the patient, of each sample; a group is never in both splits.
        names: of the K classes or labels, for messages; by default their numbers.

    Returns:
        Indices (int64, ascending) of the first split and of the second.

    Raises:
        InputError: fraction or seed is out of range, or a class has too few samples (or groups) to be in both splits.
    """
    labels = np.asarray(labels)
    check_seed(seed)
    if not is_number(fraction) or not 0 < fraction < 1:
        raise InputError(f"a split's fraction is {fraction!r}: give a number between 0 and 1, such as 0.1")
    classes, counts = _counted(labels)
    word = "class" if labels.ndim == 1 else "label"
    called = (lambda number: number) if names is None else lambda number: repr(names[number])
    advice = "add samples, or change the fraction or the seed"
    if len(classes) == 0 or counts.min() < 2:
        what = f"{word} {called(classes[counts.argmin()])} has 1 sample" if len(classes) else "there are no samples"
        raise InputError(f"{what} where a split in two needs at least 2 of each {word}: {advice}")
    positions = np.arange(len(labels))
    if groups is None:
        second = max(round(fraction * len(labels)), 1)
        if labels.ndim == 1 and min(second, len(labels) - second) < len(classes):
            small = f"{fraction} of {len(labels)} samples cannot hold {len(classes)} classes on both sides"
            raise InputError(f"too few samples: {small}: {advice}")
        if labels.ndim == 2:
            second = _draw(labels, second, seed)
            first = np.setdiff1d(positions, second)
        else:
            first, second = train_test_split(positions, test_size=second, stratify=labels, random_state=seed)
    else:
        first, second = _carve_groups(labels, fraction, seed, np.asarray(groups), positions)
    for side in (first, second):
        missing = np.setdiff1d(classes, _counted(labels[side])[0])
        if len(missing):
            count = counts[classes == missing[0]][0]
            few = f"{word} {called(missing[0])} has too few samples ({count}) or groups to be on both sides of a split"
            raise InputError(f"{few} at fraction {fraction}: {advice}")
    return np.sort(first), np.sort(second)


def _carve_groups(labels, fraction, seed, groups, positions):
    """The draw of whole groups, of several, whose class shares are closest to the fraction."""
    if len(groups) != len(labels):
        raise InputError(f"{len(labels)} samples need as many groups, not {len(groups)}: give one each")
    if len(np.unique(groups)) < 2:
        raise InputError("all samples are of one group: a split by group needs at least 2: add groups")
    draws = GroupShuffleSplit(n_splits=_GROUP_DRAWS, test_size=fraction, random_state=seed)
    classes, counts = _counted(labels)
    has = labels[:, classes] == 1 if labels.ndim == 2 else labels[:, None] == classes

    def distance(draw):
        shares = has[draw[1]].sum(axis=0) / counts
        # A draw that leaves a class out of one side is worse than any other.
        return np.any((shares == 0) | (shares == 1)), np.abs(shares - fraction).max()

    return min(draws.split(positions, labels, groups), key=distance)


def _counted(labels) -> tuple[np.ndarray, np.ndarray]:
    """The classes or labels that there are, and how many samples have each."""
    if labels.ndim == 1:
        return np.unique(labels, return_counts=True)
    counts = (labels == 1).sum(axis=0)
    return np.flatnonzero(counts), counts[counts > 0]


def _draw(labels, n: int, seed: int) -> np.ndarray:
    """``n`` of N samples with independent labels (N, K), so that each label keeps its share.

    The samples of the rarest label are divided first, each to the side that lacks most of that label; every label is
    drawn at least once where there is room.

    Reference: Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011, algorithm 1.
    """
    rng, has = np.random.default_rng(seed), labels == 1
    counts, total = has.sum(axis=0), len(labels)
    drawn = np.maximum(counts * n / total, np.minimum(counts, 1.0))
    wanted, room = np.stack([drawn, counts - drawn]), np.array([n, total - n])
    side, is_left = np.full(total, -1), np.ones(total, bool)

    def place(sample, scores):
        at = int(np.argmax(np.where(room > 0, scores, -np.inf)))
        side[sample], is_left[sample] = at, False
        room[at] -= 1
        wanted[at] -= has[sample]

    while (left := has[is_left].sum(axis=0)).any():
        label = int(np.argmin(np.where(left > 0, left, total + 1)))
        for sample in rng.permutation(np.flatnonzero(is_left & has[:, label])):
            # Where both sides lack as much of the label, that with more room.
            place(sample, wanted[:, label] + 1e-6 * room / total)
    for sample in rng.permutation(np.flatnonzero(is_left)):
        place(sample, room)
    return np.flatnonzero(side == 0)


def carve_three(
    labels: Any,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Any = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, ...]:
    """Splits samples in train, validation and test; the fractions are of all samples, ``groups`` as in `carve`.

    Returns:
        Indices (int64, ascending) of train, validation and test.

    Raises:
        InputError: see `carve`; or the fractions leave nothing to train on.
    """
    labels = np.asarray(labels)
    rest, test = carve(labels, test_fraction, seed, groups, names)
    if not isinstance(val_fraction, (int, float)) or not 0 < val_fraction < 1 - test_fraction:
        raise InputError(
            f"val_fraction={val_fraction!r} and test_fraction={test_fraction!r} leave no train: sum below 1"
        )
    left = None if groups is None else np.asarray(groups)[rest]
    train, val = carve(labels[rest], val_fraction / (1 - test_fraction), seed, left, names)
    return rest[train], rest[val], test


def take(source: Source, n: int, seed: int) -> Source:
    """A stratified subset, for training with fewer examples.

    Args:
        source: all samples.
        n: number of samples; for all of them the source itself is returned.
        seed: the same seed gives the same subset.

    Raises:
        InputError: the source has fewer than n samples, or n cannot hold every class.
    """
    rows = draw(source.labels, n, seed)
    return source if len(rows) == len(source) else source.subset(rows)


def draw(labels: np.ndarray, n: int, seed: int, what: str = "examples") -> np.ndarray:
    """Rows of a stratified subset, ascending; see `take`."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= len(labels):
        raise InputError(f"{n!r} {what} asked of a split of {len(labels)}: give a whole number up to {len(labels)}")
    if n == len(labels):
        return np.arange(n)
    if labels.ndim == 2:
        chosen = np.sort(_draw(labels, n, seed))
        lacking = np.setdiff1d(_counted(labels)[0], _counted(labels[chosen])[0])
        if len(lacking):
            raise InputError(f"{n} {what} cannot hold every label: none has label {lacking[0]}; ask for more")
        return chosen
    classes, counts = np.unique(labels, return_counts=True)
    if n < len(classes):
        raise InputError(f"{n} {what} cannot hold {len(classes)} classes: ask for at least {len(classes)}")
    # Largest remainder, with at least one of each class: a plain stratified draw drops rare classes for small n.
    share = counts * n / len(labels)
    quota = np.maximum(share.astype(int), 1)
    while quota.sum() > n:
        quota[quota.argmax()] -= 1
    remainder = np.where(quota < counts, share - quota, -np.inf)
    quota[np.argsort(-remainder, kind="stable")[: n - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:size] for label, size in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
