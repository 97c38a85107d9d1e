"""The quality of predictions of independent labels (multi-label).

Labels are (N, K) of 0 and 1; a label of −1 is not known and counts nowhere. Averages over labels are over those that
have an image with 1 and an image with 0.
"""

import numpy as np

from kd_keras.errors import InputError
from kd_keras.evaluate.quality import CALIBRATION_BINS

#: Resamples of the images for the interval of a difference.
RESAMPLES = 200


def probabilities(logits):
    """The probability of each label: (N, K) -> (N, K)."""
    from scipy.special import expit

    return expit(np.asarray(logits, np.float64))


def thresholds(logits, labels):
    """The threshold on each label's probability that gives the best F1, (K,); choose them on validation data.

    A label without an image of either kind has ½. Of thresholds that are equally good it is the one nearest to ½.
    """
    from sklearn.metrics import precision_recall_curve

    chosen = np.full(np.shape(logits)[1], 0.5)
    for label, p, y in _by_label(logits, labels):
        precision, recall, values = precision_recall_curve(y, p)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        # Between two predictions any threshold decides alike: the middle, which other data don't hit.
        edges = (values + np.concatenate([[0.0], values[:-1]])) / 2
        best = np.flatnonzero(f1[:-1] >= f1[:-1].max() - 1e-12)
        chosen[label] = edges[best[np.argmin(np.abs(edges[best] - 0.5))]]
    return chosen


def metrics(logits, labels, thresholds):
    """Ranking, decisions and calibration of predictions.

    Args:
        logits: (N, K).
        labels: (N, K).
        thresholds: (K,) on the probabilities; see `thresholds`.

    Returns:
        dict of floats in [0, 1]: ``map``, the mean over labels of the average precision, and ``auc``, that of the area
        under the ROC curve; ``precision``, ``recall`` and ``f1``, means over labels at the thresholds (macro), and
        ``f1_micro``, of all labels together; ``subset_accuracy``, the share of images all of whose labels are right;
        ``ece``, the expected calibration error of the labels' probabilities, over 15 bins of equal width.

    Raises:
        InputError: no label has an image with 1 and an image with 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    report = label_report(logits, labels, thresholds)
    means = {name: float(np.mean([row[name] for row in report if row[name] is not None])) for name in report[0]}
    p, labels = probabilities(logits), np.asarray(labels)
    known, decided = labels >= 0, p >= thresholds
    micro = precision_recall_fscore_support(labels[known], decided[known], average="binary", zero_division=0)[2]
    right = ((decided == (labels == 1)) | ~known)[known.any(axis=1)]
    return {
        "map": means["average_precision"],
        "auc": means["auc"],
        "precision": means["precision"],
        "recall": means["recall"],
        "f1": means["f1"],
        "f1_micro": float(micro),
        "subset_accuracy": float(right.all(axis=1).mean()),
        "ece": _calibration_error(p[known], labels[known]),
    }


def label_report(logits, labels, thresholds):
    """The figures of each label: average precision, AUC, and precision, recall and F1 at its threshold.

    Returns:
        K dicts, with ``support``, the number of images that have the label; None for figures of a label without an
        image of either kind.

    Raises:
        InputError: see `metrics`.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    names = ("average_precision", "auc", "precision", "recall", "f1")
    rows = [
        {**dict.fromkeys(names), "threshold": float(limit), "support": int(count)}
        for limit, count in zip(thresholds, (np.asarray(labels) == 1).sum(axis=0), strict=True)
    ]
    for label, p, y in _by_label(logits, labels):
        at_threshold = precision_recall_fscore_support(y, p >= thresholds[label], average="binary", zero_division=0)[:3]
        values = (average_precision_score(y, p), roc_auc_score(y, p), *at_threshold)
        rows[label] |= dict(zip(names, map(float, values), strict=True))
    if all(row["auc"] is None for row in rows):
        raise InputError("no label has an image with 1 and an image with 0: there is nothing to measure on this split")
    return rows


def agreement(logits_a, logits_b):
    """Share of labels, over all images, that two models decide alike at a probability of ½, in [0, 1]."""
    return float(np.mean((np.asarray(logits_a) >= 0) == (np.asarray(logits_b) >= 0)))


def areas(logits, labels):
    """The area under the ROC curve of each output as a predictor of each label, (K, K); ½ where it is not defined."""
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels)
    table = np.full((labels.shape[1],) * 2, 0.5)
    for label, column in enumerate(labels.T):
        known = column >= 0
        if 0 < (column == 1).sum() < known.sum():
            scores = np.asarray(logits)[known]
            table[label] = [roc_auc_score(column[known], score) for score in scores.T]
    return table


def map_change(logits, reference, labels):
    """Difference in mean average precision between two models on the same images, with a 95 % interval.

    The interval is that of a bootstrap over images, paired, with a normal approximation; it is not over trainings.

    Returns:
        ``(change, low, high)``, floats in [-1, 1].
    """
    labels = np.asarray(labels)
    draws = np.random.default_rng(0).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), RESAMPLES).T
    weights = np.concatenate([np.ones((len(labels), 1)), draws], axis=1)
    change = mean_average_precision(logits, labels, weights) - mean_average_precision(reference, labels, weights)
    half = 1.96 * np.nanstd(change[1:], ddof=1)
    return float(change[0]), float(change[0] - half), float(change[0] + half)


def worst_label_drop(logits, reference, labels):
    """Largest drop of a label's average precision below that of another model, float in [-1, 1]."""
    ones = np.ones((len(labels), 1))
    pairs = zip(_by_label(logits, labels, ones), _by_label(reference, labels, ones), strict=True)
    return float(max((_average_precision(*b[1:]) - _average_precision(*a[1:]))[0] for a, b in pairs))


def mean_average_precision(logits, labels, weights):
    """Mean average precision for R weightings of the images: (N, K), (N, K), (N, R) -> (R,)."""
    return np.nanmean([_average_precision(p, y, w) for _, p, y, w in _by_label(logits, labels, weights)], axis=0)


def _average_precision(p, y, weights):
    """scikit-learn's `average_precision_score` for several weightings at once; NaN where no weight is on a 1."""
    order = np.argsort(-p, kind="stable")
    p, weights = p[order], weights[order]
    # Equal predictions, of which int8 files have many, are one step.
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True))
    hits = np.cumsum(weights * y[order][:, None], axis=0)[ends]
    precision = hits / np.maximum(np.cumsum(weights, axis=0)[ends], 1e-12)
    steps = np.diff(hits, axis=0, prepend=0)
    with np.errstate(invalid="ignore"):
        return (precision * steps).sum(axis=0) / hits[-1]


def _by_label(logits, labels, *more):
    """For each label with an image of either kind: its number, probabilities, labels, and rows of further arrays."""
    p, labels = probabilities(logits), np.asarray(labels)
    for label in range(labels.shape[1]):
        known = labels[:, label] >= 0
        y = labels[known, label]
        if 0 < y.sum() < len(y):
            yield label, p[known, label], y, *(array[known] for array in more)


def _calibration_error(p, y):
    bins = np.digitize(p, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], right=True)
    gaps = np.bincount(bins, weights=y - p, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(p))
