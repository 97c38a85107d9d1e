import numpy as np
import tensorflow as tf

from kd_keras import losses
from tests.losses import reference as ref

STUDENT, TEACHER = ref.features(0, 4, 4, 3), ref.features(10, 4, 4, 5)


def made():
    term = losses.OFD()
    term.build({"stage1_pre": (None, 4, 4, 3)}, {"stage1_pre": (None, 4, 4, 5)})
    return term


def value(term, student=STUDENT, teacher=TEACHER, **kwargs):
    return term({"stage1_pre": student}, {"stage1_pre": teacher}, ref.classes(), **kwargs).numpy()


def connected(term):
    kernel = np.float64(term.adapters[0].projection.get_weights()[0])
    # A batch norm that is not training, at its start, divides by √(1 + 1e-5).
    return np.float64(STUDENT) @ kernel[0, 0] / np.sqrt(1.00001)


def negative_mean(teacher):
    t = np.float64(teacher).reshape(-1, teacher.shape[-1])
    return np.array([column[column < 0].mean() for column in t.T])


def expected(s, teacher, margin):
    """Equations 2 to 4."""
    t = np.maximum(np.float64(teacher), margin)
    return np.where((s <= t) & (t <= 0), 0, np.square(t - s)).mean(axis=(1, 2, 3))


def test_golden():
    term = made()
    np.testing.assert_allclose(value(term), expected(connected(term), TEACHER, negative_mean(TEACHER)), rtol=1e-5)


def test_the_margin_is_that_of_all_that_was_seen_in_training():
    term = made()
    seen = [ref.features(20 + i, 4, 4, 5) - 0.3 * i for i in range(3)]
    for teacher in seen:
        value(term, teacher=teacher, training=True)
    both = negative_mean(np.concatenate([*seen, TEACHER]))
    np.testing.assert_allclose(term.adapters[0].margin(tf.constant(TEACHER), False), both, rtol=1e-5)
    # What is only measured does not count.
    np.testing.assert_allclose(term.adapters[0].margin(tf.constant(TEACHER), False), both, rtol=1e-5)


def test_a_channel_without_negatives_has_no_margin():
    term = made()
    teacher = np.abs(TEACHER)
    np.testing.assert_allclose(value(term, teacher=teacher), expected(connected(term), teacher, 0), rtol=1e-5)


def test_is_0_where_the_student_is_as_negative_or_more():
    term = made()
    term.adapters[0].norm.beta.assign(np.full(5, -50.0))
    np.testing.assert_array_equal(value(term, teacher=-np.abs(TEACHER)), 0)
