"""Sweeps: what is run, with which teacher, and what is left of it."""

import json
import pathlib

import pytest

from kd_keras.errors import InputError
from kd_keras.run import config
from kd_keras.sweep import __main__ as sweep

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f"--flagfile={ROOT / 'experiments' / 'digits.flags'}"
SHORT = [DIGITS, "--epochs=1", "--export=none", "--nobaseline", "--tracking=none", "--train_examples=300"]


def plan(tmp_path, *argv):
    return sweep.plan(["sweep", DIGITS, f"--workdir={tmp_path}", *argv])


def lenders(runs):
    """The number of the run that each takes its teacher from."""
    folders = [run.workdir for run in runs]
    return [folders.index(run.teacher_from[0]) if run.teacher_from else None for run in runs]


def test_every_combination_is_a_run_of_its_own(tmp_path):
    root, runs, varied = plan(tmp_path, "--vary=loss: kd() | ce() + kd(temperature=2)", "--seeds=0,1", "--epochs=3")
    assert root == tmp_path and all({"--data=digits()", "--epochs=3"} < set(run.command()) for run in runs)
    assert varied == [
        {"loss": loss, "seed": seed} for loss in ("kd()", "ce() + kd(temperature=2)") for seed in ("0", "1")
    ]
    assert len({run.workdir for run in runs}) == 4 and all(run.workdir.parent == tmp_path for run in runs)
    assert lenders(runs) == [None, 0, 0, 0]
    assert f"--teacher_from={runs[0].workdir}" in runs[1].command() and "--seed=1" in runs[1].command()
    # A run keeps its folder whatever else is swept.
    assert plan(tmp_path, "--vary=loss: soft_ce() | kd()", "--seeds=1")[1][1].workdir == runs[1].workdir


def test_runs_whose_teachers_differ_do_not_share_one(tmp_path):
    runs = plan(tmp_path, "--vary=teacher: cnn() | cnn(filters=(8,))", "--seeds=0,1")[1]
    assert lenders(runs) == [None, 0, None, 2]
    assert lenders(plan(tmp_path, "--seeds=0,1", "--noshared_teacher")[1]) == [None, None]
    assert lenders(plan(tmp_path, "--vary=train_examples: 100 | 200")[1]) == [None, None]
    assert lenders(plan(tmp_path, "--seeds=0,1", "--teacher=none", "--loss=ce()")[1]) == [None, None]
    assert lenders(plan(tmp_path, "--seeds=0,1", "--teacher_from=x")[1]) == [None, None]
    several = ["--teacher=cnn() + cnn(filters=(8,))", "--scheme=ensemble()"]
    runs = plan(tmp_path, *several, "--vary=loss: kd() | soft_ce()", "--seeds=0,1")[1]
    assert lenders(runs) == [None, 0, 0, 0] and "," in runs[0].workdir.name
    assert config.read(["kd_keras", *runs[1].command()]).teacher_from == (runs[0].workdir,) * 2
    stops = "--vary=teacher_stop_at_val_accuracy: 0.5 | 0.7"
    assert lenders(plan(tmp_path, stops)[1]) == [None, None]


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
    ],
)
def test_mistakes_are_told_before_anything_is_run(tmp_path, capsys, flags, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        plan(tmp_path / "w", *flags)
    assert sweep.main(["sweep", DIGITS, f"--workdir={tmp_path / 'w'}", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "w").exists()


def test_help(capsys):
    assert sweep.main(["sweep", "--help"]) == 0
    assert "--vary" in capsys.readouterr().out


def records(root, name):
    return [json.loads(path.read_text()) for path in sorted(root.glob(f"*/state/{name}.json"))]


@pytest.mark.slow
def test_a_failed_run_is_told_and_those_without_it_go_on(tmp_path, capsys):
    # Known only once the data are there, so that planning lets it pass.
    code = sweep.main(
        ["sweep", *SHORT, f"--workdir={tmp_path}", "--vary=cache_taps: stage9 | pooled", "--cache_views=2"]
    )
    out = capsys.readouterr().out
    assert code == 1 and "no tap 'stage9'" in out and "left out, for its teacher's run failed" in out
    assert [one["rows"] for one in json.loads((tmp_path / "sweep.json").read_text())] == [None, None]


@pytest.mark.slow
def test_two_runs_share_the_teacher_its_cache_and_what_was_measured_of_it(tmp_path, capsys):
    command = ["sweep", *SHORT, f"--workdir={tmp_path}", "--seeds=0,1", "--cache_views=2", "--train_examples=1168"]
    assert sweep.main(command) == 0
    out = capsys.readouterr().out
    assert "run 2/2  seed=1: test accuracy 0." in out and "all" in out and "±" in out
    assert [one["images"] for one in records(tmp_path, "student-cache")] == [2 * 1168, 0]
    one, other = records(tmp_path, "teacher-measured")
    assert one == other
    students = [run["rows"]["student distilled"] for run in json.loads((tmp_path / "sweep.json").read_text())]
    assert students[0]["test_accuracy"] != students[1]["test_accuracy"]
    assert len(list(tmp_path.glob("*/teacher_cache/*"))) == 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*") if path.is_file()}
    assert sweep.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*") if path.is_file()} == before


@pytest.mark.slow
def test_five_runs_cost_the_teachers_inference_once(tmp_path):
    command = ["sweep", DIGITS, "--epochs=3", "--export=none", "--tracking=none", f"--workdir={tmp_path}"]
    losses = [f"ce(weight=0.1) + kd(weight=0.9, temperature={t})" for t in (1, 2, 4, 8, 16)]
    assert sweep.main([*command, "--cache_views=3", f"--vary=loss: {' | '.join(losses)}"]) == 0
    assert sorted(one["images"] for one in records(tmp_path, "student-cache")) == [0, 0, 0, 0, 3 * 1168]
    teachers = records(tmp_path, "teacher")
    assert len(teachers) == 5 and all(one == teachers[0] for one in teachers)
    measured = records(tmp_path, "teacher-measured")
    assert len(measured) == 5 and all(one == measured[0] for one in measured)
