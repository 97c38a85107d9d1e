"""tools/edge_demo.py, which may import nothing of what the package needs."""

import pathlib
import runpy
import subprocess
import sys
import venv

import keras
import numpy as np
import pytest
from PIL import Image

from kd_keras.export import metadata, tflite

DEMO = pathlib.Path(__file__).parents[2] / "tools" / "edge_demo.py"
NAMES = ["red", "green", "blue"]
#: Run as the interpreter's first module: whoever imports these fails.
BLOCK = """
import sys
for name in ("tensorflow", "keras", "tf_keras", "kd_keras", "tensorflow_model_optimization", "sklearn", "mlflow"):
    sys.modules[name] = None
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of a model that tells by the mean of each colour, and photographs of several kinds and sizes."""
    folder = tmp_path_factory.mktemp("demo")
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, keras.layers.Dense(3, use_bias=False, name="logits")(x))
    model.set_weights([np.eye(3, dtype="float32") / 40])
    seen = np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 3))
    for variant in ("float32", "int8", "int8_io"):
        content = metadata.attach(tflite.convert(model, variant, seen), NAMES, variant=variant)
        (folder / f"{variant}.tflite").write_bytes(content)
    several = metadata.attach(
        tflite.convert(model, "float32"), NAMES, thresholds={"red": 0.5, "green": 0.99, "blue": 0.5}
    )
    (folder / "several.tflite").write_bytes(several)
    (folder / "bare.tflite").write_bytes(tflite.convert(model, "float32"))
    photos = folder / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 30), (250, 20, 20)).save(photos / "red.jpg")
    Image.new("RGBA", (8, 8), (10, 200, 30, 128)).save(photos / "green.png")
    Image.new("P", (100, 9)).save(photos / "palette.png")
    Image.new("RGB", (64, 64), (0, 0, 255)).save(photos / "blue.png")
    mixed = folder / "mixed"
    mixed.mkdir()
    (mixed / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9), (250, 20, 20)).save(mixed / "red.png")
    Image.fromarray(np.full((9, 9), 128 * 257, np.uint16)).save(mixed / "sixteen.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "empty").mkdir()
    return folder


def demo(*arguments):
    line = [sys.executable, "-c", BLOCK, str(DEMO), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["float32", "int8", "int8_io"])
def test_it_classifies_a_folder(folder, variant):
    done = demo(folder / f"{variant}.tflite", folder / "photos", "--top=2")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    best = {pathlib.Path(line.partition(": ")[0]).stem: line.partition(": ")[2].split(" ")[0] for line in lines}
    assert {name: best[name] for name in NAMES} == {name: name for name in NAMES} and len(lines) == 4
    assert all(line.count("%") == 2 for line in lines)
    assert last.startswith("4 images, 1 thread(s): median ") and "IQR" in last


def test_it_gives_the_probabilities_that_keras_gives(folder):
    done = demo(folder / "float32.tflite", folder / "photos" / "blue.png", "--top=1")
    share = 1 / (1 + 2 * np.exp(-255 / 40))
    assert f"blue {share:.1%}" in done.stdout


def test_images_in_folders_of_classes_are_scored(folder, tmp_path):
    for path, colour in {
        "red/1": (250, 20, 20),
        "red/2": (0, 0, 255),
        "blue/1": (0, 0, 255),
        "other": (0, 0, 0),
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{path}.png")
    done = demo(folder / "float32.tflite", tmp_path)
    assert "right: 2 of 3 (66.7%); 1 others are in no class's folder\n" in done.stdout, done.stderr


def test_labels_that_are_independent_have_a_sigmoid_and_a_threshold_each(folder, tmp_path):
    (tmp_path / "red").mkdir()
    Image.new("RGB", (8, 8), (240, 160, 0)).save(tmp_path / "red" / "1.png")
    done = demo(folder / "several.tflite", tmp_path)
    assert done.stdout.splitlines()[0].endswith("1.png: red 99.8%, (green 98.2%), blue 50.0%"), done.stderr
    assert "right:" not in done.stdout


def test_a_broken_image_does_not_end_the_folder(folder):
    done = demo(folder / "float32.tflite", folder / "mixed", "--top=3")
    assert done.returncode == 2 and "broken.png is no image that Pillow can read" in done.stderr
    red, _, last = done.stdout.splitlines()
    assert "red" in red and last.startswith("2 images")


def test_pixels_of_16_bits_are_scaled_to_8(folder):
    values = runpy.run_path(str(DEMO))["pixels"](folder / "mixed" / "sixteen.png", (4, 4, 3))
    assert values.shape == (1, 4, 4, 3) and (values == 128).all()


@pytest.mark.parametrize(
    ("model", "images", "told"),
    [
        ("nix.tflite", "photos", "cannot read"),
        ("bare.tflite", "photos", "has no class names with it"),
        ("float32.tflite", "broken.png", "no image that Pillow can read"),
        ("float32.tflite", "nix.png", "there is no"),
        ("photos", "photos", "cannot read"),
        ("float32.tflite", "empty", "holds no images"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, model, images, told):
    done = demo(folder / model, folder / images)
    # LiteRT may tell of its delegate first.
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2 and last.startswith("edge_demo: ") and told in last
    assert all(line.startswith("INFO: ") for line in before)


@pytest.mark.slow
def test_it_runs_where_nothing_else_is_installed(folder, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "ai-edge-litert", "numpy", "pillow"], check=True, timeout=600)
    for name in ("tensorflow", "keras"):
        assert subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 1
    line = [python, str(DEMO), str(folder / "int8.tflite"), str(folder / "photos")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5, done.stderr
