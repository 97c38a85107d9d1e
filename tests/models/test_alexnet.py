import keras
import pytest

from kd_keras import spec
from kd_keras.errors import InputError
from kd_keras.models import alexnet


def shapes(model, *names):
    return [model.get_layer(name).output.shape[1:] for name in names]


def test_maps_of_the_published_network():
    model = alexnet.AlexNet(10, (224, 224, 3), width=0.125)
    assert shapes(model, "stage1", "stage2", "stage3") == [(56, 56, 8), (27, 27, 24), (13, 13, 32)]
    assert shapes(model, "stage3_pool", "pooled", "dense1", "dense2") == [(6, 6, 32), (1152,), (512,), (512,)]


def test_maps_of_the_cifar_stem():
    model = alexnet.AlexNet(10, (32, 32, 3), width=0.125)
    assert shapes(model, "stage1", "stage2", "stage3") == [(16, 16, 8), (8, 8, 24), (4, 4, 32)]
    assert shapes(model, "pooled", "dense1") == [(128,), (512,)]


@pytest.mark.parametrize(("shape", "first"), [((63, 200, 3), (3, 3)), ((64, 64, 3), (11, 11))])
def test_default_stem_goes_by_the_smaller_side(shape, first):
    assert alexnet.AlexNet(10, shape, width=0.125).get_layer("stage1_pre").kernel_size == first


def test_large_images_are_averaged_to_what_224_pixels_give():
    model = alexnet.AlexNet(10, (320, 240, 3), width=0.125)
    assert shapes(model, "stage3_pool", "adaptive_pool", "pooled") == [(9, 6, 32), (6, 6, 32), (1152,)]


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)], ids=str)
def test_imagenet_stem_takes_small_images(shape):
    model = alexnet.AlexNet(10, shape, stem="imagenet", width=0.125)
    assert model(keras.ops.zeros((2, *shape))).shape == (2, 10)


def test_dropout_follows_both_hidden_layers():
    names = [layer.name for layer in alexnet.AlexNet(10, (32, 32, 3), width=0.125).layers]
    assert names[-5:] == ["dense1", "dropout1", "dense2", "dropout2", "logits"]
    assert alexnet.AlexNet(10, (32, 32, 3), width=0.125).get_layer("dropout1").rate == 0.5
    without = alexnet.AlexNet(10, (32, 32, 3), width=0.125, dropout=0.0)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in without.layers)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stem": "small"}, "stem='small' is unknown: choose one of 'cifar', 'imagenet'"),
        ({"stem": spec.Spec("cifar")}, r"stem=cifar\(\) is unknown: choose one of 'cifar'"),  # without quotes
        ({"width": 0}, "width=0 .*give"),
        ({"width": "1"}, "width='1' .*give"),
        ({"dropout": 1.0}, "dropout=1.0 .*give"),
        ({"dropout": None}, "dropout=None .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        alexnet.AlexNet(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
