"""Models that take several inputs, by name or in a list."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kd_keras import Distiller, InputError, losses
from kd_keras.distillation.teacher_inputs import TeacherInputs

DRAW = np.random.default_rng(0)
IMAGE = DRAW.uniform(0, 1, (24, 8, 8, 1)).astype("float32")
AGE = DRAW.normal(size=(24, 3)).astype("float32")
LABEL = DRAW.integers(0, 4, 24)


def network(form, seed, names=("image", "age"), shape=(8, 8, 1)):
    """A classifier of an image and three numbers: ``'dict'``, ``'list'``, ``'one'`` without the numbers, or a class."""
    keras.utils.set_random_seed(seed)
    image, age = keras.Input(shape, name=names[0]), keras.Input((3,), name=names[1])
    x = layers.Flatten()(image)
    x = x if form == "one" else layers.Concatenate()([x, age])
    logits = layers.Dense(4)(layers.Dense(5, name="hidden")(x))
    forms = {"one": image, "list": [image, age], "dict": {names[0]: image, names[1]: age}}
    return keras.Model(forms["dict" if form == "subclassed" else form], logits)


class Subclassed(keras.Model):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs):
        return self.inner(inputs)


def soften(logits):
    shifted = np.asarray(logits, "float64") / 4
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kd(student, teacher):
    """16 · KL at T = 4 (arXiv:1503.02531), from logits."""
    p, q = soften(teacher), soften(student)
    return 16 * (np.exp(p) * (p - q)).sum(axis=-1).mean()


def fitted(student, teacher, data, **kwargs):
    distiller = Distiller(student=student, teacher=teacher, losses=[losses.KD(temperature=4.0)], **kwargs)
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), metrics=["accuracy"])
    return distiller, distiller.fit(**data, verbose=0).history["kd"][0]


NAMED, PHOTO = {"image": IMAGE, "age": AGE}, {"photo": IMAGE, "age": AGE}
PAIRS = {
    "dict": (network("dict", 0), network("dict", 1), NAMED, NAMED, NAMED),
    "other names": (*(network("dict", seed, ("photo", "age")) for seed in (0, 1)), PHOTO, PHOTO, PHOTO),
    "list": (network("list", 0), network("list", 1), [IMAGE, AGE], [IMAGE, AGE], [IMAGE, AGE]),
    "the teacher alone": (network("one", 0), network("dict", 1), NAMED, IMAGE, NAMED),
    "the student alone": (network("dict", 0), network("one", 1), NAMED, NAMED, IMAGE),
}


@pytest.mark.parametrize(
    "road",
    ["arrays", "batch dicts", *(pytest.param(road, marks=pytest.mark.slow) for road in ("data set", "generator"))],
)
@pytest.mark.parametrize("name", PAIRS)
def test_each_model_gets_its_inputs(name, road):
    student, teacher, x, for_student, for_teacher = PAIRS[name]
    if road == "batch dicts" and x is not NAMED:
        pytest.skip("a batch dict has an image")
    given = tuple(x) if isinstance(x, list) else x
    fields = {**given, "label": LABEL} if isinstance(x, dict) else (given, LABEL)
    data = {
        "arrays": {"x": x, "y": LABEL, "batch_size": 24, "shuffle": False},
        "data set": {"x": tf.data.Dataset.from_tensor_slices((given, LABEL)).batch(24)},
        "batch dicts": {"x": tf.data.Dataset.from_tensor_slices(fields).batch(24)},
        "generator": {"x": iter([(given, LABEL)]), "steps_per_epoch": 1},
    }[road]
    distiller, value = fitted(student, teacher, data)
    logits = student.predict(for_student, verbose=0)
    np.testing.assert_allclose(value, kd(logits, teacher.predict(for_teacher, verbose=0)), rtol=1e-4)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(distiller(x), logits, rtol=1e-5, atol=1e-6)
    if road == "arrays":
        seen = distiller.evaluate(x, LABEL, verbose=0, return_dict=True)
        assert seen["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == LABEL))


def test_a_subclassed_model_and_a_fast_copy():
    inner = network("dict", 1)
    teacher = Subclassed(inner)
    teacher({name: value[:2] for name, value in NAMED.items()})
    data = {"x": NAMED, "y": LABEL, "batch_size": 24}
    student = network("dict", 0)
    expected = kd(student.predict(NAMED, verbose=0), inner.predict(NAMED, verbose=0))
    assert fitted(student, teacher, data)[1] == pytest.approx(expected, rel=1e-4)
    assert fitted(student, inner, data, teacher_dtype="float32")[1] == pytest.approx(expected, rel=1e-4)


def test_probabilities_and_taps_inside(tmp_path):
    """Its logits are found behind a softmax, its features inside; the Distiller is saved, loaded and exported."""
    core, teacher = network("dict", 0), network("dict", 1)
    inputs = {name: keras.Input(value.shape[1:], name=name) for name, value in NAMED.items()}
    student = keras.Model(inputs, layers.Softmax()(core(inputs)))
    terms = [losses.KD(temperature=4.0), losses.Hint(pairs="hidden:hidden")]
    distiller = Distiller(student=core, teacher=teacher, losses=terms)
    distiller.compile(optimizer=keras.optimizers.SGD(0.0))
    assert np.isfinite(distiller.fit(NAMED, LABEL, verbose=0).history["hint"][0])
    distiller, value = fitted(student, teacher, {"x": NAMED, "y": LABEL, "batch_size": 24})
    logits = core.predict(NAMED, verbose=0)
    assert value == pytest.approx(kd(logits, teacher.predict(NAMED, verbose=0)), rel=1e-4)
    distiller.save(tmp_path / "whole.keras")
    loaded = keras.saving.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(loaded.predict(NAMED, verbose=0), distiller.predict(NAMED, verbose=0), rtol=1e-5)
    distiller.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(NAMED), logits, rtol=1e-4, atol=1e-5)


def test_each_image_at_its_own_size():
    student, teacher = network("dict", 0), network("dict", 1, shape=(16, 16, 3))
    _, value = fitted(student, teacher, {"x": NAMED, "y": LABEL, "batch_size": 24}, teacher_inputs=TeacherInputs())
    large = keras.ops.repeat(keras.ops.image.resize(IMAGE, (16, 16), antialias=True), 3, axis=-1)
    expected = teacher.predict({"image": np.asarray(large), "age": AGE}, verbose=0)
    assert value == pytest.approx(kd(student.predict(NAMED, verbose=0), expected), rel=1e-4)


@pytest.mark.parametrize("student, teacher, x, words", [
    ("dict", "dict", IMAGE, "the student takes the inputs image, age, and the batch has image"),
    ("list", "list", [IMAGE, AGE, AGE], r"\(3,\)\], and the student takes the inputs \[\(8, 8, 1\), \(3,\)\]"),
    ("one", "one", [IMAGE, AGE], r"and the student takes \(8, 8, 1\)"),
    ("list", "one", [IMAGE, AGE], "give teacher_inputs=function"),
    ("one", "list", IMAGE, "give teacher_inputs=function"),
])  # fmt: skip
def test_what_a_model_is_not_given_is_named(student, teacher, x, words):
    with pytest.raises(InputError, match=words):
        fitted(network(student, 0), network(teacher, 1), {"x": x, "y": LABEL})


def test_a_function_makes_one_of_the_other():
    data = {"x": [IMAGE, AGE], "y": LABEL, "batch_size": 24}
    student, teacher = network("list", 0), network("one", 1)
    value = fitted(student, teacher, data, teacher_inputs=lambda inputs: inputs[0])[1]
    expected = kd(student.predict([IMAGE, AGE], verbose=0), teacher.predict(IMAGE, verbose=0))
    assert value == pytest.approx(expected, rel=1e-4)


def test_a_field_of_the_users_own_is_no_misspelling():
    """``age`` is a part of the word image."""
    distiller, _ = fitted(network("one", 0), network("one", 1), {"x": NAMED, "y": LABEL})
    assert not distiller.input_names
