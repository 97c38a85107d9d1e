import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER = ref.features(0, 4, 4, 3), ref.features(10, 4, 4, 6)


def made(**kwargs):
    keras.utils.set_random_seed(0)
    term = losses.FT(**kwargs)
    term.build({"stage1": (None, 4, 4, 3)}, {"stage1": (None, 4, 4, 6)})
    return term


def value(term, student=STUDENT, teacher=TEACHER):
    return term({"stage1": student}, {"stage1": teacher}, ref.classes()).numpy()


def convolved(x, block):
    """Three 3×3 convolutions, each with a batch norm at its start and a leaky ReLU, in float64."""
    x = np.float64(x)
    for conv in block.convolutions:
        kernel = np.float64(conv.get_weights()[0])
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        out = sum(
            padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j] for i in range(3) for j in range(3)
        ) / np.sqrt(1.00001)
        x = np.where(out > 0, out, 0.1 * out)
    return x


def direction(x):
    return x / np.sqrt(np.square(x).sum(axis=(1, 2, 3), keepdims=True))


@pytest.mark.parametrize(("rate", "power", "channels"), [(0.5, 1, 3), (0.34, 2, 2)])
def test_golden(rate, power, channels):
    term = made(rate=rate, power=power)
    factors = term.adapters[0]
    f_t, f_s = convolved(TEACHER, factors.encoder), convolved(STUDENT, factors.translator)
    assert f_t.shape[-1] == f_s.shape[-1] == channels
    expected = (np.abs(direction(f_t) - direction(f_s)) ** power).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(value(term), expected, rtol=1e-4)


def test_the_paraphraser_is_trained_ahead_alone():
    term = made()
    assert {w.path.split("/")[-3] for w in term.trainable_weights} == {"translator"}
    term.pretraining(True)
    paraphraser = [w for w in term.trainable_weights if "translator" not in w.path]
    assert term.pretrain_taps() == ((), ("stage1",)) and len(paraphraser) == 18
    optimizer = keras.optimizers.Adam(0.01)
    errors = []
    for _ in range(40):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean(term.pretrain({}, {"stage1": TEACHER}, ref.classes()))
        optimizer.apply(tape.gradient(error, paraphraser), paraphraser)
        errors.append(float(error))
    assert errors[-1] < 0.5 * errors[0]
    term.pretraining(False)
    before = [w.numpy() for w in paraphraser]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(term({"stage1": STUDENT}, {"stage1": TEACHER}, ref.classes(), training=True))
    assert all(gradient is None for gradient in tape.gradient(total, paraphraser))
    for was, now in zip(before, paraphraser, strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize(("kwargs", "message"), [({"rate": 0}, "rate=0"), ({"power": 3}, "power=3.: .* 1 or 2")])
def test_refuses_what_cannot_be(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.FT(**kwargs)
