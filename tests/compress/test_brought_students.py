"""Students as people bring them: frozen layers, preprocessing and augmentation inside, trainings that end too soon."""

import keras
import numpy as np
import pytest

from kd_keras import Distiller, compress, losses
from kd_keras.compress import bridge
from kd_keras.errors import InputError
from kd_keras.export import metadata, tflite

L = keras.layers
SHAPE = (8, 8, 3)
SHIFT = np.array([1.0, -2.0, 3.0])


def pixels(count=16):
    return np.random.default_rng(0).uniform(0, 255, (count, *SHAPE)).astype("float32")


def labels(count=16):
    return np.arange(count) % 4


def student(before=lambda image: image):
    """A small classifier: ``conv``, ``norm``, ``body``, ``head``, behind what ``before`` does with the image."""
    image = keras.Input(SHAPE, name="image")
    x = L.Conv2D(6, 3, use_bias=False, name="conv")(before(image))
    x = L.ReLU()(L.BatchNormalization(name="norm")(x))
    x = L.Dense(12, activation="relu", name="body")(L.Flatten()(x))
    return keras.Model(image, L.Dense(4, name="head")(x))


def train(model, step, steps=4, **kwargs):
    """The model after some steps of training in the wrappers of a compression step, and the wrappers."""
    smaller = compress.prepare(model, step, steps=steps)
    distiller = Distiller(student=smaller.model, losses=[losses.CE()])
    distiller.compile(keras.optimizers.SGD(0.01))
    distiller.fit(pixels(), labels(), batch_size=4, verbose=0, **kwargs)
    return smaller


def variants_of_input():
    """What is put before a network, by name: a function of a symbolic image, and the same in float64 NumPy."""
    normalization = L.Normalization(mean=SHIFT + 100, variance=SHIFT**2 + 9, name="normalize")
    return {
        "rescaling": (L.Rescaling(1 / 127.5, offset=-1), lambda x: x / 127.5 - 1),
        "operations": (
            lambda x: (x / 127.5 - 1) * 2.0 + SHIFT.astype("float32"),
            lambda x: (x / 127.5 - 1) * 2 + SHIFT,
        ),
        "from a number": (lambda x: 1.0 - x / 255.0, lambda x: 1 - x / 255),
        "two tensors": (lambda x: x * 0.01 + x * 0.02, lambda x: 0.03 * x),
        "tf": (lambda x: keras.applications.mobilenet_v2.preprocess_input(x), lambda x: x / 127.5 - 1),
        "torch": (
            lambda x: keras.applications.densenet.preprocess_input(x),
            lambda x: (x / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225]),
        ),
        "normalization": (normalization, lambda x: (x - SHIFT - 100) / np.sqrt(SHIFT**2 + 9)),
    }


@pytest.mark.parametrize("name", variants_of_input())
def test_preprocessing_inside_computes_the_same(name):
    before, formula = variants_of_input()[name]
    image = keras.Input(SHAPE)
    model = keras.Model(image, L.Flatten(name="flat")(before(image)))
    copied = bridge.to_tf_keras(model)
    np.testing.assert_allclose(
        copied(pixels(), training=False), formula(pixels().astype("float64")).reshape(16, -1), atol=2e-4
    )


@pytest.mark.parametrize("name", ["caffe", "divides by the image"])
def test_preprocessing_that_tf_keras_has_no_layer_for_is_refused(name):
    before = {
        "caffe": lambda x: keras.applications.resnet.preprocess_input(x),
        "divides by the image": lambda x: 1.0 / (x + 1.0),
    }[name]
    with pytest.raises(InputError, match="build the student of layers") as refused:
        compress.prepare(student(before), compress.QAT(), steps=4)
    named = [word for word in str(refused.value).replace(",", " ").split() if word.startswith("keras.layers.")]
    assert all(hasattr(L, word.rpartition(".")[2]) for word in named)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rescaling", "normalization", "torch", "operations"])
def test_int8_io_behind_preprocessing_has_integers_only(name):
    smaller = train(student(variants_of_input()[name][0]), compress.QAT())
    content = tflite.convert_quantised(smaller.wrapped, "int8_io")
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(metadata.operators(content))
    assert tflite.float_tensors(content) == []


@pytest.mark.parametrize("name", ["RandomFlip", "RandomContrast", "RandomRotation", "RandomTranslation"])
def test_augmentation_inside_does_nothing_at_inference_and_something_in_training(name):
    arguments = {"RandomFlip": ("horizontal",), "RandomTranslation": (0.3, 0.3)}.get(name, (0.4,))
    image = keras.Input(SHAPE)
    copied = bridge.to_tf_keras(keras.Model(image, L.Flatten()(getattr(L, name)(*arguments)(image))))
    flat = pixels().reshape(16, -1)
    np.testing.assert_array_equal(copied(pixels(), training=False), flat)
    assert np.abs(copied(pixels(), training=True) - flat).max() > 1


@pytest.mark.parametrize(
    "step",
    [compress.QAT(), compress.Prune(sparsity=0.5, frequency=1), compress.Cluster(clusters=4)],
    ids=lambda step: type(step).__name__,
)
@pytest.mark.parametrize("frozen", [("body",), ("conv", "norm")], ids=" ".join)
def test_frozen_layers_stay_as_they_are(step, frozen):
    model = student()
    for name in frozen:
        model.get_layer(name).trainable = False
    before = {layer.name: layer.get_weights() for layer in model.layers}
    train(model, step).finish()
    for layer in model.layers:
        same = [np.array_equal(a, b) for a, b in zip(before[layer.name], layer.get_weights(), strict=True)]
        if same:
            assert all(same) == (layer.name in frozen), layer.name


def test_a_frozen_model_inside_a_model_stays_as_it_is():
    image = keras.Input(SHAPE)
    backbone = keras.Sequential([keras.Input(SHAPE), L.Conv2D(3, 3), L.BatchNormalization()], name="backbone")
    model = keras.Model(image, L.Dense(4)(L.Flatten()(backbone(image))))
    backbone.trainable = False
    before = backbone.get_weights()
    train(model, compress.QAT()).finish()
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pruning_that_ends_before_its_schedule_is_said():
    smaller = train(student(), compress.Prune(sparsity=0.5, frequency=1), steps=1000)
    with pytest.warns(
        UserWarning, match=r"sparsity=0.5\) is not reached: zeros are conv .*head .*4 steps were trained"
    ):
        smaller.finish()


def test_pruning_that_comes_to_its_end_says_nothing(recwarn):
    train(student(), compress.Prune(sparsity=0.5, frequency=1), steps=4).finish()
    assert not [warning for warning in recwarn if "kd_keras" in warning.filename]


def test_clusters_that_are_too_many_are_said():
    step, smaller = compress.Cluster(clusters=4), train(student(), compress.Cluster(clusters=4))
    weights = step.strip(smaller.wrapped)
    assert step.shortfall(smaller.wrapped, weights) is None
    weights["body"][0][0, :] = np.linspace(0, 1, 12)
    assert "distinct values are body 1" in step.shortfall(smaller.wrapped, weights)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_copy_of_a_classifier_with_probabilities_gives_logits(activation):
    image = keras.Input(SHAPE)
    flat = L.Flatten()(L.Rescaling(1 / 255)(image))
    model = keras.Model(image, L.Dense(4, activation=activation)(flat))
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.layers[-1].get_weights())
    expected = pixels().astype("float64").reshape(16, -1) / 255 @ kernel + bias
    np.testing.assert_allclose(bridge.to_tf_keras(model)(pixels()), expected, atol=1e-4)
