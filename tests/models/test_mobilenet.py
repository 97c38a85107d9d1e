import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.models import mobilenet
from tests.models import counts


def shapes(model, *names):
    return [model.get_layer(name).output.shape[1:] for name in names]


def by_kind(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def symbolic(*args, **keys):
    return counts.symbolic(mobilenet.MobileNet, *args, **keys)


@pytest.mark.parametrize(
    ("version", "stages", "pooled"),
    [
        ("v2", [(112, 16), (56, 24), (28, 32), (14, 96), (7, 320)], 1280),
        ("v3_small", [(56, 16), (28, 24), (14, 48), (7, 96)], 576),
        ("v3_large", [(112, 16), (56, 24), (28, 40), (14, 112), (7, 160)], 960),
    ],
)
def test_maps_of_the_stages(version, stages, pooled):
    published = symbolic(10, (224, 224, 3), version=version)
    small = symbolic(10, (32, 32, 3), version=version)
    for i, (size, channels) in enumerate(stages, start=1):
        assert shapes(published, f"stage{i}") == [(size, size, channels)]
        # The CIFAR stem leaves out the first two halvings, wherever they are.
        size = min(32, size * 4 // 7)
        assert shapes(small, f"stage{i}") == [(size, size, channels)]
    assert f"stage{len(stages) + 1}" not in [layer.name for layer in published.layers]
    assert shapes(published, "pooled") == shapes(small, "pooled") == [(pooled,)]


@pytest.mark.parametrize(("shape", "strides"), [((63, 200, 3), (1, 1)), ((64, 64, 3), (2, 2))])
def test_default_stem_goes_by_the_smaller_side(shape, strides):
    assert symbolic(10, shape).get_layer("stem_conv").strides == strides


@pytest.mark.parametrize("version", ["v2", "v3_small", "v3_large"])
def test_a_block_is_joined_to_its_input_where_shape_and_channels_stay(version):
    # At this width two neighbouring groups of blocks have the same filters; a stride still keeps them apart.
    model = symbolic(10, (32, 32, 3), version=version, width=0.25)
    adds = by_kind(model, keras.layers.Add)
    assert len(adds) >= {"v2": 10, "v3_small": 6, "v3_large": 9}[version]
    assert all(a.shape == b.shape for a, b in (layer.input for layer in adds))
    assert not any("stage2_block1" in layer.name for layer in adds)


def test_width_rounds_to_eights_and_spares_the_classifier():
    model = symbolic(10, (32, 32, 3), width=0.3)
    assert {layer.filters % 8 for layer in by_kind(model, keras.layers.Conv2D)} == {0}
    assert shapes(model, "pooled") == [(1280,)]
    assert shapes(symbolic(10, (32, 32, 3), width=2), "pooled") == [(2560,)]
    wide = symbolic(10, (32, 32, 3), version="v3_small", width=0.5)
    assert shapes(wide, "pooled", "dense1") == [(288,), (1024,)]


def test_depthwise_weights_are_he_normal_by_what_one_output_reads():
    layer = by_kind(mobilenet.MobileNet(10, (32, 32, 3), version="v3_small"), keras.layers.DepthwiseConv2D)[-1]
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    assert kernel.shape == (5, 5, 576, 1)
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 25), rel=0.03)


def test_squeeze_excitation_and_activations_are_where_the_paper_has_them():
    model = symbolic(10, (32, 32, 3), version="v3_small")
    gates = [layer.name.removesuffix("_se_scale") for layer in by_kind(model, keras.layers.Multiply)]
    assert gates == [
        "stage1_block1",
        *(f"stage3_block{i}" for i in range(1, 6)),
        *(f"stage4_block{i}" for i in (1, 2, 3)),
    ]
    # A quarter of the expanded channels, in eights: 576 / 4.
    assert model.get_layer("stage4_block2_se_reduce").filters == 144
    assert model.get_layer("stage4_block2_se_gate").activation is keras.activations.hard_sigmoid
    assert model.get_layer("stage4_block2_expand_activation").activation is keras.activations.hard_silu
    assert isinstance(model.get_layer("stage2_block2_expand_activation"), keras.layers.ReLU)
    sixes = by_kind(symbolic(10, (32, 32, 3)), keras.layers.ReLU)
    assert {layer.max_value for layer in sixes} == {6}


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1)], ids=str)
def test_imagenet_stem_takes_small_grey_images(shape):
    model = mobilenet.MobileNet(10, shape, version="v3_small", stem="imagenet", width=0.25)
    assert model(keras.ops.zeros((2, *shape))).shape == (2, 10)


def test_dropout_is_before_the_classifier():
    for version in ("v2", "v3_small"):
        layers = symbolic(10, (32, 32, 3), version=version, dropout=0.2).layers
        assert [layer.name for layer in layers][-2:] == ["dropout", "logits"]
        assert layers[-2].rate == 0.2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"version": "v1"}, "version='v1' is unknown: choose one of 'v2', 'v3_small', 'v3_large'"),
        ({"version": 2}, "version=2 is unknown"),
        ({"version": ["v2"]}, r"version=\['v2'\] is unknown"),
        ({"stem": "small"}, "stem='small' is unknown: choose one of 'cifar', 'imagenet'"),
        ({"width": 0.0}, "width=0.0 .*give"),
        ({"dropout": True}, "dropout=True .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        mobilenet.MobileNet(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
