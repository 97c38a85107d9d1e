"""The tensors of a functional model that can be read as taps, also those inside the models that it contains."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from kd_keras._compat import keras as graph


@dataclasses.dataclass(frozen=True)
class Place:
    """A tensor in the graph of a model, or of a model inside it.

    Attributes:
        tensor: symbolic.
        calls: the calls (nodes) of the models that it is in, from the outermost; none for the model's own graph.
    """

    tensor: keras.KerasTensor
    calls: tuple = ()

    @property
    def context(self) -> tuple:
        """What tells the uses of a model apart; see `Reader`."""
        return tuple(map(_call_key, self.calls))


def places(model: keras.Model) -> dict[str, Place]:
    """The outputs of all layers of a functional or Sequential model, by name.

    ``stage1`` is a layer of the model itself, ``backbone/stage1`` one of the model ``backbone`` inside it. The latter
    is also called ``stage1`` where no other layer has that name. The calls of a layer that is called several times are
    ``conv#1``, ``conv#2`` …, in the order in which they were made.
    """
    by_path = dict(_places(model, (), ""))
    inside: dict[str, list[str]] = {}
    for path in by_path:
        inside.setdefault(path.rpartition("/")[2], []).append(path)
    short = {name: by_path[paths[0]] for name, paths in inside.items() if len(paths) == 1}
    return {**by_path, **{name: place for name, place in short.items() if name not in by_path}}


def position(model: keras.Model, place: Place) -> str:
    """Where in a model a place is: ``'7'``, or ``'3.12'`` in a model inside it. Names of layers don't count."""
    numbers, inner = [], model
    for node in (*place.calls, graph.made_by(place.tensor)[1]):
        numbers.append(next(i for i, (_, other) in enumerate(graph.uses(inner.outputs)) if other is node))
        inner = node.operation
    return ".".join(map(str, numbers))


def _places(model, calls, prefix) -> Iterator[tuple[str, Place]]:
    nodes: dict[int, list] = {}
    for operation, node in graph.uses(model.outputs):
        nodes.setdefault(id(operation), []).append(node)
    for layer in model.layers:
        made = sorted(nodes.get(id(layer), ()), key=lambda node: graph.call_number(layer, node))
        if isinstance(layer, keras.layers.InputLayer):
            continue
        for number, node in enumerate(made, start=1):
            name = prefix + layer.name + f"#{number}" * (len(made) > 1)
            if len(node.output_tensors) == 1:
                yield name, Place(node.output_tensors[0], calls)
            if _can_be_entered(layer):
                yield from _places(layer, (*calls, node), name + "/")


def _can_be_entered(operation) -> bool:
    """Whether an operation is a model whose graph can be run layer by layer."""
    return isinstance(operation, keras.Model) and graph.is_stock_graph(operation) and len(operation.inputs) == 1


def _call_key(node) -> tuple:
    # Of the inner graph and of what goes in: a model that was cut out of the inner one has the same.
    return id(node.operation.inputs[0]), *(id(tensor) for tensor in node.input_tensors)


class Reader(keras.layers.Layer):
    """Runs a model once, layer by layer, and returns the values of some of its tensors by name.

    `keras.Model(inputs, tensors)` does the same for tensors of the model's own graph, and can't for those inside the
    models that it contains.

    Args:
        model: functional or Sequential.
        places: what to read.
    """

    def __init__(self, model: keras.Model, places: dict[str, Place]):
        super().__init__(dtype=model.dtype_policy, autocast=False)
        self.model, self._places = model, places
        self.built = True

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        outputs: dict[tuple, Any] = {}
        self._run(self.model.inputs, [], keras.tree.flatten(images), (), training, outputs)
        return {name: outputs[place.context, id(place.tensor)] for name, place in self._places.items()}

    def _run(self, sources, targets, given, context, training, outputs):
        """Computes the tensors ``targets``, and those of this context that are to be read, into ``outputs``."""
        depth = len(context)
        inside = [place for place in self._places.values() if place.context[:depth] == context]
        targets = [*targets, *(place.tensor for place in inside if place.context == context)]
        # Also the models inside whose output nothing else reads.
        targets += [place.calls[depth].output_tensors[0] for place in inside if place.context != context]
        for source, value in zip(sources, given, strict=True):
            outputs[context, id(source)] = _as_input(value, source)

        def known(part):
            return outputs[context, id(part)] if isinstance(part, keras.KerasTensor) else part

        for operation, node in graph.in_order(targets):
            if all((context, id(tensor)) in outputs for tensor in node.output_tensors):
                continue
            if _can_be_entered(operation):
                within = (*context, _call_key(node))
                inner = [known(node.input_tensors[0])]
                self._run(operation.inputs, operation.outputs, inner, within, training, outputs)
                values = [outputs[within, id(tensor)] for tensor in operation.outputs]
            else:
                args, kwargs = keras.tree.map_structure(known, (list(node.arguments.args), dict(node.arguments.kwargs)))
                values = keras.tree.flatten(graph.with_training(operation, training)(*args, **kwargs))
            for tensor, result in zip(node.output_tensors, values, strict=True):
                outputs[context, id(tensor)] = result


def _as_input(value, tensor):
    """A value as a model takes it at its input: of its dtype, and with its axis of one channel."""
    value = ops.cast(value, tensor.dtype)
    rank = len(tensor.shape)
    if len(value.shape) == rank - 1 and tensor.shape[-1] == 1:
        return ops.expand_dims(value, -1)
    if len(value.shape) == rank + 1 and value.shape[-1] == 1:
        return ops.squeeze(value, -1)
    return value
