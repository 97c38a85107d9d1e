"""Every shipped flagfile is read, has a plan, and is run, shrunk."""

import functools
import itertools
import json
import pathlib
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from kd_keras import spec
from kd_keras._compat.keras import shapes_only
from kd_keras.data.sources import ArraySource, Splits
from kd_keras.errors import InputError
from kd_keras.run import __main__ as run
from kd_keras.run import config
from kd_keras.run.runner import plan_of
from kd_keras.run.session import Session
from kd_keras.schemes.plan import Cache, Export, Train
from tests.models import presets

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import draw_mura  # noqa: E402
import run_matrix  # noqa: E402

FLAGFILES = sorted((ROOT / "experiments").glob("*.flags"))
#: Those of a study, which tools/run_matrix.py runs; the others stand alone.
ALONE = {"digits", "multilabel_digits", "cifar_resnet", "fashion_mnist", "edge_cifar10", "edge_fashion_mnist"}
LARGE = {"s1_ensemble_seresnet50_seresnet101_resnet50_resnet18", "s0_pneumoniamnist_densenet121_mobilenetv2_scratch"}
STUDIES = ("s0", "s1", "s2", "s3", "s4", "ensemble", "assistant", "born_again", "mutual", "self_distillation")
STUDIES += ("zoo", "unlabelled", "pretrain", "mcu", "when", "imagenet")
#: What each data set gives, so that its models can be built where it can't be downloaded.
SHAPES = {
    "digits": (10, (8, 8, 1)),
    "digit_pairs": (10, (16, 16, 1)),
    "cifar10": (10, (32, 32, 3)),
    "cifar100": (100, (32, 32, 3)),
    "fashion_mnist": (10, (28, 28, 1)),
    "medmnist": (2, (28, 28, 1)),
    "chest_xray": (2, (224, 224, 3)),
    "mura": (7, (224, 224, 3)),
    # ImageNet's, of 1 000 classes in truth.
    "folder": (7, (224, 224, 3)),
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


def few_labels(path, count):
    """Flags that bring the numbers of labels, where a flagfile has any, down to a small data set's."""
    names = ("labelled_examples", "teacher_labelled_examples")
    return [f"--{name}={count}" for name in names if f"--{name}=" in path.read_text()]


def backbone(folder):
    """A small network without a head, in place of a trained one; returns its spec."""
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Conv2D(4, 5, strides=4)(image)).save(folder / "backbone.keras")
    return f"saved(path='{folder / 'backbone.keras'}', features=True)"


@functools.cache
def blank(name):
    """A data set of black images, two of each class in every split."""
    count, shape = SHAPES[name]
    labels = np.repeat(np.arange(count), 2)
    labels = np.eye(count, dtype=int)[labels] if name == "digit_pairs" else labels
    splits = [ArraySource(np.full((2 * count, *shape), n, np.uint8), labels) for n in range(3)]
    return Splits(*splits, tuple(map(str, range(count))), shape)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A function that gives the plan of a flagfile; models are built without variables, and each of them once."""
    preset = tmp_path_factory.mktemp("clip")
    models, plans = {}, {}

    def plan(path):
        if path not in plans:
            flags = ["--nopretrained", "--train_examples=none", "--tracking=none", *few_labels(path, 10)]
            if "hub(" in path.read_text():
                if not any(preset.iterdir()):
                    presets.write("clip", preset)
                # In place of the published network, which has to be downloaded.
                flags.append(f"--teacher=hub(preset='{preset}')")
            if "backbone.keras" in path.read_text():
                flags.append(f"--teacher={backbone(preset.parent)}")
            resolved = settings(path, *flags)
            data = resolved.data.source.name
            session = Session(resolved, splits=blank(data))
            session.facts._models, session.facts._taps = models.setdefault(data, ({}, {}))
            with shapes_only():
                plans[path] = plan_of(resolved, session.facts), session.facts
        return plans[path]

    return plan


def slow(path):
    """Those whose compression steps or many large models take seconds to build."""
    takes_long = path.stem.startswith(("edge_", "mcu_")) or path.stem in LARGE
    return pytest.param(path, marks=pytest.mark.slow) if takes_long else path


@pytest.mark.parametrize("path", list(map(slow, FLAGFILES)), ids=lambda path: path.stem)
def test_it_has_a_plan(path, planned):
    resolved, (plan, _) = settings(path, "--nopretrained"), planned(path)
    spec.check("kd_keras.data", resolved.data.source)
    names = [stage.name for stage in plan.stages if stage.name]
    wanted = {"baseline", "student"} if resolved.student.baseline else {"student"}
    assert wanted <= {model.name for model in plan.models} and len(set(names)) == len(names)
    # Each stage comes after those that it needs, and nothing reads the test split before all is trained.
    places = {stage.key: place for place, stage in enumerate(plan.stages)}
    assert all(places[needed.key] < places[stage.key] for stage in plan.stages for needed in stage.inputs)
    last_training = max(places[stage.key] for stage in plan.stages if isinstance(stage, Train))
    assert all(places[row.measures[0].key] > last_training for row in plan.rows)
    for name, epochs in (("student", resolved.training.epochs), ("teacher", resolved.teacher.epochs)):
        for stage in plan.models:
            if stage.name == name and isinstance(stage, Train) and epochs is not None:
                assert stage.recipe.epochs == epochs
    files = {stage.name for stage in plan.stages if isinstance(stage, Export)}
    assert {f"student_{variant}" for variant in resolved.export.variants} <= files
    assert any(isinstance(stage, Cache) for stage in plan.stages) == bool(resolved.cache.views)
    assert len(plan.rows) == len({row.stage.role for row in plan.rows})
    assert all([measure.what for measure in row.measures] == ["quality", "size", "latency"] for row in plan.rows)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_its_optimizers_augmentations_and_compression_steps_are_built(path):
    from kd_keras.run import training

    resolved = settings(path)
    for section in (resolved.training, resolved.teacher, resolved.compress):
        training.optimizer(section.optimizer, section.learning_rate, epochs=resolved.training.epochs, steps_per_epoch=9)
    for part_spec in (*resolved.data.augment, *resolved.teacher.augment):
        spec.build("kd_keras.data.augment", part_spec)
    for part_spec in itertools.chain(*resolved.compress.pipelines):
        spec.build("kd_keras.compress", part_spec)


@pytest.mark.parametrize(
    ("study", "teachers", "baselines"),
    # The second and third teacher of an ensemble start from other seeds than the single teachers of other rows.
    [
        pytest.param("s1", 10, 6, marks=pytest.mark.slow),
        ("s2", 3, 3),
        ("s4", 1, 1),
        ("ensemble", 5, 1),
        ("assistant", 1, 1),
    ],
)
def test_rows_of_a_study_share_teachers_and_baselines(study, teachers, baselines, planned):
    trained = [stage for path in in_study(study) for stage in planned(path)[0].models if isinstance(stage, Train)]
    keys = [{stage.key for stage in trained if stage.name.startswith(name)} for name in ("teacher", "baseline")]
    assert [len(found) for found in keys] == [teachers, baselines]


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_what_is_pretrained_has_published_weights(path):
    """Such a network takes all other arguments; it stops where its weights would be read, which nothing downloads."""
    resolved = settings(path)
    num_classes, input_shape = SHAPES[resolved.data.source.name]
    for model_spec in (*resolved.teacher.models, resolved.student.model):
        if "pretrained" in model_spec.kwargs:
            assert model_spec.kwargs["pretrained"] == "imagenet"
            elsewhere = spec.Spec(model_spec.name, {**model_spec.kwargs, "pretrained": "nowhere"})
            with pytest.raises(InputError, match="pretrained='nowhere': there is no such file"):
                spec.build("kd_keras.models", elsewhere, num_classes=num_classes, input_shape=input_shape)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_its_header_says_how_and_what(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Command:", "# n: ", "Hardware:", "Time:", "Result:"):
        assert any(word in line for line in header), word
    assert all(len(line) <= 160 for line in header)
    if path.stem not in ALONE:
        assert f"experiments/{path.name}" in "\n".join(header)
        # One MLflow experiment and one kind of table for each study.
        study = next(study for study in STUDIES if path in in_study(study))
        assert settings(path).tracking.experiment == study
        row = run_matrix.read_row(path)
        assert row.columns == run_matrix.read_row(in_study(study)[0]).columns


def test_what_is_called_smaller_is(planned):
    """Pairs whose direction is in their name."""
    for path in in_study("s1"):
        plan, facts = planned(path)
        models = {model.name.rstrip("1"): model for model in plan.models}
        sizes = [facts.model(models[name]).count_params() for name in ("teacher", "student")]
        if path.stem.startswith("s1_reverse") and "vgg11" not in path.stem:
            assert sizes[0] < sizes[1], path.stem


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(ALONE))
def test_it_runs_shrunk(name, tmp_path):
    path = ROOT / "experiments" / f"{name}.flags"
    data = "digit_pairs()" if name.startswith("multilabel") else "digits()"
    flags = [f"--data={data}", "--epochs=1", "--teacher_epochs=1", "--train_examples=128", f"--workdir={tmp_path}"]
    assert run.main(["kd_keras", f"--flagfile={path}", *flags, *few_labels(path, 40)]) == 0
    assert (tmp_path / "student_int8.tflite").exists()


def digits_as_files(folder):
    """Writes real handwritten digits as a tree of image files, in place of data that have to be downloaded."""
    digits = sklearn.datasets.load_digits()
    for label in digits.target_names:
        pixels = digits.images[digits.target == label][:12] * (255 / 16)
        for i, image in enumerate(pixels.astype(np.uint8)):
            path = folder / ("train" if i < 8 else "test") / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image).save(path)
    return folder


def run_shrunk(study, rows, tmp_path, *flags):
    """Runs rows of a study through the tool on real images, S1's on a tree in MURA's layout, and checks the files."""
    if study == "s1":
        small = [f"--data=mura(folder='{draw_mura.draw(tmp_path)}')", "--train_examples=28"]
    else:
        small = [
            f"--data=folder(path='{digits_as_files(tmp_path / 'digits')}')",
            "--train_examples=40",
            "--val_fraction=0.25",
        ]
    small += ["--image_size=32", "--batch_size=14", "--epochs=1"]
    if study in ("unlabelled", "pretrain"):
        small.append("--labelled_examples=20")
    if study == "unlabelled":
        small.append("--teacher_labelled_examples=20")
    if study == "pretrain":
        small.append(f"--teacher={backbone(tmp_path)}")
    # A teacher of two steps has features of any size, which a student must not run after at full speed.
    small += ["--learning_rate=0.0001", "--teacher_learning_rate=0.0001"]
    runs = tmp_path / "runs"
    line = [
        "run_matrix",
        study,
        "--seeds=0",
        f"--workdir={runs}",
        f"--rows={','.join(rows)}",
        "--",
        *small,
        "--export=none",
        *flags,
    ]
    assert run_matrix.main(line) == 0, "\n".join(path.read_text()[-2000:] for path in runs.glob("*.log"))
    for row in rows:
        folder = runs / f"{row}-seed0"
        table = json.loads((folder / "results.json").read_text())
        models = [row["stage"] for row in table if "TFLite" not in row["role"]]
        has_baseline = settings(ROOT / "experiments" / f"{row}.flags").student.baseline
        assert {"student", *(["baseline"] if has_baseline else [])} <= set(models)
        # A confusion matrix and a report of every model in the table.
        for model in models:
            for figure in ("confusion.png", "confusion.json", "report.png", "report.json"):
                assert (folder / f"{model}_{figure}").exists(), (folder, model, figure)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_shrunk(study, tmp_path):
    paths = [path for path in in_study(study) if "_clip_" not in path.stem]
    trains_longer = [path for path in paths if "--teacher_epochs" in path.read_text()]
    for shrunk, flags in ((trains_longer, ["--teacher_epochs=1"]), ([p for p in paths if p not in trains_longer], [])):
        if shrunk:
            run_shrunk(study, [path.stem for path in shrunk], tmp_path, "--nopretrained", *flags)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_rows_of_clip_run_shrunk(tmp_path):
    """With a tiny tower in place of the published one, which has to be downloaded."""
    presets.write("clip", tmp_path / "clip")
    rows = [path.stem for path in in_study("s3") if "_clip_" in path.stem]
    run_shrunk("s3", rows, tmp_path, f"--teacher=hub(preset='{tmp_path / 'clip'}')", "--teacher_epochs=1")
