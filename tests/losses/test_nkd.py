import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER, LABELS = ref.logits(0), ref.logits(1), ref.classes()


def value(z_s=STUDENT, z_t=TEACHER, labels=LABELS, **kwargs):
    return losses.NKD(**kwargs)({"logits": z_s}, {"logits": z_t}, labels).numpy()


def expected(z_s, z_t, gamma, temperature, labels=LABELS):
    """Equation 9, sample by sample."""
    out = []
    for s, t, y in zip(np.float64(z_s), np.float64(z_t), labels, strict=True):
        own = -np.exp(ref.log_softmax(t)[y]) * ref.log_softmax(s)[y]
        log_s, log_t = (ref.log_softmax(np.delete(z, y) / temperature) for z in (s, t))
        out.append(own - gamma * temperature**2 * np.sum(np.exp(log_t) * log_s))
    return np.array(out)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (3.5, 3.0), (0.0, 2.0)])
@pytest.mark.parametrize("standardize", [False, True])
def test_golden(gamma, temperature, standardize):
    z_s, z_t = (ref.standardized(z) if standardize else z for z in (STUDENT, TEACHER))
    actual = value(gamma=gamma, temperature=temperature, standardize=standardize)
    np.testing.assert_allclose(actual, expected(z_s, z_t, gamma, temperature), rtol=1e-5)


def test_defaults():
    np.testing.assert_array_equal(value(), value(gamma=1.5, temperature=1.0))


def test_the_others_are_at_their_least_where_both_are_equal():
    """There it is γλ² times the teacher's entropy over the other classes."""
    least = value(TEACHER, TEACHER, temperature=3.0)
    own = np.array([-np.exp(p := ref.log_softmax(np.float64(t))[y]) * p for t, y in zip(TEACHER, LABELS, strict=True)])
    entropy = [ref.entropy(np.delete(np.float64(t), y), 3.0) for t, y in zip(TEACHER, LABELS, strict=True)]
    np.testing.assert_allclose(least, own + 1.5 * 9 * np.array(entropy), rtol=1e-5)


def test_labels_after_mixup_count_by_the_largest():
    shares = ref.shares()
    np.testing.assert_array_equal(value(labels=shares), value(labels=shares.argmax(-1)))


def test_two_classes_are_refused_by_name():
    two = ref.logits(classes=2)
    with pytest.raises(InputError, match=r"nkd\(gamma=1.5\) is void for two classes: .* write gamma=0"):
        value(two, two, LABELS % 2)
    assert np.all(np.isfinite(value(two, -two, LABELS % 2, gamma=0)))
