"""kd_keras.distill: the run of the command line, with models and images in memory."""

import json
import pathlib

import keras
import numpy as np
import pytest

import kd_keras
from kd_keras import data
from kd_keras.errors import InputError
from kd_keras.export import interpreter

RNG = np.random.default_rng(0)
TEACHER, STUDENT = "cnn(filters=(8,), dense=())", "cnn(filters=(4,), dense=())"


@pytest.fixture(scope="module")
def digits():
    splits = data.Digits()
    batches = list(data.batches(splits.train, 128).as_numpy_iterator())
    images, labels = (np.concatenate(parts)[:400] for parts in zip(*batches, strict=True))
    return images.astype("uint8"), labels


class Halved(keras.layers.Layer):
    """A layer of a user's, that Keras does not know by name."""

    def call(self, x):
        return x / 2


def net(units):
    layers = [keras.layers.Rescaling(1 / 255), Halved(), keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A result of models as objects, what they were before, and the store."""
    keras.utils.set_random_seed(0)
    teacher, student = net(16), net(4)
    before = [model.get_weights() for model in (teacher, student)]
    keras.config.enable_interactive_logging()
    store = tmp_path_factory.mktemp("store")
    result = kd_keras.distill(student, teacher, digits, teacher_epochs=3, epochs=2, store=store, verbose=False)
    return result, (teacher, student), before, store


def test_models_are_trained_measured_and_left_as_they_were(made):
    result, given, before, _ = made
    for model, weights in zip(given, before, strict=True):
        for a, b in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
    assert keras.config.is_interactive_logging_enabled()
    assert [row["role"] for row in result.table] == ["teacher", "baseline (no teacher)", "student distilled"]
    assert result.table[2]["architecture"] == given[1].name
    assert "points of test accuracy over the baseline" in result.notes[0]
    assert result.names == ("teacher", "baseline", "student")
    assert len(result.history["student distilled"]["val_accuracy"]) == 2


def test_the_tables_accuracy_is_that_of_the_models(made, digits):
    result = made[0]
    splits = result._work.splits
    assert [len(splits.train), len(splits.val), len(splits.test)] == [320, 40, 40]
    images, labels = next(iter(data.batches(splits.test, 40)))
    for row, model in zip(result.table, (result.teacher, result.baseline, result.student), strict=True):
        seen = np.mean(model.predict(images, verbose=0).argmax(-1) == labels.numpy())
        assert row["test_accuracy"] == pytest.approx(seen)


def test_it_is_shown(made):
    result = made[0]
    assert "student distilled" in str(result) and "test" in str(result)
    assert result._repr_html_().startswith("<table>") and "<td>student distilled</td>" in result._repr_html_()
    assert len(result.plot().axes) == 2


@pytest.mark.parametrize(("variant", "model"), [("int8", None), ("float32", "teacher")])
def test_a_file_gives_what_the_model_gives(made, tmp_path, variant, model):
    result = made[0]
    path = result.export(variant, tmp_path / "out" / "a.tflite", model)
    images, _ = next(iter(data.batches(result._work.splits.test, 40)))
    want = result.model(model or "student").predict(images, verbose=0)
    seen = interpreter.load(path).predict(images.numpy())
    # Rounding to 8 bits moves logits a little, and classes that are close to each other are swapped.
    assert np.corrcoef(seen.ravel(), want.ravel())[0, 1] > 0.98


@pytest.mark.slow
def test_a_compressed_model_is_exported(digits, tmp_path):
    result = kd_keras.distill(
        "cnn(filters=(4,), dense=())",
        None,
        digits,
        loss="ce()",
        epochs=1,
        compress="qat()",
        compress_epochs=1,
        verbose=False,
    )
    (name,) = set(result.names) - {"student", "baseline"}
    for variant in ("int8", "int8_io"):
        path = result.export(variant, tmp_path / f"{variant}.tflite", name)
        images, _ = next(iter(data.batches(result._work.splits.test, 40)))
        want = result.model(name).predict(images, verbose=0)
        assert np.corrcoef(interpreter.load(path).predict(images.numpy()).ravel(), want.ravel())[0, 1] > 0.9
    with pytest.raises(InputError, match="trains for integers: add int8 or int8_io"):
        result.export("float32", tmp_path / "a.tflite", name)


def test_the_same_call_trains_nothing_again(made, digits):
    store = made[3]
    records = {path: path.stat().st_mtime_ns for path in store.rglob("record.json")}
    again = kd_keras.distill(made[1][1], made[1][0], digits, teacher_epochs=3, epochs=2, store=store, verbose=False)
    assert again.table == made[0].table
    assert {path: path.stat().st_mtime_ns for path in store.rglob("record.json")} == records


@pytest.mark.slow
def test_specs_give_what_the_command_gives(command, tmp_path):
    flags = ["--data=digits()", f"--teacher={TEACHER}", f"--student={STUDENT}", "--epochs=1", "--teacher_epochs=1"]
    done = command(*flags, "--train_examples=200", "--export=none", "--tracking=none", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    result = kd_keras.distill(
        STUDENT, TEACHER, "digits()", epochs=1, teacher_epochs=1, train_examples=200, verbose=False
    )
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    for row, seen in zip(rows, result.table, strict=True):
        for name in ("stage", "train_accuracy", "val_accuracy", "test_accuracy", "ece", "architecture"):
            assert row[name] == seen[name], name


@pytest.mark.slow
def test_images_without_a_label_teach_too(digits):
    images, labels = digits
    some = np.where(np.arange(len(labels)) % 4 == 0, labels, -1)
    result = kd_keras.distill(
        STUDENT, net(8), (images, some), digits, digits, epochs=1, teacher_epochs=3, loss="kd()", verbose=False
    )
    rows = {row["stage"]: row for row in result.table}
    assert (rows["student"]["labelled_images"], rows["student"]["unlabelled_images"]) == (100, 300)
    assert rows["baseline"]["unlabelled_images"] == 0


def test_without_a_teacher_the_losses_are_those_that_are_given(digits):
    with pytest.raises(InputError, match="kd"):
        kd_keras.distill(STUDENT, None, digits, loss="kd()", verbose=False)
    images, labels = digits
    several = np.eye(10, dtype=int)[labels]
    result = kd_keras.distill(STUDENT, None, (images, several), epochs=1, loss="bce()", verbose=False)
    assert [("bce" in curves) for curves in result.history.values()] == [True]


def test_nothing_stays_on_disk(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = kd_keras.distill(STUDENT, None, digits, epochs=1, verbose=False)
    assert result.names == ("student",) and result.student.count_params() > 0
    del result
    assert not [path for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((STUDENT, TEACHER), {"epoch": 3}, "distill() has no setting 'epoch': known are train_examples"),
        ((STUDENT, TEACHER), {"workdir": "a"}, "distill() has no setting 'workdir'"),
        ((STUDENT, TEACHER), {"epochs": 0}, "--epochs=0: give a whole number of at least 1"),
        ((STUDENT, TEACHER), {"loss": "kdd()"}, "unknown name 'kdd' in losses"),
        ((STUDENT, TEACHER, [1, 2, 3]), {}, "train is list: give (images, labels)"),
        ((STUDENT, TEACHER, "digits()", "digits()"), {}, "has splits of its own"),
        ((STUDENT, TEACHER, (np.zeros((9, 8, 8, 1)), np.zeros(9, int))), {}, "images must be uint8"),
    ],
)
def test_mistakes_are_told_before_training(arguments, settings, message):
    with pytest.raises(InputError) as error:
        kd_keras.distill(*arguments, verbose=False, **settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_splits_of_two_forms_and_too_few_names_are_refused(digits):
    images, labels = digits
    with pytest.raises(InputError, match="val has images"):
        kd_keras.distill(STUDENT, TEACHER, digits, (images[:, ::2], labels), verbose=False)
    with pytest.raises(InputError, match="class_names has 2 names, and the labels 10 classes"):
        kd_keras.distill(STUDENT, TEACHER, digits, class_names=("a", "b"), verbose=False)


def test_a_model_that_cant_be_saved_is_refused_by_name(digits):
    class Own(keras.layers.Layer):
        def __init__(self, function, **kwargs):
            super().__init__(**kwargs)
            self.function = function

        def call(self, x):
            return self.function(x)

    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), Own(abs), keras.layers.Dense(10)], name="m"
    )
    with pytest.raises(InputError, match="the student 'm' can't be saved and read again"):
        kd_keras.distill(model, TEACHER, digits, verbose=False)
