"""Teachers without a classifier's head, and parts of taps: class token, patches, pooled maps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, Taps, TeacherCache, data, losses
from kd_keras.errors import InputError

SHAPE, K = (16, 16, 3), 4
IMAGES = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8).astype("float32")


def backbone(output="map", width=6):
    """A network of images whose output is a map, tokens behind a class token, or a vector."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(width, 4, strides=4, activation="relu", name="stage1")(x)
    if output == "tokens":
        x = keras.layers.Reshape((16, width))(x)
        x = keras.layers.ZeroPadding1D((1, 0), name="blocks")(x)
    if output == "vector":
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, x, name="backbone")


def student():
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="stage1")(inputs / 255)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(inputs, keras.layers.Dense(K)(x), name="student")


def distiller(teacher, *terms, **options):
    result = Distiller(student=student(), teacher=teacher, losses=list(terms), **options)
    result.compile(optimizer="adam", metrics=["accuracy"])
    return result


@pytest.mark.parametrize(
    ("output", "pairs"),
    [("map", "stage1:output"), ("tokens", "stage1:blocks[patches]"), ("tokens", "pooled:output[class]"),
     ("tokens", "pooled:output[pooled]"), ("vector", "pooled:output"), ("map", "pooled:stage1[pooled]")],
)  # fmt: skip
def test_features_alone_teach_without_labels(output, pairs):
    fitted = distiller(backbone(output), losses.Hint(pairs=pairs))
    before = [value.copy() for value in fitted.student.get_weights()]
    history = fitted.fit(IMAGES, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] and set(history) == {"loss", "hint"}
    moved = [not np.array_equal(*pair) for pair in zip(before, fitted.student.get_weights(), strict=True)]
    # The classifier is not reached.
    assert moved == [True, True, False, False]


def test_parts_of_taps_are_what_they_say():
    teacher = backbone("tokens")
    taps = Taps(teacher, "teacher", features=True)
    names = ["stage1", "stage1[pooled]", "blocks", "blocks[class]", "blocks[patches]", "blocks[pooled]", "output"]
    read = {name: np.asarray(value) for name, value in taps(IMAGES, names, training=False).items()}
    maps, tokens = read["stage1"], read["blocks"]
    np.testing.assert_allclose(read["stage1[pooled]"], maps.astype("float64").mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(read["blocks[class]"], tokens[:, 0])
    np.testing.assert_array_equal(read["blocks[patches]"], maps)
    np.testing.assert_allclose(read["blocks[pooled]"], maps.astype("float64").mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(read["output"], tokens)
    assert taps.shapes(names[:4])["blocks[class]"] == (None, 6) and taps.num_classes is None


@pytest.mark.parametrize(("tokens", "prefix"), [(16, 0), (17, 1), (21, 5), (50, 1), (196, 0), (201, 5)])
def test_tokens_in_front_of_the_patches_are_told_by_their_number(tokens, prefix):
    inputs = keras.Input((tokens, 8))
    teacher = keras.Model(inputs, keras.layers.Dense(3, name="blocks")(inputs))
    value = np.random.default_rng(0).normal(size=(2, tokens, 8)).astype("float32")
    side = int((tokens - prefix) ** 0.5)
    taps = Taps(teacher, features=True)
    read = taps(value, ["blocks", "blocks[patches]"], training=False)
    expected = np.asarray(read["blocks"])[:, prefix:].reshape(2, side, side, 3)
    np.testing.assert_array_equal(read["blocks[patches]"], expected)
    assert ("blocks[class]" in taps.names) == bool(prefix)


def test_tokens_that_are_no_square_have_no_parts():
    inputs = keras.Input((13, 8))
    taps = Taps(keras.Model(inputs, keras.layers.Dense(3, name="blocks")(inputs)), features=True)
    assert taps.names == ["blocks", "output"]


def test_a_teacher_of_other_classes_teaches_by_its_features():
    inputs = keras.Input(SHAPE)
    other = keras.Model(inputs, keras.layers.Dense(1000)(keras.layers.Flatten()(backbone()(inputs))))
    fitted = distiller(other, losses.Hint(pairs="stage1:stage1"))
    assert np.isfinite(fitted.fit(IMAGES, verbose=0).history["loss"]).all()
    with pytest.raises(InputError, match=r"1000 classes \(or features.*and kd compares them"):
        distiller(other, losses.Hint(pairs="stage1:stage1"), losses.KD())


@pytest.mark.parametrize("output", ["map", "tokens"])
def test_a_loss_on_logits_is_refused_by_name(output):
    with pytest.raises(
        InputError, match=r"the teacher gives features of shape \(None, .* and no classes, and kd reads"
    ):
        distiller(backbone(output), losses.CE(), losses.KD())


def test_a_student_without_a_head_is_refused():
    with pytest.raises(InputError, match="a classifier's is"):
        Distiller(student=backbone(), teacher=backbone("vector"), losses=[losses.Hint(pairs="stage1:stage1")])


def test_a_subclassed_backbone():
    class Backbone(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(6, 4, strides=4)

        def call(self, x):
            return self.conv(x)

    teacher = Backbone()
    teacher(IMAGES)
    fitted = distiller(teacher, losses.Hint(pairs="stage1:output"))
    assert np.isfinite(fitted.fit(IMAGES, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_they_are_cached(tmp_path, dtype):
    source = data.ArraySource(IMAGES.astype(np.uint8), np.arange(12) % K)
    teacher, taps = backbone("tokens"), ("blocks[class]", "output", "stage1[pooled]")
    cache = TeacherCache(tmp_path, data.Views(source), teacher, taps, dtype="float32", teacher_dtype=dtype)
    cache.fill()
    read = cache.read(0, np.arange(12))
    expected = Taps(teacher, features=True)(IMAGES, taps, training=False)
    for tap in taps:
        np.testing.assert_allclose(read[tap], expected[tap], rtol=1e-5, atol=1e-6)
    fitted = distiller(None, losses.Hint(pairs="pooled:blocks[class]"))
    fitted.attach_teacher(teacher)
    batches = data.batches(source, 4, training=True, epochs=2, cache=cache)
    assert np.isfinite(fitted.fit(batches, epochs=2, steps_per_epoch=3, verbose=0).history["loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "DenseNet121", "EfficientNetB0"])
def test_a_network_of_keras_applications_without_its_top(name):
    teacher = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(32, 32, 3))
    fitted = distiller(teacher, losses.Hint(pairs="pooled:output[pooled]"), teacher_inputs="auto")
    assert np.isfinite(fitted.fit(tf.cast(IMAGES, tf.float32), verbose=0).history["loss"]).all()
