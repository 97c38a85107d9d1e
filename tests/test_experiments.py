"""Every shipped flagfile is read, its parts are built, and it is run, shrunk."""

import functools
import json
import pathlib
import sys

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

import kd_keras
from kd_keras import losses, spec
from kd_keras.errors import InputError
from kd_keras.run import __main__ as run
from kd_keras.run import compressed, config
from tests.models import presets

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import draw_mura  # noqa: E402
import run_matrix  # noqa: E402

FLAGFILES = sorted((ROOT / "experiments").glob("*.flags"))
#: Those of a study, which tools/run_matrix.py runs; the others stand alone.
ALONE = {"digits", "cifar_resnet", "fashion_mnist", "edge_cifar10", "edge_fashion_mnist"}
STUDIES = ("s0", "s1", "s2", "s3", "s4", "ensemble", "assistant", "born_again", "mutual", "self_distillation", "zoo")
#: What each data set gives, so that its models can be built where it can't be downloaded.
SHAPES = {
    "digits": (10, (8, 8, 1)),
    "cifar10": (10, (32, 32, 3)),
    "cifar100": (100, (32, 32, 3)),
    "fashion_mnist": (10, (28, 28, 1)),
    "medmnist": (2, (28, 28, 1)),
    "chest_xray": (2, (224, 224, 3)),
    "mura": (7, (224, 224, 3)),
}


def settings(path, *flags):
    return config.read(["kd_keras", f"--flagfile={path}", *flags])


def in_study(study):
    return [path for path in FLAGFILES if path.stem.startswith(f"{study}_") and path.stem not in ALONE]


def test_there_are_flagfiles():
    assert {path.stem for path in FLAGFILES} >= ALONE
    assert sorted(ALONE) == sorted(path.stem for path in FLAGFILES if not any(path in in_study(s) for s in STUDIES))
    pairs = [path.stem.split("_")[1:] for path in in_study("s1") if "ensemble" not in path.stem]
    large, small = {"seresnet50", "seresnet101"}, {"vgg11", "resnet18", "resnet34", "resnet50"}
    expected = {(way, t, s) for way in ("normal", "defective") for t in large for s in small}
    assert sorted(map(tuple, pairs)) == sorted(expected | {("reverse", t, s) for t in small for s in large})


@pytest.fixture(scope="module", autouse=True)
def _models_are_let_go():
    yield
    made.cache_clear()


@functools.cache
def made(text, data):
    """A model, or what stands for one that has to be downloaded: built once for all flagfiles that name it."""
    one = spec.parse(text)
    if one.name == "hub":
        spec.check("kd_keras.models", one, ("num_classes", "input_shape"))
        return None
    num_classes, input_shape = SHAPES[data]
    return spec.build("kd_keras.models", one, num_classes=num_classes, input_shape=input_shape)


@functools.cache
def fits(data, teacher, student, terms):
    """Builds a Distiller of a pair, once for all flagfiles that have it."""
    if (found := made(teacher, data)) is not None:
        built = [losses.from_spec(one, samples=50) for one in spec.parse_many(terms)]
        kd_keras.Distiller(student=made(student, data), teacher=found, losses=built)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_its_parts_are_built(path):
    from kd_keras.run import training

    resolved = settings(path, "--nopretrained")
    spec.check("kd_keras.data", resolved.data)
    spec.build("kd_keras.schemes", resolved.scheme)
    data = resolved.data.name
    made(str(resolved.student), data)
    for one in resolved.teacher:
        fits(data, str(one), str(resolved.student), " + ".join(map(str, resolved.loss)))
    for one in (*resolved.teacher_loss, *resolved.baseline_loss):
        spec.build("kd_keras.losses", one)
    for optimizer, rate in (
        (resolved.optimizer, resolved.learning_rate),
        (resolved.teacher_optimizer, resolved.teacher_learning_rate),
    ):
        training.optimizer(optimizer, rate, epochs=resolved.epochs, steps_per_epoch=10)
    for one in resolved.augment:
        spec.build("kd_keras.data.augment", one)
    compressed.check_chains(resolved)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_what_is_pretrained_has_published_weights(path):
    """All that is asked of such a network fits; it stops where its weights would be read, which nothing downloads."""
    resolved = settings(path)
    num_classes, input_shape = SHAPES[resolved.data.name]
    for one in (*resolved.teacher, resolved.student):
        if "pretrained" in one.kwargs:
            assert one.kwargs["pretrained"] == "imagenet"
            elsewhere = spec.Spec(one.name, {**one.kwargs, "pretrained": "nowhere"})
            with pytest.raises(InputError, match="pretrained='nowhere': there is no such file"):
                spec.build("kd_keras.models", elsewhere, num_classes=num_classes, input_shape=input_shape)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_its_header_tells_how_and_what(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Command:", "Hardware:", "Time:", "Result:"):
        assert any(word in line for line in header), word
    assert all(len(line) <= 160 for line in header)
    if path.stem not in ALONE:
        assert f"experiments/{path.name}" in "\n".join(header)
        # One MLflow experiment a study, and one kind of table.
        study = next(study for study in STUDIES if path in in_study(study))
        assert settings(path).experiment == study
        row = run_matrix.read_row(path)
        assert row.columns == run_matrix.read_row(in_study(study)[0]).columns


def test_what_is_called_smaller_is():
    """Pairs whose direction is in their name."""
    for path in in_study("s1"):
        one = settings(path)
        sizes = [made(str(spec_), "mura").count_params() for spec_ in (one.teacher[0], one.student)]
        if path.stem.startswith("s1_reverse") and "vgg11" not in path.stem:
            assert sizes[0] < sizes[1], path.stem


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(ALONE))
def test_it_runs_shrunk(name, tmp_path):
    flags = ["--data=digits()", "--epochs=1", "--teacher_epochs=1", "--train_examples=128", f"--workdir={tmp_path}"]
    assert run.main(["kd_keras", f"--flagfile={ROOT / 'experiments' / name}.flags", *flags]) == 0
    assert (tmp_path / "student_int8.tflite").exists()


def digits_as_files(folder):
    """Handwritten digits, real ones, as a tree of image files: what stands in for data that have to be downloaded."""
    digits = sklearn.datasets.load_digits()
    for label in digits.target_names:
        pixels = digits.images[digits.target == label][:12] * (255 / 16)
        for i, one in enumerate(pixels.astype(np.uint8)):
            path = folder / ("train" if i < 8 else "test") / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(one).save(path)
    return folder


def run_shrunk(study, rows, tmp_path, *flags):
    """Runs rows of a study through the tool on real images, S1's on a tree in MURA's layout; looks at what is left."""
    if study == "s1":
        small = [f"--data=mura(folder='{draw_mura.draw(tmp_path)}')", "--train_examples=28"]
    else:
        small = [
            f"--data=folder(path='{digits_as_files(tmp_path / 'digits')}')",
            "--train_examples=40",
            "--val_fraction=0.25",
        ]
    small += ["--image_size=32", "--batch_size=14", "--epochs=1"]
    # A teacher of two steps has features of any size, which a student must not run after at full speed.
    small += ["--learning_rate=0.0001", "--teacher_learning_rate=0.0001"]
    runs = tmp_path / "runs"
    line = ["run_matrix", study, f"--workdir={runs}", f"--rows={','.join(rows)}", "--", *small, "--export=none", *flags]
    assert run_matrix.main(line) == 0, "\n".join(path.read_text()[-2000:] for path in runs.glob("*.log"))
    for row in rows:
        folder = runs / f"{row}-seed0"
        roles = {one["role"] for one in json.loads((folder / "results.json").read_text())}
        assert {"student without KD", "student distilled"} <= roles
        # A confusion matrix and a report of every model in the table.
        models = [file.name.removesuffix("-measured.json") for file in folder.glob("state/*-measured.json")]
        assert {"baseline", "student"} <= set(models)
        for model in models:
            for figure in ("confusion.png", "confusion.json", "report.png", "report.json"):
                assert (folder / f"{model}_{figure}").exists(), (folder, model, figure)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_shrunk(study, tmp_path):
    rows = [path.stem for path in in_study(study) if "_clip_" not in path.stem]
    long = any("--teacher_epochs" in path.read_text() for path in in_study(study))
    run_shrunk(study, rows, tmp_path, "--nopretrained", *(["--teacher_epochs=1"] if long else []))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_rows_of_clip_run_shrunk(tmp_path):
    """With a tiny tower in place of the published one, which has to be downloaded."""
    presets.write("clip", tmp_path / "clip")
    rows = [path.stem for path in in_study("s3") if "_clip_" in path.stem]
    run_shrunk("s3", rows, tmp_path, f"--teacher=hub(preset='{tmp_path / 'clip'}')", "--teacher_epochs=1")
