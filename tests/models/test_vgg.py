import keras
import pytest

from kd_keras.errors import InputError
from kd_keras.models import vgg


def shapes(model, *names):
    return [model.get_layer(name).output.shape[1:] for name in names]


def by_kind(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("depth", [8, 11, 16])
def test_depth_counts_what_has_weights(depth):
    model = vgg.VGG(10, (32, 32, 3), depth=depth, stem="imagenet", width=0.02)
    layers = by_kind(model, keras.layers.Conv2D) + by_kind(model, keras.layers.Dense)
    assert len(layers) == depth


def test_maps_of_the_published_network():
    model = vgg.VGG(10, (224, 224, 3), width=0.02)
    assert shapes(model, *(f"stage{i}" for i in range(1, 6))) == [
        (224, 224, 1),
        (112, 112, 3),
        (56, 56, 5),
        (28, 28, 10),
        (14, 14, 10),
    ]
    assert shapes(model, "stage5_pool", "pooled", "dense1", "dense2") == [(7, 7, 10), (490,), (82,), (82,)]


def test_maps_of_the_cifar_stem():
    model = vgg.VGG(10, (32, 32, 3), width=0.125)
    assert [shape[0] for shape in shapes(model, *(f"stage{i}" for i in range(1, 6)))] == [32, 16, 8, 4, 4]
    assert shapes(model, "pooled") == [(64,)]
    assert not any(layer.name.startswith(("dense", "dropout")) for layer in model.layers)


@pytest.mark.parametrize(("shape", "units"), [((63, 200, 3), 1), ((64, 64, 3), 3)])
def test_default_stem_goes_by_the_smaller_side(shape, units):
    assert len(by_kind(vgg.VGG(10, shape, width=0.02), keras.layers.Dense)) == units


def test_large_images_are_averaged_to_what_224_pixels_give():
    model = vgg.VGG(10, (288, 224, 3), width=0.02)
    assert shapes(model, "stage5_pool", "adaptive_pool", "pooled") == [(9, 7, 10), (7, 7, 10), (490,)]


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)], ids=str)
def test_imagenet_stem_takes_small_images(shape):
    model = vgg.VGG(10, shape, stem="imagenet", width=0.02)
    assert model(keras.ops.zeros((2, *shape))).shape == (2, 10)


@pytest.mark.parametrize(
    ("keys", "rates"),
    [
        ({}, []),
        ({"dropout": 0.25}, [0.25]),
        ({"stem": "imagenet"}, [0.5, 0.5]),
        ({"stem": "imagenet", "dropout": 0.25}, [0.25, 0.25]),
        ({"stem": "imagenet", "dropout": 0.0}, []),
    ],
    ids=str,
)
def test_dropout_is_as_published_unless_given(keys, rates):
    model = vgg.VGG(10, (32, 32, 3), width=0.02, **keys)
    assert [layer.rate for layer in by_kind(model, keras.layers.Dropout)] == rates


def test_without_batch_norm_the_convolution_is_the_map_before_the_activation():
    plain = vgg.VGG(10, (32, 32, 3), width=0.02, batch_norm=False)
    assert not by_kind(plain, keras.layers.BatchNormalization)
    assert isinstance(plain.get_layer("stage5_pre"), keras.layers.Conv2D)
    normed = vgg.VGG(10, (32, 32, 3), width=0.02)
    assert isinstance(normed.get_layer("stage5_pre"), keras.layers.BatchNormalization)
    assert all(layer.use_bias for layer in by_kind(normed, keras.layers.Conv2D))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": 12}, "depth=12 is unknown: choose one of 8, 11, 13, 16, 19"),
        ({"depth": "11"}, "depth='11' is unknown"),
        ({"depth": 11.0}, "depth=11.0 is unknown"),
        ({"depth": [11]}, r"depth=\[11\] is unknown"),
        ({"batch_norm": 1}, "batch_norm=1: write True or False"),
        ({"stem": "small"}, "stem='small' is unknown: choose one of 'cifar', 'imagenet'"),
        ({"width": -1}, "width=-1 .*give"),
        ({"dropout": -0.1}, "dropout=-0.1 .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        vgg.VGG(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
