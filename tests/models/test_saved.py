import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import spec
from kd_keras.errors import InputError
from kd_keras.models import cnn, saved

SHAPE = (8, 8, 1)


@keras.saving.register_keras_serializable("kd_keras_test")
class Subclassed(keras.Model):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.dense = keras.layers.Dense(10)

    def call(self, x):
        return self.dense(keras.ops.mean(x, axis=(1, 2)))


@pytest.fixture
def write(tmp_path):
    """Writes a model to a file and gives its path."""

    def save(model, name="model.keras") -> str:
        model.save(tmp_path / name)
        return str(tmp_path / name)

    return save


def small(num_classes=10, input_shape=SHAPE):
    return cnn.CNN(num_classes, input_shape, filters=(4,), dense=())


def head(inputs):
    return keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(inputs))


def refusal(path, num_classes=10, input_shape=SHAPE) -> str:
    with pytest.raises(InputError) as error:
        saved.Saved(num_classes, input_shape, path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_are_as_saved(write):
    model = small()
    model(np.full((2, *SHAPE), 99.0), training=True)  # batch norm statistics must come back too
    again = saved.Saved(10, SHAPE, write(model))
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [x.name for x in again.layers] == [x.name for x in model.layers]


def test_is_marked_as_trained_and_is_not_compiled(write):
    model = small()
    model.compile("sgd", "mse")
    assert saved.TRAINED is True
    assert not hasattr(cnn, "TRAINED")
    assert not saved.Saved(10, SHAPE, write(model)).compiled


def test_from_a_spec(write):
    text = f"saved(path={write(small())!r})"
    model = spec.build("kd_keras.models", spec.parse(text), num_classes=10, input_shape=SHAPE)
    assert model.output_shape == (None, 10)


def test_home_folder(write, tmp_path, monkeypatch):
    write(small(), "teacher.keras")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert saved.Saved(10, SHAPE, "~/teacher.keras").name == "cnn"


def test_takes_sequential_models_and_open_sides(write):
    sequential = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(10)])
    assert saved.Saved(10, SHAPE, write(sequential)).output_shape == (None, 10)
    open_sides = keras.Input((None, None, 1))
    assert saved.Saved(10, SHAPE, write(keras.Model(open_sides, head(open_sides)))).output_shape == (None, 10)


def test_missing_file(tmp_path):
    assert "there is no file" in refusal(str(tmp_path / "none.keras"))
    (tmp_path / "folder.keras").mkdir()
    assert "there is no file" in refusal(str(tmp_path / "folder.keras"))


def test_wrong_ending(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"x")
    assert "does not end in .keras" in refusal(tmp_path / "model.pkl")


def test_path_that_is_no_text():
    assert "path=5 is not text" in refusal(5)


def test_file_that_is_something_else(tmp_path):
    (tmp_path / "text.keras").write_text("hello")
    assert "is no .keras file" in refusal(tmp_path / "text.keras")


def test_damaged_file(write, tmp_path):
    whole = write(small())
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "cut.keras", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name)[:100])
    assert "cannot be read as a Keras model (" in refusal(tmp_path / "cut.keras")


def test_layer_that_nobody_has_registered(write):
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    x = keras.Input(SHAPE)
    reason = refusal(write(keras.Model(x, head(Own(name="mine")(x)))))
    assert "(Could not locate class 'Own'." in reason


WITH_CODE = {
    "lambda": lambda x: keras.layers.Lambda(lambda t: t * 2)(x),
    "activation": lambda x: keras.layers.Activation(lambda t: t * 2)(x),
}


@pytest.mark.parametrize("kind", WITH_CODE)
def test_a_python_function_is_refused_and_runs_where_that_is_allowed(write, kind):
    x = keras.Input(SHAPE)
    model = keras.Model(x, head(WITH_CODE[kind](x)))
    path = write(model)
    said = refusal(path)
    assert "Python function" in said and ".keras'" in said and f"--allow_code_in={path}" in said and "4wEA" not in said
    images = np.random.default_rng(0).random((3, *SHAPE)).astype("float32")
    again = saved.Saved(10, SHAPE, path, allow_code=True)
    np.testing.assert_allclose(again(images), model(images), rtol=1e-6)


def test_hdf5_is_refused_and_read_where_that_is_allowed(write):
    model = small()
    path = write(model, "model.h5")
    said = refusal(path)
    assert ".keras'" in said and f"--allow_code_in={path}" in said
    images = np.full((2, *SHAPE), 99.0)
    np.testing.assert_array_equal(saved.Saved(10, SHAPE, path, allow_code=True)(images), model(images))


@pytest.mark.parametrize("way", ["keras", "tensorflow"])
def test_a_saved_model_is_refused_and_read_where_that_is_allowed(tmp_path, way):
    model, path = small(), str(tmp_path / "exported")
    if way == "keras":
        model.export(path, verbose=False)
    else:
        call = tf.function(lambda image: {"probabilities": model(image)})
        signature = call.get_concrete_function(tf.TensorSpec((None, *SHAPE)))
        module = tf.Module()
        module.variables_of_model = [weight.value for weight in model.weights]
        tf.saved_model.save(module, path, signatures=signature)
    said = refusal(path)
    assert ".keras'" in said and f"--allow_code_in={path}" in said
    images = np.full((2, *SHAPE), 99.0, "float32")
    again = saved.Saved(10, SHAPE, path, allow_code=True)
    np.testing.assert_allclose(again(images), model(images), rtol=1e-5)
    assert not again.trainable_variables


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_weights_for_a_builder_need_no_permission(tmp_path, name):
    model = small()
    (model.save_weights if "weights" in name else model.save)(tmp_path / name)
    text = f"saved(path={str(tmp_path / name)!r}, model=cnn(filters=(4,), dense=()))"
    again = spec.build("kd_keras.models", spec.parse(text), num_classes=10, input_shape=SHAPE)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_model(tmp_path):
    small().save_weights(tmp_path / "model.weights.h5")
    assert "say how the model is built" in refusal(tmp_path / "model.weights.h5")
    with pytest.raises(InputError, match="cannot be read") as error:
        other = cnn.CNN(10, SHAPE, filters=(4, 5), dense=())
        saved.Saved(10, SHAPE, tmp_path / "model.weights.h5", model=other)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no file of Keras' weights"):
        (tmp_path / "notes.txt").write_text("x")
        saved.Saved(10, SHAPE, tmp_path / "notes.txt", model=small())


def test_other_number_of_classes(write):
    assert "tells 7 classes apart where the data has 10" in refusal(write(small(num_classes=7)))


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 8, 1), (8, 9, 1)])
def test_other_input_shape(write, shape):
    assert f"takes images of shape {shape} where the data has {SHAPE}" in refusal(write(small(input_shape=shape)))


def test_wrong_question(write):
    path = write(small())
    assert "num_classes=1 " in refusal(path, num_classes=1)
    assert "input_shape=(8, 8) " in refusal(path, input_shape=(8, 8))


def test_models_that_are_no_image_classifiers(write):
    x = keras.Input(SHAPE)
    y = keras.Input(SHAPE)
    two_in = keras.Model([x, y], head(x + y))
    two_out = keras.Model(x, [head(x), head(x)])
    maps = keras.Model(x, keras.layers.Conv2D(10, 3)(x))
    subclassed = Subclassed()
    subclassed(np.zeros((1, *SHAPE)))
    for model in (two_in, two_out, maps, subclassed):
        assert "save a functional or Sequential classifier" in refusal(write(model))
