"""Layers that are not trained."""

import keras
import numpy as np
import pytest

from kd_keras import models
from kd_keras.distillation.freezing import frozen
from kd_keras.errors import InputError


def nested():
    backbone = models.ResNet(10, (8, 8, 3), depth=8)
    body = keras.Model(backbone.input, backbone.get_layer("pooled").output, name="backbone")
    return keras.Sequential([keras.Input((8, 8, 3)), body, keras.layers.Dense(10, name="logits")])


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (("stem*",), ("stage1", "stage2", "stage3", "logits")),
        (("stem*", "stage1*", "stage2_block1_conv1"), ("stage2", "stage3", "logits")),
        (("backbone",), ("logits",)),
    ],
)
def test_named_layers_are_not_trained(names, left):
    model = frozen(nested(), names)
    trained = {weight.path.split("/")[-2] for weight in model.trainable_weights}
    assert {name.partition("_")[0] for name in trained} == set(left)
    assert "stage2_block1_conv1" not in trained or "stage2_block1_conv1" not in names


def test_batch_norm_that_is_frozen_keeps_its_averages():
    model = frozen(models.ResNet(10, (8, 8, 3), depth=8), ("*_bn*",))
    before = [np.array(weight) for weight in model.non_trainable_weights]
    model(np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32"), training=True)
    for a, b in zip(before, model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("stagel_pre",), "--freeze=stagel_pre is the name of no layer of .*: some are .*stage1_pre"),
        (("*",), "leaves .* no weight to train"),
    ],
)
def test_names_that_can_not_be_meant_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        frozen(models.ResNet(10, (8, 8, 3), depth=8), names)
