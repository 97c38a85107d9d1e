"""Quantisation-aware training (QAT): the student is trained with the rounding of its 8-bit file."""

import functools

import numpy as np

from kd_keras._compat import tfmot as tfmot_names
from kd_keras.compress.base import Step, check_layers, layer_names, replace_layers
from kd_keras.compress.learned_ranges import learn_ranges
from kd_keras.errors import InputError
from kd_keras.schedules import ScheduleLike

# 2: scaling and shifting of the input are rounded each. 3: training starts from calibrated ranges.
VERSION = 3
# Images in a batch of the calibration.
_BATCH = 32


class QAT(Step):
    """Trains with fake quantisation: kernels in 8 bits per channel, activations in 8 bits by moving averages.

    A layer that is kept in float includes the batch norm and the activation that directly follow it, which are one
    operator in the file. Where a concatenation reads such a layer, the other layers that read it are computed in float
    as well, with rounded weights.

    The ranges of the activations start from those that the float model has on a hundred training images, not from
    tfmot's −6 to 6; that of the input, which only grows in training, has no empty part then.

    After ``prune()`` zeros stay zeros, after ``cluster()`` clusters stay clusters, except in layers that are kept in
    float. Layers with weights that tensorflow-model-optimization has no rule for (layer norm, attention) are trained in
    float, and the file computes them in float32.

    Args:
        keep_float: names of layers to leave in float32, joined by commas.
        learn_ranges: whether the ranges are trained with the weights (LSQ), in place of the kernels' largest weights
            and moving averages of the activations' ends. Not after ``prune()`` or ``cluster()``, nor with
            ``keep_float``.
        epochs: of its training; by default ``--compress_epochs``.
        learning_rate: a number or a schedule; by default ``--compress_learning_rate``.

    Raises:
        InputError: a value is out of range.

    Reference: Jacob et al., arXiv:1712.05877, section 3; LSQ: Esser et al., arXiv:1902.08153.
    """

    rank = 3
    quantises = True

    def __init__(
        self,
        keep_float: str = "",
        learn_ranges: bool = False,
        epochs: int | None = None,
        learning_rate: ScheduleLike | None = None,
    ) -> None:
        self.trained(epochs, learning_rate)
        if not isinstance(learn_ranges, bool):
            raise InputError(f"qat's learn_ranges={learn_ranges!r}: give True or False")
        self.learn_ranges = learn_ranges
        self.keep_float = layer_names("qat's keep_float", keep_float)

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot
        from tf_keras import backend

        del steps
        # A new layer's name has a number that counts up, and the file contains it: equal runs leave equal files.
        backend.reset_uids()
        check_layers(self.keep_float, [layer.name for layer in model.layers], "qat's keep_float")
        if self.learn_ranges and (kept or self.keep_float):
            what = "keep_float" if self.keep_float else f"what leaves {' and '.join(sorted(kept))}"
            raise InputError(f"qat(learn_ranges=True) does not go with {what}: leave one of the two out")
        quantization = tfmot.quantization.keras
        if "clusters" in kept:
            scheme = _cluster_scheme(sparse="zeros" in kept)
        elif "zeros" in kept:
            scheme = tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
        else:
            scheme = quantization.default_8bit.Default8BitQuantizeScheme()
        annotator = _Annotator(model, self.keep_float)
        with quantization.quantize_scope({config.__name__: config for config in annotator.configs}):
            wrapped = quantization.quantize_apply(replace_layers(model, annotator.annotate), scheme)
        for layer in wrapped.layers:
            # As `Cluster` trains it.
            tfmot_names.average_gradients_of(layer)
        if self.learn_ranges:
            learn_ranges(wrapped)
        return wrapped

    def calibrate(self, wrapped, images):
        """Sets the ranges of activations: the mean over batches of their ends, of the input the ends of all."""
        seen = {}

        def note(values, low, high, of_all):
            # Zero is in every range, as TFLite wants it.
            ends = min(float(np.min(values)), 0.0), max(float(np.max(values)), 0.0)
            seen.setdefault(id(low), (low, high, of_all, []))[-1].append(ends)

        with tfmot_names.float_pass(note):
            for start in range(0, len(images), _BATCH):
                wrapped(np.asarray(images[start : start + _BATCH], "float32"), training=False)
        for low, high, of_all, ends in seen.values():
            lows, highs = np.transpose(ends)
            low.assign(lows.min() if of_all else lows.mean())
            high.assign(highs.max() if of_all else highs.mean())

    def left_out(self, wrapped):
        """See `Step.left_out`; the layer that quantises the input does not count."""
        inner = [layer.layer for layer in wrapped.layers if hasattr(layer, "layer")]
        in_float = [layer.name for layer in inner if layer.name in self.keep_float and layer.weights]
        quantizers = [layer.name for layer in wrapped.layers if tfmot_names.is_quantize_layer(layer)]
        return in_float + [name for name in super().left_out(wrapped) if name not in quantizers]

    def strip(self, wrapped):
        weights = {}
        for layer in wrapped.layers:
            inner = getattr(layer, "layer", None)
            if inner is None:
                weights[layer.name] = layer.get_weights()
            elif variables := [variable.numpy() for variable in tfmot_names.quantized_variables(layer)]:
                # In the layer itself the rounded kernel, a tensor, has replaced the variable.
                weights[inner.name] = [*variables, *([inner.bias.numpy()] if inner.use_bias else [])]
            else:
                weights[inner.name] = inner.get_weights()
        return weights


class _Annotator:
    """Says for each layer of a tf_keras model how it is quantised.

    Args:
        model: functional.
        keep_float: names of layers to leave in float.
    """

    def __init__(self, model, keep_float):
        import tensorflow_model_optimization as tfmot

        self.layers, self.keep_float = model.layers, keep_float
        self.output_only = tfmot_names.quantize_configs().Default8BitOutputQuantizeConfig
        self.nothing = tfmot_names.quantize_configs().NoOpQuantizeConfig
        self.float_output = _float_output_config()
        self.configs = (self.output_only, self.nothing, self.float_output)
        self.registry = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()
        self.quantize = tfmot.quantization.keras.quantize_annotate_layer

    def annotate(self, layer):
        """The annotated layer; None for a layer that is not quantised."""
        from tf_keras import layers

        if isinstance(layer, layers.InputLayer):
            return None
        if self._is_in_float(layer):
            if all(map(self._is_in_float, self._readers(layer))):
                return self.quantize(layer, self.nothing())
            # A concatenation rounds its inputs.
            is_joined = any(isinstance(reader, layers.Concatenate) for reader in self._readers(layer))
            return self.quantize(layer, self.float_output(rounds=not is_joined))
        if isinstance(layer, layers.AveragePooling2D):
            # The kernel has one scale for input and output; the converter refuses the two that tfmot would give it.
            return self.quantize(layer, self.nothing())
        is_norm = isinstance(layer, layers.BatchNormalization)
        if (self.registry.supports(layer) and self._has_rule(layer)) or (is_norm and self._is_folded(layer)):
            return self.quantize(layer)
        # A layer that only moves or scales numbers has no weights to round; its output is rounded.
        return self.quantize(layer, self.output_only()) if is_norm or not layer.weights else None

    def _readers(self, layer):
        return [node.outbound_layer for node in layer.outbound_nodes if node.outbound_layer in self.layers]

    def _is_folded(self, norm):
        """Whether the converter folds this batch norm into the preceding layer, which no other layer may read."""
        from tf_keras import layers

        preceding = norm.inbound_nodes[0].inbound_layers
        is_linear = isinstance(preceding, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense))
        return is_linear and self._readers(preceding) == [norm]

    def _is_in_float(self, layer):
        """Whether the layer is kept in float, or belongs to an operator that is."""
        from tf_keras import layers

        if layer.name in self.keep_float:
            return True
        if not isinstance(layer, (layers.BatchNormalization, layers.ReLU, layers.Activation)):
            return False
        preceding = layer.inbound_nodes[0].inbound_layers
        return not isinstance(preceding, list) and self._is_in_float(preceding) and self._readers(preceding) == [layer]

    def _has_rule(self, layer):
        """Whether tfmot has a rule for an activation's function; True for any other layer."""
        from tf_keras import layers

        if not isinstance(layer, layers.Activation):
            return True
        try:
            self.registry.get_quantize_config(layer).get_output_quantizers(layer)
        except ValueError:
            return False
        return True


@functools.cache
def _float_output_config():
    """The configuration of a float layer whose output enters 8-bit layers: rounds after a cast to float64 and back.

    Rounded without the cast, between layers that are rounded, the output would make the converter take the layer for an
    8-bit layer; it has no integer version of a cast.
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

    class FloatOutput(tfmot_names.quantize_configs().NoOpQuantizeConfig):
        def __init__(self, rounds):
            self.rounds = rounds

        def get_config(self):
            return {"rounds": self.rounds}

        @property
        def get_output_quantizers(self):
            rounding = Rounding(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
            return lambda layer: [rounding if self.rounds else Cast()]

        @get_output_quantizers.setter
        def get_output_quantizers(self, value):
            """Keeps the cast, which tfmot would remove before a concatenation."""

    return FloatOutput


def _cluster_scheme(sparse):
    """tfmot's scheme with a quantiser for each layer.

    tfmot shares one among the layers, which stops keeping zeros in all of them after the first layer without zeros.
    """
    registry, scheme = tfmot_names.cluster_preserving()

    class Registry(registry):
        def get_quantize_config(self, layer):
            return registry(sparse).get_quantize_config(layer)

    class Scheme(scheme):
        def get_quantize_registry(self):
            return Registry(sparse)

    return Scheme(preserve_sparsity=sparse)
