"""Saved Distillers and ensembles load after one import, those of version 0.1 too."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from kd_keras import Distiller, losses
from kd_keras.distillation import ensemble
from tests.conftest import ROOT

# Written by version 0.1, whose modules had other names: a compiled Distiller with a schedule, and its teacher.
FILES = pathlib.Path(__file__).parent / "files"
X = np.linspace(-1, 1, 5 * 16).reshape(5, 4, 4, 1).astype("float32")
Y = np.arange(5) % 2
LOGITS = [
    [-0.25800118, 0.21444872],
    [-0.14066368, 0.11672471],
    [-0.02771075, 0.01553083],
    [-0.05477155, -0.10052825],
    [-0.11999575, -0.21201117],
]


def in_new_process(lines: str, *arguments) -> str:
    command = [sys.executable, "-c", lines, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a Distiller and an ensemble that were saved now, and the Distiller's logits."""
    folder = tmp_path_factory.mktemp("saved")
    keras.utils.set_random_seed(0)

    def net(filters):
        image = keras.Input((4, 4, 1))
        x = keras.layers.Conv2D(filters, 2, activation="relu", name="stage1")(image)
        return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))

    distiller = Distiller(student=net(2), teacher=net(3), losses=[losses.CE(), losses.KD(), losses.Hint()])
    distiller.compile("adam", metrics=["accuracy"])
    distiller.fit(X, Y, verbose=0)
    distiller.save(folder / "distiller.keras")
    ensemble.join([net(2), net(3)]).save(folder / "ensemble.keras")
    return folder, distiller.predict(X, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        "import kd_keras.distillation; import keras",
        "import keras; from kd_keras import Distiller",
    ],
)
def test_one_import_is_all_that_loading_needs(saved, lines):
    folder, logits = saved
    np.save(folder / "images.npy", X)
    code = (
        f"import sys, numpy as np; {lines}; folder = sys.argv[1];"
        "keras.models.load_model(folder + '/ensemble.keras');"
        "model = keras.models.load_model(folder + '/distiller.keras');"
        "np.save(folder + '/logits.npy', model.predict(np.load(folder + '/images.npy'), verbose=0));"
        "print(type(model).__name__)"
    )
    assert in_new_process(code, folder) == "Distiller"
    np.testing.assert_allclose(np.load(folder / "logits.npy"), logits, atol=1e-6)


def test_a_distiller_of_version_0_1_predicts_evaluates_and_trains_on():
    distiller = keras.models.load_model(FILES / "distiller_01.keras")
    np.testing.assert_allclose(distiller.predict(X, verbose=0), LOGITS, atol=1e-6)
    np.testing.assert_allclose(distiller.evaluate(X, Y, verbose=0), [0.72184300, 0.4], atol=1e-6)
    assert [term.name for term in distiller.terms] == ["ce", "kd", "hint"] and int(distiller.step.numpy()) == 1
    distiller.attach_teacher(keras.models.load_model(FILES / "ensemble_01.keras"))
    logs = distiller.fit(X, Y, initial_epoch=1, epochs=2, verbose=0).history
    assert set(logs) == {"loss", "accuracy", "ce", "kd", "kd_weight", "hint"}


def test_an_ensemble_of_version_0_1_keeps_its_logits():
    logits = keras.models.load_model(FILES / "ensemble_01.keras").predict(X, verbose=0)
    np.testing.assert_allclose(logits[[0, -1]], [[0.01405292, -0.03164273], [0.09045418, 0.46488115]], atol=1e-6)
