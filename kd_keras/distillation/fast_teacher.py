"""`fast_copy`: a model for inference only, with batch norm folded into the layers before it, in a dtype of its own."""

import collections

import keras
import numpy as np

from kd_keras._compat import keras as graph
from kd_keras.distillation import device
from kd_keras.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")
#: Share of samples that a copy in another dtype has to give the class that float32 gives them.
LEAST_AGREEMENT = 0.995
# Layers that a batch norm can be folded into: their output channels are the kernel's last axis (or last two).
_FOLDABLE = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)


@keras.saving.register_keras_serializable(package="kd_keras")
class _Folded(keras.layers.Layer):
    """Takes the place and the name of a batch norm that was folded, so that its tap still exists."""

    def call(self, inputs, training=None, mask=None):
        del training, mask
        return inputs


def fast_copy(model: keras.Model, dtype: str = "auto", keep: tuple[str, ...] = ()) -> keras.Model:
    """A copy of a functional or Sequential model that computes the same outputs faster, for inference only.

    A batch norm that is the only reader of a convolution or a dense layer is folded into its weights, which is exact
    up to rounding. That saves most in a narrow dtype, where Keras computes batch norm in float32 between casts. Every
    layer keeps its name. The layer that computes the logits stays in float32.

    Args:
        model: built; it is not changed.
        dtype: ``'float32'``, ``'bfloat16'``, ``'float16'``, or ``'auto'``: the fastest on this machine.
        keep: names of the taps that are read: no batch norm may be folded into these layers.

    Returns:
        A model with float32 outputs and its own weights.

    Raises:
        InputError: an unknown dtype, a subclassed model, or one with layers that can't be rebuilt.
    """
    if dtype == "auto":
        dtype = device.teacher_dtype()
    if dtype not in DTYPES:
        known = ", ".join(map(repr, ("auto", *DTYPES)))
        raise InputError(f"teacher_dtype={dtype!r}: known are None, {known}")
    if not can_be_copied(model):
        raise InputError(
            "teacher_dtype needs a functional or Sequential teacher whose layers can all be rebuilt from their "
            "configs: build yours under a mixed policy"
        )
    folds = _folds(model, _layer_names(keep))
    norms = {id(norm) for norm in folds.values()}
    exact = _layers_of_logits(model)
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"

    def copy(layer):
        config = layer.get_config()
        if id(layer) in norms:
            return _Folded(name=layer.name, dtype=policy)
        if id(layer) in folds:
            config["use_bias"] = True
        # An operation of keras.ops, which is not a layer, computes in the dtype of its inputs.
        if isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "float32" if id(layer) in exact else policy
        return graph.rebuilt(layer, config)

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    update(clone, model, keep)
    return clone


def update(fast: keras.Model, model: keras.Model, keep: tuple[str, ...] = ()) -> None:
    """Gives a `fast_copy` the weights that its model has now; ``keep`` as when it was made."""
    folds = _folds(model, _layer_names(keep))
    norms = {id(norm) for norm in folds.values()}
    for layer, copied in zip(_layers(model), _layers(fast), strict=True):
        if id(layer) in folds:
            copied.set_weights(_folded_weights(layer, folds[id(layer)]))
        elif id(layer) not in norms:
            copied.set_weights(layer.get_weights())


def _layer_names(taps) -> set[str]:
    """The layers' names in the names of taps: ``conv`` of ``backbone/conv#2``."""
    return {tap.rpartition("/")[2].partition("#")[0] for tap in taps}


def can_be_copied(model: keras.Model) -> bool:
    """Whether a model, and each model inside it, is functional or Sequential, of layers that can be rebuilt."""
    return graph.is_graph(model) and all(
        (can_be_copied if isinstance(layer, keras.Model) else graph.can_be_rebuilt)(layer) for layer in model.layers
    )


def _models(model) -> list[keras.Model]:
    """The model and the models inside it."""
    return [model, *(part for layer in model.layers if isinstance(layer, keras.Model) for part in _models(layer))]


def _layers(model) -> list[keras.layers.Layer]:
    """The layers of the model and of the models inside it, without inputs."""
    not_plain = (keras.Model, keras.layers.InputLayer)
    return [layer for part in _models(model) for layer in part.layers if not isinstance(layer, not_plain)]


def _folds(model, keep) -> dict[int, keras.layers.BatchNormalization]:
    """The batch norm that can be folded into a layer, by the layer's id."""
    folds = {}
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
                folds[id(layer)] = norm
    return folds


def _folded_weights(layer, norm) -> list[np.ndarray]:
    """Kernel and bias that compute a layer and its batch norm, in float64 so that nothing is rounded on the way."""
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    mean, variance = (np.asarray(w, np.float64) for w in (norm.moving_mean, norm.moving_variance))
    scale = 1 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    shift = ((bias[0] if bias else 0) - mean) * scale
    if norm.center:
        shift = shift + np.asarray(norm.beta, np.float64)
    # A depthwise kernel is (H, W, channels, multiplier), and its outputs are channels · multiplier.
    factors = scale.reshape(kernel.shape[-2:]) if isinstance(layer, keras.layers.DepthwiseConv2D) else scale
    return [kernel * factors, shift]


def _layers_of_logits(model) -> set[int]:
    """Ids of the layers from the output back to the first that has weights: they compute the logits.

    In a model of several classifiers these are the last layers of each.
    """
    ids, waiting = set(), list(model.outputs)
    while waiting:
        layer, node = graph.made_by(waiting.pop())
        if isinstance(layer, keras.Model):
            waiting.extend(layer.outputs)
            continue
        ids.add(id(layer))
        # An operation of keras.ops has no attribute for weights.
        if not getattr(layer, "weights", ()):
            waiting.extend(node.input_tensors)
    return ids
