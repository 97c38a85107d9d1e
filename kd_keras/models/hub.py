"""Networks of KerasHub: any image backbone among its presets, including CLIP's image tower."""

import os
from collections.abc import Sequence

import keras
import numpy as np

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError, check_switch
from kd_keras.models import layers as _layers
from kd_keras.models import networks as _networks

_HEADS = ("fresh", "zero_shot")
_POOLS = ("token", "mean")


def Hub(
    num_classes: int,
    input_shape: tuple[int, int, int],
    preset: str,
    head: str = "fresh",
    class_names: Sequence[str] | None = None,
    template: str = "a photo of a {}",
    pool: str | None = None,
    resize: bool = True,
    dropout: float = 0.0,
) -> keras.Model:
    """The image backbone of a KerasHub preset with its weights, all trainable, and a classifier.

    Needs KerasHub: ``pip install 'kd_keras[hub]'``. The preset's preprocessing (size, scale, offset) is part of
    the model; a grey image is repeated to three channels.

    With ``head='zero_shot'`` the classifier of a CLIP preset (Radford et al., 2103.00020, section 3.1.2) is computed
    from the class names: its weights are the text tower's embeddings of ``template`` with each name, and the model
    needs no training (``--teacher_epochs=0``).

    Taps: ``stage1 … stageN``, the levels of the backbone's feature pyramid, the finest first, if it has one (ResNet
    and DenseNet do; ViT, CLIP and MobileNet do not); ``pooled``, the vector (B, D) that enters the classifier; and
    every layer of the backbone under its own name, such as CLIP's ``encoder_block_5``. A backbone whose layers cannot
    be rebuilt from their configs (KerasHub's ViT) stays one layer: its only tap is ``pooled``, and
    ``teacher_dtype`` refuses it.

    An image that is resized with antialiasing (CLIP) cannot be exported to TFLite; such a model can still teach.

    Args:
        num_classes: K, at least 2.
        input_shape: (H, W, C), C being 3 or 1.
        preset: name of a preset (``'resnet_50_imagenet'``, ``'clip_vit_base_patch32'``), a handle (``'hf://…'``,
            ``'kaggle://…'``), or the path of a folder that ``save_to_preset`` wrote.
        head: ``'fresh'``: a new dense layer. ``'zero_shot'``: computed from class names, see above.
        class_names: the classes in the data's order, for ``'zero_shot'``.
        template: the sentence around a class name, with ``{}`` in its place.
        pool: for a backbone that returns tokens: ``'token'`` reads the first, the class token; ``'mean'`` the mean of
            all. Default: the class token if the backbone has one, else the mean. For CLIP, the projected class token is
            read.
        resize: whether images are resized to the size of the preset's preprocessing; False keeps their size, for
            backbones that take any size.
        dropout: share of units dropped before the classifier, in 0 <= dropout < 1.

    Returns:
        A functional model, pixels in 0..255 (B, H, W, C) -> float32 logits (B, K).

    Raises:
        InputError: KerasHub is not installed, the preset is unknown, not available, not an image backbone or without
            preprocessing, or a value is out of range.
    """
    input_shape = _layers.check(num_classes, input_shape)
    if not isinstance(preset, (str, os.PathLike)):
        raise InputError(f"preset={preset!r} is not text: write hub(preset='resnet_50_imagenet')")
    if head not in _HEADS:
        raise InputError(f"head={head!r} is unknown: choose one of {', '.join(map(repr, _HEADS))}")
    if pool is not None and pool not in _POOLS:
        raise InputError(f"pool={pool!r} is unknown: choose one of {', '.join(map(repr, _POOLS))}, or None")
    check_switch("resize", resize)
    _layers.check_dropout(dropout)
    prompts = _prompts(num_classes, head, class_names, template)

    preset = os.path.expanduser(preset)
    hub = _networks.keras_hub()
    backbone = _load(preset, "backbone", hub.models.Backbone.from_preset)
    converter = _load(preset, "image preprocessing", hub.layers.ImageConverter.from_preset)
    clip = isinstance(backbone, hub.models.CLIPBackbone)
    if clip and pool == "mean":
        raise InputError("pool='mean' is not for CLIP, whose class token is what it was trained on: leave it out")
    if head == "zero_shot" and not clip:
        raise InputError(
            f"head='zero_shot' needs a CLIP preset, {preset!r} is a {type(backbone).__name__}: leave it out"
        )
    tower = backbone.vision_encoder if clip else backbone

    image, x = _networks.colour_input(input_shape)
    x = _preprocessed(x, converter, resize)
    x = _applied(tower, x, preset)
    # Keras numbers a tower without a name, and the tower names its layers after itself.
    names = {layer.name: layer.name.removeprefix(f"{tower.name}_") for layer in tower.layers}
    names |= {tower.name: "backbone", **_taps(tower)}
    if clip:
        x = backbone.vision_projection(_class_token(x, "class_embedding"))
        names[backbone.vision_projection.name] = "pooled"
    else:
        x = _pooled(x, tower, pool, preset)
    if head == "zero_shot":
        x = keras.layers.UnitNormalization(name="unit")(x)
    x = _layers.dropout(x, dropout)
    model = _networks.finished(image, _layers.logits(x, num_classes), names=names, name="hub")
    if head == "zero_shot":
        kernel = _text_weights(hub, backbone, preset, prompts)
        model.get_layer("logits").set_weights([kernel, np.zeros(num_classes)])
    return model


def _load(preset, what, load):
    try:
        return load(preset)
    # KerasHub reads presets from folders and from three hosts, which raise different errors.
    except Exception as error:
        raise InputError(
            f"the {what} of preset {preset!r} cannot be had ({_networks.reason(error)}): give a preset of "
            "keras.io/keras_hub/presets and a network, or a folder that save_to_preset wrote"
        ) from error


def _prompts(num_classes, head, class_names, template) -> list[str]:
    if head == "fresh":
        if class_names is not None:
            raise InputError("class_names is for head='zero_shot', a fresh head learns its classes: leave it out")
        return []
    if not isinstance(class_names, (tuple, list)) or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"class_names={class_names!r} is not a tuple of text: write class_names=('cat', 'dog', …)")
    if len(class_names) != num_classes:
        raise InputError(
            f"class_names has {len(class_names)} names, the data have {num_classes} classes: give one for each, in "
            "the data's order"
        )
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(f"template={template!r} has no single {{}}: write for example 'a photo of a {{}}'")
    return [template.replace("{}", name) for name in class_names]


def _preprocessed(x, converter, resize):
    """KerasHub's ImageConverter as layers of Keras."""
    size = converter.image_size
    if resize and size is not None and tuple(size) != tuple(x.shape[1:3]):
        resized = keras.layers.Resizing(
            *size,
            interpolation=converter.interpolation,
            antialias=converter.antialias,
            crop_to_aspect_ratio=converter.crop_to_aspect_ratio,
            pad_to_aspect_ratio=converter.pad_to_aspect_ratio,
            name="resize",
        )
        # Keras' image layers default to training=True, which would reach the batch norm that follows.
        x = resized(x, training=False)
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    return keras.layers.Rescaling(scale, offset, name="rescale")(x)


def _applied(tower, x, preset):
    """Applies the tower layer by layer where its layers can be rebuilt, so that each is a layer of the model."""
    expected = tower.inputs[0].shape[1:]
    if len(tower.inputs) != 1 or len(expected) != 3:
        raise InputError(f"preset {preset!r} is a {type(tower).__name__}, which takes more than images: name another")
    if any(side not in (None, size) for side, size in zip(expected, x.shape[1:], strict=True)):
        raise InputError(
            f"preset {preset!r} takes images of shape {expected}, these have {x.shape[1:]}: leave resize=True"
        )
    inputs = {tower.inputs[0].name: x} if isinstance(tower.input, dict) else x
    return tower.call(inputs) if all(map(graph.can_be_rebuilt, tower.layers)) else tower(inputs)


def _pooled(x, tower, pool, preset):
    rank = None if isinstance(x, (dict, list, tuple)) else len(x.shape)
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    if rank != 3:
        raise InputError(f"preset {preset!r} gives neither a map nor tokens: name the preset of an image backbone")
    pool = pool or ("token" if getattr(tower, "use_class_token", False) else "mean")
    if pool == "mean":
        return keras.layers.GlobalAveragePooling1D(name="pooled")(x)
    return _class_token(x, "pooled")


def _class_token(x, name):
    """The first of the tokens (B, T, D): (B, D)."""
    x = keras.layers.Cropping1D((0, x.shape[1] - 1), name="class_token")(x)
    return keras.layers.Flatten(name=name)(x)


def _taps(tower) -> dict[str, str]:
    """The layers that output the levels of the feature pyramid -> their names as taps."""
    levels = getattr(tower, "pyramid_outputs", {}).values()
    sources = [layer.name for level in levels for layer in tower.layers if layer.output is level]
    return {source: f"stage{i}" for i, source in enumerate(sources, start=1)}


def _text_weights(hub, clip, preset, prompts) -> np.ndarray:
    """Unit text embeddings times CLIP's scale (D, K), whose product with unit image embeddings are scaled cosines."""
    preprocessor = _load(preset, "tokenizer", hub.models.CLIPPreprocessor.from_preset)
    tokens = preprocessor({"images": None, "prompts": prompts})["token_ids"]
    embeddings = keras.ops.convert_to_numpy(clip.get_text_embeddings(tokens)).astype(np.float64)
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return (embeddings * np.exp(keras.ops.convert_to_numpy(clip.clip_head.logit_scale))).T
