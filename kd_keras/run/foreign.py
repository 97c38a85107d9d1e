"""Parts of the user's own code, ``package.module:name``: what identifies them, whether their models can be stored."""

import sys

import keras

from kd_keras import files
from kd_keras.errors import InputError
from kd_keras.spec import Spec


def version(name: str, function) -> int | str:
    """The version of a part: the one that its file states; of the user's own code the hash of its source.

    Args:
        name: in a spec.
        function: what the name stands for.
    """
    if ":" not in name:
        return getattr(sys.modules[function.__module__], "VERSION", 1)
    modules = {name.partition(":")[0], getattr(function, "__module__", "")}
    sources = [getattr(sys.modules.get(module), "__file__", None) for module in sorted(modules)]
    return "".join(files.sha256(source)[:16] for source in sources if source)


def check_can_be_saved(model: keras.Model, what: Spec) -> None:
    """Refuses a model of the user's own code that could not be read back from its file once it is trained.

    Raises:
        InputError: a layer is not registered, or can't be made from its config.
    """
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    # The user's layers may raise anything.
    except Exception as error:
        reason = str(error).rpartition("Exception encountered: ")[2].split(" Full object config:")[0]
        raise InputError(
            f"{what} can't be read back from a .keras file ({' '.join(reason.split())[:200]}): give its layers "
            "get_config() and the decorator @keras.saving.register_keras_serializable()"
        ) from error
