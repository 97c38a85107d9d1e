import numpy as np

from kd_keras import losses
from tests.losses import reference as ref

STUDENT, TEACHER = ref.features(0, 4, 4, 3), ref.features(10, 4, 4, 5)


def value(student=STUDENT, teacher=TEACHER):
    return losses.NST()({"stage1": student}, {"stage1": teacher}, ref.classes()).numpy()


def kernel(a, b):
    """Mean over all pairs of channels of (aᵀb)², both of norm 1."""
    total = 0
    for i in range(a.shape[-1]):
        for j in range(b.shape[-1]):
            x, y = np.float64(a[..., i]).ravel(), np.float64(b[..., j]).ravel()
            total += (x @ y / np.linalg.norm(x) / np.linalg.norm(y)) ** 2
    return total / a.shape[-1] / b.shape[-1]


def test_golden():
    expected = [kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in zip(STUDENT, TEACHER, strict=True)]
    np.testing.assert_allclose(value(), expected, rtol=1e-5)


def test_is_0_where_the_channels_are_the_same_set():
    np.testing.assert_allclose(value(2 * TEACHER[..., ::-1], TEACHER), 0, atol=1e-6)
    np.testing.assert_allclose(value(np.concatenate([TEACHER, TEACHER], -1), TEACHER), 0, atol=1e-6)


def test_a_channel_that_is_dead_gives_nothing():
    dead = STUDENT.copy()
    dead[..., 0] = 0
    expected = [
        kernel(t, t) + kernel(s[..., 1:], s[..., 1:]) * 4 / 9 - 2 * kernel(s[..., 1:], t) * 2 / 3
        for s, t in zip(STUDENT, TEACHER, strict=True)
    ]
    np.testing.assert_allclose(value(dead), expected, rtol=1e-5)
