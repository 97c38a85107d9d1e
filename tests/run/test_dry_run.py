"""The plan that ``--dry_run`` prints."""

import io

import pytest
from rich.console import Console

from kd_keras.export import tflite
from kd_keras.run import __main__ as run
from kd_keras.run import config
from kd_keras.run.report.dry_run import DryRun
from kd_keras.run.workdir import Workdir
from tests.schemes.tiny import TINY, checked

A, B = "cnn(filters=(4,), dense=())", "cnn(filters=(3,), dense=())"


def printed(tmp_path, *flags, timed=False) -> list[str]:
    """The lines that are printed for a tiny run, with cells parted by two spaces or more."""
    runner, out = checked(tmp_path, *flags), io.StringIO()
    runner.session.console = Console(file=out, width=120, soft_wrap=True)
    DryRun(runner).print(timed)
    assert not (tmp_path / "w").exists()
    return [line.rstrip() for line in out.getvalue().splitlines()]


def row(lines: list[str], stage: str) -> list[str]:
    """The filled cells of a stage's line."""
    (line,) = [line for line in lines if line.startswith(f"{stage} ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_who_is_taught_by_whom_is_printed_and_nothing_is_written(tmp_path):
    lines = printed(tmp_path, f"--teacher={A} + {B}", "--scheme=ensemble()", "--epochs=3")
    assert row(lines, "teacher2") == ["teacher2", B, "523", "2.21 k", "new weights", "3", ".keras", "no"]
    assert row(lines, "ensemble")[:2] == ["ensemble", "2 models joined"]
    assert row(lines, "ensemble")[-3:] == ["teacher1, teacher2", ".keras", "no"]
    assert "ensemble" in row(lines, "student") and "ensemble" not in row(lines, "baseline")
    assert max(map(len, lines[: lines.index(next(line for line in lines if line.startswith("plan ")))])) <= 120


@pytest.mark.parametrize("timed", [False, True])
def test_the_time_is_measured_on_request(timed, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    lines = [
        line for line in printed(tmp_path, "--teacher=none", "--loss=ce()", timed=timed) if line.startswith("time")
    ]
    assert ("2 steps of" in lines[0]) == timed and ("unknown for baseline" in lines[-1]) != timed


@pytest.mark.slow
def test_a_compression_step_has_one_line(tmp_path):
    lines = printed(tmp_path, f"--teacher={A}", "--compress=prune() + qat()", "--compress_epochs=2", "--epochs=1")
    assert row(lines, "prune-student")[-5:] == ["teacher", "student", "2", ".keras", "no"]
    assert row(lines, "prune-qat-student")[-4:] == ["prune-student", "2", ".keras", "no"]
    assert not any("-training" in line for line in lines if not line.startswith("time"))


@pytest.mark.slow
def test_students_of_the_same_architecture_are_converted_once_by_a_check(tmp_path, monkeypatch):
    converted = []
    convert = tflite.convert_quantised
    monkeypatch.setattr(tflite, "convert_quantised", lambda *args: converted.append(convert(*args)))
    checked(tmp_path, f"--teacher={A}", "--compress=qat()", "--compress_controls=untaught,baseline")
    assert len(converted) == 1


def test_a_workdir_with_other_data_is_refused(tmp_path, capsys):
    argv = ["kd_keras", *TINY, "--teacher=none", "--loss=ce()", f"--workdir={tmp_path / 'w'}", "--dry_run"]
    assert run.main(argv) == 0
    (tmp_path / "w").mkdir()
    Workdir(config.read(argv)).begin({"classes": ["a", "b"]})
    assert run.main(argv) == 2
    assert "begun with other data" in capsys.readouterr().err
