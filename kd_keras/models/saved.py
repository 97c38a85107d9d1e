"""A model from a ``.keras`` file: a teacher trained elsewhere, or in an earlier run."""

import os
import pathlib
import zipfile

import keras

from kd_keras.errors import InputError, is_count
from kd_keras.models import layers as _layers
from kd_keras.models import networks as _networks

# The file has trained weights: a run trains this model as a teacher only when asked to.
TRAINED = True


def Saved(num_classes: int, input_shape: tuple[int, int, int], path: str | os.PathLike[str]) -> keras.Model:
    """The model of a ``.keras`` file, its weights as saved.

    The file is read in Keras' safe mode, so it cannot run code; a Lambda layer that holds a Python lambda is refused.
    Taps are named as the file's layers: a model that kd_keras built and saved has all of them. A model whose output is
    not logits (softmax) is returned unchanged.

    Args:
        num_classes: K, which the model's output must have.
        input_shape: (H, W, C), which the model's input must take; a side that the file leaves open (None) takes any.
        path: the file; a leading ``~`` is the home folder.

    Returns:
        A model, (B, H, W, C) -> (B, K), not compiled.

    Raises:
        InputError: the file does not exist, does not end in .keras, or cannot be read safely, or its model has another
            shape.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path={path!r} is not text: write saved(path='teacher.keras')")
    file = pathlib.Path(os.path.expanduser(path))
    if file.suffix != ".keras":
        raise InputError(f"{str(file)!r} does not end in .keras: give a file written by model.save('name.keras')")
    if not file.is_file():
        raise InputError(f"there is no file {str(file)!r}: check the path, it is relative to {os.getcwd()!r}")
    if not zipfile.is_zipfile(file):  # Keras would report that it does not exist
        raise InputError(f"{str(file)!r} is no .keras file but something else of that name: save it with model.save()")
    try:
        model = load(file)
    except InputError:
        raise
    except Exception as error:  # a damaged or foreign file can fail in any way: zip, JSON, HDF5, unknown classes
        raise InputError(_unreadable(file, error)) from error

    # A subclassed model may lack these; with several inputs or outputs they are not flat tuples of numbers.
    takes, gives = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not (_is_flat(takes, 4) and _is_flat(gives, 2)):
        raise InputError(
            f"{str(file)!r} takes {takes} and gives {gives}, not one image batch (B, H, W, C) and one batch of "
            "logits (B, K): save a functional or Sequential classifier"
        )
    if gives[1] != num_classes:
        raise InputError(
            f"{str(file)!r} tells {gives[1]} classes apart where the data has {num_classes}: "
            "give a model trained on these classes"
        )
    if any(has not in (None, wanted) for has, wanted in zip(takes[1:], input_shape, strict=True)):
        raise InputError(
            f"{str(file)!r} takes images of shape {takes[1:]} where the data has {input_shape}: "
            "give a model of that input shape, or read the data in the model's"
        )
    return model


def load(file: str | os.PathLike[str]) -> keras.Model:
    """The model of a ``.keras`` file, not compiled; KerasHub is imported first where the file has its layers.

    Raises:
        InputError: the file has layers of KerasHub, which is not installed.
    """
    with zipfile.ZipFile(file) as archive:
        if b'"keras_hub' in archive.read("config.json"):
            _networks.keras_hub()
    return keras.models.load_model(file, safe_mode=True, compile=False)


def _is_flat(shape, rank: int) -> bool:
    return isinstance(shape, tuple) and len(shape) == rank and all(s is None or is_count(s) for s in shape)


def _unreadable(file: pathlib.Path, error: Exception) -> str:
    """What Keras reports in many lines, in one."""
    if "Lambda" in str(error):
        return f"{str(file)!r} has a Lambda layer, which could run any code: rebuild the model from stock layers"
    # Keras nests errors, each with the whole config; the innermost one names the cause.
    lines = str(error).rpartition("Exception encountered: ")[2].strip().splitlines()
    reason = lines[0].split(" Full object config:")[0][:200] if lines else type(error).__name__
    return (
        f"{str(file)!r} cannot be read as a Keras model ({reason}): save it again with model.save(), and import the "
        "package of its own layers first"
    )
