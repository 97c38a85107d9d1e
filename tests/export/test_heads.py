"""What a file gives is what its name says: logits, whatever the model ends in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, losses
from kd_keras.evaluate import quality
from kd_keras.export import tflite

L = keras.layers
SHAPE, K = (6, 6, 1), 4
IMAGES = np.random.default_rng(0).uniform(0, 255, (40, *SHAPE)).astype("float32")


def body():
    """A symbolic image and features, a kernel and bias of a head on them."""
    keras.utils.set_random_seed(2)
    image = keras.Input(SHAPE)
    return image, L.Flatten()(L.Rescaling(1 / 127.5, offset=-1)(image))


def model_with(head):
    """A model with a head, and its true logits on the images, in float64: ``head(features, kernel, bias)``."""
    draw = np.random.default_rng(1)
    kernel, bias = draw.normal(0, 0.5, (36, K)), draw.normal(0, 1, K)
    image, features = body()
    dense = L.Dense(K, activation=head if isinstance(head, str) else None, name="head")
    x = dense(features)
    model = keras.Model(image, x if isinstance(head, str) else head(x))
    dense.set_weights([kernel, bias])
    return model, (IMAGES.astype("float64") / 127.5 - 1).reshape(len(IMAGES), -1) @ kernel + bias


HEADS = {
    "activation": "softmax",
    "layer": L.Softmax(),
    "function": L.Activation(tf.nn.softmax),
    "operation": keras.ops.softmax,
    "lambda": L.Lambda(lambda z: tf.nn.softmax(z)),
    "then cast": lambda z: L.Activation("linear", dtype="float32")(L.Softmax()(z)),
    "logits": lambda z: z,
}


def softmax(z):
    return np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)


@pytest.mark.parametrize("head", HEADS)
def test_a_float32_file_gives_the_true_logits(head):
    model, expected = model_with(HEADS[head])
    np.testing.assert_allclose(tflite.load(tflite.convert(model, "float32")).predict(IMAGES), expected, atol=2e-4)


def test_a_mean_of_softmaxes_gives_its_logarithm():
    image, features = body()
    dense = [L.Dense(K, activation="softmax")(features) for _ in range(2)]
    model = keras.Model(image, L.Average()(dense))
    got = tflite.load(tflite.convert(model, "float32", IMAGES)).predict(IMAGES)
    np.testing.assert_allclose(got, np.log(model.predict(IMAGES, verbose=0).astype("float64")), atol=1e-4)


def test_a_sigmoid_of_each_label_gives_its_logits():
    model, expected = model_with("sigmoid")
    np.testing.assert_allclose(
        tflite.load(tflite.convert(model, "float32", IMAGES)).predict(IMAGES), expected, atol=2e-4
    )


def test_small_logits_are_left_alone_where_that_is_said():
    image, features = body()
    model = keras.Model(image, L.Dense(2, activation=lambda z: 0.5 + 0.1 * keras.ops.tanh(z))(features))
    content = tflite.convert(model, "float32", output="logits")
    np.testing.assert_allclose(tflite.load(content).predict(IMAGES), model.predict(IMAGES, verbose=0), atol=1e-6)


@pytest.mark.parametrize("variant", ["int8", "int8_io"])
def test_integer_files_of_probabilities_give_logits_too(variant):
    model, expected = model_with("softmax")
    got = tflite.load(tflite.convert(model, variant, IMAGES)).predict(IMAGES)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert quality.agreement(got, expected) >= 0.95


def test_a_mixed_policy_model_with_probabilities():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    model, expected = model_with("softmax")
    keras.mixed_precision.set_dtype_policy("float32")
    got = tflite.load(tflite.convert(model, "float32", IMAGES)).predict(IMAGES)
    np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.slow
def test_layers_keep_their_names_in_front_of_a_softmax():
    model, _ = model_with("softmax")
    rows = tflite.layer_report(model, IMAGES)
    assert rows[-1]["layers"] == "head" and rows[-1]["operator"] == "FULLY_CONNECTED"
    kept = tflite.convert(model, "int8", IMAGES, keep_float=("head",))
    assert len(tflite.float_tensors(kept)) > len(tflite.float_tensors(tflite.convert(model, "int8", IMAGES)))


def test_the_file_of_a_distiller_is_its_students():
    model, expected = model_with("softmax")
    distiller = Distiller(student=model, losses=[losses.CE()])
    np.testing.assert_allclose(tflite.load(tflite.convert(distiller, "float32")).predict(IMAGES), expected, atol=2e-4)


@pytest.mark.parametrize("classes", [4, 100])
def test_logits_of_an_8_bit_file_that_gives_probabilities(classes):
    """A file that was made elsewhere: a softmax of 8 bits is in steps of 1/256, and sums to 1 but for its rounding."""
    image, features = body()
    model = keras.Model(image, L.Dense(classes, activation="softmax", kernel_initializer="random_normal")(features))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in IMAGES)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    interpreter = tflite.load(converter.convert())
    p = interpreter.predict(IMAGES)
    assert p.min() >= 0 and np.abs(p.sum(axis=-1) - 1).max() > 0.01 * (classes == 100)
    expected = model.predict(IMAGES, verbose=0).astype("float64")
    # Half a step, and the rows' sums.
    assert np.abs(softmax(interpreter.logits(IMAGES).astype("float64")) - expected).max() < 0.05
    assert np.isfinite(interpreter.logits(IMAGES)).all()


def test_logits_of_a_file_that_gives_logits_are_what_it_gives():
    model, _ = model_with("softmax")
    interpreter = tflite.load(tflite.convert(model, "int8", IMAGES))
    np.testing.assert_array_equal(interpreter.logits(IMAGES), interpreter.predict(IMAGES))
