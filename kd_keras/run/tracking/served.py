"""A student as MLflow serves it: images in, what the Keras model gives out."""

import importlib.metadata
import pathlib
import warnings

import numpy as np

from kd_keras.run.tracking.base import Served

_BATCH = 64
_PACKAGES = ("keras", "tensorflow", "numpy", "mlflow")


def load(path: pathlib.Path):
    """The Keras model of a file, of which no code is run.

    Raises:
        InputError: the file holds code.
    """
    from kd_keras.models.saved import load

    return load(path)


def signature(model):
    """What a Keras model takes and gives, as MLflow has it: uint8 images (N, H, W, C) in 0…255, float32 (N, K)."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(dtype, shape):
        return Schema([TensorSpec(np.dtype(dtype), tuple(-1 if side is None else side for side in shape))])

    return ModelSignature(schema("uint8", model.input_shape), schema("float32", model.output_shape))


def write(model: Served, folder: pathlib.Path, signature, **ids) -> None:
    """Writes a folder that ``mlflow.pyfunc.load_model`` loads.

    Args:
        model: what is served.
        folder: must not exist.
        signature: of the model.
        **ids: further fields of `mlflow.models.Model`.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    from kd_keras import __version__

    described = Model(**ids, metadata={"classes": list(model.classes), "architecture": model.architecture})
    versions = {"kd_keras": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}
    with warnings.catch_warnings():
        # MLflow asks for an example of the input; the signature is the model's own, and images stay where they are.
        warnings.filterwarnings("ignore", ".*input example.*")
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=str(model.path),
            mlflow_model=described,
            signature=signature,
            pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        )


def _load_pyfunc(path: str) -> "_Images":
    """What MLflow calls to load a model; the name is MLflow's."""
    return _Images(load(pathlib.Path(path)))


class _Images:
    """A model as MLflow calls it."""

    def __init__(self, model):
        self.model = model

    def predict(self, images, params=None):
        """Gives what the model gives for images (N, H, W, C) in 0…255."""
        del params
        return self.model.predict(np.asarray(images), batch_size=_BATCH, verbose=0)
