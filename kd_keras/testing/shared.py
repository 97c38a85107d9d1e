"""How the checks compare, explain and restore."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

import keras
import numpy as np


def assert_close(value, expected, what, rtol=1e-5):
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=1e-6, err_msg=what)


def assert_equal(value, expected, what):
    np.testing.assert_array_equal(value, expected, err_msg=what)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an error into an `AssertionError` that says what the contract is."""
    try:
        yield
    except Exception as error:  # the part is the user's code: it may raise anything
        raise AssertionError(f"{what} ({type(error).__name__}: {error})") from error


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def save_and_load(model: keras.Model, name: str) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder, explained(f"{name} cannot be saved and loaded by Keras"):
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return keras.models.load_model(path, safe_mode=True, compile=False)
