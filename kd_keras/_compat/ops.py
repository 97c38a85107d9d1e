"""Operations that losses need and `keras.ops` lacks, for Keras' backend: another backend is another file beside."""

import importlib

import keras


def has_values(tensor) -> bool:
    """Whether a tensor holds numbers, as against one that stands for them while a graph is traced."""
    return not isinstance(tensor, keras.KerasTensor) and hasattr(tensor, "__array__") and backend().is_concrete(tensor)


def outside_of_graphs():
    """A context in which operations run at once, also while a graph is being traced."""
    return backend().outside_of_graphs()


def backend():
    """The module ``ops_<backend>``, imported when it is first needed."""
    return importlib.import_module(f"kd_keras._compat.ops_{keras.backend.backend()}")
