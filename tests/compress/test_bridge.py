import keras
import numpy as np
import pytest

from kd_keras import Distiller, Taps, losses, spec
from kd_keras.compress import bridge as _bridge
from kd_keras.errors import InputError

SHAPE = (16, 16, 3)
#: A small one of each family that can be compressed.
SPECS = [
    "cnn(filters=(4, 8), dense=(8,), dropout=0.1)",
    "resnet(depth=8, width=0.25, se_ratio=4)",
    "mobilenet(width=0.25)",
    "vit(patch=4, depth=2, heads=2, width=16)",
    *(
        pytest.param(text, marks=pytest.mark.slow)
        for text in (
            "alexnet(width=0.05)",
            "vgg(depth=11, width=0.05)",
            "wide_resnet(depth=10, width=1, dropout=0.1)",
            "densenet(depth=121, growth=4)",
            "shufflenet(version='v2', width=0.5)",
        )
    ),
]


def build(text):
    keras.utils.set_random_seed(1)
    return spec.build("kd_keras.models", spec.parse(text), num_classes=5, input_shape=SHAPE)


def images(count=4, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, *SHAPE)).astype("float32")


def unsettled(model):
    """The model with statistics and scales of its own in batch norm: a copy that mixed them up would show."""
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


@pytest.mark.parametrize("text", SPECS)
def test_a_twin_computes_the_same_and_its_weights_come_back(text):
    model = unsettled(build(text))
    twin = _bridge.to_tf_keras(model)
    expected = keras.ops.convert_to_numpy(model(images(), training=False))
    np.testing.assert_allclose(twin(images(), training=False).numpy(), expected, rtol=1e-3, atol=1e-4)
    assert {layer.name for layer in twin.layers} >= {name for name, _ in _bridge.named_layers(model)}
    weights = model.get_weights()
    model.set_weights([np.zeros_like(one) for one in weights])
    _bridge.set_weights(model, {layer.name: layer.get_weights() for layer in twin.layers})
    for back, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(back, before)


def test_models_inside_and_layers_used_twice():
    image = keras.Input(SHAPE, name="image")
    inner = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(3, 3, padding="same", name="conv")], name="inner")
    shared = keras.layers.Conv2D(3, 1, name="shared")
    x = keras.layers.Add(name="sum")([shared(image), shared(inner(image))])
    model = keras.Model(image, keras.layers.Dense(5, name="logits")(keras.layers.Flatten()(x)))
    twin = _bridge.to_tf_keras(model)
    assert {"inner_conv", "shared", "sum", "logits"} <= {layer.name for layer in twin.layers}
    assert twin.count_params() == model.count_params()


class Own(keras.layers.Layer):
    def call(self, x):
        return x


def bad(kind):
    image = keras.Input(SHAPE)
    x = {
        "own": lambda: Own(name="own")(image),
        "multiply": lambda: keras.ops.multiply(image, keras.ops.max(image)),
        "mean": lambda: keras.ops.mean(image, axis=-1, keepdims=True),
        "divide": lambda: 1.0 / (image + 1.0),
        "leaky": lambda: keras.layers.LeakyReLU(negative_slope=0.9)(keras.layers.Rescaling(-1 / 255)(image)),
    }[kind]()
    return keras.Model(image, keras.layers.Dense(5, name="logits")(keras.layers.Flatten()(x)))


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: bad("own"), "'own': tf_keras.*has no Own"),
        (lambda: bad("multiply"), r"operation 'max.*\(Max\): build the student of layers, or leave"),
        (lambda: bad("mean"), r"operation 'mean.*\(Mean\): build the student of layers, or leave"),
        (lambda: bad("divide"), r"operation '.*divide.*: build the student of layers, or leave"),
        (lambda: bad("leaky"), "other logits"),
        (Subclassed, "subclassed"),
    ],
)
def test_what_has_no_twin_is_refused(model, told):
    with pytest.raises(InputError, match=told) as caught:
        _bridge.to_tf_keras(model())
    assert "\n" not in str(caught.value)


def test_keras_3_trains_what_tf_keras_computes():
    model = build("cnn(filters=(4, 8), dense=())")
    twin = _bridge.to_tf_keras(model)
    student = _bridge.trainable(twin, model)
    assert {"stage1", "stage2", "logits"} <= set(Taps(student, "student").names)
    np.testing.assert_array_equal(student(images()), twin(images()))
    distiller = Distiller(student=student, teacher=build("cnn(filters=(4,))"), losses=[losses.KD(), losses.Hint()])
    distiller.compile(keras.optimizers.SGD(0.01))
    before = [v.numpy() for v in twin.trainable_variables]
    distiller.fit(images(32), np.arange(32) % 5, batch_size=8, verbose=0)
    for variable, was in zip(twin.trainable_variables, before, strict=True):
        assert np.abs(variable.numpy() - was).max() > 0, variable.name
    # What Keras 3 saves and restores are the very same variables.
    kept = [keras.ops.convert_to_numpy(v) for v in student.variables]
    expected = twin(images()).numpy()
    for variable in twin.variables:
        variable.assign(variable * 0)
    for variable, value in zip(student.variables, kept, strict=True):
        variable.assign(value)
    np.testing.assert_array_equal(twin(images()).numpy(), expected)


def test_validation_moves_no_statistics():
    model = build("cnn(filters=(4, 8), dense=())")
    student = _bridge.trainable(_bridge.to_tf_keras(model), model)
    distiller = Distiller(student=student, losses=[losses.CE()])
    distiller.compile()
    before = [keras.ops.convert_to_numpy(v) for v in student.variables]
    distiller.evaluate(images(8), np.arange(8) % 5, verbose=0)
    for variable, was in zip(student.variables, before, strict=True):
        np.testing.assert_array_equal(variable, was)
