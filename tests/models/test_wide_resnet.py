import keras
import pytest

from kd_keras.errors import InputError
from kd_keras.models import wide_resnet


def test_depth_counts_convolutions_with_those_of_the_shortcuts():
    layers = wide_resnet.WideResNet(10, (32, 32, 3), depth=16, width=2).layers
    assert sum(isinstance(x, keras.layers.Conv2D) for x in layers) == 16


def test_blocks_normalise_first_and_sum_last():
    model = wide_resnet.WideResNet(10, (32, 32, 3), depth=10, width=2)
    assert isinstance(model.get_layer("stage1_block1_add"), keras.layers.Add)
    assert model.get_layer("stage1_pre").input is model.get_layer("stage1_block1_add").output
    # The shortcut that changes the shape starts from the activated map, the others from the sum.
    assert model.get_layer("stage2_block1_shortcut_conv").input is model.get_layer("stage1").output
    same = wide_resnet.WideResNet(10, (32, 32, 3), depth=16, width=1)
    assert same.get_layer("stage1_block1_add").input[0] is same.get_layer("stem_conv").output


def test_maps_of_the_stages():
    model = wide_resnet.WideResNet(10, (32, 32, 3), depth=10, width=2)
    for i, (size, channels) in enumerate([(32, 32), (16, 64), (8, 128)], start=1):
        for name in (f"stage{i}", f"stage{i}_pre"):
            assert model.get_layer(name).output.shape == (None, size, size, channels)
    assert model.get_layer("pooled").output.shape == (None, 128)


def test_dropout_stands_between_the_convolutions_of_every_block():
    model = wide_resnet.WideResNet(10, (32, 32, 3), depth=10, width=1, dropout=0.3)
    dropped = [x for x in model.layers if isinstance(x, keras.layers.Dropout)]
    assert [x.name for x in dropped] == [f"stage{i}_block1_dropout" for i in (1, 2, 3)]
    assert {x.rate for x in dropped} == {0.3}
    assert model.get_layer("stage2_block1_conv2").input is dropped[1].output


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": 18}, "depth=18 is not 6n .* 10, 16, 22, 28"),
        ({"depth": 4}, "depth=4 is not"),
        ({"depth": 16.0}, "depth=16.0 is not"),
        ({"width": 0}, "width=0 .*give"),
        ({"width": 0.5}, "width=0.5 .*give"),
        ({"dropout": 1}, "dropout=1 .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        wide_resnet.WideResNet(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
