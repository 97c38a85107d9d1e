"""Tiny KerasHub backbones, each written as a preset folder of its own."""

import numpy as np
import pytest

PREPROCESSING = {"image_size": (16, 16), "scale": [1 / 60, 1 / 50, 1 / 40], "offset": [-2.0, -2.1, -1.9]}
# CLIP's tokenizer splits words into letters, the last of a word marked.
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _resnet(hub):
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 16],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    return backbone, hub.layers.ResNetImageConverter(**PREPROCESSING)


def _densenet(hub):
    backbone = hub.models.DenseNetBackbone(stackwise_num_repeats=[1, 2], growth_rate=8, image_shape=(None, None, 3))
    return backbone, hub.layers.DenseNetImageConverter(**PREPROCESSING)


def _mobilenet(hub):
    backbone = hub.models.MobileNetBackbone(
        stackwise_expansion=[[8], [16]],
        stackwise_num_blocks=[1, 1],
        stackwise_num_filters=[[8], [16]],
        stackwise_kernel_size=[[3], [3]],
        stackwise_num_strides=[[2], [2]],
        stackwise_se_ratio=[[None], [0.25]],
        stackwise_activation=[["relu"], ["hard_swish"]],
        stackwise_padding=[[1], [1]],
        output_num_filters=16,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=8,
        image_shape=(None, None, 3),
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=16,
        squeeze_and_excite=0.5,
    )
    return backbone, hub.layers.MobileNetImageConverter(**PREPROCESSING)


def _vit(hub):
    backbone = hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    return backbone, hub.layers.ViTImageConverter(**PREPROCESSING)


def _clip(hub):
    vision = hub.models.CLIPVisionEncoder(
        patch_size=8, hidden_dim=8, num_layers=2, num_heads=2, intermediate_dim=16, image_shape=(16, 16, 3)
    )
    text = hub.models.CLIPTextEncoder(
        vocabulary_size=60,
        embedding_dim=8,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        intermediate_dim=16,
        max_sequence_length=32,
    )
    backbone = hub.models.CLIPBackbone(vision_encoder=vision, text_encoder=text, projection_dim=8)
    return backbone, hub.layers.CLIPImageConverter(**PREPROCESSING, interpolation="bicubic", antialias=True)


def clip_preprocessor(hub, converter):
    """CLIP's tokenizer with letters for tokens, as a preprocessor that can be saved into a preset."""
    tokens = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "at</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = hub.models.CLIPTokenizer(vocabulary=vocabulary, merges=["a t</w>"])
    return hub.models.CLIPPreprocessor(tokenizer, image_converter=converter, sequence_length=32)


_KINDS = {"resnet": _resnet, "densenet": _densenet, "mobilenet": _mobilenet, "vit": _vit, "clip": _clip}


def write(kind: str, folder, converter: bool = True):
    """Writes a preset with random weights and statistics, and gives its backbone and its image converter."""
    hub = pytest.importorskip("keras_hub")
    backbone, images = _KINDS[kind](hub)
    if kind != "clip":  # which has no statistics
        backbone(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), training=True)
    backbone.save_to_preset(str(folder))
    if kind == "clip":
        clip_preprocessor(hub, images).save_to_preset(str(folder))
    elif converter:
        images.save_to_preset(str(folder))
    return backbone, images
