"""Networks of other packages, rebuilt as one flat graph with this package's input, taps and logits."""

from collections.abc import Mapping

import keras

from kd_keras._compat import replicas
from kd_keras.errors import InputError, needs
from kd_keras.models import layers as _layers


def colour_input(input_shape: tuple[int, int, int]) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The model's input, pixels in 0..255 (B, H, W, C), and the same with three channels; a grey one is repeated.

    Raises:
        InputError: the image has neither one channel nor three.
    """
    image = keras.Input(input_shape, name="image", dtype="float32")
    if input_shape[-1] == 3:
        return image, image
    if input_shape[-1] != 1:
        raise InputError(
            f"input_shape={input_shape} has {input_shape[-1]} channels, a pretrained network takes 3, or 1 that is "
            "repeated: read the images in colour or grey"
        )
    return image, keras.layers.Concatenate(name="colour")([image] * 3)


def keras_hub():
    """The package, whose import also registers its layers with Keras.

    Raises:
        InputError: it is not installed.
    """
    with needs("KerasHub", "hub", "this model"):
        import keras_hub as package
    return package


def finished(image: keras.KerasTensor, x: keras.KerasTensor, *, names: Mapping[str, str], name: str) -> keras.Model:
    """A copy of the model from ``image`` to ``x``, with the same weights.

    Args:
        image: the input.
        x: the logits (B, K), in the same graph.
        names: new names of layers by their old ones: the taps.
        name: the model's name.

    Returns:
        A functional model, under the current dtype policy except for its logits. Its batch norm has this package's
        momentum, and is synchronised with several replicas.
    """
    original = keras.Model(image, x, name=name)
    is_replicated = replicas.count() > 1

    def copy(layer):
        config = layer.get_config()
        config["name"] = names.get(layer.name, layer.name)
        # KerasHub's presets keep the policy that they were saved with, whatever the current one is.
        if isinstance(layer, keras.layers.Layer) and layer.name != "logits":
            config["dtype"] = keras.config.dtype_policy().name
        if isinstance(layer, keras.layers.BatchNormalization):
            config.update(momentum=_layers.BATCH_NORM_MOMENTUM, synchronized=is_replicated)
        return type(layer).from_config(config)

    # A clone, because a layer that two networks called returns the output of its first call.
    model = keras.models.clone_model(original, clone_function=copy)
    # In order, not by name: some layers of KerasHub change the name that they are given.
    for layer, copied in zip(original.layers, model.layers, strict=True):
        copied.set_weights(layer.get_weights())
    return model


def reason(error: Exception) -> str:
    """What a library reports in many lines, in one."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
