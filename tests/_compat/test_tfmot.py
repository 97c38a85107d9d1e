"""Private names of tfmot and tf_keras: an upgrade that changes one fails here, and says which."""

import importlib.util

import numpy as np
import pytest

from kd_keras._compat import tfmot

# Not by importorskip: imported while tests are collected, tfmot would make KerasCV take tf_keras.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_model_optimization") is None, reason="needs the extra qat"
)


@pytest.fixture(scope="module")
def quantised():
    """A tf_keras model after quantize_apply that keeps clusters."""
    import tensorflow_model_optimization
    import tf_keras

    model = tf_keras.Sequential(
        [tf_keras.Input((4,)), tf_keras.layers.Dense(3, name="dense"), tf_keras.layers.Dense(2, name="logits")]
    )
    quantization = tensorflow_model_optimization.quantization.keras
    _, scheme = tfmot.cluster_preserving()
    return quantization.quantize_apply(quantization.quantize_annotate_model(model), scheme(preserve_sparsity=False))


def wrapper(model):
    return next(layer for layer in model.layers if getattr(layer, "layer", layer).name == "dense")


def test_quantize_configs():
    configs = tfmot.quantize_configs()
    assert configs.NoOpQuantizeConfig().get_output_quantizers(None) == []
    assert len(configs.Default8BitOutputQuantizeConfig().get_output_quantizers(None)) == 1


def test_cluster_preserving():
    registry, scheme = tfmot.cluster_preserving()
    assert isinstance(scheme(preserve_sparsity=True).get_quantize_registry(), registry)


def test_is_quantize_layer(quantised):
    assert [tfmot.is_quantize_layer(layer) for layer in quantised.layers].count(True) == 1


def test_quantized_variables(quantised):
    (kernel,) = tfmot.quantized_variables(wrapper(quantised))
    assert kernel.shape == (4, 3), "tfmot's wrappers no longer keep (variable, quantizer, …) in _weight_vars"
    assert tfmot.quantized_variables(object()) == []


def test_average_gradients_of(quantised):
    algorithm = wrapper(quantised)._weight_vars[0][2]["clst_impl"]
    tfmot.average_gradients_of(wrapper(quantised))
    assert algorithm.cluster_gradient_aggregation == tfmot.average_gradients()


def test_float_pass(quantised):
    values, seen = np.array([[0.3, -50.0, 70.1, 0.0]], "float32"), []
    with tfmot.float_pass(lambda *given: seen.append(given)):
        output = quantised(values, training=False)
    expected = values
    for layer in quantised.layers:
        if inner := getattr(layer, "layer", None):
            (kernel,) = tfmot.quantized_variables(layer)
            expected = expected @ kernel.numpy() + inner.bias.numpy()
    np.testing.assert_allclose(output, expected, rtol=1e-5)
    assert [of_all for *_, of_all in seen] == [True, False, False], "tfmot now rounds by other functions of quant_ops"
    assert all(low.shape == high.shape == () for _, low, high, _ in seen)
    assert np.abs(quantised(values, training=False) - expected).max() > 1


def test_replace_quantizers(quantised):
    seen = []

    def note(inner, weight, variables):
        seen.append((None if weight is None else tuple(weight.shape), sorted(variables)))
        return inner

    for layer in quantised.layers:
        tfmot.replace_quantizers(layer, note)
    kernels, activations = [shape for shape, _ in seen if shape], [names for shape, names in seen if not shape]
    assert kernels == [(4, 3), (3, 2)] and activations == [["max_var", "min_var"]] * 2


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_make_trainable(is_mirrored):
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"]) if is_mirrored else tf.distribute.get_strategy()
    with strategy.scope():
        variable = tf.Variable(2.0, trainable=False)
    tfmot.make_trainable(variable)
    with tf.GradientTape() as tape:
        value = variable * variable
    assert variable.trainable and float(tape.gradient(value, variable)) == 4


def test_generator_states():
    import tf_keras

    backend = tf_keras.backend.experimental
    before = backend.is_tf_random_generator_enabled()
    backend.enable_tf_random_generator()
    try:
        model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dropout(0.5, seed=1)])
        (state,) = tfmot.generator_states(model)
        first = state.numpy()
        model(np.ones((2, 4)), training=True)
        assert (state.numpy() != first).any(), "dropout no longer counts in _random_generator._generator.state"
    finally:
        if not before:
            backend.disable_tf_random_generator()
