"""Operations that losses need and `keras.ops` lacks, for Keras' backend: another backend is another file beside."""

import importlib

import keras


def backend():
    """The module ``ops_<backend>``, imported when it is first needed."""
    return importlib.import_module(f"kd_keras._compat.ops_{keras.backend.backend()}")
