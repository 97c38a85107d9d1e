"""A teacher with another size, other channels and another scaling than the student."""

import sys
import warnings

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from keras import ops

from kd_keras import Distiller, TeacherInputs, losses
from kd_keras.distillation.batch import Batch
from kd_keras.errors import InputError

K = 5
DRAW = np.random.default_rng(0)
DIGITS = sklearn.datasets.load_digits().images[:24, ..., None] * (255 / 16)
IMAGES = tf.image.resize(DIGITS, (28, 28)).numpy()
LABELS = DRAW.integers(0, K, 24)


def model(shape, name, units=6):
    """A network that sees all of its image, with weights of its own."""
    keras.utils.set_random_seed(len(name))
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(4, 5, strides=3, activation="relu", name="conv")(inputs)
    x = keras.layers.Dense(units, activation="relu")(keras.layers.Flatten()(x))
    network = keras.Model(inputs, keras.layers.Dense(K)(x), name=name)
    for variable in network.trainable_variables:
        size = np.sqrt(np.prod(variable.shape[:-1], dtype=float))
        variable.assign(np.random.default_rng(len(variable.path)).normal(size=variable.shape) / max(size, 1))
    return network


def distiller(teacher, terms=(losses.KD,), student=None, **options):
    student = model((28, 28, 1), "student") if student is None else student
    result = Distiller(student=student, teacher=teacher, losses=[term() for term in terms], **options)
    result.compile(optimizer=keras.optimizers.SGD(0.0))
    return result


def seen_by(teacher, fitted, images=IMAGES):
    """What the teacher inside is given: its logits, read from the step."""
    return ops.convert_to_numpy(teacher(fitted.images_of_teacher(Batch(images))))


def kd(z_s, z_t, temperature=4.0):
    """arXiv:1503.02531 in float64."""
    z_s, z_t = (np.asarray(z, np.float64) / temperature for z in (z_s, z_t))
    log_s, log_t = (
        z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
        for z in (z_s, z_t)
    )
    return temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1).mean()


def test_a_large_coloured_teacher_of_another_scaling_agrees_with_itself_alone():
    teacher, student = model((64, 64, 3), "teacher"), model((28, 28, 1), "student")
    # What the user would have written for the teacher alone.
    alone = tf.image.grayscale_to_rgb(tf.image.resize(IMAGES, (64, 64))) / 127.5 - 1.0
    # So that it tells images apart.
    head = teacher.layers[-1]
    head.bias.assign(head.bias - teacher.predict(alone, verbose=0).mean(0))
    logits = teacher.predict(alone, verbose=0)
    fitted = distiller(teacher, student=student, teacher_inputs="-1..1")
    inside = seen_by(teacher, fitted)
    assert (inside.argmax(-1) == logits.argmax(-1)).mean() == 1.0 and len(set(logits.argmax(-1))) > 1
    np.testing.assert_allclose(inside, logits, rtol=1e-4, atol=1e-4)
    # And so inside a training step.
    history = fitted.fit(IMAGES, LABELS, batch_size=24, epochs=1, verbose=0, shuffle=False)
    np.testing.assert_allclose(history.history["kd"][0], kd(student.predict(IMAGES, verbose=0), logits), rtol=1e-4)


def caffe(rgb):
    return rgb[..., ::-1] - np.array([103.939, 116.779, 123.68])


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("0..255", lambda rgb: rgb),
        ("0..1", lambda rgb: rgb / 255),
        ("-1..1", lambda rgb: keras.applications.imagenet_utils.preprocess_input(rgb, mode="tf")),
        ("imagenet", lambda rgb: keras.applications.imagenet_utils.preprocess_input(rgb, mode="torch")),
        ("caffe", caffe),
    ],
)
@pytest.mark.parametrize(("images", "given"), [("0..255", 1.0), ("0..1", 1 / 255), ("-1..1", None)])
def test_scalings_are_those_of_keras(scaling, expected, images, given):
    rgb = DRAW.integers(0, 256, (2, 8, 8, 3)).astype("float32")
    teacher = model((8, 8, 3), "teacher")
    convert = TeacherInputs(scaling=scaling, images=images).of(teacher, (8, 8, 3), (8, 8, 3))
    batch = rgb / 127.5 - 1 if given is None else rgb * given
    np.testing.assert_allclose(convert(batch), expected(rgb.copy()), rtol=1e-4, atol=2e-4)


def test_without_a_word_only_size_and_channels_are_worked_out():
    teacher = model((14, 14, 3), "teacher")
    convert = TeacherInputs().of(teacher, (14, 14, 3), (28, 28, 1))
    seen = ops.convert_to_numpy(convert(IMAGES))
    # Each pixel of the half size is about the mean of four, and stays in 0…255.
    np.testing.assert_allclose(seen[..., 0], seen[..., 2])
    assert seen.shape == (24, 14, 14, 3) and abs(seen.mean() - IMAGES.mean()) < 1 and seen.max() <= 255
    same = TeacherInputs().of(teacher, (28, 28, 1), (28, 28, 1))
    assert same(IMAGES) is IMAGES
    grey = ops.convert_to_numpy(
        TeacherInputs().of(teacher, (8, 8, 1), (8, 8, 3))(np.full((1, 8, 8, 3), (10.0, 20.0, 30.0)))
    )
    np.testing.assert_allclose(grey, 0.2989 * 10 + 0.587 * 20 + 0.114 * 30, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("resnet50", "caffe"),
        ("resnet50v2", "-1..1"),
        ("vgg16", "caffe"),
        ("densenet121", "imagenet"),
        ("mobilenet_1.00_224", "-1..1"),
        ("mobilenetv2_1.00_224", "-1..1"),
        ("xception", "-1..1"),
        ("inception_v3", "-1..1"),
        ("inception_resnet_v2", "-1..1"),
        ("nasnet_mobile", "-1..1"),
        ("MobileNetV3Small", "0..255"),
        ("efficientnetb0", "0..255"),
        ("efficientnetv2-b0", "0..255"),
        ("convnext_tiny", "0..255"),
    ],
)
def test_auto_knows_the_networks_of_keras_applications(name, scaling):
    rgb = DRAW.integers(0, 256, (2, 8, 8, 3)).astype("float32")
    shapes = (keras.Sequential(name=name), (8, 8, 3), (8, 8, 3))
    auto, given = (TeacherInputs(scaling=each).of(*shapes)(rgb) for each in ("auto", scaling))
    np.testing.assert_array_equal(auto, given)


@pytest.mark.parametrize("network", ["MobileNet", "MobileNetV2", "DenseNet121", "ResNet50V2", "NASNetMobile"])
@pytest.mark.slow
def test_auto_is_what_the_network_s_own_function_gives(network):
    teacher = getattr(keras.applications, network)(weights=None, input_shape=(32, 32, 3), include_top=False)
    module = sys.modules[getattr(keras.applications, network).__module__]
    rgb = DRAW.integers(0, 256, (2, 32, 32, 3)).astype("float32")
    seen = TeacherInputs(scaling="auto").of(teacher, (32, 32, 3), (32, 32, 3))(rgb)
    np.testing.assert_allclose(seen, module.preprocess_input(rgb.copy()), rtol=1e-4, atol=2e-4)


def test_a_batch_may_bring_the_teachers_own_images():
    teacher, student = model((64, 64, 3), "teacher"), model((28, 28, 1), "student")
    large = DRAW.integers(0, 256, (24, 64, 64, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": LABELS, "teacher_image": large}).batch(24)
    fitted = distiller(teacher, student=student, teacher_inputs="-1..1")
    history = fitted.fit(data, epochs=1, verbose=0)
    logits = teacher.predict(large / 127.5 - 1, verbose=0)
    np.testing.assert_allclose(history.history["kd"][0], kd(student.predict(IMAGES, verbose=0), logits), rtol=1e-4)


def test_a_change_that_nobody_asked_for_is_told():
    teacher = model((14, 14, 3), "teacher")
    with pytest.warns(UserWarning, match=r"the teacher takes images of \(14, 14, 3\), the student of \(28, 28, 1\)"):
        TeacherInputs().of(teacher, (14, 14, 3), (28, 28, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TeacherInputs(size=14, channels=3).of(teacher, (14, 14, 3), (28, 28, 1))
        TeacherInputs().of(teacher, (28, 28, 1), (28, 28, 1))


def test_a_student_of_any_size_says_nothing_about_the_teachers():
    with pytest.raises(InputError, match=r"\(28, 28, 1\), and the teacher takes \(14, 14, 1\)"):
        distiller(model((14, 14, 1), "teacher"), student=open_student()).fit(IMAGES, LABELS, verbose=0)
    fitted = distiller(model((14, 14, 1), "teacher"), student=open_student(), teacher_inputs=TeacherInputs(size=14))
    assert np.isfinite(fitted.fit(IMAGES, LABELS, verbose=0).history["loss"]).all()


def open_student():
    inputs = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    return keras.Model(inputs, keras.layers.Dense(K)(x))


def test_images_without_an_axis_of_channels():
    teacher, student = model((14, 14, 1), "teacher"), model((28, 28, 1), "student")
    with_axis, without = (
        distiller(teacher, student=student, teacher_inputs=TeacherInputs(size=14)).fit(x, LABELS, verbose=0).history
        for x in (IMAGES, IMAGES[..., 0])
    )
    assert with_axis == without


def test_a_function_makes_the_teachers_images():
    teacher = model((28, 28, 1), "teacher")
    fitted = distiller(teacher, teacher_inputs=lambda images: 255.0 - images)
    np.testing.assert_allclose(seen_by(teacher, fitted), teacher.predict(255.0 - IMAGES, verbose=0), rtol=1e-5)


def test_features_of_a_larger_teacher_are_read_too():
    teacher = model((64, 64, 3), "teacher")
    term = losses.Attention(pairs="conv:conv")
    fitted = Distiller(student=model((28, 28, 1), "student"), teacher=teacher, losses=[term])
    fitted.compile(optimizer="sgd")
    assert np.isfinite(fitted.fit(IMAGES, LABELS, epochs=1, verbose=0).history["loss"]).all()


def test_they_are_saved(tmp_path):
    teacher = model((64, 64, 3), "teacher")
    distiller(teacher, teacher_inputs=TeacherInputs(scaling="-1..1", images="0..1")).save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    again.attach_teacher(teacher)
    images = IMAGES / 255
    expected = distiller(teacher, teacher_inputs=TeacherInputs(scaling="-1..1", images="0..1"))
    np.testing.assert_array_equal(seen_by(teacher, again, images), seen_by(teacher, expected, images))


def test_a_student_that_augments_inside_is_told(caplog):
    student = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.RandomFlip(name="mirror"),
            keras.layers.Flatten(),
            keras.layers.Dense(K),
        ]
    )
    with caplog.at_level("WARNING"):
        distiller(model((28, 28, 1), "teacher"), student=student)
    assert "the student changes its images at random (mirror)" in caplog.text


@pytest.mark.parametrize(
    ("shape", "inputs", "reason"),
    [
        ((64, 64, 4), None, "only grey (1 channel) and colour (3)"),
        ((64, 64, 3), TeacherInputs(size=32), "has the size (32, 32), and the teacher takes images of (64, 64, 3)"),
        ((64, 64, 3), TeacherInputs(channels=1), "has 1 channels, and the teacher takes"),
        ((64, 64, 1), "imagenet", "is of three channels"),
        ((64, 64, 3), "auto", "the scaling of 'teacher' is not known"),
        ((64, 64, 3), "0-1", "scaling='0-1': known are 0..255"),
        ((64, 64, 3), 7, "teacher_inputs=7: give TeacherInputs"),
    ],
)
def test_what_cannot_be_is_refused(shape, inputs, reason):
    with pytest.raises(InputError) as error:
        distiller(model(shape, "teacher"), teacher_inputs=inputs)
    assert reason in str(error.value)
