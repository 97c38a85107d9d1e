"""tools/run_matrix.py: what is run with whose teacher, its table by hand-made results, and a real small matrix."""

import json
import pathlib
import sys

import pytest

from kd_keras.errors import InputError
from kd_keras.run import config
from kd_keras.run.report import figures, tables

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import results  # noqa: E402
import run_matrix  # noqa: E402

HEADER = "# Published: none (train % / validation % / test %)\n"
COMMON = """--data=digits()
--student=cnn(filters=(4, 8), dense=())
--epochs=1
--export=none
--train_examples=200
"""
ROWS = {
    "t_a": "--teacher=cnn(filters=(8, 16))\n",
    "t_b": "--teacher=cnn(filters=(8, 16))\n--loss=kd(temperature=2)\n",
    "t_c": "--teacher=cnn(filters=(8, 8))\n",
    "t_d": "--teacher=cnn(filters=(8, 16)) + cnn(filters=(8, 8))\n--scheme=ensemble()\n",
}


@pytest.fixture
def experiments(tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name, flags in ROWS.items():
        (folder / f"{name}.flags").write_text(HEADER + COMMON + flags)
    return folder


def plan(experiments, *common, seeds=("0",), rows=tuple(ROWS)):
    found = [run_matrix.read_row(path) for path in sorted(experiments.glob("t_*.flags"))]
    root = experiments.parent / "runs"
    members = run_matrix.plan(found, list(seeds), root, list(common), lambda row: row.path.stem in rows)
    return {one.run.workdir.name: one for one in members}


def lenders(member):
    names = [folder.name for folder in member.run.teacher_from]
    return names, None if member.run.baseline_from is None else member.run.baseline_from.name


# ---- headers ----


def test_a_header_gives_the_published_figures_and_the_columns():
    row = run_matrix.read_row(ROOT / "experiments" / "s2_cifar10_resnet50_resnet18_scheduled.flags")
    assert row.columns == ("test %", "parameters M", "latency ms")
    assert row.published["student distilled"] == {"test %": "78.6", "parameters M": "11.18", "latency ms": "3.90"}
    assert row.published["teacher"]["test %"] == "85.11" and row.published["student without KD"]["test %"] == "75.06"
    row = run_matrix.read_row(ROOT / "experiments" / "s4_cifar10_alexnet_cnn_alpha05.flags")
    assert (row.title, row.baseline, row.published) == ("α = 0.5", "α = 1 (no teacher)", {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "'# Published: ' can't be read"),
        ("# Published: none (accuracy)", "the columns of train %"),
        ("# Published: student 1 / 2 (test %)", "'student 1 / 2' can't be read: write teacher.* and 1 figures"),
        ("# Published: pupil 1 (test %)", "'pupil 1' can't be read"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(tmp_path, line, message):
    (tmp_path / "x_a.flags").write_text(f"{line}\n--epochs=1\n")
    with pytest.raises(InputError, match=message):
        run_matrix.read_row(tmp_path / "x_a.flags")


# ---- the plan ----


def test_what_is_trained_alike_is_trained_once_a_seed(experiments):
    found = plan(experiments, seeds=("0", "1"))
    assert list(found) == [f"{row}-seed{seed}" for seed in "01" for row in ROWS]
    for seed in "01":
        a, b, c, d = (found[f"{row}-seed{seed}"] for row in ROWS)
        assert lenders(a) == ([], None)
        assert lenders(b) == ([f"t_a-seed{seed}"], f"t_a-seed{seed}")
        assert lenders(c) == ([], f"t_a-seed{seed}")
        assert lenders(d) == ([f"t_a-seed{seed}", f"t_c-seed{seed}"], f"t_a-seed{seed}")
        assert f"--seed={seed}" in d.run.command() and f"--baseline_from={a.run.workdir}" in d.run.command()


def test_the_shipped_rows_share(tmp_path):
    for study, teachers, baselines in (
        ("s1", 8, 6),
        ("s2", 3, 3),
        ("s4", 1, 1),
        ("ensemble", 3, 1),
        ("assistant", 1, 1),
    ):
        rows = [run_matrix.read_row(path) for path in sorted((ROOT / "experiments").glob(f"{study}_*.flags"))]
        found = run_matrix.plan(rows, ["0"], tmp_path, [], lambda row: True)
        assert len(found) == len(rows)
        assert sum(not one.run.teacher_from for one in found) == teachers, study
        assert sum(one.run.baseline_from is None for one in found) == baselines, study
        # Whoever lends comes first.
        begun = set()
        for one in found:
            assert {*one.run.teacher_from, one.run.baseline_from} - {None} <= begun
            begun.add(one.run.workdir)


@pytest.mark.parametrize(
    ("flags", "teacher", "baseline"),
    [
        ("--teacher_epochs=1", True, True),  # said outright, what --epochs says
        ("--teacher_epochs=2", False, True),
        ("--teacher_learning_rate=0.1", False, True),
        ("--teacher_stop_at_val_accuracy=0.5", False, True),
        ("--augment=flip()", False, False),
        ("--train_examples=100", False, False),
        ("--batch_size=32", False, False),
        ("--epochs=2\n--teacher_epochs=1", True, False),
        ("--learning_rate=0.1\n--teacher_learning_rate=0.001", True, False),
        ("--student=cnn()", True, False),
        ("--nobaseline", True, False),
        ("--loss=ce() + hint()", True, True),
    ],
)
def test_what_is_trained_otherwise_is_not_shared(experiments, flags, teacher, baseline):
    path = experiments / "t_b.flags"
    path.write_text(f"{HEADER}{COMMON}{ROWS['t_a']}{flags}\n")
    b = plan(experiments, rows=("t_a", "t_b"))["t_b-seed0"]
    assert lenders(b) == (["t_a-seed0"] if teacher else [], "t_a-seed0" if baseline else None)


def test_a_teacher_that_was_named_is_taken_and_none_lent(experiments):
    found = plan(experiments, "--teacher_from=elsewhere", rows=("t_a", "t_b"))
    assert all(lenders(one)[0] == [] for one in found.values())


def test_of_equal_teachers_an_ensemble_trains_its_own(experiments):
    (experiments / "t_d.flags").write_text(
        f"{HEADER}{COMMON}--teacher=cnn(filters=(8, 16)) + cnn(filters=(8, 16))\n--scheme=ensemble()\n"
    )
    assert lenders(plan(experiments)["t_d-seed0"]) == ([], "t_a-seed0")


def test_what_has_begun_keeps_its_teacher_whatever_is_selected_later(experiments):
    first = plan(experiments, rows=("t_b",))["t_b-seed0"]
    assert lenders(first) == ([], None)
    config.claim_workdir(config.read(["kd_keras", *first.run.command()]))
    again = plan(experiments)
    assert next(iter(again)) == "t_b-seed0" and lenders(again["t_b-seed0"]) == ([], None)
    assert lenders(again["t_a-seed0"]) == (["t_b-seed0"], "t_b-seed0")
    # Not selected, it lends what it has finished and nothing else.
    assert lenders(plan(experiments, rows=("t_a",))["t_a-seed0"]) == ([], None)
    tables.write_json({}, first.run.workdir / "state" / "teacher.json")
    assert lenders(plan(experiments, rows=("t_a",))["t_a-seed0"]) == (["t_b-seed0"], None)
    # A teacher's flags do not matter to the student without one.
    tables.write_json({}, first.run.workdir / "state" / "baseline.json")
    other = plan(experiments, "--teacher_stop_at_val_accuracy=0.5", rows=("t_a",))["t_a-seed0"]
    assert lenders(other) == ([], "t_b-seed0")
    # With other flags the folder holds another experiment, of which nothing is taken.
    assert lenders(plan(experiments, "--epochs=2", rows=("t_a",))["t_a-seed0"]) == ([], None)


# ---- the table ----


def finish(member, teacher=0.9, baseline=0.5, student=0.6):
    """Leaves what a finished run leaves, the same accuracy on each split."""
    rows = []
    for role, value in (("teacher", teacher), ("student without KD", baseline), ("student distilled", student)):
        figures = dict.fromkeys(("train_accuracy", "val_accuracy", "test_accuracy"), value)
        rows.append(tables.row(role, f"net_{role[0]}", parameters=1_234_000, latency_ms_median=1.5, **figures))
    rows.append(tables.row("TFLite int8", "net_s", test_accuracy=0.1))
    tables.write_table(rows, member.run.workdir)
    tables.write_json({"rows": rows, "notes": []}, member.run.workdir / "state" / "measured.json")
    for stage, value in (("baseline", baseline), ("student", student)):
        series = {"loss": [1.0, value], "val_loss": [1.0, value], "accuracy": [0.1, value], "val_accuracy": [0, value]}
        tables.write_json({"series": series}, member.run.workdir / "state" / f"{stage}.json")


def test_the_table_by_hand(experiments):
    published = "teacher 91.2 / 1.23 / 2.0, student 65.4 / 0.12 / 1.0 (test % / parameters M / latency ms)"
    for path in experiments.glob("*.flags"):
        path.write_text(path.read_text().replace(HEADER, f"# Row: {path.stem}\n# Published: {published}\n"))
    found = plan(experiments, seeds=("0", "1"), rows=("t_a", "t_b", "t_c"))
    for row, gain in (("t_a", 0.10), ("t_b", -0.02)):
        finish(found[f"{row}-seed0"], student=0.5 + gain)
        finish(found[f"{row}-seed1"], baseline=0.54, student=0.54 + gain + 0.04)
    lines = run_matrix.table(run_matrix.gather(list(found.values()))).splitlines()
    assert lines[0] == (
        "| row | role | architecture | n | test % published | test % | parameters M published | parameters M | "
        "latency ms published | latency ms | gain, test points |"
    )
    same = "1.23 | 2.0 | 1.500"
    assert lines[2] == f"| t_a | teacher | `net_t` | 2 | 91.2 | 90.00 ± 0.00 | 1.23 | {same} |  |"
    assert lines[3] == "| t_a | student without KD | `net_s` | 2 | – | 52.00 ± 2.83 | – | 1.23 | – | 1.500 |  |"
    assert lines[4].endswith("| 65.4 | 64.00 ± 5.66 | 0.12 | 1.23 | 1.0 | 1.500 | +12.00 ± 2.83 |")
    # What is shared has one line.
    assert lines[5].startswith("| t_b | student distilled |") and lines[5].endswith("| +0.00 ± 2.83 |")
    assert lines[6:] == ["", "Not run: t_c."]


def test_a_teacher_that_does_not_beat_the_baseline_is_marked(experiments):
    found = plan(experiments, rows=("t_a", "t_b"))
    finish(found["t_a-seed0"], teacher=0.5)
    finish(found["t_b-seed0"])
    text = run_matrix.table(run_matrix.gather(list(found.values())))
    marked = [line for line in text.splitlines() if line.endswith("† |")]
    assert len(marked) == 1 and marked[0].startswith("| t_a | student distilled |")
    assert "† The teacher does not beat the student without KD" in text
    # Where a study prints no figures there is no column for them.
    assert "published" not in text


def test_s1_has_its_teachers_in_columns(tmp_path):
    rows = [run_matrix.read_row(path) for path in sorted((ROOT / "experiments").glob("s1_normal_*_resnet*.flags"))]
    members = run_matrix.plan(rows, ["0"], tmp_path, [], lambda row: True)
    for one in members[1:]:
        finish(one)
    lines = run_matrix.table(run_matrix.gather(members)).splitlines()
    assert lines[0] == "normal, train % / validation % / test %, n = 0 to 1:"
    assert lines[2] == (
        "| student | seresnet101 published | seresnet101 ours | gain, test points | seresnet50 published | "
        "seresnet50 ours | gain, test points | without KD, ours |"
    )
    # Of the pairs with a teacher, one that has been run tells what it is worth.
    teacher = "90.00 / 90.00 / 90.00 |  |"
    assert lines[4] == f"| (the teacher) | 98.82 / 95.24 / 81.38 | {teacher} 99.92 / 98.80 / 98.17 | {teacher}  |"
    assert lines[5] == (
        "| resnet18 | 97.98 / 95.39 / 96.64 | – | – | 98.01 / 95.64 / 97.04 | 60.00 / 60.00 / 60.00 | +10.00 | "
        "50.00 / 50.00 / 50.00 |"
    )
    assert lines[-1] == "Not run: s1_normal_seresnet101_resnet18."


def test_curves_of_all_students_in_one_figure(experiments, tmp_path, monkeypatch):
    found = plan(experiments, seeds=("0", "1"), rows=("t_a", "t_b"))
    with pytest.raises(InputError, match="no run of seed 0 has ended"):
        run_matrix.draw(list(found.values()), tmp_path / "curves.png")
    for name, one in found.items():
        finish(one, student=0.6 if "t_a" in name else 0.7)
    # A student that was made of another model has its curves there.
    state = found["t_b-seed0"].run.workdir / "state"
    (state / "student.json").rename(state / "peers.json")
    tables.write_json({"members": ["peers"]}, state / "student.json")
    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda histories, path: drawn.update(histories))
    run_matrix.draw(list(found.values()), tmp_path / "curves.png")
    assert list(drawn) == ["student without KD", "t_a", "t_b"]
    assert drawn["t_b"]["val_accuracy"][-1] == 0.7
    monkeypatch.undo()
    run_matrix.draw(list(found.values()), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_leads_are_paired():
    runs = [{"student distilled": {"x": a}, "student without KD": {"x": b}} for a, b in ((0.6, 0.5), (0.9, 0.4))]
    assert results.leads(runs, "x") == pytest.approx([10, 50]) and results.leads([{}], "x") == []
    assert results.spread([10.0, 50.0], sign="+") == "+30.00 ± 28.28" and results.spread([1.0]) == "1.00"


# ---- the command line ----


def test_dry_run_prints_the_commands_and_makes_nothing(experiments, capsys):
    options = ["t", f"--experiments={experiments}", f"--workdir={experiments.parent / 'runs'}", "--seeds=0,1"]
    assert run_matrix.main(["run_matrix", *options, "--dry_run", "--rows=t_a,t_b", "--", "--epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("python -m kd_keras.run --tracking_uri=sqlite:") for line in lines)
    assert all("--epochs=2" in line for line in lines) and "--teacher_from=" in lines[1]
    assert not (experiments.parent / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "has no nothing_*.flags that --rows=* selects"),
        (["t", "--rows=x*"], "has no t_*.flags that --rows=x* selects"),
        (["t", "--", "--epoch=2"], "Unknown command line flag 'epoch'"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(experiments, capsys, options, message):
    line = ["run_matrix", options[0], f"--experiments={experiments}", f"--workdir={experiments / 'runs'}", *options[1:]]
    assert run_matrix.main(line) == 2
    assert message in capsys.readouterr().err and not (experiments / "runs").exists()


def test_two_roles_are_compared_by_run_and_columns_chosen(tmp_path, capsys):
    figures = {"a": ((0.8, 0.9), 100, 2.0), "b": ((0.7, 0.85), 400, 5.0)}
    for seed in (0, 1):
        rows = [
            {"role": role, "architecture": role, "test_accuracy": right[seed], "bytes": size, "latency_ms_median": ms}
            | {"accuracy_change": -0.01 * seed, "accuracy_change_low": -0.03, "accuracy_change_high": 0.01 + seed / 100}
            for role, (right, size, ms) in figures.items()
        ]
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(rows))
    runs = [results.read(tmp_path / str(seed)) for seed in (0, 1)]
    line = results.compare(runs, "a", "b")
    assert "+7.50 ± 3.54 points (+10.00, +5.00)" in line and "0.250 × the bytes" in line and "0.400 × the lat" in line
    text = results.table(runs, ["bytes", "accuracy_change"])
    assert "| n = 2 | architecture | bytes | to float [95 % over images] |" in text
    assert "| a | `a` | 100 | -0.50 [-3.00, +1.50] |" in text
    with pytest.raises(SystemExit, match="no row 'c' in every run: there are 'a', 'b'"):
        results.compare(runs, "a", "c")
    with pytest.raises(SystemExit, match="--columns names nix"):
        results.table(runs, ["nix"])


def test_print_tells_what_has_not_run_and_put_writes_it_to_a_page(experiments, tmp_path, capsys):
    options = ["run_matrix", "t", f"--experiments={experiments}", f"--workdir={tmp_path / 'runs'}", "--print"]
    assert run_matrix.main(options) == 0
    assert capsys.readouterr().out == "Not run: t_a, t_b, t_c, t_d.\n"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin t -->\nold\n<!-- end t -->\nafter\n")
    assert run_matrix.main([*options, f"--into={page}"]) == 0
    assert "Not run:" in page.read_text() and "old" not in page.read_text() and page.read_text().endswith("after\n")


@pytest.mark.slow
def test_a_real_matrix_shares_goes_on_and_survives_a_failed_row(experiments, capsys):
    path = experiments / "t_b.flags"
    path.write_text(path.read_text() + "--loss=hint(pairs='stage9:stage1')\n")
    runs = experiments.parent / "runs"
    command = ["run_matrix", "t", f"--experiments={experiments}", f"--workdir={runs}"]
    assert run_matrix.main(command) == 1
    out = capsys.readouterr().out
    assert "t_b: failed (" in out and "no tap 'stage9'" in out and "Not run: t_b." in out
    assert json.loads((runs / "t_d-seed0" / "state" / "teacher2.json").read_text()) == json.loads(
        (runs / "t_c-seed0" / "state" / "teacher.json").read_text()
    )
    assert len(list(runs.glob("mlflow.db"))) == 1 and not list(runs.glob("*/mlflow.db"))
    # What has ended is left alone; the row that failed is tried again.
    path.write_text(HEADER + COMMON + ROWS["t_b"])
    before = {path: path.stat().st_mtime_ns for path in runs.glob("t_a-seed0/**/*") if path.is_file()}
    assert run_matrix.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.glob("t_a-seed0/**/*") if path.is_file()} == before
    assert "Not run" not in capsys.readouterr().out
