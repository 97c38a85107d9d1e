"""A model that will not be trained any more, made fast: batch norm folded into convolutions, a dtype of its own."""

import collections

import keras
import numpy as np

from kd_keras._compat import keras as graph
from kd_keras.distillation import device
from kd_keras.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")
#: Share of samples that a model in another dtype has to give the class that it gives them in float32.
LEAST_AGREEMENT = 0.995
# What a batch norm can be folded into: its output channels are the kernel's last axis (or last two).
_FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


@keras.saving.register_keras_serializable(package="kd_keras")
class _Folded(keras.layers.Layer):
    """Stands where a batch norm was, so that its name is still there to be read."""

    def call(self, inputs, training=None, mask=None):
        del training, mask
        return inputs


def frozen(model: keras.Model, dtype: str = "auto", keep: tuple[str, ...] = ()) -> keras.Model:
    """A copy of a functional or Sequential model for inference: the same outputs, sooner.

    A batch norm that alone reads a convolution or a dense layer is folded into its weights, exactly up to rounding; it
    pays most in a narrow dtype, where Keras runs batch norm in float32 between casts. Every layer keeps its name. The
    layer that gives the logits stays in float32.

    Args:
        model: built; it is left as it was.
        dtype: ``'float32'``, ``'bfloat16'``, ``'float16'``, or ``'auto'``: what this machine is fastest in.
        keep: names of layers whose own outputs are read, and so must not take in the batch norm that follows them.

    Returns:
        A model with float32 outputs that does not share the original's weights.

    Raises:
        InputError: an unknown dtype, a subclassed model, or one with layers that cannot be rebuilt.
    """
    if dtype == "auto":
        dtype = device.teacher_dtype()
    if dtype not in DTYPES:
        known = ", ".join(map(repr, ("auto", *DTYPES)))
        raise InputError(f"teacher_dtype={dtype!r}: known are None, {known}")
    if not can_be_frozen(model):
        raise InputError(
            "teacher_dtype needs a functional or Sequential teacher whose layers can all be rebuilt from their "
            "configs: build yours under a mixed policy"
        )
    folds = _folds(model, keep)
    norms = {id(norm) for norm in folds.values()}
    exact = _tail(model)
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"

    def copy(layer):
        config = layer.get_config()
        if id(layer) in norms:
            return _Folded(name=layer.name, dtype=policy)
        if id(layer) in folds:
            config["use_bias"] = True
        # What is no layer, an operation of keras.ops, follows the dtype of its inputs.
        if isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "float32" if id(layer) in exact else policy
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    for layer, copied in zip(graph.layers(model), graph.layers(clone), strict=True):
        if id(layer) in folds:
            copied.set_weights(_folded_weights(layer, folds[id(layer)]))
        elif id(layer) not in norms:
            copied.set_weights(layer.get_weights())
    return clone


def can_be_frozen(model: keras.Model) -> bool:
    """Whether a model, and each inside it, is functional or Sequential, and so can be copied layer by layer."""
    return graph.is_graph(model) and all(
        can_be_frozen(layer) if isinstance(layer, keras.Model) else graph.can_be_rebuilt(layer)
        for layer in model.layers
    )


def _models(model) -> list[keras.Model]:
    """The model and those inside it."""
    return [model, *(part for layer in model.layers if isinstance(layer, keras.Model) for part in _models(layer))]


def _folds(model, keep) -> dict[int, keras.layers.BatchNormalization]:
    """The batch norm that each layer can take in, by the layer's id."""
    found = {}
    for part in _models(model):
        uses = graph.uses(part.outputs)
        readers = collections.Counter(id(tensor) for _, node in uses for tensor in node.input_tensors)
        readers.update(map(id, part.outputs))
        times = collections.Counter(id(operation) for operation, _ in uses)
        for norm, node in uses:
            if not isinstance(norm, keras.layers.BatchNormalization):
                continue
            tensor = node.input_tensors[0]
            layer, _ = graph.made_by(tensor)
            if (
                type(layer) in _FOLDABLE
                and layer.name not in keep
                and times[id(layer)] == times[id(norm)] == readers[id(tensor)] == 1
                and layer.activation is keras.activations.linear
                and getattr(layer, "data_format", "channels_last") == "channels_last"
                and norm.axis in (-1, len(tensor.shape) - 1)
            ):
                found[id(layer)] = norm
    return found


def _folded_weights(layer, norm) -> list[np.ndarray]:
    """Kernel and bias of layer and batch norm in one (computed in float64, so that nothing is lost on the way)."""
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    mean, variance = (np.asarray(w, np.float64) for w in (norm.moving_mean, norm.moving_variance))
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    shift = ((bias[0] if bias else 0) - mean) * scale
    if norm.center:
        shift = shift + np.asarray(norm.beta, np.float64)
    # A depthwise kernel is (H, W, channels, multiplier), its outputs channels · multiplier.
    factors = scale.reshape(kernel.shape[-2:]) if isinstance(layer, keras.layers.DepthwiseConv2D) else scale
    return [kernel * factors, shift]


def _tail(model) -> set[int]:
    """Ids of the layers from the output back to the first with weights: the logits are made there.

    Of several models that are joined these are the last layers of each.
    """
    tail, waiting = set(), list(model.outputs)
    while waiting:
        layer, node = graph.made_by(waiting.pop())
        if isinstance(layer, keras.Model):
            waiting.extend(layer.outputs)
            continue
        tail.add(id(layer))
        # An operation of keras.ops is no layer, and has none.
        if not getattr(layer, "weights", ()):
            waiting.extend(node.input_tensors)
    return tail
