"""Ranges that are learned: values and gradients against the papers' formulas in float64, and a training with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, compress, losses
from kd_keras.compress import learned_ranges
from kd_keras.errors import InputError
from kd_keras.export import tflite
from tests.compress.test_steps import BATCH, accuracy, data, fake, fit, from_learnt, learnt  # noqa: F401

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(5,), ()])
def test_rounded_weights_golden(shape):
    """q = clip(⌊v/s⌉, −Q, Q)·s; ∂q/∂s = ⌊v/s⌉ − v/s within and ±Q outside (equation 3), times 1/√(N·Q) (section 2.2).

    Its share of s moves as much as that of h = Q·s where the latter's gradient is Q²·∂/∂h = Q·∂/∂s.
    """
    v, upstream = DRAW.normal(size=(3, 3, 2, 5)), DRAW.normal(size=(3, 3, 2, 5))
    high = np.full(shape, 1.2) * (DRAW.uniform(0.5, 1, shape) if shape else 1)
    levels, s = 127, high / 127
    places = np.clip(np.round(v / s), -levels, levels)
    inside = np.abs(v / s) <= levels
    of_step = (upstream * np.where(inside, places - v / s, np.sign(v) * levels)).reshape(-1, 5)
    of_step = of_step.sum(axis=0) if shape else of_step.sum()
    count = v.size / max(np.size(high), 1)
    inputs = [tf.constant(part, tf.float32) for part in (v, high)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        q = learned_ranges.rounded_weights(*inputs)
    of_v, of_high = tape.gradient(q, inputs, tf.constant(upstream, tf.float32))
    np.testing.assert_allclose(q, places * s, atol=1e-6)
    np.testing.assert_allclose(of_v, upstream * inside, rtol=1e-6)
    np.testing.assert_allclose(of_high, levels * of_step / np.sqrt(count * levels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(-0.7, 1.3), (0.0, 1.5)])
def test_rounded_activations_golden(low, high):
    """Gradients of the ends, by ∂q/∂s = (q − v)/s within; below the range q is l, above it h."""
    v, upstream = DRAW.normal(size=(4, 3, 2)), DRAW.normal(size=(4, 3, 2))
    s = (high - low) / 255
    zero = np.round(-low / s)
    q = (np.clip(np.round(v / s) + zero, 0, 255) - zero) * s
    below, above = v < -zero * s, v > (255 - zero) * s
    share = np.where(below | above, 0, (q - v) / (high - low))
    scale = 255**2 / np.sqrt(6 * 255)
    inputs = [tf.constant(part, tf.float32) for part in (v, low, high)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        got = learned_ranges.rounded_activations(*inputs)
    of_v, of_low, of_high = tape.gradient(got, inputs, tf.constant(upstream, tf.float32))
    np.testing.assert_allclose(got, q, atol=1e-5)
    np.testing.assert_allclose(of_v, upstream * ~(below | above), rtol=1e-6)
    np.testing.assert_allclose(of_high, scale * (upstream * (share + above)).sum(), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(of_low, scale * (upstream * (below - share)).sum(), rtol=1e-3, atol=1e-2)
    # As tfmot rounds outside of training.
    expected = tf.quantization.fake_quant_with_min_max_args(inputs[0], low, high)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def ranges_of(wrapped):
    return {v.name: v.numpy().copy() for v in wrapped.variables if v.name.partition(":")[0].endswith(("_min", "_max"))}


@pytest.mark.slow
def test_ranges_are_trained_with_the_weights(learnt):  # noqa: F811
    model, images = from_learnt(learnt), data()[0][:64]
    made = compress.prepare(model, compress.QAT(learn_ranges=True), steps=20, images=images)
    before = ranges_of(made.wrapped)
    kernel = model.get_layer("logits").get_weights()[0]
    np.testing.assert_allclose(before["quant_logits/kernel_max:0"], np.abs(kernel).max(), rtol=1e-6)
    distiller = Distiller(student=made.model, losses=[losses.CE()])
    distiller.compile(keras.optimizers.Adam(0.001), metrics=["accuracy"])
    history = distiller.fit(*data(), batch_size=BATCH, epochs=2, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    moved = [name for name, value in ranges_of(made.wrapped).items() if np.any(value != before[name])]
    learned = [name for name in before if "kernel_max" in name or "activation" in name or "output" in name]
    assert set(learned) <= set(moved) and not [name for name in moved if "kernel_min" in name]
    content = tflite.convert_quantised(made.wrapped, "int8_io")
    assert np.mean(tflite.load(content).predict(data()[0]).argmax(1) == fake(made.wrapped, data()[0]).argmax(1)) > 0.98
    assert made.finish() is model and accuracy(model) > 0.8


@pytest.mark.parametrize(("values", "before", "told"), [
    ({"keep_float": "logits"}, (), "does not go with keep_float"),
    ({}, (compress.Prune(),), "does not go with what leaves zeros"),
])  # fmt: skip
def test_what_learned_ranges_do_not_go_with(values, before, told, learnt):  # noqa: F811
    with pytest.raises(InputError, match=told):
        compress.prepare(from_learnt(learnt), compress.QAT(learn_ranges=True, **values), steps=1, before=before)
    with pytest.raises(InputError, match="learn_ranges=1: give True or False"):
        compress.QAT(learn_ranges=1)
