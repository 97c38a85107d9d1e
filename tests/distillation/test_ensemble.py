"""Several models as one: the formulas, the graph, what can be read of it."""

import keras
import numpy as np
import pytest

from kd_keras import Taps
from kd_keras.distillation import ensemble as joined
from kd_keras.distillation import fast_teacher as frozen
from kd_keras.errors import InputError
from kd_keras.evaluate import cost
from kd_keras.models import cnn, resnet
from tests.losses import reference as ref

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).uniform(0, 255, (5, *SHAPE)).astype("float32")
WEIGHTS = (1.0, 3.0)


def softmax(z):
    return np.exp(ref.log_softmax(z))


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    small = cnn.CNN(10, SHAPE, filters=(4,), dense=())
    return [small, resnet.ResNet(10, SHAPE, depth=8, width=0.25)]


def outputs(model):
    return np.asarray(model(IMAGES, training=False), "float64")


def test_the_mean_of_logits_is_the_formulas():
    z = ref.logits(1), ref.logits(2)
    np.testing.assert_allclose(joined.mean_logits(z, (0.25, 0.75)), 0.25 * z[0] + 0.75 * z[1], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_mean_of_probabilities_is_softened_by_each_for_itself(temperature):
    z = ref.logits(1), ref.logits(2), 50 * ref.logits(3)
    shares = (0.2, 0.3, 0.5)
    mean = sum(w * softmax(np.float64(logits) / temperature) for w, logits in zip(shares, z, strict=True))
    logits = np.asarray(joined.mean_probabilities(z, shares, temperature))
    np.testing.assert_allclose(logits, temperature * np.log(mean), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(softmax(logits / temperature), mean, rtol=1e-4, atol=1e-6)
    # Softening what was joined at 1 is something else.
    once = np.asarray(joined.mean_probabilities(z, shares))
    assert (np.abs(softmax(once / temperature) - mean).max() < 1e-6) == (temperature == 1)


@pytest.mark.parametrize("combine", joined.COMBINE)
def test_a_joined_model_gives_what_its_members_give_together(models, combine, tmp_path):
    ensemble = joined.join(models, combine, WEIGHTS)
    z = [outputs(model) for model in models]
    expected = 0.25 * z[0] + 0.75 * z[1]
    if combine == "probabilities":
        expected = np.log(0.25 * softmax(z[0]) + 0.75 * softmax(z[1]))
    np.testing.assert_allclose(outputs(ensemble), expected, rtol=1e-4, atol=1e-5)
    ensemble.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs(keras.models.load_model(tmp_path / "m.keras")), outputs(ensemble))
    assert cost.macs(ensemble) == sum(map(cost.macs, models))
    assert cost.parameters(ensemble) == sum(map(cost.parameters, models))


def test_every_tap_of_a_member_can_be_read(models):
    taps = Taps(joined.join(models))
    names = ("teacher1.stage1", "teacher2.stage3", "teacher2.pooled", "teacher1.logits", "teacher2.logits")
    read = taps(IMAGES, names, training=False)
    for number, model in enumerate(models, start=1):
        expected = Taps(model)(IMAGES, tuple(n.partition(".")[2] for n in names if n[7] == str(number)), training=False)
        for name, value in expected.items():
            np.testing.assert_allclose(read[f"teacher{number}.{name}"], value, rtol=1e-5, atol=1e-5)


def test_members_that_end_in_a_softmax_bring_their_logits():
    keras.utils.set_random_seed(0)
    layers = [
        [keras.layers.Dense(3, activation="softmax")],
        [keras.layers.Dense(3), keras.layers.Softmax()],
        [keras.layers.Dense(3)],
    ]
    models = [keras.Sequential([keras.Input((4,)), keras.layers.Flatten(), *one]) for one in layers]
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    kernels = [[np.asarray(w, "float64") for w in model.get_weights()] for model in models]
    mean = sum(x @ kernel + bias for kernel, bias in kernels) / 3
    np.testing.assert_allclose(joined.join(models)(x), mean, rtol=1e-4, atol=1e-5)
    taps = Taps(joined.join(models))(x, ("teacher1.logits", "teacher2.logits", "teacher3.logits"), training=False)
    for value, (kernel, bias) in zip(taps.values(), kernels, strict=True):
        np.testing.assert_allclose(value, x @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_a_frozen_copy_gives_every_members_logits_in_float32(models):
    ensemble = joined.join(models)
    copy = frozen.fast_copy(ensemble, "bfloat16")
    assert {name: copy.get_layer(name).compute_dtype for name in ("teacher1.logits", "teacher2.logits")} == {
        "teacher1.logits": "float32",
        "teacher2.logits": "float32",
    }
    assert copy.get_layer("teacher2.stage1").compute_dtype == "bfloat16"
    np.testing.assert_allclose(outputs(copy), outputs(ensemble), atol=0.1)


def test_it_is_a_copy(models):
    before = [weight.copy() for model in models for weight in model.get_weights()]
    ensemble = joined.join(models)
    ensemble.set_weights([np.zeros_like(weight) for weight in ensemble.get_weights()])
    after = [weight for model in models for weight in model.get_weights()]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert [model.layers[1].name for model in models] == ["rescale", "rescale"]


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), 2.0, (1.0, "2"), (True, 1)])
def test_weights_that_can_not_be_are_refused(models, weights):
    with pytest.raises(InputError, match="give 2 positive numbers, one for each model"):
        joined.join(models, weights=weights)


def test_what_can_not_be_joined_is_refused(models):
    with pytest.raises(InputError, match="combine='votes': known are logits, probabilities"):
        joined.join(models, "votes")
    with pytest.raises(InputError, match="teacher 2 is a subclassed model"):
        joined.join([models[0], Subclassed()])
    other = cnn.CNN(7, SHAPE, filters=(4,), dense=())
    with pytest.raises(InputError, match=r"differ in input or classes.*to 10 classes.*to 7 classes"):
        joined.join([models[0], other])
    with pytest.raises(InputError, match=r"differ in input or classes.*\(8, 8, 1\).*\(16, 16, 1\)"):
        joined.join([models[0], cnn.CNN(10, (16, 16, 1), filters=(4,), dense=())])
