import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref


def value(labels, z=None, **kwargs):
    return losses.CE(**kwargs)({"logits": ref.logits() if z is None else z}, {}, labels).numpy()


def golden(weights, z, epsilon=0.0):
    weights = (1 - epsilon) * np.float64(weights) + epsilon / z.shape[-1]
    return -np.sum(weights * ref.log_softmax(z), axis=-1)


@pytest.mark.parametrize("epsilon", [0, 0.0, 0.1, 0.9])
@pytest.mark.parametrize("shape", [(ref.BATCH,), (ref.BATCH, 1)], ids=["flat", "column"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
def test_golden_for_classes(epsilon, shape, dtype):
    labels = ref.classes()
    expected = golden(np.eye(ref.CLASSES)[labels], ref.logits(), epsilon)
    actual = value(labels.astype(dtype).reshape(shape), label_smoothing=epsilon)
    assert actual.shape == (ref.BATCH,)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_golden_for_class_weights(epsilon):
    expected = golden(ref.shares(), ref.logits(), epsilon)
    np.testing.assert_allclose(value(ref.shares(), label_smoothing=epsilon), expected, rtol=1e-5)


def test_one_hot_weights_equal_classes():
    one_hot = np.eye(ref.CLASSES, dtype="float32")[ref.classes()]
    np.testing.assert_array_equal(value(one_hot), value(ref.classes()))


def test_by_hand():
    z = np.log([[0.5, 0.25, 0.25]]).astype("float32")
    np.testing.assert_allclose(value(np.array([0]), z), [np.log(2)], rtol=1e-6)
    # 0.7 of the label and 0.1 for each of the three: -(0.8 log ½ + 0.2 log ¼) = 0.8 log 2 + 0.4 log 2
    np.testing.assert_allclose(value(np.array([0]), z, label_smoothing=0.3), [1.2 * np.log(2)], rtol=1e-6)


def test_two_classes_alone_are_read_as_weights_only_when_wide():
    z = ref.logits(classes=2)
    labels = ref.classes(num_classes=2)
    np.testing.assert_allclose(value(labels[:, None], z), golden(np.eye(2)[labels], z), rtol=1e-5)


def test_least_value_is_the_entropy_of_the_labels():
    shares = ref.shares()
    least = -np.sum(np.float64(shares) * np.log(np.float64(shares)), axis=-1)
    np.testing.assert_allclose(value(shares, np.log(shares)), least, rtol=1e-5)
    assert np.all(value(shares, np.log(shares) + 0.3 * ref.logits()) > least)


def test_is_0_for_a_certain_and_right_student():
    z = np.full((ref.BATCH, ref.CLASSES), -100, "float32")
    z[np.arange(ref.BATCH), ref.classes()] = 100
    np.testing.assert_array_equal(value(ref.classes(), z), 0)
    assert np.all(value(ref.classes(), -z) > 199)


def test_gradient_is_softmax_minus_label():
    z = tf.constant(ref.logits())
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = tf.reduce_sum(losses.CE()({"logits": z}, {}, ref.classes()))
    expected = np.exp(ref.log_softmax(z)) - np.eye(ref.CLASSES)[ref.classes()]
    np.testing.assert_allclose(tape.gradient(total, z), expected, atol=1e-6)


def test_reads_no_teacher():
    assert losses.CE().taps(["logits", "stage1"], ["logits"]) == (("logits",), ())
    assert losses.CE().taps(["logits"], None) == (("logits",), ())


@pytest.mark.parametrize("epsilon", [-0.1, 1, 1.5, float("nan"), "a", None, True])
def test_refuses_a_smoothing_out_of_range(epsilon):
    with pytest.raises(InputError, match=r"ce\(label_smoothing=.*\[0, 1\)"):
        losses.CE(label_smoothing=epsilon)
