"""Sweeps: which runs there are, which teacher each has, and what is left of them."""

import collections
import json
import pathlib
import subprocess
import sys

import pytest

from kd_keras.errors import InputError
from kd_keras.run import config
from kd_keras.sweep import __main__ as sweep
from kd_keras.sweep import runs

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f"--flagfile={ROOT / 'experiments' / 'digits.flags'}"
SHORT = [DIGITS, "--epochs=1", "--export=none", "--tracking=none", "--train_examples=300"]
LOSSES = "--vary=loss: kd() | ce() + kd(temperature=2) | soft_ce()"


def plan(tmp_path, *argv):
    return sweep.plan(["sweep", DIGITS, f"--workdir={tmp_path}", *argv])


def settings(run):
    return config.read(["kd_keras", *run.command()])


def teachers(runs):
    """The settings of each run's teacher, as numbers: equal settings have one number."""
    numbers = {}
    texts = [settings(run).affecting("teacher") for run in runs]
    epochs = [
        text.pop("teacher_epochs").replace("none", settings(run).texts()["epochs"])
        for text, run in zip(texts, runs, strict=True)
    ]
    return [numbers.setdefault(json.dumps([text, n]), len(numbers)) for text, n in zip(texts, epochs, strict=True)]


def test_every_combination_is_a_run(tmp_path):
    root, runs, varied = plan(tmp_path, "--vary=loss: kd() | ce() + kd(temperature=2)", "--seeds=0,1", "--epochs=3")
    assert root == tmp_path and all({"--data=digits()", "--epochs=3"} < set(run.command()) for run in runs)
    assert varied == [
        {"loss": loss, "seed": seed} for loss in ("kd()", "ce() + kd(temperature=2)") for seed in ("0", "1")
    ]
    assert len({run.workdir for run in runs}) == 4 and all(run.workdir.parent == tmp_path for run in runs)
    assert {settings(run).run.store for run in runs} == {tmp_path / "store"}
    assert [settings(run).training.seed for run in runs] == [0, 1, 0, 1]
    # A run keeps its folder whatever else is swept.
    assert plan(tmp_path, "--vary=loss: soft_ce() | kd()", "--seeds=1")[1][1].workdir == runs[1].workdir


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--seeds=0,1"], [0, 0]),
        (["--seeds=0,1", "--noshared_teacher"], [0, 1]),
        (["--vary=learning_rate: 0.1 | cosine(start=0.1)"], [0, 0]),
        (["--vary=epochs: 3 | 5"], [0, 0]),
        (["--vary=epochs: 3 | 5", "--noshared_teacher"], [0, 1]),
        (["--vary=augment: none | flip()", "--vary=batch_size: 32 | 64"], [0, 0, 0, 0]),
        (["--vary=teacher: cnn() | cnn(filters=(8,))", "--seeds=0,1"], [0, 0, 1, 1]),
        (["--vary=teacher_learning_rate: 0.1 | 0.2", "--seeds=0,1"], [0, 0, 1, 1]),
        (["--vary=teacher_seed: 0 | 1", "--vary=epochs: 3 | 5"], [0, 0, 1, 1]),
        (["--vary=teacher_stop_at_val_accuracy: 0.5 | 0.7"], [0, 1]),
        (["--vary=train_examples: 100 | 200"], [0, 1]),
        (["--teacher=cnn() + cnn(filters=(8,))", "--scheme=ensemble()", "--seeds=0,1"], [0, 0]),
    ],
)
def test_runs_share_a_teacher_unless_its_settings_vary(tmp_path, flags, expected):
    assert teachers(plan(tmp_path, *flags)[1]) == expected


def test_a_teacher_that_comes_trained_is_not_given_the_epochs_of_another(tmp_path):
    runs = plan(tmp_path, "--vary=teacher: cnn() | saved(path='x.keras')", "--vary=epochs: 3 | 5")[1]
    assert [settings(run).teacher.epochs for run in runs] == [3, 3, None, None]


def test_without_a_teacher_none_is_fixed(tmp_path):
    for flags in (["--teacher=none", "--loss=ce()"], ["--teacher_from=x"]):
        runs = plan(tmp_path, "--seeds=0,1", *flags)[1]
        assert not any("--teacher_seed" in flag for run in runs for flag in run.command())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing is varied: give --vary"),
        (["--vary=seed"], "give a flag and its values"),
        (["--vary=seed: 0 | "], "give a flag and its values"),
        (["--vary=seed: 0 | 0"], "names a value twice"),
        (["--vary=seed: 0 | 1", "--seeds=2"], "--seed is varied twice"),
        (["--vary=sed: 0 | 1"], "Unknown command line flag 'sed'"),
        (["--vary=loss: kd() | kdd()"], "did you mean 'kd'"),
        (["--seeds=0,1", "--epoch=3"], "Unknown command line flag 'epoch'"),
        (["--vary=workdir: a | b"], "--workdir can't be varied"),
        (["--vary=store: a | b"], "--store can't be varied"),
    ],
)
def test_mistakes_are_refused_before_anything_is_run(tmp_path, capsys, flags, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        plan(tmp_path / "w", *flags)
    assert sweep.main(["sweep", DIGITS, f"--workdir={tmp_path / 'w'}", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "w").exists()


def test_help(capsys):
    assert sweep.main(["sweep", "--help"]) == 0
    assert "--vary" in capsys.readouterr().out


def test_a_run_of_another_sweep_is_passed_over_until_it_has_ended(tmp_path, monkeypatch):
    planned = plan(tmp_path, "--seeds=0,1,2")[1]
    started, theirs = [], runs.lease_of(settings(planned[0]))
    assert theirs.take() is None

    def run_one(number, *rest):
        started.append(number)
        if number == 3:
            theirs.release()
        return [f"run {number}"] if number == 2 else []

    monkeypatch.setattr(runs, "_run_one", run_one)
    assert runs.run_all(planned, None) == ["run 2"]
    assert started == [2, 3, 1] and not list(tmp_path.glob("store/leases/*.json"))


# ---- real runs ----


def made(root, kind="train"):
    """How many stages of each name are in the store."""
    records = [json.loads(path.read_text()) for path in root.glob(f"store/{kind}/*/record.json")]
    return dict(collections.Counter(record["stage"] for record in records))


def results(root):
    """All rows but what is measured of time and memory."""
    summary = json.loads((root / "sweep.json").read_text())
    return [
        {
            stage: {key: value for key, value in row.items() if not key.startswith(("latency", "memory"))}
            for stage, row in run["rows"].items()
        }
        for run in summary
    ]


def is_whole(root):
    """Whether every file in the store is as its record says, and none is left unfinished."""
    import hashlib

    for path in root.glob("store/*/*/record.json"):
        for name, sha256 in json.loads(path.read_text())["files"].items():
            assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == sha256, path
    leftovers = [*root.glob("store/[!l]*/.*"), *root.glob("store/leases/*.json"), *root.glob("store/checkpoints/*")]
    return not leftovers


@pytest.fixture(scope="module")
def six_runs(tmp_path_factory):
    """Three losses and two seeds."""
    root = tmp_path_factory.mktemp("six")
    assert sweep.main(["sweep", *SHORT, f"--workdir={root}", LOSSES, "--seeds=0,1"]) == 0
    return root


@pytest.mark.slow
def test_three_losses_and_two_seeds_train_one_teacher_and_two_baselines(six_runs):
    assert made(six_runs) == {"teacher": 1, "baseline": 2, "student": 6}
    rows = results(six_runs)
    # The training images, of which the teacher's accuracy is measured too, are drawn by each run's seed.
    teachers = [{**run["teacher"], "train_accuracy": None} for run in rows]
    assert len(rows) == 6 and all(row == teachers[0] for row in teachers)
    assert len({run["student"]["test_accuracy"] for run in rows}) > 1
    assert is_whole(six_runs)
    page = (six_runs / "report.html").read_text(encoding="utf-8")
    assert (six_runs / "gains.png").exists()
    assert (
        "3 settings, 6 runs" in page and "95 % interval over 2 seeds" in page and "All runs share one teacher" in page
    )


@pytest.mark.slow
def test_the_same_command_again_makes_nothing(six_runs, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in six_runs.glob("*/**/*") if path.is_file()}

    before = times()
    assert sweep.main(["sweep", *SHORT, f"--workdir={six_runs}", LOSSES, "--seeds=0,1"]) == 0
    after = times()
    changed = [path for path in after if before.get(path) != after[path] and "leases" not in path.parts]
    assert not changed and len(before) == len(after)
    out = capsys.readouterr().out
    assert "run 2/6  loss=kd(), seed=1: test accuracy 0." in out and "all" in out and "±" in out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_at_once_share_the_work(six_runs, tmp_path):
    line = [sys.executable, "-m", "kd_keras.sweep", *SHORT, f"--workdir={tmp_path}", LOSSES, "--seeds=0,1"]
    processes = [
        subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    outs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    assert made(tmp_path) == {"teacher": 1, "baseline": 2, "student": 6}
    assert results(tmp_path) == results(six_runs) and is_whole(tmp_path)
    # Each student was trained by one run alone, and each process had a first run of its own.
    logs = {path.stem: path.read_text() for path in tmp_path.glob("*.log")}
    trained = [name for name, log in logs.items() for text in log.splitlines() if text.startswith("student  cnn")]
    assert len(logs) == 6 and sorted(trained) == sorted(logs)
    first = [out.index("run 1/6") < out.index("run 2/6") for out in outs]
    assert sorted(first) == [False, True]


@pytest.mark.slow
def test_a_learning_rate_is_swept_with_one_teacher(tmp_path):
    command = ["sweep", *SHORT, "--nobaseline", f"--workdir={tmp_path}", "--vary=learning_rate: 0.001 | 0.01"]
    assert sweep.main(command) == 0
    assert made(tmp_path) == {"teacher": 1, "student": 2}
    rates = [
        json.loads(path.read_text())["depends_on"][1]["recipe"] for path in tmp_path.glob("store/train/*/record.json")
    ]
    assert sorted("0.01" in json.dumps(rate) for rate in rates) == [False, False, True]


@pytest.mark.slow
def test_each_run_trains_a_teacher_where_that_is_asked_for(tmp_path):
    command = ["sweep", *SHORT, "--nobaseline", f"--workdir={tmp_path}", "--seeds=0,1", "--noshared_teacher"]
    assert sweep.main(command) == 0
    assert made(tmp_path) == {"teacher": 2, "student": 2}


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(tmp_path, capsys):
    # Known only once the models are there, so that planning lets it pass.
    taps = "--vary=cache_taps: stage9 | pooled"
    code = sweep.main(["sweep", *SHORT, "--nobaseline", f"--workdir={tmp_path}", taps, "--cache_views=2"])
    out = capsys.readouterr().out
    assert code == 1 and "failed (" in out and "'stage9'" in out
    first, second = json.loads((tmp_path / "sweep.json").read_text())
    assert first["rows"] is None and second["rows"]["student"]["test_accuracy"] > 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "cache_taps=stage9 has no results: it is left out." in page


@pytest.mark.slow
def test_five_runs_cost_the_teachers_inference_once(tmp_path):
    losses = [f"ce(weight=0.1) + kd(weight=0.9, temperature={t})" for t in (1, 2, 4, 8, 16)]
    command = ["sweep", *SHORT, f"--workdir={tmp_path}", "--cache_views=3", f"--vary=loss: {' | '.join(losses)}"]
    assert sweep.main(command) == 0
    assert made(tmp_path) == {"teacher": 1, "baseline": 1, "student": 5} and len(made(tmp_path, "cache")) == 1
    (path,) = tmp_path.glob("store/cache/*/record.json")
    assert json.loads(path.read_text())["images"] == 3 * 300
    measured = [
        path for path in tmp_path.glob("store/measure/*/record.json") if '"teacher-latency"' in path.read_text()
    ]
    assert len(measured) == 1
