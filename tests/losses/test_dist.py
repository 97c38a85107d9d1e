import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER, LABELS = ref.logits(0), ref.logits(1), ref.classes()


def value(z_s=STUDENT, z_t=TEACHER, **kwargs):
    return losses.DIST(**kwargs)({"logits": z_s}, {"logits": z_t}, LABELS).numpy()


def probabilities(z, temperature):
    return np.exp(ref.log_softmax(np.float64(z) / temperature))


def expected(z_s, z_t, beta, gamma, temperature):
    """Equations 8 to 10, with numpy's own correlation coefficients."""
    p_s, p_t = probabilities(z_s, temperature), probabilities(z_t, temperature)
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)]
    return temperature**2 * (beta * np.array(rows) + gamma * np.mean(columns))


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 4.0), (2.0, 0.0, 1.0), (0.0, 3.0, 1.0)])
@pytest.mark.parametrize("standardize", [False, True])
def test_golden(beta, gamma, temperature, standardize):
    z_s, z_t = (ref.standardized(z) if standardize else z for z in (STUDENT, TEACHER))
    actual = value(beta=beta, gamma=gamma, temperature=temperature, standardize=standardize)
    np.testing.assert_allclose(actual, expected(z_s, z_t, beta, gamma, temperature), rtol=1e-5, atol=1e-5)


def test_defaults():
    np.testing.assert_array_equal(value(), value(beta=1.0, gamma=1.0, temperature=4.0))


def test_is_0_where_the_probabilities_are_affinely_related():
    """Rows and columns correlate perfectly where p_s = a·p_t + (1 − a) / K, which a positive a keeps a distribution."""
    p_t = probabilities(TEACHER, 1.0)
    for a in (1.0, 0.3, 0.05):
        z_s = np.log(a * p_t + (1 - a) / ref.CLASSES)
        np.testing.assert_allclose(value(z_s.astype("float32"), TEACHER, temperature=1.0), 0, atol=2e-6)
    # Row by row, each with its own slope: the relations within a sample alone.
    slopes = np.linspace(0.1, 1, ref.BATCH)[:, None]
    z_s = np.log(slopes * p_t + (1 - slopes) / ref.CLASSES).astype("float32")
    np.testing.assert_allclose(value(z_s, TEACHER, temperature=1.0, gamma=0.0), 0, atol=2e-6)
    assert np.all(value(z_s, TEACHER, temperature=1.0) > 1e-3)


def test_a_class_that_nobody_gives_counts_as_uncorrelated():
    z_s, z_t = STUDENT.copy(), TEACHER.copy()
    z_s[:, 0] = z_t[:, 0] = -1e4
    actual = value(z_s, z_t, beta=0.0, temperature=1.0)
    columns = [
        np.corrcoef(*pair)[0, 1] for pair in zip(probabilities(z_s, 1).T[1:], probabilities(z_t, 1).T[1:], strict=True)
    ]
    np.testing.assert_allclose(actual, 1 - np.sum(columns) / ref.CLASSES, rtol=1e-5)


def test_two_classes_are_refused_by_name():
    two = ref.logits(classes=2)
    with pytest.raises(InputError, match=r"dist\(beta=1.0\) is void for two classes: .* write beta=0"):
        value(two, two)
    assert np.all(np.isfinite(value(two, -two, beta=0)))
