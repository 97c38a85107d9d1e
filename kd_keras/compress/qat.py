"""Quantisation-aware training: the student learns with the rounding that its 8-bit file will do."""

from kd_keras import graph
from kd_keras.compress import _step


def build(keep_float: str = ""):
    """Trains with fake quantisation: kernels in 8 bits a channel, activations in 8 bits by moving averages.

    Behind ``prune()`` zeros stay zeros, behind ``cluster()`` clusters stay clusters. Layers that
    tensorflow-model-optimization has no rule for, and that hold weights (layer norm, attention), are trained in float;
    the file computes them in float32 as well.

    Args:
        keep_float: names of layers to leave in float32, joined by commas.

    Raises:
        InputError: a value is out of range.

    Source: Jacob et al., arXiv:1712.05877, section 3.
    """
    return QAT(_step.names("qat's keep_float", keep_float))


class QAT(_step.Step):
    """See `build`."""

    rank = 3
    quantises = True

    def __init__(self, keep_float):
        self.keep_float = keep_float

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot
        import tf_keras
        from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
            default_8bit_quantize_configs,
            default_8bit_quantize_registry,
            default_8bit_quantize_scheme,
        )

        del steps
        graph.check_layers(self.keep_float, [layer.name for layer in model.layers], "qat's keep_float")
        quantization = tfmot.quantization.keras
        output_only = default_8bit_quantize_configs.Default8BitOutputQuantizeConfig
        registry = default_8bit_quantize_registry.Default8BitQuantizeRegistry()
        convolutions = (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D, tf_keras.layers.Dense)
        floats = set(self.keep_float)

        def folded(layer):
            """Whether the converter folds this batch norm into what is before it, which nothing else may read."""
            before_it = layer.inbound_nodes[0].inbound_layers
            if not isinstance(before_it, convolutions) or before_it.name in floats:
                return False
            return sum(node.outbound_layer in model.layers for node in before_it.outbound_nodes) == 1

        def wrap(layer):
            if isinstance(layer, tf_keras.layers.InputLayer) or layer.name in floats:
                return None
            normalises = isinstance(layer, tf_keras.layers.BatchNormalization)
            if registry.supports(layer) or (normalises and folded(layer)):
                return quantization.quantize_annotate_layer(layer)
            # What only moves or scales numbers has no weights to round; its output has.
            if normalises or not layer.weights:
                return quantization.quantize_annotate_layer(layer, output_only())
            return None

        if "clusters" in kept:
            scheme = _cluster_scheme(sparse="zeros" in kept)
        elif "zeros" in kept:
            scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
        else:
            scheme = default_8bit_quantize_scheme.Default8BitQuantizeScheme()
        with quantization.quantize_scope({output_only.__name__: output_only}):
            made = quantization.quantize_apply(_step.rewrapped(model, wrap), scheme)
        for layer in made.layers:
            for _, _, variables in getattr(layer, "_weight_vars", ()):
                if "clst_impl" in variables:
                    # As `cluster` has trained it.
                    variables["clst_impl"].cluster_gradient_aggregation = _step.mean_of_gradients()
        return made

    def left_out(self, wrapped):
        """See `Step`; the layer that quantises the input is of the wrappers."""
        from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer

        ours = [layer.name for layer in wrapped.layers if isinstance(layer, QuantizeLayer)]
        return [name for name in super().left_out(wrapped) if name not in ours]

    def strip(self, wrapped):
        found = {}
        for layer in wrapped.layers:
            inner = getattr(layer, "layer", None)
            if inner is None:
                found[layer.name] = layer.get_weights()
            elif kept := [variable.numpy() for variable, _, _ in layer._weight_vars]:
                # In the layer itself the rounded kernel, a tensor, has taken the variable's place.
                found[inner.name] = [*kept, *([inner.bias.numpy()] if inner.use_bias else [])]
            else:
                found[inner.name] = inner.get_weights()
        return found


def _cluster_scheme(sparse):
    """tfmot's scheme, but for each layer a quantiser of its own.

    They share one there, which forgets to keep zeros in all layers once it has met a layer without.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        cluster_preserve_quantize_registry,
        default_8bit_cluster_preserve_quantize_scheme,
    )

    registry = cluster_preserve_quantize_registry.Default8bitClusterPreserveQuantizeRegistry

    class Registry(registry):
        def get_quantize_config(self, layer):
            return registry(sparse).get_quantize_config(layer)

    class Scheme(default_8bit_cluster_preserve_quantize_scheme.Default8BitClusterPreserveQuantizeScheme):
        def get_quantize_registry(self):
            return Registry(sparse)

    return Scheme(preserve_sparsity=sparse)
