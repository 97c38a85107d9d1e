"""Metrics of a Distiller on their own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from kd_keras.distillation import heads
from kd_keras.distillation.metrics import MeanAveragePrecision
from tests.losses import reference as ref

RNG = np.random.default_rng(0)
LABELS = (RNG.random((300, 3)) < [0.1, 0.4, 0.9]).astype("int32")
LOGITS = RNG.normal(2.0 * LABELS - 1, 1.5).astype("float32")


def expected(labels, logits=LOGITS, weights=None):
    values = []
    for k in range(labels.shape[1]):
        known = labels[:, k] >= 0
        given = None if weights is None else weights[known]
        values.append(average_precision_score(labels[known, k], logits[known, k], sample_weight=given))
    return np.mean(values)


def updated(labels, outputs=LOGITS, head=None, weights=None):
    metric = MeanAveragePrecision(3)
    metric.head = head

    @tf.function
    def update(*batch):
        metric.update_state(*batch)

    for rows in np.split(np.arange(300), [128, 256]):
        update(labels[rows], outputs[rows], None if weights is None else weights[rows])
    return metric


@pytest.mark.parametrize("gives", ["multilabel_logits", "multilabel_probabilities"])
def test_mean_average_precision_over_batches_is_scikit_learns(gives):
    outputs = LOGITS if gives.endswith("logits") else np.exp(ref.log_sigmoid(LOGITS)).astype("float32")
    assert float(updated(LABELS, outputs, heads.Head(gives)).result()) == pytest.approx(expected(LABELS), abs=2e-3)


def test_unknown_labels_and_weights():
    labels = np.where(RNG.random(LABELS.shape) < 0.3, -1, LABELS)
    weights = RNG.integers(0, 3, 300).astype("float32")
    assert float(updated(labels).result()) == pytest.approx(expected(labels), abs=2e-3)
    assert float(updated(LABELS, weights=weights).result()) == pytest.approx(
        expected(LABELS, weights=weights), abs=2e-3
    )


def test_labels_of_one_kind_are_left_out_and_nothing_is_0():
    labels = LABELS.copy()
    labels[:, 2] = 1
    assert float(updated(labels).result()) == pytest.approx(expected(LABELS[:, :2], LOGITS[:, :2]), abs=2e-3)
    assert float(MeanAveragePrecision(3).result()) == 0


def test_state_is_reset_and_restored():
    metric = updated(LABELS)
    metric.reset_state()
    assert float(metric.result()) == 0
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert again.num_labels == 3 and again.name == "map"
