import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER = ref.logits(0), ref.logits(1)


def value(loss=losses.SoftCE, z_s=STUDENT, z_t=TEACHER, **kwargs):
    return loss(**kwargs)({"logits": z_s}, {"logits": z_t}, ref.classes()).numpy()


def gradient(loss, **kwargs):
    z = tf.constant(STUDENT)
    with tf.GradientTape() as tape:
        tape.watch(z)
        term = loss(**kwargs)({"logits": z}, {"logits": TEACHER}, ref.classes())
    return tape.gradient(term, z).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1, 4.0, 20.0])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_golden(temperature, standardize, weight):
    z_s, z_t = (ref.standardized(z) if standardize else np.float64(z) for z in (STUDENT, TEACHER))
    cross = -np.sum(np.exp(ref.log_softmax(z_t / temperature)) * ref.log_softmax(z_s / temperature), axis=-1)
    actual = value(temperature=temperature, standardize=standardize, weight=weight)
    assert actual.shape == (ref.BATCH,)
    np.testing.assert_allclose(actual, temperature**2 * cross, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_golden_without_the_square_of_the_temperature(temperature):
    z_s, z_t = np.float64(STUDENT), np.float64(TEACHER)
    cross = -np.sum(np.exp(ref.log_softmax(z_t / temperature)) * ref.log_softmax(z_s / temperature), axis=-1)
    np.testing.assert_allclose(value(temperature=temperature, squared=False), cross, rtol=1e-5)
    assert losses.SoftCE(squared=False).get_config()["squared"] is False


def test_default_temperature_is_1():
    np.testing.assert_array_equal(value(), value(temperature=1.0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("standardize", [False, True])
def test_is_kd_plus_the_teachers_entropy_with_the_same_gradient(temperature, standardize):
    options = {"temperature": temperature, "standardize": standardize}
    constant = temperature**2 * ref.entropy(ref.standardized(TEACHER) if standardize else TEACHER, temperature)
    difference = value(**options) - value(losses.KD, **options)
    np.testing.assert_allclose(difference, constant, rtol=1e-5, atol=1e-5)
    assert np.abs(gradient(losses.SoftCE, **options)).max() > 1e-3
    np.testing.assert_allclose(gradient(losses.SoftCE, **options), gradient(losses.KD, **options), rtol=1e-4, atol=1e-6)


def test_least_value_is_the_teachers_entropy():
    least = 4 * ref.entropy(TEACHER, 2.0)
    np.testing.assert_allclose(value(z_s=TEACHER, temperature=2.0), least, rtol=1e-5)
    assert np.all(value(temperature=2.0) > least)


def test_of_a_certain_teacher_is_cross_entropy():
    certain = 1000 * np.eye(ref.CLASSES, dtype="float32")[ref.classes()]
    hard = losses.CE()({"logits": STUDENT}, {}, ref.classes())
    np.testing.assert_allclose(value(z_t=certain), hard, rtol=1e-6)


def test_standardize_is_refused_for_two_classes_by_name():
    two = ref.logits(classes=2)
    with pytest.raises(InputError, match=r"soft_ce\(standardize=True\) is void for two classes"):
        value(z_s=two, z_t=two, standardize=True)


def test_standardized_logits_do_not_feel_scale_and_shift():
    moved = value(z_s=0.3 * STUDENT + 2, z_t=9 * TEACHER - 1, standardize=True)
    np.testing.assert_allclose(moved, value(standardize=True), rtol=1e-5)
