"""`pretrained=`: the networks of keras.applications with their published weights."""

import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras

from kd_keras import files
from kd_keras._compat import keras as compat
from kd_keras.errors import InputError
from kd_keras.models import layers as _layers
from kd_keras.models import networks as _networks

_MIN_SIDE = 32  # pixels, for every network used here


class Preprocessing:
    """How the networks of keras.applications preprocess pixels in 0..255: `preprocess_input`'s three modes."""

    #: x / 127.5 - 1.
    TF = (1 / 127.5, -1.0)
    #: (x / 255 - mean) / deviation, by channel.
    TORCH = (
        [1 / 255 / deviation for deviation in (0.229, 0.224, 0.225)],
        [-mean / deviation for mean, deviation in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))],
    )
    #: x - mean, the channels in reverse: blue, green, red.
    CAFFE = ([1.0, 1.0, 1.0], [-123.68, -116.779, -103.939])


def build_pretrained(
    num_classes: int,
    input_shape: tuple[int, int, int],
    pretrained: str | os.PathLike[str],
    network: Callable[..., keras.Model],
    *,
    preprocessing: tuple[Any, Any],
    taps: Mapping[str, str],
    name: str,
    dropout: float = 0.0,
    first_conv: str | None = None,
    **options: Any,
) -> keras.Model:
    """A network of keras.applications with its published weights, a global average and a new classifier.

    All layers are trainable, batch norm too. The preprocessing is the layer ``rescale``; a grey image is repeated to
    three channels.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C), C being 3 or 1.
        pretrained: ``'imagenet'``, which downloads the weights once, or the path of a weights file of the same network
            without its top, as Keras publishes it (``…_notop.h5``) or ``save_weights`` writes it.
        network: function of keras.applications.
        preprocessing: a constant of `Preprocessing`.
        taps: the network's name of a layer -> the tap's name (``stage1`` …).
        name: the model's name.
        dropout: share of units dropped before the classifier, in 0 <= dropout < 1.
        first_conv: name of the first convolution, where its weights take the channels in reverse; they are reversed
            once.
        **options: further arguments of ``network``.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: the image is too small, the weights are not available, or the file holds another network's weights.
    """
    input_shape = _layers.check(num_classes, input_shape)
    _layers.check_dropout(dropout)
    if not isinstance(pretrained, (str, os.PathLike)):
        raise InputError(f"pretrained={pretrained!r} is unknown: write 'imagenet', the path of a weights file, or None")
    if min(input_shape[:2]) < _MIN_SIDE:
        raise InputError(
            f"pretrained networks take images of at least {_MIN_SIDE}x{_MIN_SIDE} pixels, these have "
            f"{input_shape[0]}x{input_shape[1]}: read them with --image_size={_MIN_SIDE}, or train from scratch with "
            "--nopretrained"
        )
    image, x = _networks.colour_input(input_shape)
    x = keras.layers.Rescaling(*preprocessing, name="rescale")(x)
    base = _loaded(network, pretrained, {"include_top": False, "input_shape": x.shape[1:], **options}, name)
    if first_conv and not compat.builds_shapes_only():
        layer = base.get_layer(first_conv)
        kernel, *rest = layer.get_weights()
        layer.set_weights([kernel[:, :, ::-1], *rest])
    x = base.call(x)  # not base(x), which would nest its layers in one
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    x = _layers.dropout(x, dropout)
    return _networks.finished(image, _layers.logits(x, num_classes), names=taps, name=name)


def check_published(key: str, value: Any, published: Collection[Any]) -> None:
    """Raises InputError unless there are published weights for this value of a builder's argument."""
    if value not in published:
        known = ", ".join(repr(option) for option in published if option is not None)
        advice = f"those are for {known}" if known else "leave it out"
        raise InputError(
            f"{key}={value!r} has no published weights for pretrained=: {advice}, or train from scratch with "
            "--nopretrained"
        )


def _loaded(network, pretrained, options, name) -> keras.Model:
    if compat.builds_shapes_only():
        return network(weights=None, **options)
    if pretrained == "imagenet":
        try:
            with files.download_timeout():
                return network(weights="imagenet", **options)
        except Exception as error:  # Keras' download fails with a bare Exception
            raise InputError(
                f"the ImageNet weights of {name} cannot be had ({_networks.reason(error)}): connect to the network, "
                "give pretrained='<path of the weights file>', or train from scratch with --nopretrained"
            ) from error
    file = pathlib.Path(os.path.expanduser(pretrained))
    if not file.is_file():
        raise InputError(
            f"pretrained={str(pretrained)!r}: there is no such file; write 'imagenet', or the path of a weights file"
        )
    base = network(weights=None, **options)
    try:
        base.load_weights(file)
    except Exception as error:  # a damaged file or another kind of file may raise anything
        raise InputError(
            f"{str(file)!r} does not hold the weights of {name} without its top ({_networks.reason(error)}): give the "
            "…_notop.h5 file that Keras publishes for it"
        ) from error
    return base
