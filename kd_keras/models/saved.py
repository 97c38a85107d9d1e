"""A model from a file: a teacher trained elsewhere, or in an earlier run."""

import json
import os
import pathlib
import zipfile
from typing import Any

import keras

from kd_keras import spec
from kd_keras.errors import InputError, is_count
from kd_keras.models import layers as _layers
from kd_keras.models import networks as _networks
from kd_keras.spec import Spec

# The file has trained weights: a run trains this model as a teacher only when asked to.
TRAINED = True
# What a .keras file may hold that runs code when it is read, by its class name there.
_CODE = {"__lambda__": "a Lambda layer or another Python function", "TFSMLayer": "a SavedModel"}


def Saved(
    num_classes: int,
    input_shape: tuple[int, int, int],
    path: str | os.PathLike[str],
    model: Spec | keras.Model | None = None,
    allow_code: bool = False,
    features: bool = False,
) -> keras.Model:
    """The model of a file, its weights as saved.

    A ``.keras`` file is read in Keras' safe mode, so it cannot run code. Taps are named as the file's layers: a model
    that kd_keras built and saved has all of them. A model whose output is not logits (softmax) is returned unchanged.

    Args:
        num_classes: K, which the model's output must have.
        input_shape: (H, W, C), which the model's input must take; a side that the file leaves open (None) takes any.
        path: the file; a leading ``~`` is the home folder.
        model: how the model is built, such as ``resnet(depth=20)`` or ``package.module:name()``. Of the file, which may
            then also be a ``.weights.h5`` or ``.h5``, only the weights are read.
        allow_code: whether the file may run code: a ``.keras`` file with Python functions, a model in ``.h5``, a folder
            with a SavedModel. A run says so by ``--allow_code_in``.
        features: whether the model may have no classifier's head: a teacher of which only features are read.

    Returns:
        A model, (B, H, W, C) -> (B, K), not compiled.

    Raises:
        InputError: the file does not exist, cannot be read safely, or its model has another shape.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path={path!r} is not text: write saved(path='teacher.keras')")
    file = pathlib.Path(os.path.expanduser(path))
    if not file.exists():
        raise InputError(f"there is no file {str(file)!r}: check the path, it is relative to {os.getcwd()!r}")
    if isinstance(model, Spec):
        model = spec.build("kd_keras.models", model, num_classes=num_classes, input_shape=input_shape)
    try:
        loaded = _read(file, input_shape, allow_code) if model is None else _with_weights(model, file)
    except InputError:
        raise
    except Exception as error:  # a damaged or foreign file can fail in any way: zip, JSON, HDF5, unknown classes
        raise InputError(_unreadable(file, error)) from error
    _check_shapes(loaded, file, num_classes, input_shape, features)
    return loaded


def input_shape(path: str | os.PathLike[str]) -> tuple | None:
    """(H, W, C) of the images that the model of a ``.keras`` file takes, a side None where it takes any.

    None where the file is of another kind, or does not say it.
    """
    file = pathlib.Path(os.path.expanduser(path))
    if file.suffix != ".keras" or not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
    shapes = [(config.get("build_config") or {}).get("input_shape")]
    layers = config["config"].get("layers") or [{}]
    shapes += [layer["config"]["batch_shape"] for layer in layers if layer.get("class_name") == "InputLayer"]
    found = [tuple(shape[1:]) for shape in shapes if isinstance(shape, list) and len(shape) == 4]
    return found[0] if found else None


def load(file: str | os.PathLike[str], allow_code: bool = False) -> keras.Model:
    """The model of a ``.keras`` file, not compiled; KerasHub is imported first where the file has its layers.

    Raises:
        InputError: the file has layers of KerasHub, which is not installed.
    """
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
    if '"keras_hub' in json.dumps(config):
        _networks.keras_hub()
    marked = _with_marked_functions(config)
    if not allow_code or marked == config:
        return keras.models.load_model(file, safe_mode=not allow_code, compile=False)
    model = keras.saving.deserialize_keras_object({**marked, "compile_config": None}, safe_mode=False)
    model.load_weights(file)
    return model


def _with_marked_functions(config: Any) -> Any:
    """A config in which Python functions are marked as such; Keras leaves the mark out where one is an activation."""
    if isinstance(config, list):
        return [_with_marked_functions(value) for value in config]
    if not isinstance(config, dict):
        return config
    changed = {key: _with_marked_functions(value) for key, value in config.items() if key != "config"}
    if "config" in config:
        is_marked = config.get("class_name") == "__lambda__"
        changed["config"] = config["config"] if is_marked else _with_marked_functions(config["config"])
    # A function is its bytecode, its defaults and its closure.
    if list(config) == ["value"] and isinstance(config["value"], list) and len(config["value"]) == 3:
        return {"class_name": "__lambda__", "config": config}
    return changed


def _read(file: pathlib.Path, input_shape, allow_code: bool) -> keras.Model:
    """The model of a file of any kind."""
    if (file / "saved_model.pb").is_file():
        _refuse_code(file, "is a SavedModel, whose operations can read and write files", allow_code)
        return _of_saved_model(file, input_shape)
    if file.is_dir():
        raise InputError(f"there is no file {str(file)!r}, it is a folder without a SavedModel: give a .keras file")
    if file.name.endswith(".weights.h5"):
        raise InputError(
            f"{str(file)!r} holds weights alone: say how the model is built, saved(path='…', model=resnet(depth=20)), "
            "or give a file written by model.save('name.keras')"
        )
    if file.suffix in (".h5", ".hdf5"):
        _refuse_code(file, "does not end in .keras: a model in HDF5 can run any code when it is read", allow_code)
        return keras.models.load_model(file, safe_mode=False, compile=False)
    if file.suffix != ".keras":
        raise InputError(f"{str(file)!r} does not end in .keras: give a file written by model.save('name.keras')")
    if not zipfile.is_zipfile(file):  # Keras would report that it does not exist
        raise InputError(f"{str(file)!r} is no .keras file but something else of that name: save it with model.save()")
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
    text = json.dumps(_with_marked_functions(config))
    for name, what in _CODE.items():
        if f'"class_name": "{name}"' in text:
            _refuse_code(file, f"has {what} inside, which could run any code", allow_code)
    return load(file, allow_code)


def _refuse_code(file: pathlib.Path, why: str, allow_code: bool) -> None:
    if not allow_code:
        raise InputError(
            f"{str(file)!r} {why}: save the model of stock layers by model.save('name.keras'), or, where you trust the "
            f"file, give --allow_code_in={file}"
        )


def _with_weights(model: keras.Model, file: pathlib.Path) -> keras.Model:
    """A model with the weights of a file, which can't run code."""
    if not (file.is_file() and file.suffix in (".h5", ".hdf5", ".keras")):
        raise InputError(
            f"{str(file)!r} is no file of Keras' weights: give one written by model.save_weights('name.weights.h5') or "
            "model.save('name.keras')"
        )
    model.load_weights(file)
    return model


def _of_saved_model(folder: pathlib.Path, input_shape) -> keras.Model:
    """A SavedModel as a functional model of one layer. Keras exports call it ``serve``, others by its signature."""
    import tensorflow as tf

    endpoints = tf.saved_model.load(str(folder))
    endpoint = "serve" if hasattr(endpoints, "serve") else "serving_default"
    layer = keras.layers.TFSMLayer(str(folder), call_endpoint=endpoint, trainable=False, name="saved_model")
    image = keras.Input(input_shape)
    outputs = keras.tree.flatten(layer(image))
    return keras.Model(image, outputs[0] if len(outputs) == 1 else outputs, name="of_saved_model")


def _check_shapes(model: Any, file: pathlib.Path, num_classes: int, input_shape, features: bool) -> None:
    # A subclassed model may lack these; with several inputs or outputs they are not flat tuples of numbers.
    takes, gives = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if not (_is_flat(takes, 4) and (features or _is_flat(gives, 2))):
        raise InputError(
            f"{str(file)!r} takes {takes} and gives {gives}, not one image batch (B, H, W, C) and one batch of "
            "logits (B, K): save a functional or Sequential classifier; a teacher of features alone is "
            "saved(path='…', features=True)"
        )
    if gives[1] != num_classes and not features:
        raise InputError(
            f"{str(file)!r} tells {gives[1]} classes apart where the data has {num_classes}: "
            "give a model trained on these classes, or, if only its features are read, saved(path='…', features=True)"
        )
    if any(has not in (None, wanted) for has, wanted in zip(takes[1:], input_shape, strict=True)):
        raise InputError(
            f"{str(file)!r} takes images of shape {takes[1:]} where the data has {input_shape}: "
            "give a model of that input shape, or read the data in the model's"
        )


def _is_flat(shape, rank: int) -> bool:
    return isinstance(shape, tuple) and len(shape) == rank and all(s is None or is_count(s) for s in shape)


def _unreadable(file: pathlib.Path, error: Exception) -> str:
    """What Keras reports in many lines, in one."""
    # Keras nests errors, each with the whole config; the innermost one names the cause.
    lines = str(error).rpartition("Exception encountered: ")[2].strip().splitlines()
    reason = lines[0].split(" Full object config:")[0][:200] if lines else type(error).__name__
    return (
        f"{str(file)!r} cannot be read as a Keras model ({reason}): save it again with model.save(), and where it has "
        "layers of its own say how it is built, saved(path='…', model=package.module:name())"
    )
