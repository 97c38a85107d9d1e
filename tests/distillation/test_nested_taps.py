"""Taps inside nested models, of layers that are called several times, and of channels_first maps."""

import keras
import numpy as np
import pytest

from kd_keras import Distiller, Taps, losses
from kd_keras.distillation.fast_teacher import fast_copy
from kd_keras.errors import InputError

L = keras.layers
X = np.random.default_rng(0).random((6, 8, 8, 3)).astype("float32")
K = 4


def conv(filters, name, **options):
    return L.Conv2D(filters, 3, padding="same", name=name, **options)


def backbone(name="backbone", seed=0, offset=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    x = conv(4, f"conv{offset + 1}")(image)
    x = L.BatchNormalization(name=f"norm{offset + 1}")(x)
    x = L.ReLU(name=f"stage{offset + 1}")(x)
    x = L.ReLU(name=f"stage{offset + 2}")(conv(5, f"conv{offset + 2}")(x))
    return keras.Model(image, x, name=name)


def classifier(inner, softmax=False):
    layers = [keras.Input((8, 8, 3)), inner, L.GlobalAveragePooling2D(name="pool"), L.Dense(K, name="head")]
    return keras.Sequential([*layers, *([L.Softmax()] if softmax else [])])


def inner_values(inner, name, x=X, training=False):
    return np.asarray(keras.Model(inner.inputs, inner.get_layer(name).output)(x, training=training))


def test_names_and_values_of_a_model_inside_a_model():
    inner = backbone()
    taps = Taps(classifier(inner))
    assert {"backbone", "backbone/stage1", "stage1", "backbone/stage2", "head", "logits"} <= set(taps.names)
    values = taps(X, ("backbone/stage1", "stage2", "pool", "logits"), training=False)
    np.testing.assert_allclose(values["backbone/stage1"], inner_values(inner, "stage1"), atol=1e-6)
    np.testing.assert_allclose(values["stage2"], inner(X), atol=1e-6)
    np.testing.assert_allclose(values["logits"], taps.model(X), atol=1e-6)
    assert taps.shapes(["stage1"])["stage1"] == (None, 8, 8, 4)


def test_a_model_twice_nested_and_one_whose_output_is_read_by_nothing_else():
    image = keras.Input((8, 8, 3))
    inner = backbone("inner")
    outer = keras.Model(image, L.ReLU(name="last")(inner(image)), name="outer")
    taps = Taps(classifier(outer))
    value = taps(X, ("outer/inner/stage1",), training=False)["outer/inner/stage1"]
    np.testing.assert_allclose(value, inner_values(inner, "stage1"), atol=1e-6)


def test_each_use_of_a_shared_model_has_names_of_its_own():
    inner = backbone()
    image = keras.Input((8, 8, 3))
    both = L.Concatenate()([inner(image), inner(1.0 - image)])
    model = keras.Model(image, L.Dense(K)(L.GlobalAveragePooling2D()(both)))
    taps = Taps(model)
    assert "backbone#2/stage1" in taps.names and "stage1" not in taps.names
    values = taps(X, ("backbone#1/stage1", "backbone#2/stage1", "logits"), training=False)
    np.testing.assert_allclose(values["backbone#1/stage1"], inner_values(inner, "stage1"), atol=1e-6)
    np.testing.assert_allclose(values["backbone#2/stage1"], inner_values(inner, "stage1", 1 - X), atol=1e-6)
    np.testing.assert_allclose(values["logits"], model(X), atol=1e-6)


def test_a_name_in_two_models_is_offered_by_its_path_alone():
    image = keras.Input((8, 8, 3))
    x = L.Concatenate()([backbone("a")(image), backbone("b", 1)(image)])
    taps = Taps(keras.Model(image, L.Dense(K)(L.GlobalAveragePooling2D()(x))), "student")
    assert {"a/stage1", "b/stage1"} <= set(taps.names) and "stage1" not in taps.names
    with pytest.raises(InputError, match="the student has no tap 'stage1'"):
        taps.require(["stage1"])


@pytest.mark.parametrize("softmax", [False, True])
def test_each_layer_runs_once_in_training(softmax):
    """The moving mean moves once, by what the batch is; also where the logits are cut out of the nested model."""
    inner = backbone()
    if softmax:
        x = L.Softmax()(L.Dense(K)(L.GlobalAveragePooling2D()(inner.output)))
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.Model(inner.input, x, name="backbone")])
    else:
        model = classifier(inner)
    norm = inner.get_layer("norm1")
    mean = inner_values(inner, "conv1").mean((0, 1, 2))
    taps = Taps(model)
    taps.decide(X)
    taps(X, ("stage1", "logits"), training=True)
    np.testing.assert_allclose(norm.moving_mean, (1 - norm.momentum) * mean, atol=1e-6)


def test_regularisation_inside_a_nested_model_counts_once():
    image = keras.Input((8, 8, 3))
    inner = keras.Model(image, conv(4, "stage1", activity_regularizer="l2")(image), name="backbone")
    student, plain = classifier(inner), classifier(keras.models.clone_model(inner))
    plain.set_weights(student.get_weights())
    got = []
    for model, pairs in ((student, "backbone/stage1:stage1"), (plain, None)):
        term = losses.CE() if pairs is None else losses.Attention(weight=0.0, pairs=pairs)
        d = Distiller(student=model, teacher=classifier(backbone(seed=3)), losses=[losses.CE(name="ce1"), term])
        d.compile(keras.optimizers.SGD(0.0))
        logs = d.fit(X, np.arange(6) % K, batch_size=6, epochs=2, verbose=0).history
        got.append([logs["loss"][i] - logs["ce1"][i] - (logs["ce"][i] if pairs is None else 0) for i in (0, 1)])
    np.testing.assert_allclose(got[0], got[1], rtol=1e-5)
    assert got[0][0] > 1e-4


def test_a_keras_application_inside_a_sequential_model_teaches():
    inner = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None, alpha=0.35)
    teacher = keras.Sequential(
        [keras.Input((32, 32, 3)), L.Rescaling(1 / 127.5, -1), inner, L.GlobalAveragePooling2D(), L.Dense(K)]
    )
    image = keras.Input((32, 32, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, strides=8, padding="same", name="stage1")(image))
    student = keras.Model(image, L.Dense(K)(x))
    path = f"{inner.name}/block_6_expand_relu"
    d = Distiller(
        student=student, teacher=teacher, losses=[losses.Hint(pairs=f"stage1:{path}")], teacher_dtype="float32"
    )
    d.compile("sgd")
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    before = d.terms[0].adapters[0](np.asarray(keras.Model(image, student.get_layer("stage1").output)(images)))
    target = inner_values(inner, "block_6_expand_relu", images / 127.5 - 1)
    logged = d.fit(images, batch_size=4, verbose=0).history["hint"][0]
    assert logged == pytest.approx(np.square(np.asarray(before) - target).mean(), rel=1e-4)


def test_a_fast_copy_keeps_a_tap_inside_a_model():
    inner = backbone()
    inner.get_layer("norm1").moving_mean.assign([0.5, -0.5, 1.0, 2.0])
    model = classifier(inner)
    fast = Taps(fast_copy(model, "float32", keep=("backbone/conv1",)))
    got = fast(X, ("backbone/conv1",), training=False)["backbone/conv1"]
    np.testing.assert_allclose(got, inner_values(inner, "conv1"), atol=1e-6)


def test_a_place_has_a_position_that_does_not_depend_on_names():
    first, second = (Taps(classifier(backbone(name, offset=offset))) for name, offset in (("a", 0), ("b", 5)))
    assert first.position("a/stage1") == second.position("b/stage6") != first.position("a/stage2")
    assert first.position("logits") is None


# ---- channels_first ----


def twin(first, extra=()):
    where = "channels_first" if first else "channels_last"
    keras.utils.set_random_seed(1)
    image = keras.Input((3, 8, 6) if first else (8, 6, 3))
    x = conv(4, "conv", data_format=where)(image)
    x = L.BatchNormalization(axis=1 if first else -1, name="norm")(x)
    x = L.ReLU(name="stage1")(x)
    x = L.Add(name="sum")([x, x])
    x = L.AveragePooling2D(2, data_format=where, name="stage2")(x)
    x = L.GlobalAveragePooling2D(data_format=where, name="pooled")(x)
    return keras.Model(image, L.Dense(K)(x))


def test_maps_of_channels_first_are_given_as_channels_last():
    last, first = twin(False), twin(True)
    first.set_weights(last.get_weights())
    x = np.random.default_rng(0).random((5, 8, 6, 3)).astype("float32")
    names = ("conv", "norm", "stage1", "sum", "stage2", "pooled", "logits")
    a, b = Taps(last), Taps(first)
    assert a.shapes(names) == b.shapes(names)
    got = b(np.transpose(x, (0, 3, 1, 2)), names, training=False)
    for name, value in a(x, names, training=False).items():
        np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)


def test_maps_that_losses_build_layers_on_have_to_be_channels_last():
    with pytest.raises(InputError, match="channels_first"):
        Distiller(student=twin(True), teacher=twin(True), losses=[losses.SimKD(pairs="stage2:stage2")])


# ---- subclassed models ----


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body, self.pool, self.head = conv(4, "body"), L.GlobalAveragePooling2D(), L.Dense(K)

    def taps(self, x, training=None):
        features = self.body(x)
        return {"stage1": features, "logits": self.head(self.pool(features))}

    def call(self, x, training=None):
        return self.taps(x, training)["logits"]


def test_a_subclassed_model_offers_what_its_method_taps_returns():
    student, teacher = Subclassed(), Subclassed()
    student(X), teacher(X)
    d = Distiller(student=student, teacher=teacher, losses=[losses.CE(), losses.Attention()])
    d.compile(keras.optimizers.SGD(0.0))
    logged = d.fit(X, np.arange(6) % K, batch_size=6, verbose=0).history["attention"][0]
    maps = [np.square(np.asarray(m.body(X), "float64")).mean(-1).reshape(6, -1) for m in (student, teacher)]
    s, t = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps)
    assert d.terms[1].pairs == (("stage1", "stage1"),)
    assert logged > 0 and logged == pytest.approx(float(_attention(s, t)), rel=1e-3)


def _attention(s, t):
    # As the loss' docstring has it.
    return np.square(s - t).mean(axis=1).mean()
