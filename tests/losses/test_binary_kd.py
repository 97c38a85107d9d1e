import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER = ref.logits(0), ref.logits(1)


def value(z_s=STUDENT, z_t=TEACHER, **kwargs):
    return losses.BinaryKD(**kwargs)({"logits": z_s}, {"logits": z_t}, None).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_golden(temperature):
    expected = ref.binary_kl(TEACHER, STUDENT, temperature).mean(axis=-1)
    np.testing.assert_allclose(value(temperature=temperature), temperature**2 * expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(value(temperature=temperature, squared=False), expected, rtol=1e-5, atol=1e-7)


def test_by_hand():
    # ½ log(½ / ¼) + ½ log(½ / ¾), and a label on which both agree.
    z_t, z_s = np.array([[0.0, 1.0]], "float32"), np.array([[-np.log(3.0), 1.0]], "float32")
    np.testing.assert_allclose(value(z_s, z_t, temperature=1), [0.25 * np.log(4 / 3)], rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_is_kd_of_two_classes_for_each_label(temperature):
    """The softmax of (0, z) is (1 − σ(z), σ(z)), at every temperature."""
    pairs = []
    for k in range(ref.CLASSES):
        z_s, z_t = (np.stack([np.zeros(len(z)), z[:, k]], axis=-1).astype("float32") for z in (STUDENT, TEACHER))
        pairs.append(losses.KD(temperature=temperature)({"logits": z_s}, {"logits": z_t}, None).numpy())
    np.testing.assert_allclose(value(temperature=temperature), np.mean(pairs, axis=0), rtol=1e-5)


def test_default_temperature_is_2_and_both_equal_give_0():
    np.testing.assert_array_equal(value(), value(temperature=2.0))
    np.testing.assert_array_equal(value(TEACHER, TEACHER), 0)


def test_nearly_equal_logits_keep_their_digits():
    near = (np.float64(TEACHER) + 1e-2 * STUDENT).astype("float32")
    np.testing.assert_allclose(value(near), 4 * ref.binary_kl(TEACHER, near, 2.0).mean(axis=-1), rtol=2e-3)


def test_gradient_is_the_difference_of_the_probabilities():
    """∂/∂z_s = T · (σ(z_s / T) − σ(z_t / T)) / K."""
    z = tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(losses.BinaryKD(temperature=3.0)({"logits": z}, {"logits": TEACHER}, None))
    p_s, p_t = (np.exp(ref.log_sigmoid(np.float64(logits) / 3)) for logits in (STUDENT, TEACHER))
    np.testing.assert_allclose(tape.gradient(total, z), 3 * (p_s - p_t) / ref.CLASSES, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0}, "binary_kd's temperature=0 reaches 0"),
        ({"squared": 2}, "binary_kd's squared=2: write True or False"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.BinaryKD(**kwargs)
