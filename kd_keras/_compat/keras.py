"""Reading a model's layers, and its graph by the history that Keras keeps in its symbolic tensors (not public)."""

import contextlib
import random
import re
from collections.abc import Iterable, Iterator

import keras

from kd_keras.errors import InputError

_UNINITIALIZED = "uninitialized_variables"


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """A context in which models are built without variables, to ask for their shapes, layers and sizes.

    SE-ResNet101 takes 0.7 s instead of 4.7 s. Such a model can't be called on images. Builders that read weights from
    a file or the network ask `builds_shapes_only` and leave them out. Python's random stream, from which Keras draws
    the seeds of new layers, is put back.
    """
    # Keras keeps a list of the variables that are still to be made, and makes them where the next scope ends.
    state = keras.src.backend.common.global_state
    before, stream = state.get_global_attribute(_UNINITIALIZED) or [], random.getstate()
    state.set_global_attribute(_UNINITIALIZED, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        state.set_global_attribute(_UNINITIALIZED, before)
        random.setstate(stream)


def builds_shapes_only() -> bool:
    """Whether models are being built inside `shapes_only`."""
    return keras.src.backend.common.stateless_scope.in_stateless_scope()


def layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer but the inputs, those of models inside the model too."""
    return [layer for _, layer in named_layers(model)]


def named_layers(model: keras.Model, prefix: str = "") -> list[tuple[str, keras.layers.Layer]]:
    """`layers` with a name for each: that of a model inside the model comes before those of its layers."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += named_layers(layer, f"{prefix}{layer.name}_")
        elif not isinstance(layer, keras.layers.InputLayer):
            found.append((prefix + layer.name, layer))
    return found


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer of a model, those inside its layers too."""
    return list(model._flatten_layers())


def check_layers(names: Iterable[str], known: list[str], key: str) -> None:
    """Raises InputError where a name that a flag or argument ``key`` gives is none of the student's layers."""
    if missing := [name for name in names if name not in known]:
        told = ", ".join(map(repr, missing))
        raise InputError(f"{key} names {told}, which the student has not: its layers are {', '.join(known)}")


def stages(names: Iterable[str], ending: str = "") -> list[str]:
    """Those of some names that are stages' (``stage1``, or with an ending ``stage1_pre``), in the order of depth."""
    found = (re.fullmatch(rf"stage(\d+){ending}", name) for name in names)
    return [match[0] for match in sorted(filter(None, found), key=lambda match: int(match[1]))]


def is_graph(model: keras.Model) -> bool:
    """Whether a model is functional or Sequential: a graph of operations that can be read and cut."""
    return bool(getattr(model, "operations", None)) or isinstance(model, keras.Sequential)


def can_be_rebuilt(layer: keras.layers.Layer) -> bool:
    """Whether a layer can be made anew from its config; not all of other packages can."""
    if type(layer).__module__.startswith("keras."):
        return True
    try:
        type(layer).from_config(layer.get_config())
    # Keras raises TypeError for a config that does not fit, NotImplementedError for none; a layer's own code anything.
    except Exception:
        return False
    return True


def description(model: keras.Model) -> list:
    """What a model computes, but for its weights and its names: operations, their settings, and what feeds them.

    A subclassed model's code is not in it; its own config and its layers are.
    """
    if not is_graph(model):
        return [type(model).__qualname__, _settings(model), *(_inside(layer) for layer in model.layers)]
    at, found, used = {}, [], uses(model.outputs)
    for place, (_, node) in enumerate(used):
        at |= {id(tensor): [place, number] for number, tensor in enumerate(node.output_tensors)}
    for operation, node in used:
        given = keras.tree.map_structure(
            lambda value: at[id(value)] if isinstance(value, keras.KerasTensor) else value,
            [list(node.arguments.args), dict(node.arguments.kwargs)],
        )
        found.append([_inside(operation), given])
    return found


def places(model: keras.Model) -> dict[str, int]:
    """Where in the model each layer is used last, by the layer's name; empty for a subclassed model."""
    if not is_graph(model):
        return {}
    return {operation.name: place for place, (operation, _) in enumerate(uses(model.outputs))}


def _inside(operation):
    if isinstance(operation, keras.Model):
        return [type(operation).__qualname__, description(operation)]
    return [type(operation).__qualname__, _settings(operation)]


def _settings(operation) -> dict:
    try:
        return {key: value for key, value in operation.get_config().items() if key != "name"}
    except NotImplementedError:  # one of the user's own without: its weights have to do
        return {}


def made_by(tensor):
    """The operation that made a symbolic tensor, and the node: that use of the operation among its others."""
    operation, index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[index]


def uses(outputs) -> list:
    """Every (operation, node) on the way to some symbolic tensors, the last ones first.

    A layer knows of its uses in other models too (a Sequential model that is loaded is built anew with each layer);
    these are the uses in this one.
    """
    found, seen, waiting = [], set(), list(outputs)
    while waiting:
        operation, node = made_by(waiting.pop())
        if id(node) not in seen:
            seen.add(id(node))
            found.append((operation, node))
            waiting.extend(node.input_tensors)
    return found


def in_order(outputs) -> list:
    """Every (operation, node) on the way to some symbolic tensors, each behind those that feed it."""
    found, seen = [], set()
    waiting = [(made_by(tensor), False) for tensor in outputs]
    while waiting:
        (operation, node), fed = waiting.pop()
        if fed:
            found.append((operation, node))
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append(((operation, node), True))
            waiting.extend((made_by(tensor), False) for tensor in node.input_tensors)
    return found


def is_softmax(operation) -> bool:
    """Whether an operation of a graph is a softmax and nothing else."""
    # `keras.ops.softmax` in a graph is an operation of the same name, in a module that is not public.
    return isinstance(operation, keras.layers.Softmax) or type(operation).__name__ == "Softmax"


def in_float32(model: keras.Model) -> keras.Model:
    """The model itself if it computes in float32, else a float32 copy with the same weights."""
    if all(layer.dtype_policy.name == "float32" for layer in model._flatten_layers()):
        return model
    config = _without_policies(keras.saving.serialize_keras_object(model))
    # safe_mode guards against files of strangers; this is the caller's own live object.
    copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
    copy.set_weights(model.get_weights())
    return copy


_LOW_PRECISION = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")


def _without_policies(config):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float32"}}
        return {
            key: "float32" if key == "dtype" and value in _LOW_PRECISION else _without_policies(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_without_policies(value) for value in config)
    return config
