import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER, LABELS = ref.logits(0), ref.logits(1), ref.classes()


def value(z_s=STUDENT, z_t=TEACHER, labels=LABELS, **kwargs):
    return losses.DKD(**kwargs)({"logits": z_s}, {"logits": z_t}, labels).numpy()


def binary(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def parts(z_s, z_t, temperature, labels=LABELS):
    """TCKD and NCKD of each sample, by equations 4 and 6: probabilities, and softmaxes with the target left out."""
    target, others = [], []
    for s, t, y in zip(np.float64(z_s), np.float64(z_t), labels, strict=True):
        p_s, p_t = (np.exp(ref.log_softmax(z / temperature)) for z in (s, t))
        target.append(binary(p_t[y], p_s[y]))
        others.append(ref.kl(np.delete(t, y)[None], np.delete(s, y)[None], temperature)[0])
    return np.array(target), np.array(others)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.5), (0.0, 1.0, 4.0)])
@pytest.mark.parametrize("standardize", [False, True])
def test_golden(alpha, beta, temperature, standardize):
    z_s, z_t = (ref.standardized(z) if standardize else z for z in (STUDENT, TEACHER))
    target, others = parts(z_s, z_t, temperature)
    expected = temperature**2 * (alpha * target + beta * others)
    actual = value(alpha=alpha, beta=beta, temperature=temperature, standardize=standardize)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual.mean(), expected.mean(), rtol=1e-5)


def test_defaults():
    np.testing.assert_array_equal(value(), value(alpha=1.0, beta=8.0, temperature=4.0))


def test_is_kd_where_beta_is_what_the_teacher_leaves_to_the_others():
    """Equation 7: KD = TCKD + (1 − p_t^y)·NCKD, sample by sample."""
    for i, y in enumerate(LABELS):
        rest = 1 - np.exp(ref.log_softmax(TEACHER[i] / 4.0))[y]
        one = [x[i : i + 1] for x in (STUDENT, TEACHER)]
        kd = losses.KD(temperature=4.0)({"logits": one[0]}, {"logits": one[1]}, [y]).numpy()
        np.testing.assert_allclose(value(*one, np.array([y]), alpha=1.0, beta=float(rest)), kd, rtol=2e-5)


def test_is_0_where_both_are_equal():
    np.testing.assert_allclose(value(TEACHER, TEACHER), 0, atol=1e-5)


def test_a_teacher_that_is_sure_still_tells_of_the_others():
    """Where float32 has nothing left of 1 − p_t^y, the others keep their shares."""
    sure = TEACHER.copy()
    sure[np.arange(ref.BATCH), LABELS] += 400
    with np.errstate(divide="ignore", invalid="ignore"):  # of the target's part, which is not asked for
        _, others = parts(STUDENT, sure, 4.0)
    np.testing.assert_allclose(value(STUDENT, sure, alpha=0.0, beta=1.0), 16 * others, rtol=1e-4)


def test_labels_after_mixup_count_by_the_largest():
    shares = ref.shares()
    np.testing.assert_array_equal(value(labels=shares), value(labels=shares.argmax(-1)))


def test_two_classes_are_refused_by_name():
    two = ref.logits(classes=2)
    with pytest.raises(InputError, match=r"dkd\(beta=8.0\) is void for two classes: .* write beta=0, or take kd"):
        value(two, two, LABELS % 2)
    assert np.all(np.isfinite(value(two, -two, LABELS % 2, beta=0)))


@pytest.mark.parametrize(("kwargs", "message"), [({"alpha": -1}, "alpha=-1"), ({"beta": "8"}, "beta='8'")])
def test_refuses_what_cannot_be(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.DKD(**kwargs)
