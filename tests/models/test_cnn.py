import keras
import pytest

from kd_keras import spec
from kd_keras.errors import InputError
from kd_keras.models import cnn

S0_TEACHER = "cnn(filters=(64, 128, 256), convs=(3, 3, 4), dense=(256,), pool='global')"
S0_STUDENT = "cnn(filters=(32, 64, 128), dense=(256,), pool='global')"
S4_STUDENT = "cnn()"


def build(text, input_shape=(32, 32, 3)):
    return spec.build("kd_keras.models", spec.parse(text), num_classes=10, input_shape=input_shape)


def kinds(model) -> list[str]:
    return [type(layer).__name__ for layer in model.layers]


def count(model, *classes) -> int:
    return sum(isinstance(layer, classes) for layer in model.layers)


POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D)


@pytest.mark.parametrize(("text", "convs"), [(S0_TEACHER, 10), (S0_STUDENT, 3)], ids=["teacher", "student"])
def test_s0(text, convs):
    model = build(text)
    assert count(model, keras.layers.Conv2D) == convs
    assert count(model, *POOLINGS) == 1
    assert [x.units for x in model.layers if isinstance(x, keras.layers.Dense)] == [256, 10]
    # Teacher and student have maps of one size at each stage.
    assert [model.get_layer(f"stage{i}").output.shape[1:3] for i in (1, 2, 3)] == [(32, 32), (16, 16), (8, 8)]


def test_s0_counts_of_weights():
    # Convolutions (without bias), batch norm with 2 a filter, linear layers; by hand.
    convs = 9 * (3 * 64 + 2 * 64 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 256 + 3 * 256 * 256)
    teacher = convs + 2 * (3 * 64 + 3 * 128 + 4 * 256) + 257 * 256 + 257 * 10
    student = 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 129 * 256 + 257 * 10
    for text, expected in ((S0_TEACHER, teacher), (S0_STUDENT, student)):
        assert sum(w.value.shape.num_elements() for w in build(text).trainable_weights) == expected


def test_s4_student_is_two_blocks_and_three_linear_layers():
    block = ["Conv2D", "BatchNormalization", "ReLU", "MaxPooling2D"]
    assert kinds(build(S4_STUDENT)) == [
        *("InputLayer", "Rescaling"),
        *block,
        *block,
        *("Flatten", "Dense", "Dense", "Dense"),
    ]


@pytest.mark.parametrize("text", [S0_TEACHER, S0_STUDENT, S4_STUDENT])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1)], ids=str)
def test_studies_take_small_grey_images(text, shape):
    assert build(text, shape).output_shape == (None, 10)


@pytest.mark.parametrize("text", [S0_TEACHER, S4_STUDENT])
def test_batch_norm_momentum_suits_short_runs(text):
    layers = [x for x in build(text).layers if isinstance(x, keras.layers.BatchNormalization)]
    assert layers and all(x.momentum == 0.9 for x in layers)


def test_without_batch_norm_the_convolutions_have_a_bias():
    model = build("cnn(batch_norm=False)")
    convs = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert count(model, keras.layers.BatchNormalization) == 0
    assert all(x.use_bias for x in convs)
    assert model.get_layer("stage2_pre") is convs[1]
    assert isinstance(build("cnn()").get_layer("stage2_pre"), keras.layers.BatchNormalization)
    assert not any(x.use_bias for x in build("cnn()").layers if isinstance(x, keras.layers.Conv2D))


def test_options_reach_the_layers():
    model = build("cnn(filters=(4, 6), convs=2, dense=(9,), pool='avg', dropout=0.25)")
    assert [x.filters for x in model.layers if isinstance(x, keras.layers.Conv2D)] == [4, 4, 6, 6]
    assert count(model, keras.layers.AveragePooling2D) == 2
    assert [x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)] == [0.25]
    assert model.get_layer("pooled").output.shape == (None, 8 * 8 * 6)
    assert count(build("cnn(dense=())"), keras.layers.Dense) == 1


def test_as_many_poolings_as_fit():
    model = build("cnn(filters=(2, 2, 2))", (8, 15, 1))
    assert model.get_layer("stage3_pool").output.shape[1] == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"filters": ()}, r"filters=\(\) is not .*write"),
        ({"filters": 32}, "filters=32 is not .*write"),
        ({"filters": (32, 0)}, r"filters=\(32, 0\) is not .*write"),
        ({"filters": (32, 1.5)}, "filters=.* is not .*write"),
        ({"convs": 0}, "convs=0 is not .*write"),
        ({"convs": (1, 2, 3)}, r"convs=\(1, 2, 3\) has 3 members .*give"),
        ({"dense": 256}, "dense=256 is not .*write"),
        ({"dense": (0,)}, r"dense=\(0,\) is not .*write"),
        ({"batch_norm": "no"}, "batch_norm='no': write True or False"),
        ({"pool": "min"}, "pool='min' is unknown: choose one of 'max', 'avg', 'global'"),
        ({"dropout": 1.0}, "dropout=1.0 .*give"),
        ({"dropout": -0.1}, "dropout=-0.1 .*give"),
        ({"dropout": float("nan")}, "dropout=nan .*give"),
        ({"dropout": "0.5"}, "dropout='0.5' .*give"),
        ({"filters": (8, 8, 8, 8)}, "pools 4 times, too often for a 8x9 image: give at most 3 blocks"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        cnn.CNN(10, (8, 9, 1), **keys)
    assert "\n" not in str(error.value)
