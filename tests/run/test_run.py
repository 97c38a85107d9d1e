"""The command line, from end to end on the shipped quick start."""

import csv
import json
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from kd_keras.distillation import device
from kd_keras.run import __main__ as run
from kd_keras.run import measure
from tests.run.columns import COLUMNS

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ROOT / "experiments" / "digits.flags"
KERAS_ROLES = ["teacher", "baseline (no teacher)", "student distilled"]
TFLITE_ROLES = ["TFLite float32", "TFLite float16", "TFLite dynamic", "TFLite int8"]


def main(*flags):
    return run.main(["kd_keras", *map(str, flags)])


def figures(workdir):
    """The results that have to repeat: all but the times, and what a process takes of memory."""
    rows = json.loads((workdir / "results.json").read_text())
    return [{key: value for key, value in row.items() if not key.startswith(("latency", "memory"))} for row in rows]


FINISHED = [f"--flagfile={DIGITS}", "--epochs=3"]
LONG = [f"--flagfile={DIGITS}", "--epochs=8", "--export=none"]
QUICK = ["--epochs=1", "--tracking=none", "--export=none", "--nobaseline"]


def record(workdir, stage, store=None):
    """What a finished stage left, by its name."""
    for path in (store or workdir / "store").glob("*/*/record.json"):
        if (found := json.loads(path.read_text()))["stage"] == stage:
            return found
    return None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "digits"
    assert main(*FINISHED, f"--workdir={workdir}") == 0
    return workdir


def test_the_table_has_every_row_and_key(finished):
    rows = json.loads((finished / "results.json").read_text())
    assert [row["role"] for row in rows] == KERAS_ROLES + TFLITE_ROLES
    assert all(tuple(row) == COLUMNS for row in rows)
    with open(finished / "results.csv", newline="") as file:
        assert [row["role"] for row in csv.DictReader(file)] == KERAS_ROLES + TFLITE_ROLES
    teacher, _, student = rows[:3]
    assert teacher["teacher_agreement"] is None and 0 < student["teacher_agreement"] <= 1
    assert teacher["parameters"] > 10 * student["parameters"]
    for row in rows[3:]:
        assert row["train_accuracy"] is None and row["float_agreement"] > 0.9
    assert rows[6]["bytes"] < rows[3]["bytes"]


def test_the_table_says_what_the_saved_student_does(finished):
    from kd_keras.data import digits

    test = digits.Digits().test
    images, labels = test.read(np.arange(len(test)))
    student = keras.models.load_model(finished / "student.keras")
    logits = student.predict(np.asarray(images, "float32"), verbose=0)
    right = np.mean(logits.argmax(-1) == np.asarray(labels))
    assert figures(finished)[2]["test_accuracy"] == pytest.approx(right, abs=1e-9)
    matrix = json.loads((finished / "student_confusion.json").read_text())["matrix"]
    assert np.trace(matrix) == round(right * len(test)) and np.sum(matrix) == len(test)


def test_every_artefact_is_there(finished):
    names = {path.name for path in finished.iterdir()}
    for stage in ("teacher", "baseline", "student"):
        ours = {
            f"{stage}{end}" for end in (".keras", "_confusion.png", "_confusion.json", "_report.png", "_report.json")
        }
        assert ours <= names
    assert {f"student_{variant}.tflite" for variant in ("float32", "float16", "dynamic", "int8")} <= names
    assert {"curves.png", "mlflow.db", "results.csv", "results.json", "environment.json", "MODEL_CARD.md"} <= names
    assert {"report.html", "summary.json", "predictions.npz"} <= names
    assert not [name for name in names if "partial" in name]
    for path in finished.glob("*.png"):
        assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_report_says_what_the_table_says(finished):
    from kd_keras.data import digits
    from kd_keras.run.report import predictions

    page = (finished / "report.html").read_text(encoding="utf-8")
    rows = {row["stage"]: row for row in figures(finished)}
    gain = 100 * (rows["student"]["test_accuracy"] - rows["baseline"]["test_accuracy"])
    assert f"{abs(gain):.2f} points of test accuracy" in page or f"{gain:+.2f} points of test accuracy" in page
    assert "Missing, as it is not stored" not in page and len(page.encode()) < 2_000_000
    made, test = predictions.read(finished / "predictions.npz"), digits.Digits().test
    assert list(made.classes) == list(rows)
    for stage, row in rows.items():
        assert made.is_right(stage).mean() == pytest.approx(row["test_accuracy"], abs=1e-9)
    images, labels = test.read(np.array(sorted(made.images)))
    assert np.array_equal(made.labels, test.labels) and len(labels) > 0
    assert all(np.array_equal(image, made.images[i]) for i, image in zip(sorted(made.images), images, strict=True))


def tracked(workdir):
    """The client of a run's store, and the run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("kd_keras").experiment_id])
    return client, found


def test_mlflow_has_what_a_run_is(finished):
    client, found = tracked(finished)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "cnn 32,64-2 128-0.2→cnn 16,32 32 · kd T4 · s0"
    assert {"epochs": "3", "loss.kd.temperature": "4", "teacher.dropout": "0.2"}.items() <= found.data.params.items()
    assert {"study": "kd_keras", "scheme": "offline", "seed": "0"}.items() <= found.data.tags.items()
    assert "git_revision" in found.data.tags and "points of test accuracy" in found.data.tags["mlflow.note.content"]
    assert [given.dataset.name for given in found.inputs.dataset_inputs] == [
        f"digits() {split}" for split in ("train", "val", "test")
    ]
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy", "ce", "kd", "learning_rate"):
        series = client.get_metric_history(found.info.run_id, f"epochs/student/{metric}")
        assert [point.step for point in series] == [1, 2, 3], metric
    rows = {row["stage"]: row for row in figures(finished)}
    gain = rows["student"]["test_accuracy"] - rows["baseline"]["test_accuracy"]
    assert found.data.metrics["compare/gain_over_baseline"] == pytest.approx(gain, abs=1e-4)
    for stage in ("teacher", "student", "student_int8"):
        assert found.data.metrics[f"models/{stage}/test_accuracy"] == pytest.approx(rows[stage]["test_accuracy"])
    student = [name for name in sorted(found.data.metrics) if name.startswith("compare/student")]
    assert student == ["compare/student_best_val_accuracy", "compare/student_test_accuracy"]
    files = {
        file.path for folder in ("", "models/student") for file in client.list_artifacts(found.info.run_id, folder)
    }
    assert {
        "history.csv",
        "curves.png",
        "models/student/student.keras",
        "models/student/student_confusion.png",
    } <= files


def test_mlflow_serves_the_student(finished, monkeypatch):
    import mlflow

    from kd_keras.data import digits

    client, found = tracked(finished)
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert model.name == "student" and model.source_run_id == found.info.run_id and model.status == "READY"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    test = digits.Digits().test
    images, _ = test.read(np.arange(20))
    student = keras.models.load_model(finished / "student.keras")
    images = np.asarray(images, "uint8")
    np.testing.assert_array_equal(served.predict(images), student.predict(images, verbose=0))
    with pytest.raises(mlflow.exceptions.MlflowException):
        served.predict(images[:, :4])
    assert served.metadata.metadata["classes"] == [str(digit) for digit in range(10)]


def test_history_has_every_epoch(finished):
    with open(finished / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    stages = ("teacher", "baseline", "student")
    assert [(row["stage"], row["epoch"]) for row in rows] == [(s, str(epoch)) for s in stages for epoch in (1, 2, 3)]
    assert list(rows[0])[:2] == ["epoch", "stage"]
    for stage in stages:
        best = max(float(row["val_accuracy"]) for row in rows if row["stage"] == stage)
        assert best == max(record(finished, stage)["series"]["val_accuracy"])


def test_the_same_command_again_repeats_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert main(*FINISHED, f"--workdir={finished}") == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    last = capsys.readouterr().out.splitlines()[-5:]
    assert "results.csv" in last[0] and "mlflow ui --backend-store-uri" in last[-1]


def test_a_changed_flag_is_told_apart(finished, capsys):
    assert main(f"--flagfile={DIGITS}", "--epochs=4", f"--workdir={finished}") == 2
    message = capsys.readouterr().err
    assert "epochs was 3, is 4" in message and message.count("\n") == 1


@pytest.mark.slow
def test_a_finished_teacher_serves_another_run(finished, tmp_path, capsys):
    flags = [f"--flagfile={DIGITS}", "--epochs=1", "--tracking=none", "--export=none", "--nobaseline"]
    teacher = f"saved(path='{finished / 'teacher.keras'}')"
    assert main(*flags, f"--teacher={teacher}", "--teacher_dtype=none", f"--workdir={tmp_path / 'a'}") == 0
    assert "loaded" in capsys.readouterr().out
    assert record(tmp_path / "a", "teacher-dtype") is None
    assert figures(tmp_path / "a")[0]["test_accuracy"] == figures(finished)[0]["test_accuracy"]
    shuffled = keras.models.load_model(finished / "teacher.keras")
    head = shuffled.get_layer("logits")
    head.set_weights([np.roll(value, 3, axis=-1) for value in head.get_weights()])
    shuffled.save(tmp_path / "shuffled.keras")
    assert main(*flags, f"--teacher=saved(path='{tmp_path / 'shuffled.keras'}')", f"--workdir={tmp_path / 'b'}") == 2
    assert "class order" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cache_and_another_runs_teacher(finished, tmp_path, capsys):
    flags = [f"--flagfile={DIGITS}", *QUICK, f"--teacher_from={finished}", "--cache_views=2"]
    shared = [*flags, f"--store={tmp_path / 'store'}"]
    assert main(*shared, "--cache_taps=pooled", f"--workdir={tmp_path / 'a'}") == 0
    out = capsys.readouterr().out
    assert "logits, pooled of 2 views of 1168 images" in out and "the teacher ran on 2336 images" in out
    # Other losses, another seed of the training: all is there.
    hint = "--loss=ce() + kd() + hint(pairs='pooled:pooled')"
    assert main(*shared, hint, "--seed=3", f"--workdir={tmp_path / 'b'}") == 0
    assert "the teacher ran" not in capsys.readouterr().out
    for name in "ab":
        # Latency was measured by the first run, on this machine. How the teacher was trained only that one knows.
        (lent, *_), (own, *_) = figures(tmp_path / name), figures(finished)
        trained = {name for name in own if name == "updates" or name.endswith("labelled_images")}
        # Each seed draws its own images with labels, on which the training accuracy is measured.
        drawn = {"train_accuracy": lent["train_accuracy"]} if name == "b" else {}
        assert lent == {**own, **dict.fromkeys(trained), **drawn} and len(trained) == 3
        assert (tmp_path / name / "teacher_confusion.png").exists()
    assert main(*flags, f"--workdir={tmp_path / 'c'}", "--cache_limit_gb=0.00001") == 2
    error = capsys.readouterr().err
    assert "the teacher cache would take" in error and "limit_gb" in error and error.count("\n") == 1


@pytest.mark.slow
def test_the_teachers_dtype_is_chosen_once_and_checked(finished, tmp_path, caplog, monkeypatch):
    flags = [f"--flagfile={DIGITS}", *QUICK, f"--teacher=saved(path='{finished / 'teacher.keras'}')"]
    # A teacher that says something else in bfloat16 is not used in it, unless that is asked for.
    monkeypatch.setattr(measure, "LEAST_AGREEMENT", 1.01)
    monkeypatch.setattr(device, "teacher_dtype", lambda: "bfloat16")
    assert main(*flags, "--teacher_dtype=auto", f"--workdir={tmp_path / 'auto'}") == 0
    assert "270 validation images: it computes in float32" in caplog.text
    assert record(tmp_path / "auto", "teacher-dtype")["dtype"] == "float32"
    assert main(*flags, "--teacher_dtype=bfloat16", f"--workdir={tmp_path / 'asked'}") == 0
    assert "consider --teacher_dtype=float32" in caplog.text
    agreement = record(tmp_path / "asked", "teacher-agreement")
    assert agreement["agreement"] >= 0.99 and agreement["images"] == 270


@pytest.mark.slow
def test_options_reach_what_they_name(tmp_path, capsys):
    flags = ["--data=digits()", "--teacher=none", "--loss=ce(label_smoothing=0.1)", "--student=cnn(filters=(4,))"]
    flags += ["--augment=flip() + mixup(alpha=0.4)", "--train_examples=200", "--epochs=1", "--val_fraction=0.3"]
    flags += ["--optimizer=sgd(momentum=0.9)", "--precision=mixed_bfloat16", "--steps_per_execution=2"]
    flags += ["--strategy=mirrored", "--export=float32", "--tracking=none", f"--workdir={tmp_path}"]
    assert main(*flags) == 0
    out = capsys.readouterr().out
    assert "200 train, 539 val" in out  # 30 % of 1797
    assert [row["role"] for row in figures(tmp_path)] == [
        "baseline (no teacher)",
        "student distilled",
        "TFLite float32",
    ]
    assert figures(tmp_path)[2]["float_agreement"] > 0.95


BAD = {
    "unknown flag": (["--epoch=3"], "epoch"),
    "bad value": (["--epochs=many"], "epochs"),
    "missing flagfile": (["--flagfile=no/such.flags"], "no/such.flags"),
    "stray argument": (["digits"], "digits"),
    "unknown model": (["--student=resnett(depth=18)"], "did you mean 'resnet'"),
    "unknown key": (["--student=cnn(filtres=(8,))"], "did you mean 'filters'"),
    "unknown loss": (["--loss=kdd()"], "did you mean 'kd'"),
    "unknown loss key": (["--loss=ce() + kd(temp=4)"], "temperature"),
    "bad loss value": (["--loss=kd(temperature=0)"], "temperature"),
    "no losses": (["--loss="], "--loss=: give at least one"),
    "broken spec": (["--student=cnn("], "brackets"),
    "unknown scheme": (["--scheme=online()"], "offline"),
    "a taught teacher": (["--teacher_loss=ce() + kd()"], "--teacher_loss has kd, which reads a teacher"),
    "a taught baseline": (["--baseline_loss=kd()"], "--baseline_loss has kd, which reads a teacher"),
    "data after keys": (["--scheme=offline(x=1)"], "offline has no key 'x'"),
    "unknown optimizer": (["--optimizer=adamm()"], "did you mean 'adam'"),
    "unknown optimizer key": (["--optimizer=adam(lr=1)"], "lr"),
    "unknown schedule": (["--learning_rate=cosin(start=1)"], "cosine"),
    "unknown augmentation": (["--augment=flop()"], "flip"),
    "unknown variant": (["--export=int4"], "int8"),
    "no such tap": (["--loss=hint(pairs='stage1:stage9')"], "stage9"),
    "no teacher": (["--teacher=none"], "--teacher"),
    "missing model file": (["--teacher=saved(path='none.keras')"], "none.keras"),
    "missing folder": (["--data=folder(path='no/such')"], "no/such"),
    "image_size of digits": (["--image_size=32"], "image_size"),
    "too many examples": (["--train_examples=100000"], "100000"),
    "tracking uri": (["--tracking_uri=nonsense"], "nonsense"),
    "a cache of images mixed twice": (["--cache_views=2", "--augment=mixup() + cutmix()"], "one of mixup, cutmix"),
    "a cache without teacher": (["--cache_views=2", "--teacher=none", "--loss=ce()"], "reads a teacher: leave it out"),
    "a cache of no tap": (["--cache_views=2", "--cache_taps=stage9"], "stage9"),
    "a cache too large": (["--cache_views=2", "--cache_limit_gb=1e-6"], "limit_gb"),
    "a cache's setting without a cache": (
        ["--cache_taps=pooled"],
        "--cache_taps=pooled has no effect without --cache_views",
    ),
    "a cache that nothing reads": (["--cache_views=2", "--loss=ce()"], "no loss of --loss reads a teacher"),
    "nobody's teacher": (["--teacher_from=no/such"], "holds no run"),
    "a module that is not there": (["--loss=no.such:Loss()"], "no.such can't be imported"),
    "threads too late": (["--threads=7"], "--threads=7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_code_2(case, tmp_path, capsys):
    flags, hint = BAD[case]
    workdir = tmp_path / "w"
    assert main(f"--flagfile={DIGITS}", "--epochs=1", f"--workdir={workdir}", *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("kd_keras: ") and captured.err.count("\n") == 1
    assert hint in captured.err
    assert not (workdir / "teacher.keras").exists()
    # What is left lets the mended command use the same folder.
    assert not (workdir / "config.json").exists() or case == "tracking uri"


def test_somebody_elses_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(f"--flagfile={DIGITS}", f"--workdir={tmp_path}") == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_teacher_of_other_classes_or_channels_is_refused(tmp_path, capsys):
    from kd_keras.models import cnn

    for name, args, word in (("classes", (7, (8, 8, 1)), "7"), ("channels", (10, (8, 8, 3)), "(8, 8, 3)")):
        path = tmp_path / f"{name}.keras"
        cnn.CNN(*args, filters=(4,)).save(path)
        flags = ["--teacher_channels=1"] if name == "channels" else []
        given = [f"--flagfile={DIGITS}", f"--teacher=saved(path='{path}')", f"--workdir={tmp_path / 'w'}", *flags]
        assert main(*given) == 2
        assert word in capsys.readouterr().err


def test_a_loss_that_is_no_longer_finite_stops_the_run(tmp_path, capsys):
    flags = ["--teacher=none", "--loss=ce()", "--optimizer=sgd()", "--learning_rate=1e30", "--nobaseline"]
    assert main(f"--flagfile={DIGITS}", *flags, f"--workdir={tmp_path}", "--tracking=none") == 2
    message = capsys.readouterr().err
    assert "step " in message and "learning rate 1e+30" in message and "ce" in message and message.count("\n") == 1


@pytest.mark.slow
def test_a_server_that_is_down_costs_seconds(tmp_path):
    start = time.monotonic()
    flags = ["--epochs=1", "--export=none", "--teacher=none", "--loss=ce()", "--nobaseline"]
    assert main(f"--flagfile={DIGITS}", *flags, f"--workdir={tmp_path}", "--tracking_uri=http://127.0.0.1:9") == 0
    assert time.monotonic() - start < 60
    assert (tmp_path / "results.json").exists()


def test_help_is_quick_and_lists_what_there_is(command):
    start = time.monotonic()
    done = command("--help")
    assert time.monotonic() - start < 1.0
    assert done.returncode == 0
    for word in (
        "--flagfile",
        "--teacher_epochs",
        "soft_ce",
        "resnet",
        "fashion_mnist",
        "offline",
        "exponential_decay",
    ):
        assert word in done.stdout


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A run with epochs enough for a process to be killed in one of them; without files, which take long to measure."""
    workdir = tmp_path_factory.mktemp("long") / "digits"
    assert main(*LONG, f"--workdir={workdir}") == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_killed_and_run_again_gives_the_same_numbers(stage, long, tmp_path):
    flags = [*LONG, f"--workdir={tmp_path}"]
    line = [sys.executable, "-m", "kd_keras.run", *flags]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints, before = tmp_path / "store" / "checkpoints", {"teacher": 0, "student": 2}[stage]
    while len(list(tmp_path.glob("store/train/*/record.json"))) < before or not any(checkpoints.glob("*.npz")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / f"{stage}.keras").exists()
    assert main(*flags) == 0
    assert figures(tmp_path) == figures(long)
    for name in ("teacher", "baseline", "student"):
        assert record(tmp_path, name)["series"] == record(long, name)["series"]
