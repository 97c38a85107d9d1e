"""A hash of what a model computes, which stays the same when Keras names its layers anew."""

import hashlib
import json

import keras
import numpy as np

from kd_keras._compat import keras as graph


def model_hash(model: keras.Model) -> str:
    """A hash of layers, connections and weights. Names don't count: Keras numbers them again in each process.

    Of a subclassed model's code only its config and its layers count.
    """
    digest = hashlib.sha256(json.dumps(_description(model), sort_keys=True, default=_constant).encode())
    for weight in model.weights:
        digest.update(_constant(weight).encode())
    return digest.hexdigest()


def weights_hash(model: keras.Model) -> str:
    """A hash of a model's weights alone, which tells whether they have changed."""
    return hashlib.sha256("".join(map(_constant, model.weights)).encode()).hexdigest()


def _description(model) -> list:
    """The operations of a model, their settings, and what feeds them."""
    if not graph.is_graph(model):
        return [type(model).__qualname__, _settings(model), *(_operation(layer) for layer in model.layers)]
    outputs, described, uses = {}, [], graph.uses(model.outputs)
    for place, (_, node) in enumerate(uses):
        outputs |= {id(tensor): [place, number] for number, tensor in enumerate(node.output_tensors)}
    for operation, node in uses:
        arguments = keras.tree.map_structure(
            lambda value: outputs[id(value)] if isinstance(value, keras.KerasTensor) else value,
            [list(node.arguments.args), dict(node.arguments.kwargs)],
        )
        described.append([_operation(operation), arguments])
    return described


def _operation(operation) -> list:
    if isinstance(operation, keras.Model):
        return [type(operation).__qualname__, _description(operation)]
    return [type(operation).__qualname__, _settings(operation)]


def _settings(operation) -> dict:
    try:
        return {key: value for key, value in operation.get_config().items() if key != "name"}
    except NotImplementedError:  # a user's layer without get_config: its weights still count
        return {}


def _constant(value) -> str:
    """An array, or anything else in a model's description, as text."""
    try:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
    except (TypeError, ValueError):
        return type(value).__qualname__
    return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
