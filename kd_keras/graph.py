"""Reading a model's layers, and its graph by the history that Keras keeps in its symbolic tensors (not public)."""

import keras


def layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer but the inputs, those of models inside the model too."""
    return [
        inner
        for layer in model.layers
        for inner in (layers(layer) if isinstance(layer, keras.Model) else [layer])
        if not isinstance(inner, keras.layers.InputLayer)
    ]


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
