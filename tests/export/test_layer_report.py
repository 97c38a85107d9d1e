import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.export import layer_report as layer_errors
from kd_keras.export import tflite
from kd_keras.models import cnn


def net():
    """One whose second stage has a filter a thousand times as strong as the others: 8 bits can't hold both."""
    keras.utils.set_random_seed(0)
    model = cnn.CNN(4, (8, 8, 1), filters=(4, 8), dense=())
    kernel, *rest = model.get_layer("stage2_conv1").get_weights()
    kernel[..., 0] *= 1000
    model.get_layer("stage2_conv1").set_weights([kernel, *rest])
    return model


def images(count, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, 8, 8, 1)).astype("float32")


@pytest.fixture(scope="module")
def model():
    return net()


def test_each_operator_is_reported_by_its_layers(model):
    rows = tflite.layer_report(model, images(20))
    assert rows[-1]["layers"] == "logits" and rows[-1]["operator"] == "FULLY_CONNECTED" and rows[-1]["values"] == 4
    convolutions = [row["layers"].split() for row in rows if row["operator"] == "CONV_2D"]
    assert len(convolutions) == 2 and {"stage1", "stage1_conv1"} <= set(convolutions[0])
    assert {"stage2", "stage2_conv1"} <= set(convolutions[1])
    for row in rows:
        assert row["rmse_in_steps"] == pytest.approx(row["rmse"] / row["scale"])
        # Rounding to the nearest step costs at most a half of one, and twice that where two roundings meet.
        assert row["rmse_in_steps"] < 1


@pytest.mark.slow
def test_a_layer_that_is_kept_computes_in_float(model):
    data = images(20)
    expected = model.predict(images(50, seed=1), verbose=0)

    def error(content):
        return np.abs(tflite.load(content).predict(images(50, seed=1)) - expected).mean()

    whole = tflite.convert(model, "int8", data)
    partly_float = tflite.convert(model, "int8", data, keep_float=("stage2", "logits"))
    assert len(partly_float) > len(whole)
    assert error(partly_float) < error(whole)


@pytest.mark.slow
def test_unknown_layers_and_other_variants_are_refused(model):
    with pytest.raises(InputError, match="no operator is called nix"):
        tflite.convert(model, "int8", images(5), keep_float=("nix", "logits"))
    with pytest.raises(InputError, match="keep_float is for int8, not float16"):
        tflite.convert(model, "float16", keep_float=("logits",))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cnn_1/stage1_1/Relu;cnn_1/stage1_pre_1/batchnorm/add_1;cnn_1/stage1_conv1_1/convolution", 3),
        ("StatefulPartitionedCall:0", 1),
        ("StatefulPartitionedCall", 1),
        ("arith.constant", 0),
    ],
)
def test_layers_in_a_name(name, count):
    assert len(layer_errors.layers(name, "logits")) == count
