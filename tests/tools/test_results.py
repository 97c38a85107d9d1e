"""tools/results.py: which runs it takes together, and what it says of those that it can't."""

import json
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import results

CONFIG = {"data": "digits()", "student": "cnn()", "epochs": "30", "seed": "0", "teacher_from": "/a", "threads": "1"}


def workdir(root, name, accuracy=0.5, config=(), **row):
    """A finished run: a student, and a baseline that is right ten points less often."""
    folder = root / name
    folder.mkdir()
    common = {"architecture": "cnn()", "bytes": 100, **row}
    rows = [
        {**common, "role": role, "stage": stage, "test_accuracy": figure}
        for role, stage, figure in (
            ("student distilled", "student", accuracy),
            ("baseline (no teacher)", "baseline", accuracy - 0.1),
        )
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    (folder / "config.json").write_text(json.dumps({**CONFIG, **dict(config)}))
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["results.py", *map(str, arguments)])
    results.main()


def refusal(monkeypatch, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def test_runs_that_differ_in_seeds_folders_and_threads_are_pooled(tmp_path, monkeypatch, capsys):
    other = {"seed": "1", "teacher_from": "/b", "threads": "2"}
    run(monkeypatch, workdir(tmp_path, "a", 0.5), workdir(tmp_path, "b", 0.7, other))
    assert "n = 2" in (page := capsys.readouterr().out) and "60.00 ± 14.14" in page


@pytest.mark.parametrize("flag", ["data", "student", "epochs"])
def test_two_experiments_are_refused_by_what_differs(tmp_path, monkeypatch, flag):
    two = workdir(tmp_path, "a"), workdir(tmp_path, "b", 0.6, {flag: "another"})
    assert f"differ in --{flag})" in refusal(monkeypatch, *two)


def test_a_run_that_is_named_twice_or_copied_counts_once(tmp_path, monkeypatch, capsys):
    workdir(tmp_path, "copy")
    run(monkeypatch, workdir(tmp_path, "a"), tmp_path / "copy" / ".." / "a", tmp_path / "copy")
    assert "n = 1 " in capsys.readouterr().out


def test_rows_of_other_runs_stand_beside_by_seed(tmp_path, monkeypatch, capsys):
    def made(name, accuracy, seed, images="x", **config):
        folder = workdir(tmp_path, name, accuracy, {"seed": seed, **config})
        state = {"format": 2, "data": {"test split": images}, "models": {}}
        (folder / "workdir.json").write_text(json.dumps(state))
        return folder

    ours = made("a", 0.5, "1"), made("b", 0.75, "0")
    theirs = [made("c", 0.25, "0", student="vit()"), made("d", 0.375, "1", student="vit()")]
    compared = ("--compare", "student", "plain, student distilled")
    run(monkeypatch, *ours, *compared, "--beside", "plain", *theirs)
    page = capsys.readouterr().out
    assert "+31.25 ± 26.52 points (+12.50, +50.00)" in page and "| plain, baseline (no teacher) | `cnn()` |" in page
    assert "no run of the seed of" in refusal(monkeypatch, *ours, "--beside", "plain", theirs[0])
    other = made("e", 0.25, "0", "y"), made("f", 0.5, "1", "y")
    assert "have other test images" in refusal(monkeypatch, *ours, "--beside", "plain", *other)


def test_what_is_no_run_is_passed_over_and_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "train.log").write_text("x")
    run(monkeypatch, workdir(tmp_path, "a"), tmp_path / "mlartifacts", tmp_path / "train.log")
    captured = capsys.readouterr()
    assert "n = 1 " in captured.out and "mlartifacts" in captured.err and "train.log" in captured.err
    assert "none of these is a run" in refusal(monkeypatch, tmp_path / "train.log")


def test_an_unfinished_run_is_no_folder_of_something_else(tmp_path, monkeypatch):
    (workdir(tmp_path, "a") / "results.json").unlink()
    assert "results.json is not there" in refusal(monkeypatch, tmp_path / "a")


@pytest.mark.parametrize("content", ["[{", "{}", "[]", '["a"]', '[{"stage": "student"}]'])
def test_a_damaged_table_is_named(tmp_path, monkeypatch, content):
    (workdir(tmp_path, "a") / "results.json").write_text(content)
    assert "results.json" in refusal(monkeypatch, tmp_path / "a")


def test_a_row_that_a_run_lacks_has_fewer_runs_and_a_note(tmp_path, monkeypatch, capsys):
    full, fewer = workdir(tmp_path, "a", 0.5), workdir(tmp_path, "b", 0.7)
    rows = json.loads((fewer / "results.json").read_text())
    (fewer / "results.json").write_text(json.dumps(rows[:1]))
    for order in ((full, fewer), (fewer, full)):
        run(monkeypatch, *order)
        captured = capsys.readouterr()
        assert "baseline (no teacher): of 1 of the 2 runs" in captured.out and "Student minus" not in captured.out
        assert "b has no row 'baseline (no teacher)'" in captured.err


def test_figures_that_are_missing_or_empty_are_dashes(tmp_path, monkeypatch, capsys):
    run(monkeypatch, workdir(tmp_path, "a"), workdir(tmp_path, "b", 0.6, bytes=None))
    assert "| – |" in capsys.readouterr().out
    run(monkeypatch, workdir(tmp_path, "c", accuracy_change=-0.01))
    assert "-1.00 |" in capsys.readouterr().out


def test_pages_and_sections_that_are_not_there(tmp_path, monkeypatch):
    folder = workdir(tmp_path, "a")
    assert "page.md can't be read" in refusal(monkeypatch, folder, "--into", tmp_path / "page.md", "--section", "s")
    assert "--section" in refusal(monkeypatch, folder, "--into", tmp_path / "page.md")
