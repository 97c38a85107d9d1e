"""`Taps` reads the named intermediate outputs (taps) of a model in one forward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError


class Taps:
    """Reads named intermediate outputs of a model in one forward pass.

    In a functional or Sequential model the name of every layer is a tap, and ``logits`` is the output. A subclassed
    model offers what its own method ``taps(x, training)`` returns (a dict that contains ``logits``), or only its
    logits. A final softmax is removed: ``logits`` are its inputs.

    Args:
        model: a built `keras.Model` with one input and one output of shape (B, K).
        role: what messages call the model.

    Attributes:
        model: the model, as given.
        role: as given.
        names: the available taps.
        input_shape: (H, W, C).
        num_classes: K.

    Raises:
        InputError: the model is not built, has several inputs or outputs, or ends in a softmax that can't be removed.
    """

    def __init__(self, model: keras.Model, role: str = "model"):
        self.model, self.role = model, role
        self._functions: dict[tuple[str, ...], Callable] = {}
        # Functional and Sequential models are graphs of operations; only those can be cut at a layer.
        self._is_graph = graph.is_graph(model)
        if not model.built:
            raise InputError(f"the {role} is not built: call it once on a batch, or give it an Input")
        if self._is_graph:
            self._read_graph()
        else:
            self._read_subclassed()
        self.names = list(self._shapes)
        logits = self._shapes["logits"]
        # A single output is a single class, whose softmax is always 1: a loss on it would train nothing.
        if len(logits) != 2 or logits[1] in (None, 1):
            raise InputError(f"the {role}'s output has shape {logits}: a classifier's is (batch, classes), classes ≥ 2")
        self.num_classes = logits[1]

    def shapes(self, names: Sequence[str]) -> dict[str, tuple]:
        """Shapes (None, …) of taps, by name."""
        return {name: self._shapes[name] for name in names}

    def require(self, names: Sequence[str]) -> None:
        """Raises InputError where a tap does not exist."""
        for name in names:
            if name not in self._shapes:
                raise InputError(f"the {self.role} has no tap {name!r}: it has {', '.join(self.names)}")

    def logits_model(self) -> keras.Model:
        """The model itself or, where it ends in a softmax, a model of the same weights that returns the logits."""
        if not self._is_graph or self._tensors["logits"] is self.model.outputs[0]:
            return self.model
        return keras.Model(self.model.inputs[0], self._tensors["logits"], name=self.model.name)

    def __call__(self, x, names: Sequence[str], training: bool) -> dict[str, Any]:
        """Taps of images (B, H, W, C) by name, ``logits`` in float32. Runs the model once."""
        names = tuple(names)
        if self._is_graph:
            if names not in self._functions:
                outputs = {name: self._tensors[name] for name in names}
                self._functions[names] = keras.Model(self.model.inputs[0], outputs)
            outputs = self._functions[names](x, training=training)
        else:
            outputs = self._call_subclassed(x, training)
        return {name: ops.cast(outputs[name], "float32") if name == "logits" else outputs[name] for name in names}

    def _read_graph(self):
        model = self.model
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            counts = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
            raise InputError(f"the {self.role} has {counts}: a classifier has one of each")
        self.input_shape = tuple(model.inputs[0].shape[1:])
        tensors, outputs = {}, {}
        for operation, node in graph.uses(model.outputs):
            outputs.setdefault(id(operation), []).extend(node.output_tensors)
        for layer in model.layers:
            if not isinstance(layer, keras.layers.InputLayer) and len(outputs.get(id(layer), ())) == 1:
                tensors[layer.name] = outputs[id(layer)][0]
        tensors["logits"] = self._logits()
        self._tensors = tensors
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def _logits(self):
        output = self.model.outputs[0]
        last, node = graph.made_by(output)
        if not _ends_in_softmax(last):
            return output
        if graph.is_softmax(last) or isinstance(last, keras.layers.Activation):
            return node.input_tensors[0]
        if isinstance(last, keras.layers.Dense):
            logits = ops.matmul(node.input_tensors[0], last.kernel)
            return logits if last.bias is None else ops.add(logits, last.bias)
        raise self._softmax_error(last)

    def _softmax_error(self, layer):
        return InputError(
            f"the {self.role} ends in a softmax inside {layer.name!r}, which can't be removed: "
            "let the model return logits"
        )

    def _read_subclassed(self):
        model = self.model
        config = model.get_build_config() or {}
        shape = config.get("input_shape")
        if not isinstance(shape, (tuple, list)) or any(size is None for size in shape[1:]):
            raise InputError(f"the {self.role}'s input shape is not known: call it once on a batch of images")
        self.input_shape = tuple(shape[1:])
        outputs = self._call_subclassed(ops.zeros((1, *self.input_shape)), training=False)
        if "logits" not in outputs:
            raise InputError(f"the {self.role}'s taps() returns {', '.join(outputs)}: 'logits' has to be among them")
        # The order of a subclassed model's layers does not say which comes last, so its output is looked at.
        if _are_probabilities(outputs["logits"]):
            raise self._softmax_error(model)
        self._shapes = {name: (None, *value.shape[1:]) for name, value in outputs.items()}

    def _call_subclassed(self, x, training):
        if hasattr(self.model, "taps"):
            return self.model.taps(x, training=training)
        return {"logits": self.model(x, training=training)}


def _ends_in_softmax(layer) -> bool:
    while isinstance(layer, keras.Model) and layer.layers:
        layer = layer.layers[-1]
    return graph.is_softmax(layer) or getattr(layer, "activation", None) is keras.activations.softmax


def _are_probabilities(values) -> bool:
    values = ops.convert_to_numpy(ops.cast(values, "float32"))
    return bool((values >= 0).all() and (abs(values.sum(axis=-1) - 1) < 1e-2).all())
