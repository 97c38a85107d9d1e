import numpy as np

from kd_keras import losses
from tests.losses import reference as ref

STUDENT, TEACHER = ref.features(0, 4, 4, 3), ref.features(10, 4, 4, 5)


def made():
    term = losses.VID()
    term.build({"stage1": (None, 4, 4, 3)}, {"stage1": (None, 4, 4, 5)})
    return term, term.adapters[0]


def value(term, student=STUDENT, teacher=TEACHER):
    return term({"stage1": student}, {"stage1": teacher}, ref.classes()).numpy()


def test_golden():
    term, gaussian = made()
    spread = np.linspace(-2, 3, 5)
    gaussian.spread.assign(spread)
    mean = np.float64(STUDENT)
    for i, layer in enumerate(gaussian.layers):
        kernel, bias = (np.float64(w) for w in layer.get_weights())
        mean = mean @ kernel[0, 0] + bias
        mean = np.maximum(mean, 0) if i < 2 else mean
    variance = np.log1p(np.exp(spread)) + 1e-5
    expected = 0.5 * (np.square(mean - TEACHER) / variance + np.log(variance))
    np.testing.assert_allclose(value(term), expected.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_starts_with_a_variance_of_5():
    _, gaussian = made()
    np.testing.assert_allclose(gaussian(STUDENT)[1], np.full(5, 5.0), rtol=1e-6)


def test_its_least_is_half_the_logarithm_of_the_variance():
    term, gaussian = made()
    teacher = gaussian(STUDENT)[0].numpy()
    np.testing.assert_allclose(value(term, teacher=teacher), 0.5 * np.log(5.0), rtol=1e-6)


def test_is_the_negative_log_likelihood_of_a_gaussian_but_for_a_constant():
    term, gaussian = made()
    mean = np.float64(gaussian(STUDENT)[0])
    density = np.exp(-np.square(mean - TEACHER) / 10) / np.sqrt(2 * np.pi * 5)
    expected = -np.log(density).mean(axis=(1, 2, 3)) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(value(term), expected, rtol=1e-5)
