"""Networks without their weights, which take most of the time of building one."""

import concurrent.futures
import math

import keras


def symbolic(build, *args, **keys) -> keras.Model:
    """``build(*args, **keys)``, a model whose weights have shapes and no values; size costs nothing."""

    def built():
        with keras.StatelessScope(initialize_variables=False):
            return build(*args, **keys)

    # Keras keeps, for each thread, what it has yet to draw, and draws it at the next occasion: in a later test, if
    # this were its thread.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(built).result()


def trainable(build, *args, **keys) -> int:
    """Trainable weights of ``build(*args, **keys)``."""
    return sum(math.prod(weight.shape) for weight in symbolic(build, *args, **keys).trainable_weights)
