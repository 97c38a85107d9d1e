"""Layers that are not trained."""

import difflib
import fnmatch
from collections.abc import Sequence

import keras

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError


def frozen(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """The model, of which some layers are not trained; batch norm among them computes with its moving averages.

    Args:
        model: changed in place.
        names: of layers at any depth, with what is inside them; ``*`` stands for any letters.

    Raises:
        InputError: a name is no layer's, or no layer with weights is left.
    """
    layers = {layer.name: layer for layer in graph.all_layers(model) if layer is not model}
    for name in names:
        found = fnmatch.filter(layers, name)
        if not found:
            known = difflib.get_close_matches(name, layers, n=5, cutoff=0.4) or list(layers)[:5]
            raise InputError(f"--freeze={name} is the name of no layer of {model.name}: some are {', '.join(known)}")
        for layer in found:
            layers[layer].trainable = False
    if not model.trainable_weights:
        raise InputError(f"--freeze={','.join(names)} leaves {model.name} no weight to train: name fewer layers")
    return model


def frozen_body(model: keras.Model) -> keras.Model:
    """The model, of which only the last layer with weights is trained: a linear probe of its features.

    Raises:
        InputError: no layer has weights.
    """
    weighted = [layer for layer in graph.all_layers(model) if layer.variables and not isinstance(layer, keras.Model)]
    if not weighted:
        raise InputError(f"{model.name} has no layer with weights, and so no classifier that could be trained")
    for layer in weighted[:-1]:
        layer.trainable = False
    return model
