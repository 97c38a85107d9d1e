import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.models import shufflenet


@pytest.mark.parametrize(
    ("keys", "shapes"),
    [
        ({"width": 0.5}, [(16, 48), (8, 96), (4, 192)]),
        ({"width": 0.5, "stem": "imagenet"}, [(4, 48), (2, 96), (1, 192)]),
        ({"version": "v1", "groups": 2}, [(16, 200), (8, 400), (4, 800)]),
        ({"version": "v1", "width": 0.3, "groups": 8}, [(16, 96), (8, 224), (4, 448)]),
    ],
)
def test_maps_of_the_stages(keys, shapes):
    model = shufflenet.ShuffleNet(10, (32, 32, 3), units=(1, 1, 1), **keys)
    for i, (size, channels) in enumerate(shapes, start=1):
        assert model.get_layer(f"stage{i}").output.shape == (None, size, size, channels)
    end = 1024 if "version" not in keys else shapes[-1][1]
    assert model.get_layer("pooled").output.shape == (None, end)


def between(layer_in, layer_out, model, values):
    """What a part of the model makes of values of one of its maps."""
    part = keras.Model(model.get_layer(layer_in).output, model.get_layer(layer_out).output)
    return keras.ops.convert_to_numpy(part(values))


def test_shuffle_deals_the_channels_out():
    model = shufflenet.ShuffleNet(10, (8, 8, 1), "v1", width=0.25, units=(1, 1, 1))
    relu, shuffle = "stage1_unit1_relu1", "stage1_unit1_shuffle"
    channels = model.get_layer(relu).output.shape[-1]
    assert channels % 3 == 0
    values = np.broadcast_to(np.arange(channels, dtype="float32"), (1, *model.get_layer(relu).output.shape[1:]))
    expected = np.arange(channels).reshape(3, -1).T.ravel()  # 0, c/3, 2c/3, 1, …
    np.testing.assert_array_equal(between(relu, shuffle, model, values)[0, 0, 0], expected)


def test_grouped_convolution_equals_one_of_keras():
    model = shufflenet.ShuffleNet(10, (8, 8, 1), "v1", width=0.25, units=(1, 1, 1))
    layer = model.get_layer("stage2_unit1_conv1")
    source, shape = "stage1", model.get_layer("stage1").output.shape[1:]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    kernel = keras.ops.convert_to_numpy(layer.kernel)  # (groups, in, out)
    grouped = keras.layers.Conv2D(kernel.shape[0] * kernel.shape[2], 1, groups=3, use_bias=False)
    grouped.build((None, *shape))
    grouped.set_weights([np.concatenate(list(kernel), axis=-1)[None, None]])
    expected = keras.ops.convert_to_numpy(grouped(x))
    np.testing.assert_allclose(between(source, f"{layer.name}_join", model, x), expected, rtol=1e-4, atol=1e-5)


def test_version_2_keeps_one_half_and_works_on_the_other():
    model = shufflenet.ShuffleNet(10, (8, 8, 1), width=0.5, units=(2, 1, 1))
    shape = model.get_layer("stage1_unit1_shuffle").output.shape[1:]
    half = shape[-1] // 2
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype("float32")
    out = between("stage1_unit1_shuffle", "stage1", model, x)
    np.testing.assert_array_equal(out[..., 0::2], x[..., :half])
    changed = np.array(x)
    changed[..., half:] += 1
    np.testing.assert_array_equal(between("stage1_unit1_shuffle", "stage1", model, changed)[..., 0::2], x[..., :half])


def test_grouped_kernels_are_he_normal():
    keras.utils.set_random_seed(0)
    model = shufflenet.ShuffleNet(10, (8, 8, 1), "v1", units=(1, 1, 1))
    kernel = keras.ops.convert_to_numpy(model.get_layer("stage3_unit1_conv1").kernel)
    assert kernel.shape == (3, 160, 40)
    np.testing.assert_allclose(kernel.std(), (2 / 160) ** 0.5 * 0.88, rtol=0.02)  # cut off at two deviations


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"version": "v3"}, "version='v3' is unknown: choose one of 'v1', 'v2'"),
        ({"version": 2}, "version=2 is unknown"),
        ({"width": 0.75}, "width=0.75 is unknown in version 2: choose one of 0.5, 1.0"),
        ({"width": 0}, "width=0 .*give"),
        ({"groups": 3}, "groups=3 is for version='v1'"),
        ({"version": "v1", "groups": 5}, "groups=5 is unknown: choose one of 1, 2, 3, 4, 8"),
        ({"version": "v1", "groups": True}, "groups=True is unknown"),
        ({"units": (4, 8)}, "has 2 members: give the units of three stages"),
        ({"units": 4}, "units=4 is not a tuple"),
        ({"stem": "small"}, "stem='small' is unknown"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        shufflenet.ShuffleNet(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
