"""Counting a network's weights without making them."""

import math

import keras


def trainable(build, *args, **keys) -> int:
    """Trainable weights of ``build(*args, **keys)``; in this scope Keras draws none, so that size costs nothing."""
    with keras.StatelessScope(initialize_variables=False):
        model = build(*args, **keys)
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)
