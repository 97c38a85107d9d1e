"""SP, PKT, CC and RKD: golden values, identities and invariances."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

B = ref.BATCH
STUDENT, TEACHER = ref.features(0, 7), ref.features(10, 11)
MAPS = ref.features(0, 4, 4, 3), ref.features(10, 2, 2, 5)
ALL = [losses.SP, losses.PKT, losses.CC, losses.RKD]


def value(term, student=STUDENT, teacher=TEACHER):
    name = "pooled" if np.ndim(student) == 2 else "stage1"
    made = term(pairs=f"{name}:{name}") if isinstance(term, type) else term
    return made({name: student}, {name: teacher}, ref.classes()).numpy()


def rows(features):
    return np.float64(features).reshape(len(features), -1)


def normalised(features):
    f = rows(features)
    return f / np.linalg.norm(f, axis=-1, keepdims=True)


def sp(student, teacher):
    """Equations 1 to 4."""
    g_s, g_t = (normalised(rows(f) @ rows(f).T) for f in (student, teacher))
    return np.sum((g_t - g_s) ** 2) / B**2


def pkt(student, teacher):
    """Equations 4 to 7 with the cosine kernel."""
    k_s, k_t = ((normalised(f) @ normalised(f).T + 1) / 2 for f in (student, teacher))
    p_s, p_t = (k / k.sum(axis=1, keepdims=True) for k in (k_s, k_t))
    return np.mean(p_t * np.log((p_t + 1e-7) / (p_s + 1e-7)))


def cc(student, teacher, gamma=0.4, order=2):
    """Equations 4 to 7, entry by entry."""
    total = 0
    f_s, f_t = normalised(student), normalised(teacher)
    for i in range(B):
        for j in range(B):
            c_s, c_t = (
                math.exp(-2 * gamma)
                * sum((2 * gamma) ** p / math.factorial(p) * (f[i] @ f[j]) ** p for p in range(order + 1))
                for f in (f_s, f_t)
            )
            total += (c_t - c_s) ** 2
    return total / B**2


def huber(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def distances(features):
    """Equation 5, divided by the mean of those above 0 (equation 6)."""
    f = rows(features)
    d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
    return d / d[d > 0].mean()


def angles(features):
    """Equation 8: cos of the angle at j between i and k."""
    f = rows(features)
    out = np.zeros((B, B, B))
    for j in range(B):
        e = [(f[i] - f[j]) / (np.linalg.norm(f[i] - f[j]) or 1) for i in range(B)]
        for i in range(B):
            for k in range(B):
                out[j, i, k] = e[i] @ e[k]
    return out


def rkd(student, teacher, distance=25, angle=50):
    of_distance = huber(distances(student) - distances(teacher)).mean()
    return distance * of_distance + angle * huber(angles(student) - angles(teacher)).mean()


GOLDEN = {losses.SP: sp, losses.PKT: pkt, losses.CC: cc, losses.RKD: rkd}


@pytest.mark.parametrize("term", ALL)
@pytest.mark.parametrize("features", [(STUDENT, TEACHER), MAPS], ids=["vectors", "maps"])
def test_golden(term, features):
    actual = value(term, *features)
    assert actual.shape == ()
    np.testing.assert_allclose(actual, GOLDEN[term](*features), rtol=2e-5)


def test_golden_with_other_arguments():
    np.testing.assert_allclose(value(losses.CC(gamma=1.5, order=4)), cc(STUDENT, TEACHER, 1.5, 4), rtol=1e-5)
    np.testing.assert_allclose(value(losses.RKD(distance=3, angle=0)), rkd(STUDENT, TEACHER, 3, 0), rtol=1e-5)
    np.testing.assert_allclose(value(losses.RKD(distance=0, angle=2)), rkd(STUDENT, TEACHER, 0, 2), rtol=1e-5)


def test_the_series_tends_to_the_gaussian_kernel():
    f = normalised(STUDENT)
    gaussian = np.exp(-0.4 * np.sum((f[:, None] - f[None]) ** 2, axis=-1))
    np.testing.assert_allclose(losses.CC(order=12).relation(tf.constant(STUDENT)), gaussian, rtol=1e-5)


@pytest.mark.parametrize("term", ALL)
def test_is_0_where_both_are_equal(term):
    np.testing.assert_allclose(value(term, TEACHER, TEACHER), 0, atol=1e-7)


def rotation(size, seed=5):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0].astype("float32")


@pytest.mark.parametrize("term", ALL)
def test_rotation_of_the_features_does_not_matter(term):
    np.testing.assert_allclose(value(term, STUDENT @ rotation(7), TEACHER @ rotation(11)), value(term), rtol=1e-4)
    assert abs(value(term, STUDENT @ ref.features(3, 7, batch=7), TEACHER) / value(term) - 1) > 1e-2


@pytest.mark.parametrize("term", ALL)
def test_scale_of_the_features_does_not_matter(term):
    np.testing.assert_allclose(value(term, 7 * STUDENT, 0.2 * TEACHER), value(term), rtol=1e-4)


def test_rkd_does_not_feel_where_the_features_lie():
    np.testing.assert_allclose(value(losses.RKD, STUDENT + 3, TEACHER - 5), value(losses.RKD), rtol=1e-4)


@pytest.mark.parametrize("term", ALL)
def test_samples_that_coincide_have_a_finite_gradient(term):
    twins = tf.constant(np.repeat(STUDENT[:3], 2, axis=0))
    made = term(pairs="pooled:pooled")
    for student in (twins, tf.zeros_like(twins)):
        with tf.GradientTape() as tape:
            tape.watch(student)
            total = made({"pooled": student}, {"pooled": tf.constant(TEACHER)}, ref.classes())
        assert np.isfinite(total) and np.all(np.isfinite(tape.gradient(total, student)))


def test_which_taps_are_read():
    offered = ["stage1", "stage2", "pooled", "logits"]
    assert losses.SP().taps(offered, offered) == (("stage2",), ("stage2",))
    for term in (losses.PKT, losses.CC, losses.RKD):
        assert term().taps(offered, offered) == (("pooled",), ("pooled",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.RKD(distance=0, angle=0), "rkd.distance=0, angle=0. is always 0"),
        (lambda: losses.RKD(angle=-1), "angle=-1"),
        (lambda: losses.CC(order=0), "order=0.: give a whole number of at least 1"),
        (lambda: value(losses.SP, ref.features(0, 4, 3), TEACHER), "sp cannot compare by stage1"),
    ],
)
def test_refuses_what_cannot_be(make, message):
    with pytest.raises(InputError, match=message):
        make()
