"""Taps: a model's intermediates by name, and its logits where it ends in a softmax."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kd_keras import InputError, Taps

X = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")


def trunk(image):
    x = layers.Conv2D(4, 3, strides=2, name="conv")(image)
    x = layers.BatchNormalization(momentum=0.5, name="norm")(x)
    x = layers.ReLU(name="stage1")(x)
    return layers.GlobalAveragePooling2D(name="pooled")(x)


def net(end=None):
    """A functional classifier of 3 classes; ``end`` takes its pooled features to its output."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, (end or layers.Dense(3, name="head"))(trunk(image)))
    for weight in model.weights:  # No bias is 0, no moving statistic is what it begins with.
        weight.assign(np.random.default_rng(1).uniform(0.2, 1, weight.shape))
    return model


@keras.saving.register_keras_serializable(package="test_taps")
class Subclassed(keras.Model):
    """With a softmax before its head, which is not what it ends in."""

    def __init__(self, final=None, **kwargs):
        super().__init__(**kwargs)
        self.head = layers.Dense(3, activation=final)
        self.flatten = layers.Flatten()
        self.gate = layers.Softmax()

    def call(self, x, training=None):
        return self.head(self.gate(self.flatten(x)))


class WithTaps(Subclassed):
    def taps(self, x, training):
        pooled = self.flatten(x)
        return {"logits": self.head(self.gate(pooled)), "pooled": pooled}


def built(model):
    model(X)
    return model


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_every_layer_of_a_functional_model_is_a_tap():
    model = net()
    taps = Taps(model)
    whole = ["conv", "norm", "stage1", "pooled", "head", "logits"]
    assert taps.names == [*whole, "conv[pooled]", "norm[pooled]", "stage1[pooled]"]
    assert taps.shapes(["stage1", "pooled"]) == {"stage1": (None, 3, 3, 4), "pooled": (None, 4)}
    assert (taps.input_shape, taps.num_classes, taps.model) == ((8, 8, 3), 3, model)
    values = taps(X, ("pooled", "stage1", "logits"), training=False)
    assert list(values) == ["pooled", "stage1", "logits"]
    # By hand, layer by layer.
    conv, norm, head = (model.get_layer(name) for name in ("conv", "norm", "head"))
    stage1 = np.maximum(norm(conv(X), training=False), 0)
    np.testing.assert_allclose(values["stage1"], stage1, atol=1e-5)
    np.testing.assert_allclose(values["pooled"], stage1.mean((1, 2)), atol=1e-5)
    kernel, bias = head.get_weights()
    np.testing.assert_allclose(values["logits"], stage1.mean((1, 2)) @ kernel + bias, atol=1e-5)


def test_training_mode_is_what_is_asked_for():
    model = net()
    taps, norm = Taps(model), model.get_layer("norm")
    before = norm.moving_mean.numpy()
    inference = taps(X, ("logits",), training=False)["logits"]
    np.testing.assert_array_equal(norm.moving_mean, before)
    np.testing.assert_array_equal(inference, taps(X, ("logits",), training=False)["logits"])
    batch_mean = model.get_layer("conv")(X).numpy().mean((0, 1, 2))
    trained = taps(X, ("logits", "stage1"), training=True)["logits"]
    # Once, though two taps are read: momentum 0.5 goes half of the way.
    np.testing.assert_allclose(norm.moving_mean, 0.5 * before + 0.5 * batch_mean, rtol=1e-5)
    assert np.abs(trained - inference).max() > 0.01


def test_a_layer_that_is_used_twice_is_a_tap_for_each_use_and_one_of_two_outputs_is_none():
    class Halves(layers.Layer):
        def call(self, x):
            return x[:, :2], x[:, 2:]

    image = keras.Input((4,))
    twice = layers.Dense(4, name="twice")
    a, _ = Halves(name="halves")(twice(twice(image)))
    taps = Taps(keras.Model(image, layers.Dense(3, name="head")(a)))
    assert taps.names == ["twice#1", "twice#2", "head", "logits"]
    values = taps(np.ones((2, 4), "float32"), ("twice#1", "twice#2"), training=False)
    np.testing.assert_allclose(values["twice#1"], twice(np.ones((2, 4))), atol=1e-6)
    np.testing.assert_allclose(values["twice#2"], twice(twice(np.ones((2, 4)))), atol=1e-6)
    with pytest.raises(InputError, match="calls 'twice' 2 times: name one of the calls, twice#1 to twice#2"):
        taps.require(["twice"])


def test_a_sequential_model_has_taps():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Flatten(name="flat"), layers.Dense(5, name="stage1"), layers.Dense(3)]
    )
    taps = Taps(model)
    assert taps.names[:2] == ["flat", "stage1"] and taps.num_classes == 3
    values = taps(X, ("stage1", "logits"), training=False)
    np.testing.assert_allclose(values["stage1"], model.get_layer("stage1")(X.reshape(6, -1)), atol=1e-5)
    np.testing.assert_allclose(values["logits"], model(X), atol=1e-5)


def test_a_sequential_model_without_an_input_has_taps_once_it_was_called():
    model = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    with pytest.raises(InputError, match="the student is not built: call it once"):
        Taps(model, "student")
    np.testing.assert_allclose(Taps(built(model))(X, ("logits",), training=False)["logits"], model(X), atol=1e-6)


def test_a_reloaded_sequential_model_keeps_its_taps(tmp_path):
    parts = [layers.Flatten(name="flat"), layers.Dense(5, name="stage1"), layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *parts])
    model.save(tmp_path / "model.keras")
    # Keras builds it anew with each layer that it adds, so its layers have several uses.
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert Taps(loaded).names == Taps(model).names
    ours, theirs = (Taps(m)(X, ("stage1", "logits"), training=False) for m in (loaded, model))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)
    np.testing.assert_allclose(softmax(ours["logits"].numpy()), model(X), atol=1e-6)


def test_a_layer_that_another_model_uses_too_stays_a_tap():
    model = net(ENDS["layer"])
    names = Taps(model).names
    pooled = model.get_layer("pooled").output
    for layer in model.layers[-2:]:
        pooled = layer(pooled * 2)
    assert Taps(model).names == names and "stage1" in names
    logits = Taps(model)(X, ("logits",), training=False)["logits"].numpy()
    np.testing.assert_allclose(softmax(logits), model(X), atol=1e-6)


def test_a_models_taps_stay_when_it_is_used_inside_another():
    model = net(layers.Dense(3, activation="softmax", name="head"))
    image = keras.Input((8, 8, 3))
    keras.Model(image, model(layers.Rescaling(2.0)(image)))
    assert "stage1" in Taps(model).names
    np.testing.assert_allclose(softmax(Taps(model)(X, ("logits",), False)["logits"].numpy()), model(X), atol=1e-6)


ENDS = {
    "dense": lambda x: layers.Dense(3, activation="softmax")(x),
    "dense without bias": lambda x: layers.Dense(3, activation="softmax", use_bias=False)(x),
    "layer": lambda x: layers.Softmax()(layers.Dense(3)(x)),
    "activation": lambda x: layers.Activation("softmax")(layers.Dense(3)(x)),
    "operation": lambda x: ops.softmax(layers.Dense(3)(x)),
    "function": lambda x: keras.activations.softmax(layers.Dense(3)(x)),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_final_softmax_is_taken_off(end):
    model = net(end)
    taps = Taps(model)
    logits = taps(X, ("logits",), training=False)["logits"].numpy()
    assert np.abs(logits.sum(axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(softmax(logits.astype("float64")), model(X), atol=1e-6)
    bare = taps.logits_model()
    np.testing.assert_allclose(bare(X), logits, atol=1e-6)
    # The same weights, not copies.
    for weight in model.weights:
        weight.assign(weight * 2)
    np.testing.assert_allclose(softmax(bare(X).numpy().astype("float64")), model(X), atol=1e-6)
    np.testing.assert_allclose(taps(X, ("logits",), training=False)["logits"], bare(X), atol=1e-6)


def test_a_final_softmax_of_a_sequential_model_is_taken_off():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    logits = Taps(model)(X, ("logits",), training=False)["logits"].numpy()
    assert logits.min() < 0
    np.testing.assert_allclose(softmax(logits), model(X), atol=1e-6)


def test_a_model_of_logits_is_its_own_logits_model():
    model = net()
    assert Taps(model).logits_model() is model


def nested():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, net(ENDS["dense"])(image))


def custom_head():
    class Head(layers.Layer):
        activation = staticmethod(keras.activations.softmax)

        def call(self, x):
            return self.activation(x[:, :3])

    return net(Head(name="head"))


@pytest.mark.parametrize(
    "make",
    [
        nested,
        lambda: keras.Sequential([keras.Input((8, 8, 3)), net(ENDS["layer"])]),
        custom_head,
        lambda: built(Subclassed("softmax")),
        lambda: built(WithTaps("softmax")),
    ],
    ids=["functional", "sequential", "custom", "subclassed", "taps"],
)
def test_logits_are_made_of_probabilities_wherever_they_come_from(make):
    model = make()
    taps = Taps(model, "teacher")
    logits = keras.ops.convert_to_numpy(taps(X, ("logits",), training=False)["logits"])
    probabilities = np.float64(model(X))
    expected = np.log(probabilities) - np.log(probabilities).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(logits - logits.mean(axis=-1, keepdims=True), expected, atol=1e-4)
    bare = taps.logits_model()(X)
    np.testing.assert_allclose(bare - np.mean(bare, axis=-1, keepdims=True), expected, atol=1e-4)


def test_a_subclassed_model_gives_logits():
    model = built(Subclassed())
    taps = Taps(model)
    assert taps.names == ["logits"] and taps.num_classes == 3 and taps.input_shape == (8, 8, 3)
    assert taps.logits_model() is model
    np.testing.assert_array_equal(taps(X, ("logits",), training=False)["logits"], model(X))


def test_a_subclassed_model_offers_its_own_taps():
    taps = Taps(built(WithTaps()))
    assert taps.names == ["logits", "pooled"]
    assert taps.shapes(["pooled"]) == {"pooled": (None, 192)}
    values = taps(X, ("pooled",), training=False)
    assert list(values) == ["pooled"]
    np.testing.assert_array_equal(values["pooled"], X.reshape(6, -1))


def test_own_taps_without_logits_are_refused():
    class Forgetful(Subclassed):
        def taps(self, x, training):
            return {"pooled": self.flatten(x)}

    with pytest.raises(InputError, match=r"taps\(\) returns pooled: 'logits' has to be among them"):
        Taps(built(Forgetful()))


def test_a_subclassed_model_has_to_be_built():
    with pytest.raises(InputError, match="the teacher is not built"):
        Taps(Subclassed(), "teacher")


def test_an_input_shape_that_is_not_known_is_refused():
    model = Subclassed()
    model.built = True
    with pytest.raises(InputError, match="the teacher's input shape is not known: call it once on a batch"):
        Taps(model, "teacher")


def test_a_tap_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(
        InputError, match="the student has no tap 'stage9': it offers stage1, pooled, logits and every other"
    ):
        Taps(net(), "student").require(["logits", "stage9"])
    Taps(net()).require(["logits", "stage1"])


def test_logits_are_float32_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    for end in (None, ENDS["dense"], ENDS["layer"]):
        values = Taps(net(end))(X, ("logits", "stage1"), training=False)
        assert values["logits"].dtype == "float32" and values["stage1"].dtype == "bfloat16"


class OwnCall(keras.Model):
    """A functional model that is not run as its graph says."""

    def call(self, inputs):
        return super().call(inputs)


def image():
    return keras.Input((8, 8, 3))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: keras.Model(i := [image(), image()], layers.Dense(3)(layers.Flatten()(i[0] + i[1]))),
            "2 inputs, and here a model of one is needed",
        ),
        (lambda: OwnCall(i := keras.Input((None, None, 3)), trunk(i)), "input shape is not known: call it once on"),
        (lambda: keras.Model(i := image(), [trunk(i), i]), "has 2 outputs: a classifier has one"),
        (lambda: keras.Model(i := image(), layers.Conv2D(3, 1)(i)), r"shape \(None, 8, 8, 3\)"),
    ],
)
def test_a_model_that_is_no_classifier_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        Taps(make())
