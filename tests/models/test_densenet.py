import keras
import pytest

from kd_keras.errors import InputError
from kd_keras.models import densenet

slow = pytest.mark.slow


def shapes(model, *names):
    return [model.get_layer(name).output.shape[1:] for name in names]


def by_kind(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("depth", [22, 40])
def test_depth_counts_convolutions_and_the_classifier(depth):
    assert len(by_kind(densenet.DenseNet(10, (32, 32, 3), depth=depth, growth=2), keras.layers.Conv2D)) + 1 == depth


@pytest.mark.parametrize(
    ("stem", "sizes"),
    [("cifar", [(32, 60), (16, 66), (8, 69)]), ("imagenet", [(8, 60), (4, 66), (2, 69)])],
)
def test_maps_of_the_stages(stem, sizes):
    model = densenet.DenseNet(10, (32, 32, 3), depth=22, stem=stem)
    for i, (size, channels) in enumerate(sizes, start=1):
        assert shapes(model, f"stage{i}", f"stage{i}_pre") == [(size, size, channels)] * 2
    assert "stage4" not in [layer.name for layer in model.layers]
    assert shapes(model, "pooled") == [(sizes[-1][1],)]


@pytest.mark.parametrize(("shape", "pooled"), [((63, 200, 3), False), ((64, 64, 3), True)])
def test_default_stem_goes_by_the_smaller_side(shape, pooled):
    names = [layer.name for layer in densenet.DenseNet(10, shape, depth=22, growth=2).layers]
    assert ("stem_pool" in names) == pooled


def test_a_layer_joins_its_channels_to_those_before_it():
    model = densenet.DenseNet(10, (32, 32, 3), depth=22, growth=5)
    before, after = model.get_layer("stage1_layer2_concat").input
    assert before is model.get_layer("stage1_layer1_concat").output
    assert after is model.get_layer("stage1_layer2_conv2").output
    assert model.get_layer("stem_conv").filters == 10
    assert model.get_layer("stage1_layer2_conv1").filters == 20
    assert after.shape[-1] == 5


def test_a_transition_averages():
    model = densenet.DenseNet(10, (32, 32, 3), depth=22, growth=2)
    assert len(by_kind(model, keras.layers.AveragePooling2D)) == 2
    assert not by_kind(model, keras.layers.MaxPooling2D)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1)], ids=str)
def test_takes_small_grey_images(shape, stem):
    model = densenet.DenseNet(10, shape, depth=22, stem=stem, growth=2)
    assert model(keras.ops.zeros((2, *shape))).shape == (2, 10)


def test_dropout_follows_every_3x3_convolution_of_a_block():
    model = densenet.DenseNet(10, (32, 32, 3), depth=22, growth=2, dropout=0.2)
    drops = by_kind(model, keras.layers.Dropout)
    assert [layer.name for layer in drops] == [f"stage{s}_layer{i}_dropout" for s in (1, 2, 3) for i in (1, 2, 3)]
    assert {layer.rate for layer in drops} == {0.2}
    assert model.get_layer("stage1_layer1_concat").input[1] is drops[0].output


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": 120}, "depth=120 is unknown: choose one of 121, 169, 201, 22, 40, 100"),
        ({"depth": "121"}, "depth='121' is unknown"),
        ({"depth": [121]}, r"depth=\[121\] is unknown"),
        ({"stem": "small"}, "stem='small' is unknown: choose one of 'cifar', 'imagenet'"),
        ({"growth": 0}, "growth=0 .*give"),
        ({"growth": 12.0}, "growth=12.0 .*give"),
        ({"dropout": 1}, "dropout=1 .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        densenet.DenseNet(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
