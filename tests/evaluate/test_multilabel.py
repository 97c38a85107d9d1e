"""Figures of independent labels: by hand, against scikit-learn, and with labels that are not known."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from kd_keras.errors import InputError
from kd_keras.evaluate import multilabel
from tests.losses import reference as ref

N, K = 200, 4
RNG = np.random.default_rng(0)
LABELS = (RNG.random((N, K)) < [0.1, 0.3, 0.5, 0.8]).astype("int64")
# Rounded, so that there are ties, as an int8 file has them.
LOGITS = np.round(RNG.normal(2.0 * LABELS - 1, 1.5), 1)
HALF = np.full(K, 0.5)


def test_figures_by_hand():
    logits = np.array([[2.0, -1.0], [1.0, 3.0], [-3.0, -2.0], [-1.0, 0.5]])
    labels = np.array([[1, 0], [0, 1], [0, 0], [1, 0]])
    actual = multilabel.metrics(logits, labels, np.array([0.5, 0.5]))
    # Label 0: ranks 1 (hit), 2, 3 (hit): (1/1 + 2/3) / 2. Label 1: its one hit is first.
    assert actual["map"] == pytest.approx((5 / 6 + 1) / 2)
    # Of the pairs of a hit and another, label 0 has 3 of 4 in order, label 1 all.
    assert actual["auc"] == pytest.approx((0.75 + 1) / 2)
    # Label 0: decided at 0 and 1, right at 0 of 2; label 1: decided at 1 and 3, right at 1.
    assert (actual["precision"], actual["recall"]) == (0.5, 0.75)
    assert actual["f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert actual["f1_micro"] == pytest.approx(2 * 2 / (4 + 3))
    assert actual["subset_accuracy"] == 0.5


def test_figures_against_scikit_learn():
    actual = multilabel.metrics(LOGITS, LABELS, HALF)
    p = np.exp(ref.log_sigmoid(LOGITS))
    assert actual["map"] == pytest.approx(average_precision_score(LABELS, p, average="macro"))
    assert actual["auc"] == pytest.approx(roc_auc_score(LABELS, p, average="macro"))
    for name, average in (("f1", "macro"), ("f1_micro", "micro")):
        assert actual[name] == pytest.approx(f1_score(LABELS, p >= 0.5, average=average))


def test_calibration_is_of_the_labels_probabilities():
    labels = np.repeat([[1, 0]], 100, axis=0)
    labels[:60] = labels[:60, ::-1]
    # 40 % of the first column and 60 % of the second are 1, and σ(0.4055) is 0.6.
    logits = np.full((100, 2), np.log(0.6 / 0.4))
    assert multilabel.metrics(logits, labels, HALF[:2])["ece"] == pytest.approx(abs(0.5 - 0.6))


def test_unknown_labels_count_nowhere():
    unknown = LABELS.copy()
    hidden = RNG.random(LABELS.shape) < 0.3
    unknown[hidden] = -1
    noise = np.where(hidden, RNG.normal(0, 9, LABELS.shape), LOGITS)
    assert multilabel.metrics(noise, unknown, HALF) == multilabel.metrics(LOGITS, unknown, HALF)
    k = 1
    known = ~hidden[:, k]
    report = multilabel.label_report(LOGITS, unknown, HALF)[k]
    assert report["average_precision"] == pytest.approx(average_precision_score(LABELS[known, k], LOGITS[known, k]))
    assert report["support"] == LABELS[known, k].sum()


def test_a_label_without_an_image_of_either_kind_is_left_out():
    labels = LABELS.copy()
    labels[:, 2] = 1
    report = multilabel.label_report(LOGITS, labels, HALF)
    assert report[2]["auc"] is None and report[2]["support"] == N
    others = [row["average_precision"] for n, row in enumerate(report) if n != 2]
    assert multilabel.metrics(LOGITS, labels, HALF)["map"] == pytest.approx(np.mean(others))
    with pytest.raises(InputError, match="no label has an image with 1 and an image with 0"):
        multilabel.metrics(LOGITS, np.ones_like(LABELS), HALF)


def test_thresholds_are_best_where_they_are_chosen():
    chosen = multilabel.thresholds(LOGITS, LABELS)
    p = np.exp(ref.log_sigmoid(LOGITS))
    for k in range(K):
        best = max(f1_score(LABELS[:, k], p[:, k] >= limit) for limit in np.unique(p[:, k]))
        assert f1_score(LABELS[:, k], p[:, k] >= chosen[k]) == pytest.approx(best)
        assert chosen[k] not in p[:, k]
    np.testing.assert_array_equal(multilabel.thresholds(LOGITS, np.zeros_like(LABELS)), HALF)


def test_weighted_average_precision_is_scikit_learns_with_ties():
    weights = RNG.multinomial(N, np.full(N, 1 / N), 5).T
    actual = multilabel.mean_average_precision(LOGITS, LABELS, weights)
    for column, value in zip(weights.T, actual, strict=True):
        expected = [average_precision_score(LABELS[:, k], LOGITS[:, k], sample_weight=column) for k in range(K)]
        assert value == pytest.approx(np.mean(expected))


def test_change_has_an_interval_that_is_0_for_the_same_and_holds_the_difference():
    assert multilabel.map_change(LOGITS, LOGITS, LABELS) == (0, 0, 0)
    worse = LOGITS + RNG.normal(0, 2, LOGITS.shape)
    change, low, high = multilabel.map_change(worse, LOGITS, LABELS)
    expected = average_precision_score(LABELS, worse) - average_precision_score(LABELS, LOGITS)
    assert change == pytest.approx(expected) and low < change < high < 0.05
    drops = [average_precision_score(LABELS[:, k], LOGITS[:, k]) - average_precision_score(LABELS[:, k], worse[:, k])
             for k in range(K)]  # fmt: skip
    assert multilabel.worst_label_drop(worse, LOGITS, LABELS) == pytest.approx(max(drops))


def test_interval_is_as_wide_as_the_spread_over_samples():
    """Differences of other samples of the same kind spread as the bootstrap of one says."""
    differences, halves = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = (rng.random((150, 2)) < 0.4).astype(int)
        first, second = (rng.normal(2.0 * labels - 1, 2.0) for _ in range(2))
        change, low, high = multilabel.map_change(first, second, labels)
        differences.append(change)
        halves.append((high - low) / 2)
    assert 1.96 * np.std(differences) == pytest.approx(np.mean(halves), rel=0.3)


def test_agreement_and_areas():
    other = LOGITS.copy()
    other[:50, 0] = -other[:50, 0] - 0.05
    assert multilabel.agreement(LOGITS, LOGITS) == 1
    assert multilabel.agreement(other, LOGITS) == pytest.approx(
        1 - np.mean(other[:50, 0] * LOGITS[:50, 0] < 0) / 16, abs=0.01
    )
    areas = multilabel.areas(LOGITS[:, ::-1], LABELS)
    assert areas.argmax(axis=1).tolist() == [3, 2, 1, 0]
    assert areas[0, 3] == pytest.approx(roc_auc_score(LABELS[:, 0], LOGITS[:, 0]))
