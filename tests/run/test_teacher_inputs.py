"""Runs whose teacher takes images of another size, other channels and another scaling than the student."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import data
from kd_keras.run import __main__ as run

PIXELS = data.Digits()
FAST = ["--data=digits()", "--student=cnn(filters=(4,), dense=())", "--epochs=1", "--tracking=none", "--export=none"]
ALONE = ["--nobaseline", "--progress=none"]


def main(workdir, *flags):
    return run.main(["kd_keras", *FAST, *ALONE, f"--workdir={workdir}", *flags])


def rows(workdir):
    return {row["stage"]: row for row in json.loads((workdir / "results.json").read_text())}


def as_seen(source):
    """The images of a split as the teacher below takes them."""
    images, labels = source.read(np.arange(len(source)))
    large = tf.round(tf.image.resize(tf.cast(images, tf.float32), (16, 16)))
    return tf.image.grayscale_to_rgb(large) / 127.5 - 1.0, labels.numpy()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A trained teacher of 16×16 colour images in −1…1, and its accuracy on the test split."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(*as_seen(PIXELS.train), epochs=8, batch_size=32, verbose=0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    model.save(path)
    return path, model.evaluate(*as_seen(PIXELS.test), verbose=0)[1]


CACHED = pytest.param(["--cache_views=1"], marks=pytest.mark.slow)


@pytest.mark.parametrize("cached", [[], CACHED], ids=["run in each step", "cached"])
def test_it_is_as_accurate_as_alone(teacher, cached, tmp_path):
    path, alone = teacher
    assert main(tmp_path, f"--teacher=saved(path='{path}')", "--teacher_scaling=-1..1", *cached) == 0
    found = rows(tmp_path)["teacher"]["test_accuracy"]
    assert found == pytest.approx(alone, abs=1e-6) and alone > 0.9
    assert keras.models.load_model(tmp_path / "teacher.keras", compile=False).input_shape == (None, 16, 16, 3)


def test_a_wrong_scaling_stops_the_run(teacher, tmp_path, capsys):
    path, _ = teacher
    with keras.saving.custom_object_scope({}):
        model = keras.models.load_model(path, compile=False)
    # A network that such pixels drive into one class.
    model.layers[-1].bias.assign_add([0] * 9 + [60.0])
    model.save(tmp_path / "t.keras")
    assert main(tmp_path / "run", f"--teacher=saved(path='{tmp_path / 't.keras'}')", "--teacher_scaling=-1..1") == 2
    error = capsys.readouterr().err
    assert "teacher knows nothing of these data: its mean recall is 10.0%" in error and "--teacher_scaling" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_teacher_is_trained_at_a_size_of_its_own(tmp_path):
    flags = ["--teacher=cnn(filters=(8,), dense=())", "--teacher_image_size=16", "--teacher_channels=3"]
    assert main(tmp_path, *flags, "--augment=pad_crop(pixels=1) + mixup(alpha=0.2)") == 0
    model = keras.models.load_model(tmp_path / "teacher.keras", compile=False)
    assert model.input_shape == (None, 16, 16, 3)
    # Another run borrows it, in its size.
    flags = [f"--teacher_from={tmp_path}", "--teacher=cnn(filters=(8,), dense=())", "--loss=kd(weight=1.0)"]
    assert main(tmp_path / "again", *flags) == 0
    first, second = (rows(folder)["teacher"]["test_accuracy"] for folder in (tmp_path, tmp_path / "again"))
    assert first == second


def test_a_size_that_the_file_does_not_take_is_refused(teacher, tmp_path, capsys):
    path, _ = teacher
    assert main(tmp_path, f"--teacher=saved(path='{path}')", "--teacher_image_size=20") == 2
    assert "16" in capsys.readouterr().err
