"""Files and compressed students that are not what was asked for are named in the run's output and under its table."""

import json

import keras
import numpy as np
import pytest

from kd_keras.evaluate import quality
from kd_keras.export import metadata, tflite
from kd_keras.run import __main__ as run
from tests.schemes.tiny import TINY

FLAGS = (*(flag for flag in TINY if not flag.startswith(("--student", "--teacher"))), "--teacher=none", "--loss=ce()")


def student(tmp_path, bias=0.0, activation=None):
    """A student in a file; the same number on all its logits takes all 256 steps of an integer file."""
    keras.utils.set_random_seed(0)
    flat = [keras.layers.Rescaling(1 / 127.5, offset=-1), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *flat, keras.layers.Dense(10, activation=activation)])
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, np.full(10, bias)])
    model.save(tmp_path / "student.keras")
    return model, f"--student_from={tmp_path / 'student.keras'}"


def main(folder, *flags):
    assert run.main(["kd_keras", *FLAGS, *flags, f"--workdir={folder}"]) == 0
    return folder


def agreement(workdir):
    """What the records of the run's files say."""
    records = [json.loads(path.read_text()) for path in (workdir / "store" / "export").glob("*/record.json")]
    return {record["stage"]: record["agreement"] for record in records}


@pytest.mark.slow
def test_a_file_that_is_another_classifier_is_named_loudly(tmp_path, caplog, capsys):
    _, flag = student(tmp_path, bias=1e4)
    folder = main(tmp_path / "w", flag, "--export=float32,int8")
    measured = agreement(folder)
    assert measured["student_float32"] > 0.98 and measured["student_int8"] < 0.5
    warned = [record.getMessage() for record in caplog.records if "student_int8.tflite gives" in record.getMessage()]
    assert len(warned) == 1 and f"only {measured['student_int8']:.1%} of 256 validation images" in warned[0]
    # Whoever reads the table later sees it too.
    said = " ".join(capsys.readouterr().out.split())
    assert "student_int8.tflite gives its model's class for only" in said
    assert "student_float32.tflite gives" not in said
    assert "student_int8.tflite gives its model's class" in " ".join((folder / "results.txt").read_text().split())


@pytest.mark.slow
def test_a_student_with_probabilities_has_files_with_logits_and_the_measures_of_its_model(tmp_path):
    model, flag = student(tmp_path, activation="softmax")
    folder = main(tmp_path / "w", flag, "--export=float32,int8", "--layer_report")
    assert min(agreement(folder).values()) > 0.9
    images = np.random.default_rng(0).uniform(0, 16, (9, 8, 8, 1)).astype("float32")
    kernel, bias = (np.asarray(weight, np.float64) for weight in model.layers[-1].get_weights())
    expected = (images.astype("float64") / 127.5 - 1).reshape(9, -1) @ kernel + bias
    file = folder / "student_float32.tflite"
    np.testing.assert_allclose(tflite.load(file).predict(images), expected, atol=1e-4)
    assert metadata.read(file)["output"]["name"] == "logits"
    rows = {row["stage"]: row for row in json.loads((folder / "results.json").read_text())}
    # Calibration errors of probabilities that were taken for logits would be far from each other.
    assert rows["student_float32"]["ece"] == pytest.approx(rows["student"]["ece"], abs=1e-5)


@pytest.mark.slow
def test_a_sparsity_that_is_not_reached_is_said_under_the_table(tmp_path):
    """A schedule that is longer than the training."""
    _, flag = student(tmp_path)
    with pytest.warns(UserWarning, match="is not reached: zeros are dense"):
        folder = main(
            tmp_path / "w", flag, "--export=none", "--compress=short_step:Half()", "--compress_export=float32"
        )
    assert "is not reached" in " ".join((folder / "results.txt").read_text().split())


@pytest.fixture(autouse=True)
def short_step(tmp_path, monkeypatch):
    """A pruning step of the user's own that stops half way."""
    (tmp_path / "short_step.py").write_text(
        "from kd_keras.compress import Prune\n\n\n"
        "class Half(Prune):\n"
        "    def __init__(self):\n        super().__init__(sparsity=0.8, frequency=1)\n\n"
        "    def wrap(self, model, kept, steps):\n        return super().wrap(model, kept, 1000 * steps)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_quality_is_decided_on_the_data_not_on_noise():
    """Logits that lie in 0 to 1 on noise, and not on real images."""
    image = keras.Input((8, 8, 1))
    brightness = keras.layers.GlobalAveragePooling2D()(image)
    small = keras.layers.Dense(2, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant([0.2, 0.7]))
    model = keras.Model(image, small(brightness))
    small.set_weights([np.array([[0.01, -0.02]]), np.array([0.2, 0.7])])
    images = np.full((16, 8, 8, 1), 250.0) + np.arange(16)[:, None, None, None]
    got, _ = quality.predict(quality.logits(model), [(images.astype("float32"), np.zeros(16, int))])
    np.testing.assert_allclose(got, model.predict(images, verbose=0), rtol=1e-6)
