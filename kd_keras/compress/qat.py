"""Quantisation-aware training: the student learns with the rounding that its 8-bit file will do."""

import functools

from kd_keras._compat import tfmot as tfmot_names
from kd_keras.compress import base as _base


class QAT(_base.Step):
    """Trains with fake quantisation: kernels in 8 bits a channel, activations in 8 bits by moving averages.

    What is kept in float takes a batch norm and an activation right behind it along, as one operator does in the file.
    Where a concatenation reads it, all else that reads it is computed in float as well, though with rounded weights.
    Behind ``prune()`` zeros stay zeros, behind ``cluster()`` clusters stay clusters, but in what is kept in float.
    Layers that tensorflow-model-optimization has no rule for, and that hold weights (layer norm, attention), are
    trained in float; the file computes them in float32 as well.

    Args:
        keep_float: names of layers to leave in float32, joined by commas.

    Raises:
        InputError: a value is out of range.

    Source: Jacob et al., arXiv:1712.05877, section 3.
    """

    rank = 3
    quantises = True

    def __init__(self, keep_float: str = "") -> None:
        self.keep_float = _base.names("qat's keep_float", keep_float)

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot
        import tf_keras

        del steps
        _base.check_layers(self.keep_float, [layer.name for layer in model.layers], "qat's keep_float")
        quantization = tfmot.quantization.keras
        output_only = tfmot_names.quantize_configs().Default8BitOutputQuantizeConfig
        nothing = tfmot_names.quantize_configs().NoOpQuantizeConfig
        apart = _apart()
        registry = quantization.default_8bit.Default8BitQuantizeRegistry()
        convolutions = (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D, tf_keras.layers.Dense)
        floats = set(self.keep_float)

        def readers(layer):
            return [node.outbound_layer for node in layer.outbound_nodes if node.outbound_layer in model.layers]

        def folded(layer):
            """Whether the converter folds this batch norm into what is before it, which nothing else may read."""
            before_it = layer.inbound_nodes[0].inbound_layers
            return isinstance(before_it, convolutions) and readers(before_it) == [layer]

        def in_float(layer):
            """Whether it is kept in float, or is a part of the operator that is."""
            if layer.name in floats:
                return True
            part = (tf_keras.layers.BatchNormalization, tf_keras.layers.ReLU, tf_keras.layers.Activation)
            if not isinstance(layer, part):
                return False
            before_it = layer.inbound_nodes[0].inbound_layers
            return not isinstance(before_it, list) and in_float(before_it) and readers(before_it) == [layer]

        def unruled(layer):
            """Whether tfmot knows no rule for an activation's function."""
            if not isinstance(layer, tf_keras.layers.Activation):
                return False
            try:
                registry.get_quantize_config(layer).get_output_quantizers(layer)
            except ValueError:
                return True
            return False

        def wrap(layer):
            if isinstance(layer, tf_keras.layers.InputLayer):
                return None
            if in_float(layer):
                if all(map(in_float, readers(layer))):
                    return quantization.quantize_annotate_layer(layer, nothing())
                # A concatenation rounds what it joins.
                joined = any(isinstance(one, tf_keras.layers.Concatenate) for one in readers(layer))
                return quantization.quantize_annotate_layer(layer, apart(rounds=not joined))
            if isinstance(layer, tf_keras.layers.AveragePooling2D):
                # Its kernel writes in the scale that it reads in; the converter refuses it where tfmot wants two.
                return quantization.quantize_annotate_layer(layer, nothing())
            normalises = isinstance(layer, tf_keras.layers.BatchNormalization)
            if (registry.supports(layer) and not unruled(layer)) or (normalises and folded(layer)):
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
            scheme = quantization.default_8bit.Default8BitQuantizeScheme()
        with quantization.quantize_scope({one.__name__: one for one in (output_only, nothing, apart)}):
            made = quantization.quantize_apply(_base.rewrapped(model, wrap), scheme)
        for layer in made.layers:
            # As `cluster` trains it.
            tfmot_names.average_gradients_of(layer)
        return made

    def left_out(self, wrapped):
        """See `Step`; the layer that quantises the input is of the wrappers."""
        inner = [layer.layer for layer in wrapped.layers if hasattr(layer, "layer")]
        kept = [layer.name for layer in inner if layer.name in self.keep_float and layer.weights]
        ours = [layer.name for layer in wrapped.layers if tfmot_names.is_quantize_layer(layer)]
        return kept + [name for name in super().left_out(wrapped) if name not in ours]

    def strip(self, wrapped):
        found = {}
        for layer in wrapped.layers:
            inner = getattr(layer, "layer", None)
            if inner is None:
                found[layer.name] = layer.get_weights()
            elif kept := [variable.numpy() for variable in tfmot_names.quantized_variables(layer)]:
                # In the layer itself the rounded kernel, a tensor, has taken the variable's place.
                found[inner.name] = [*kept, *([inner.bias.numpy()] if inner.use_bias else [])]
            else:
                found[inner.name] = inner.get_weights()
        return found


@functools.cache
def _apart():
    """What rounds the numbers that a layer in float hands to layers in 8 bits, behind a cast there and back.

    Rounded by themselves, between layers that are rounded, they would make the converter take the layer for one in 8
    bits too; it has no integers for a cast.
    """
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot

    quantizers = tfmot.quantization.keras.quantizers

    def cast(numbers):
        return tf.cast(tf.cast(numbers, tf.float64), numbers.dtype)

    class Cast(quantizers.Quantizer):
        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            return cast(inputs)

        def get_config(self):
            return {}

    class Rounding(quantizers.MovingAverageQuantizer):
        def __call__(self, inputs, training, weights, **kwargs):
            return super().__call__(cast(inputs), training, weights, **kwargs)

    class Apart(tfmot_names.quantize_configs().NoOpQuantizeConfig):
        def __init__(self, rounds) -> None:
            self.rounds = rounds

        def get_config(self):
            return {"rounds": self.rounds}

        @property
        def get_output_quantizers(self):
            rounding = Rounding(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
            return lambda layer: [rounding if self.rounds else Cast()]

        @get_output_quantizers.setter
        def get_output_quantizers(self, value):
            """Keeps the cast, of which tfmot would rid what feeds a concatenation."""

    return Apart


def _cluster_scheme(sparse):
    """tfmot's scheme, but for each layer a quantiser of its own.

    They share one there, which forgets to keep zeros in all layers once it has met a layer without.
    """
    registry, scheme = tfmot_names.cluster_preserving()

    class Registry(registry):
        def get_quantize_config(self, layer):
            return registry(sparse).get_quantize_config(layer)

    class Scheme(scheme):
        def get_quantize_registry(self):
            return Registry(sparse)

    return Scheme(preserve_sparsity=sparse)
