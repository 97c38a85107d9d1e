import numpy as np
import pytest

from kd_keras.losses import labels


def test_both_forms_say_the_same():
    mixed = np.array([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]], "float32")
    np.testing.assert_array_equal(labels.classes(mixed), [0, 2])
    np.testing.assert_array_equal(labels.class_weights(mixed, 3), mixed)
    for same in (np.array([2, 0]), np.array([[2], [0]]), np.array([2.0, 0.0])):
        np.testing.assert_array_equal(labels.classes(same), [2, 0])
        np.testing.assert_array_equal(labels.class_weights(same, 3), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_golden(smoothing):
    logits = np.array([[1.0, -2.0, 0.5], [3.0, 3.0, -1.0]])
    targets = np.array([[0, 1, 0], [0.25, 0, 0.75]])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -((targets * (1 - smoothing) + smoothing / 3) * log_p).sum(-1)
    np.testing.assert_allclose(labels.cross_entropy(targets, logits.astype("float32"), smoothing), expected, rtol=1e-5)
    one = labels.cross_entropy(np.array([1]), logits[:1].astype("float32"), smoothing)
    np.testing.assert_allclose(one, expected[:1], rtol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_that_is_no_class_is_not_taken_for_a_solved_one(wrong):
    loss = np.asarray(labels.cross_entropy(np.array([0, wrong]), np.zeros((2, 3), "float32")))
    assert np.isfinite(loss[0]) and np.isnan(loss[1])


MIXED = np.array([[0.25, 0, 0.75], [-1, -1, -1], [0, 1, 0]])


def test_a_row_of_minus_one_has_no_label():
    given, has_label = labels.without_missing(MIXED)
    np.testing.assert_array_equal(has_label, [True, False, True])
    np.testing.assert_array_equal(given, np.maximum(MIXED, 0))
    assert labels.fault(MIXED, 3) is None and not labels.may_be_at_fault(MIXED, 3)
    assert "1 labels are -1" in labels.fault(MIXED, 3, missing=False)
    assert labels.may_be_at_fault(MIXED, 3, missing=False)
    for wrong in (np.where(MIXED == 0.25, -1, MIXED), np.where(MIXED == 1, 0.5, MIXED)):
        assert labels.fault(wrong, 3) and labels.may_be_at_fault(wrong, 3)


def test_rows_of_minus_one_make_no_independent_labels():
    assert not labels.are_multi_hot(np.array([[0, 1, 0], [-1, -1, -1]]))
    assert labels.are_multi_hot(np.array([[0, 1, 1], [-1, -1, -1]]))
    assert labels.are_multi_hot(np.array([[0, 1, 0], [-1, 0, 0]]))
    assert not labels.are_multi_hot(np.full((2, 3), -1))
