import numpy as np
import pytest
import tensorflow as tf

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


# ---- flat logits: a column or row of equal probabilities has no direction ----


@pytest.mark.parametrize(
    ("batch", "num_classes", "level"), [(64, 10, 0.0), (6, 5, 0.7), (33, 3, 7.3), (16, 100, -40.1)]
)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equal_logits_count_as_uncorrelated(batch, num_classes, level, temperature):
    z_t = ref.logits(3, num_classes, batch)
    z_s = tf.Variable(np.full((batch, num_classes), level, "float32"))
    with tf.GradientTape() as tape:
        total = tf.reduce_mean(losses.DIST(temperature=temperature)({"logits": z_s}, {"logits": z_t}, None))
    np.testing.assert_allclose(total, 2 * temperature**2, rtol=1e-6)
    assert np.abs(tape.gradient(total, z_s)).max() < (1 if batch == 64 else 10)


def test_the_gradient_is_that_of_the_formula_where_probabilities_differ():
    for scale in (1.0, 3.0):
        z_s = ref.logits(0, scale=scale)
        variable = tf.Variable(z_s)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(losses.DIST()({"logits": variable}, {"logits": TEACHER}, None))
        numeric = np.zeros(z_s.shape)
        for at in np.ndindex(z_s.shape):
            step = np.zeros(z_s.shape)
            step[at] = 1e-5
            numeric[at] = (
                expected(z_s + step, TEACHER, 1, 1, 4).sum() - expected(z_s - step, TEACHER, 1, 1, 4).sum()
            ) / 2e-5
        np.testing.assert_allclose(
            tape.gradient(total, variable), numeric, rtol=1e-3, atol=1e-4 * np.abs(numeric).max()
        )


def test_a_classifier_that_starts_at_0_learns():
    rng = np.random.default_rng(0)
    x, z_t = rng.normal(0, 1, (64, 20)).astype("float32"), ref.logits(3, 10, 64)
    kernel, term, values = tf.Variable(np.zeros((20, 10), "float32")), losses.DIST(), []
    for _ in range(10):
        with tf.GradientTape() as tape:
            total = tf.reduce_mean(term({"logits": x @ kernel}, {"logits": z_t}, None))
        kernel.assign_sub(0.05 * tape.gradient(total, kernel))
        values.append(float(total))
    assert values[-1] < values[0] / 2, values
    assert np.abs(x @ kernel.numpy()).max() < 10
