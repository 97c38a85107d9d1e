"""Private names of Keras: each is used by one function, whose test here says what an upgrade has changed."""

import random

import keras
import pytest

from kd_keras._compat import keras as compat
from kd_keras.models import resnet


def test_shapes_only_builds_without_variables_and_leaves_no_trace():
    state = keras.src.backend.common.global_state
    random.seed(3)
    expected = random.Random(3).random()
    with compat.shapes_only():
        assert compat.builds_shapes_only()
        model = resnet.build(10, (32, 32, 3), depth=20)
        kernel = model.get_layer("logits").kernel
        with compat.shapes_only():
            resnet.build(10, (32, 32, 3), depth=20)
    assert not compat.builds_shapes_only() and random.random() == expected
    assert (tuple(model.get_layer("stage3").output.shape), tuple(kernel.shape)) == ((None, 8, 8, 64), (64, 10))
    # A later scope of Keras' makes whatever is still waiting.
    with keras.StatelessScope():
        made = keras.layers.Dense(2)
        made.build((None, 3))
    assert kernel._value is None, "keras now makes a variable when a StatelessScope ends: see shapes_only()"
    assert made.kernel._value is not None and not state.get_global_attribute("uninitialized_variables")


def test_shapes_only_leaves_out_published_weights():
    with compat.shapes_only():
        model = resnet.build(10, (64, 64, 3), depth=50, pretrained="imagenet")
    assert model.count_params() > 23e6


def test_shapes_only_ends_with_an_error_inside_it():
    with pytest.raises(KeyError), compat.shapes_only():
        keras.layers.Dense(2).build((None, 3))
        raise KeyError
    assert not compat.builds_shapes_only()
