"""``pretrained=``: proven on files of random weights, written in the forms that keras.applications reads."""

import functools
import socket

import keras
import numpy as np
import pytest

from kd_keras import files
from kd_keras.distillation import fast_teacher as frozen
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.models import densenet, mobilenet, resnet, vgg

slow = pytest.mark.slow
apps = keras.applications
SIDE = 32
V3 = {"include_preprocessing": False}


@pytest.mark.parametrize(
    ("build", "keys", "network", "options", "preprocess", "taps"),
    [
        (mobilenet.MobileNet, {"width": 0.35}, apps.MobileNetV2, {"alpha": 0.35}, apps.mobilenet_v2, "1234"),
        pytest.param(resnet.ResNet, {"depth": 50}, apps.ResNet50, {}, apps.resnet, "1234", marks=slow),
        pytest.param(vgg.VGG, {"depth": 16, "batch_norm": False}, apps.VGG16, {}, apps.vgg16, "12345", marks=slow),
        pytest.param(vgg.VGG, {"depth": 19, "batch_norm": False}, apps.VGG19, {}, apps.vgg19, "12345", marks=slow),
        pytest.param(densenet.DenseNet, {"depth": 121}, apps.DenseNet121, {}, apps.densenet, "1234", marks=slow),
        pytest.param(resnet.ResNet, {"depth": 101}, apps.ResNet101, {}, apps.resnet, "1234", marks=slow),
        pytest.param(resnet.ResNet, {"depth": 152}, apps.ResNet152, {}, apps.resnet, "1234", marks=slow),
        pytest.param(densenet.DenseNet, {"depth": 169}, apps.DenseNet169, {}, apps.densenet, "1234", marks=slow),
        pytest.param(densenet.DenseNet, {"depth": 201}, apps.DenseNet201, {}, apps.densenet, "1234", marks=slow),
        pytest.param(
            mobilenet.MobileNet,
            {"version": "v3_small"},
            apps.MobileNetV3Small,
            V3,
            apps.mobilenet_v2,
            "1234",
            marks=slow,
        ),
        pytest.param(
            mobilenet.MobileNet,
            {"version": "v3_large"},
            apps.MobileNetV3Large,
            V3,
            apps.mobilenet_v2,
            "12345",
            marks=slow,
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type(keras.applications.VGG16)) else None,
)
@pytest.mark.parametrize("ending", [".weights.h5", pytest.param("_notop.h5", marks=slow)])
def test_equals_the_network_of_keras(build, keys, network, options, preprocess, taps, ending, tmp_path):
    keras.utils.set_random_seed(0)
    base = network(weights=None, include_top=False, input_shape=(SIDE, SIDE, 3), pooling="avg", **options)
    x = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype("float32")
    base(preprocess.preprocess_input(x.copy()), training=True)  # statistics of its own
    path = tmp_path / f"{network.__name__}{ending}"
    # A whole model in HDF5 keeps its weights as the published files do.
    base.save_weights(path) if ending == ".weights.h5" else base.save(path)
    model = build(7, (SIDE, SIDE, 3), pretrained=str(path), **keys)
    names = [f"stage{tap}" for tap in taps]
    *maps, pooled = keras.Model(model.input, [model.get_layer(name).output for name in (*names, "pooled")])(x)
    expected = keras.ops.convert_to_numpy(base(preprocess.preprocess_input(x.copy())))
    np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    sizes = [one.shape[1] for one in maps]
    assert sizes == sorted(sizes, reverse=True)
    for name, one in zip(names, maps, strict=True):
        before = f"{name}_pre"
        if before in [layer.name for layer in model.layers]:
            part = keras.Model(model.input, model.get_layer(before).output)
            np.testing.assert_allclose(np.maximum(part(x), 0), one, rtol=1e-4, atol=1e-5)
    assert model(x).shape == (4, 7)
    assert model(x).dtype == "float32"
    assert all(layer.trainable for layer in model.layers)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} <= {0.9}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The path of random weights of the smallest network."""
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    apps.MobileNetV2(weights=None, include_top=False, input_shape=(SIDE, SIDE, 3), alpha=0.35).save_weights(path)
    return str(path)


@pytest.mark.slow
def test_grey_images_and_dropout(weights):
    model = mobilenet.MobileNet(5, (40, 48, 1), width=0.35, dropout=0.4, pretrained=weights)
    assert model.input_shape == (None, 40, 48, 1)
    assert model.get_layer("dropout").rate == 0.4
    grey = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 1)).astype("float32")
    colour = mobilenet.MobileNet(5, (40, 48, 3), width=0.35, pretrained=weights)
    colour.get_layer("logits").set_weights(model.get_layer("logits").get_weights())
    np.testing.assert_allclose(model(grey), colour(np.repeat(grey, 3, -1)), rtol=1e-5, atol=1e-7)


@slow
def test_files_frozen_copies_and_tflite(weights, tmp_path):
    model = mobilenet.MobileNet(5, (40, 48, 1), width=0.35, pretrained=weights)
    grey = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 1)).astype("float32")
    model(grey, training=True)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(grey), model(grey))
    np.testing.assert_allclose(frozen.fast_copy(model, "float32")(grey), model(grey), rtol=1e-3, atol=1e-6)
    lite = tflite.load(tflite.convert(model, "float32"))
    np.testing.assert_allclose(lite.predict(grey), model(grey), rtol=1e-3, atol=1e-6)


def test_a_host_that_says_nothing_does_not_hang_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as host:  # which takes the call and does not answer
        address = f"http://127.0.0.1:{host.getsockname()[1]}/"
        monkeypatch.setattr("keras.src.applications.mobilenet_v2.BASE_WEIGHT_PATH", address)
        monkeypatch.setattr(files, "download_timeout", functools.partial(files.download_timeout, 0.2))
        assert "timed out" in refusal(mobilenet.MobileNet, width=0.35, pretrained="imagenet")
    assert socket.getdefaulttimeout() is None


def refusal(build, input_shape=(SIDE, SIDE, 3), **keys) -> str:
    with pytest.raises(InputError) as error:
        build(5, input_shape, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("build", "keys", "message"),
    [
        (
            resnet.ResNet,
            {"depth": 18},
            "depth=18 has no published weights for pretrained=: those are for 50, 101, 152, or",
        ),
        (resnet.ResNet, {"depth": 50, "stem": "cifar"}, "stem='cifar' has no published weights"),
        (
            resnet.ResNet,
            {"depth": 50, "se_ratio": 16},
            "se_ratio=16 has no published weights for pretrained=: leave it",
        ),
        (resnet.ResNet, {"depth": 50, "width": 0.5}, "width=0.5 has no published weights"),
        (vgg.VGG, {"depth": 11}, "depth=11 has no published weights for pretrained=: those are for 16, 19"),
        (vgg.VGG, {"depth": 16}, "batch_norm=True has no published weights for pretrained=: those are for False"),
        (
            densenet.DenseNet,
            {"depth": 40},
            "depth=40 has no published weights for pretrained=: those are for 121, 169, 201",
        ),
        (densenet.DenseNet, {"depth": 121, "growth": 12}, "growth=12 has no published weights"),
        (
            mobilenet.MobileNet,
            {"width": 0.6},
            "width=0.6 has no published weights for pretrained=: those are for 0.35, 0.5",
        ),
        (mobilenet.MobileNet, {"version": "v3_small", "width": 0.5}, "those are for 0.75, 1.0, or train from scratch"),
        (mobilenet.MobileNet, {"pretrained": 5}, "pretrained=5 is unknown"),
        (mobilenet.MobileNet, {"pretrained": "none.h5"}, "pretrained='none.h5': there is no such file"),
        (
            mobilenet.MobileNet,
            {"input_shape": (28, 28, 1)},
            "at least 32x32 pixels, these have 28x28: .*--image_size=32",
        ),
        (mobilenet.MobileNet, {"input_shape": (32, 32, 4)}, "has 4 channels"),
    ],
    ids=lambda value: getattr(value, "__module__", None) or str(value),
)
def test_refuses(build, keys, message):
    assert all(part in refusal(build, **{"pretrained": "imagenet", **keys}) for part in message.split(".*"))


def test_files_of_something_else(weights, tmp_path):
    (tmp_path / "text.weights.h5").write_text("hello")
    said = refusal(mobilenet.MobileNet, pretrained=str(tmp_path / "text.weights.h5"))
    assert "does not hold the weights of mobilenet_v2 without its top (" in said
    assert "does not hold the weights" in refusal(mobilenet.MobileNet, pretrained=weights)  # of another width


@pytest.mark.parametrize(
    ("keys", "module"),
    [({"width": 0.35}, "mobilenet_v2"), ({"version": "v3_small", "width": 1}, "mobilenet_v3")],  # 1 is 1.0 too
    ids=str,
)
def test_no_network(monkeypatch, tmp_path, keys, module):
    # An address that nobody answers stands for a machine without a network, also where there is one.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(f"keras.src.applications.{module}.BASE_WEIGHT_PATH", "http://127.0.0.1:9/")
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))
    said = refusal(mobilenet.MobileNet, pretrained="imagenet", **keys)
    assert " cannot be had (Exception: URL fetch failure on" in said
    assert "--nopretrained" in said
