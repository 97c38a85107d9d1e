import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, LABELS = ref.logits(0), ref.multi_hot()


def value(z=STUDENT, labels=LABELS, **kwargs):
    return losses.BCE(**kwargs)({"logits": z}, {}, labels).numpy()


def expected(z, labels, smoothing=0.0):
    y = np.float64(labels) * (1 - smoothing) + smoothing / 2
    return -(y * ref.log_sigmoid(z) + (1 - y) * ref.log_sigmoid(-np.float64(z)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_golden(smoothing):
    actual = value(label_smoothing=smoothing)
    np.testing.assert_allclose(actual, expected(STUDENT, LABELS, smoothing).mean(axis=-1), rtol=1e-5)


def test_by_hand():
    # −log σ(0) = log 2; σ(log 3) = ¾, whose −log(1 − ¾) is log 4.
    actual = value(np.array([[0.0, np.log(3.0)]], "float32"), np.array([[1, 0]]))
    np.testing.assert_allclose(actual, [(np.log(2) + np.log(4)) / 2], rtol=1e-6)


def test_labels_that_are_not_known_are_left_out_of_value_and_gradient():
    labels = LABELS.copy()
    labels[1, 2] = labels[1, 4] = -1
    labels[2] = -1
    z = tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        actual = losses.BCE(label_smoothing=0.1)({"logits": z}, {}, labels)
    terms = np.where(labels < 0, 0, expected(STUDENT, labels, 0.1))
    np.testing.assert_allclose(actual, terms.sum(axis=-1) / np.maximum((labels >= 0).sum(axis=-1), 1), rtol=1e-5)
    gradient = tape.gradient(actual, z).numpy()
    np.testing.assert_array_equal(gradient[labels < 0], 0)
    assert np.all(gradient[labels >= 0] != 0) and actual[2] == 0


def test_labels_between_0_and_1_as_mixup_leaves_them():
    mixed = 0.7 * LABELS + 0.3 * LABELS[::-1]
    np.testing.assert_allclose(value(labels=mixed.astype("float32")), expected(STUDENT, mixed).mean(axis=-1), rtol=1e-5)


def test_no_digits_are_lost_where_the_student_is_sure():
    z = np.array([[-60.0, 40.0]], "float32")
    np.testing.assert_allclose(value(z, np.array([[0, 1]])), expected(z, [[0, 1]]).mean(axis=-1), rtol=1e-4)


@pytest.mark.parametrize("labels", [ref.classes(), ref.classes()[:, None]])
def test_classes_are_refused(labels):
    with pytest.raises(InputError, match=r"bce takes labels \(B, 5\) of 0 and 1"):
        value(labels=labels)


def test_label_smoothing_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"bce\(label_smoothing=1\): it lies in \[0, 1\)"):
        losses.BCE(label_smoothing=1)


def test_reads_the_students_logits_alone():
    assert losses.BCE().taps(["logits"], None) == (("logits",), ())
