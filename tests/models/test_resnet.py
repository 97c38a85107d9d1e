import keras
import pytest

from kd_keras.errors import InputError
from kd_keras.models import resnet

slow = pytest.mark.slow


def by_kind(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("depth", [8, 14, 44])
def test_depth_counts_convolutions_and_the_classifier(depth):
    layers = by_kind(resnet.ResNet(10, (32, 32, 3), depth=depth), keras.layers.Conv2D)
    assert sum("shortcut" not in layer.name for layer in layers) + 1 == depth


@pytest.mark.parametrize(("shape", "stem"), [((63, 200, 3), "cifar"), ((64, 64, 3), "imagenet")])
def test_default_stem_goes_by_the_smaller_side(shape, stem):
    default = resnet.ResNet(10, shape, depth=8)
    assert [x.name for x in default.layers] == [x.name for x in resnet.ResNet(10, shape, depth=8, stem=stem).layers]
    assert ("stem_pool" in [x.name for x in default.layers]) == (stem == "imagenet")


@pytest.mark.parametrize(
    ("keys", "shapes"),
    [
        ({"depth": 18, "stem": "cifar"}, [(32, 64), (16, 128), (8, 256), (4, 512)]),
        ({"depth": 18, "stem": "imagenet"}, [(8, 64), (4, 128), (2, 256), (1, 512)]),
        ({"depth": 50, "stem": "imagenet"}, [(8, 256), (4, 512), (2, 1024), (1, 2048)]),
        ({"depth": "8x4"}, [(32, 64), (16, 128), (8, 256)]),
        ({"depth": 8}, [(32, 16), (16, 32), (8, 64)]),
    ],
)
def test_maps_of_the_stages(keys, shapes):
    model = resnet.ResNet(10, (32, 32, 3), **keys)
    for i, (size, channels) in enumerate(shapes, start=1):
        for name in (f"stage{i}", f"stage{i}_pre"):
            assert model.get_layer(name).output.shape == (None, size, size, channels)
    assert f"stage{len(shapes) + 1}" not in [layer.name for layer in model.layers]
    assert model.get_layer("pooled").output.shape == (None, shapes[-1][1])
    assert isinstance(model.get_layer("stage1_pre"), keras.layers.Add)


def test_bottleneck_stride_is_on_the_3x3_convolution():
    model = resnet.ResNet(10, (32, 32, 3), depth=50, width=0.125)
    strided = [layer for layer in by_kind(model, keras.layers.Conv2D) if layer.strides != (1, 1)]
    kernels = {layer.name: layer.kernel_size for layer in strided}
    assert kernels == {
        f"stage{i}_block1_{part}": size
        for i in (2, 3, 4)
        for part, size in [("conv2", (3, 3)), ("shortcut_conv", (1, 1))]
    }


def test_width_scales_every_convolution():
    whole, half = (by_kind(resnet.ResNet(10, (32, 32, 3), depth=8, width=w), keras.layers.Conv2D) for w in (1, 0.5))
    assert [x.filters for x in half] == [x.filters // 2 for x in whole]
    least = by_kind(resnet.ResNet(10, (32, 32, 3), depth=8, width=0.001), keras.layers.Conv2D)
    assert {x.filters for x in least} == {1}


def test_convolutions_are_he_normal_without_bias_and_batch_norm_is_quick():
    model = resnet.ResNet(10, (32, 32, 3), depth=8)
    convs, norms = by_kind(model, keras.layers.Conv2D), by_kind(model, keras.layers.BatchNormalization)
    assert all(isinstance(x.kernel_initializer, keras.initializers.HeNormal) and not x.use_bias for x in convs)
    assert len(norms) == len(convs)
    assert {x.momentum for x in norms} == {0.9}


def test_squeeze_excitation_gates_the_branch_before_the_sum():
    model = resnet.ResNet(10, (32, 32, 3), depth=8, se_ratio=4)
    gates = by_kind(model, keras.layers.Multiply)
    assert [x.name for x in gates] == [f"stage{i}_block1_se_scale" for i in (1, 2, 3)]
    assert model.get_layer("stage3_block1_se_reduce").filters == 16
    assert any(x is gates[2].output for x in model.get_layer("stage3_pre").input)
    gate = keras.Model(model.input, model.get_layer("stage3_block1_se_gate").output)
    values = keras.ops.convert_to_numpy(gate(keras.random.uniform((2, 32, 32, 3), 0, 255, seed=0)))
    assert values.shape == (2, 1, 1, 64)
    assert (values > 0).all() and (values < 1).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1)], ids=str)
@pytest.mark.parametrize("keys", [{"stem": "imagenet"}, {"depth": 50}, {"depth": 20}], ids=str)
def test_takes_small_grey_images(keys, shape):
    model = resnet.ResNet(10, shape, **{"depth": 18, "width": 0.25, **keys})
    assert model(keras.ops.zeros((2, *shape))).shape == (2, 10)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depth": 19}, "depth=19 is unknown: choose one of 18, 34, 50, 101, 152, 8, .*, 110, '8x4', '32x4'"),
        ({"depth": 18.0}, "depth=18.0 is unknown"),
        ({"depth": "8X4"}, "depth='8X4' is unknown"),
        ({"depth": [18]}, r"depth=\[18\] is unknown"),
        ({"stem": "none"}, "stem='none' is unknown: choose one of 'cifar', 'imagenet'"),
        ({"stem": ""}, "stem='' is unknown"),
        ({"se_ratio": 0}, "se_ratio=0 .*give"),
        ({"se_ratio": 0.25}, "se_ratio=0.25 .*give"),
        ({"se_ratio": True}, "se_ratio=True .*give"),
        ({"width": 0}, "width=0 .*give"),
        ({"width": -1.0}, "width=-1.0 .*give"),
        ({"width": float("inf")}, "width=inf .*give"),
        ({"width": "1"}, "width='1' .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        resnet.ResNet(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
