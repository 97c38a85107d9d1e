"""Private names of tensorflow-model-optimization and of tf_keras, imported where they are used: a function for each."""

import contextlib
import types
from collections.abc import Callable, Iterator


def quantize_configs() -> types.ModuleType:
    """The module of `Default8BitOutputQuantizeConfig` and `NoOpQuantizeConfig`, what to quantise of a layer."""
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantize_configs

    return default_8bit_quantize_configs


def cluster_preserving() -> tuple[type, type]:
    """The registry and the scheme of quantisation that keeps clusters: classes that take ``preserve_sparsity``."""
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        cluster_preserve_quantize_registry,
        default_8bit_cluster_preserve_quantize_scheme,
    )

    return (
        cluster_preserve_quantize_registry.Default8bitClusterPreserveQuantizeRegistry,
        default_8bit_cluster_preserve_quantize_scheme.Default8BitClusterPreserveQuantizeScheme,
    )


def is_quantize_layer(layer) -> bool:
    """Whether a layer is the one that quantises a model's input."""
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer

    return isinstance(layer, QuantizeLayer)


def quantized_variables(wrapper) -> list:
    """The variables that a wrapper rounds, such as its layer's kernel, whose place in the layer the rounded one takes.

    Args:
        wrapper: a layer of a model that `quantize_apply` returned.
    """
    return [variable for variable, _, _ in getattr(wrapper, "_weight_vars", ())]


def average_gradients():
    """The setting by which centroids move by the mean of their weights' gradients."""
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import GradientAggregation

    return GradientAggregation.AVG


def average_gradients_of(wrapper) -> None:
    """Sets `average_gradients` for the clusters that a wrapper keeps while it quantises."""
    for _, _, variables in getattr(wrapper, "_weight_vars", ()):
        if "clst_impl" in variables:
            variables["clst_impl"].cluster_gradient_aggregation = average_gradients()


@contextlib.contextmanager
def float_pass(note: Callable) -> Iterator[None]:
    """A context in which a model of `quantize_apply`, called outside of a graph, rounds nothing.

    Args:
        note: called with each tensor whose range would be observed in training, the variables of its least and largest
            value, and whether the range is of all batches (the input's) and not a moving average.
    """
    from tensorflow_model_optimization.python.core.quantization.keras import quant_ops

    def replaced(of_all):
        def give_back(inputs, min_var, max_var, *args, **kwargs):
            if of_all is not None:
                note(inputs, min_var, max_var, of_all)
            return inputs

        return give_back

    functions = {"MovingAvgQuantize": False, "AllValuesQuantize": True, "LastValueQuantize": None}  # of weights
    before = {name: getattr(quant_ops, name) for name in functions}
    try:
        for name, of_all in functions.items():
            setattr(quant_ops, name, replaced(of_all))
        yield
    finally:
        for name, function in before.items():
            setattr(quant_ops, name, function)


def replace_quantizers(wrapper, make: Callable) -> None:
    """Replaces what a layer of a model of `quantize_apply` rounds its kernel, activation and output with.

    Args:
        wrapper: the layer; one that is no wrapper is left as it is.
        make: called with a quantiser, the kernel that it rounds or None, and its variables ``min_var`` and ``max_var``.
    """
    if not hasattr(wrapper, "_weight_vars"):
        return
    wrapper._weight_vars = [(weight, make(inner, weight, own), own) for weight, inner, own in wrapper._weight_vars]
    for activation in wrapper._quantize_activations:
        for name in ("_pre_activation_vars", "_post_activation_vars"):
            if hasattr(activation, name):
                activation.quantizer = make(activation.quantizer, None, getattr(activation, name))
    if wrapper._output_quantizers:
        wrapper._output_quantizers = [make(wrapper._output_quantizers[0], None, wrapper._output_quantizer_vars)]


def make_trainable(variable) -> None:
    """Lets gradients be taken with respect to a variable that was made for none."""
    for part in getattr(variable, "values", (variable,)):  # of each replica
        part._trainable = True


def generator_states(model) -> list:
    """The state variables of the random generators of a tf_keras model's dropout; the model's variables lack them."""
    states = []
    for layer in model.layers:
        inner = getattr(layer, "layer", layer)
        generator = getattr(getattr(inner, "_random_generator", None), "_generator", None)
        if generator is not None:
            states.append(generator.state)
    return states
