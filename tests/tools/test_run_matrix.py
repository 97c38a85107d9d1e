"""tools/run_matrix.py and results.py: what is run, tables of hand-made results, and a real small matrix."""

import collections
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


def read_rows(experiments, pattern="t_*"):
    return [run_matrix.read_row(path) for path in sorted(experiments.glob(f"{pattern}.flags"))]


def plan(experiments, *common, seeds=("0",), rows=tuple(ROWS), study="t_*"):
    chosen = [row for row in read_rows(experiments, study) if row.path.stem in rows]
    members = run_matrix.plan(chosen, seeds, experiments.parent / "runs", list(common))
    return {member.run.workdir.name: member for member in members}


def settings(member):
    return config.read(["kd_keras", *member.run.command()])


def teacher_of(member):
    """All settings of a run's teacher, its epochs resolved."""
    resolved = settings(member)
    epochs = resolved.training.epochs if resolved.teacher.epochs is None else resolved.teacher.epochs
    return {**resolved.affecting("teacher"), "teacher_epochs": str(epochs)}


# ---- headers ----


def test_a_header_gives_the_published_figures_and_the_columns():
    row = run_matrix.read_row(ROOT / "experiments" / "s2_cifar10_resnet50_resnet18_scheduled.flags")
    assert row.columns == ("test %", "parameters M", "latency ms")
    assert row.published["student"] == {"test %": "78.6", "parameters M": "11.18", "latency ms": "3.90"}
    assert row.published["teacher"]["test %"] == "85.11" and row.published["baseline"]["test %"] == "75.06"
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


def test_every_row_and_seed_is_a_run_in_one_store(experiments):
    members = plan(experiments, seeds=("0", "1"))
    assert list(members) == [f"{row}-seed{seed}" for seed in "01" for row in ROWS]
    root = experiments.parent / "runs"
    assert {settings(member).run.store for member in members.values()} == {root / "store"}
    assert {settings(member).tracking.uri for member in members.values()} == {f"sqlite:///{root}/mlflow.db"}
    assert [settings(member).training.seed for member in members.values()] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("flags", "is_same"),
    [
        ("--loss=ce() + hint()", True),
        ("--teacher_epochs=1", True),  # what --epochs says
        ("--teacher_epochs=2", False),
        ("--epochs=2\n--teacher_epochs=1", True),
        ("--teacher_learning_rate=0.1", False),
        ("--learning_rate=0.1", False),
        ("--learning_rate=0.1\n--teacher_learning_rate=0.001", True),
        ("--teacher_stop_at_val_accuracy=0.5", False),
        ("--train_examples=100", False),
        ("--batch_size=32\n--teacher_batch_size=64", True),
        ("--student=cnn()", True),
        ("--nobaseline", True),
    ],
)
def test_rows_with_the_same_teacher_share_it(experiments, flags, is_same):
    (experiments / "t_b.flags").write_text(f"{HEADER}{COMMON}{ROWS['t_a']}{flags}\n")
    members = plan(experiments, rows=("t_a", "t_b"))
    assert (teacher_of(members["t_a-seed0"]) == teacher_of(members["t_b-seed0"])) == is_same


def test_a_row_has_as_many_seeds_as_its_header_says(experiments):
    path = experiments / "t_b.flags"
    path.write_text(f"# n: 2, for want of time.\n{path.read_text()}")
    assert list(plan(experiments, seeds=None, rows=("t_a", "t_b"))) == ["t_a-seed0", "t_b-seed0", "t_b-seed1"]
    path.write_text(path.read_text().replace("# n: 2", "# n: many"))
    with pytest.raises(InputError, match="'# n: many, for want of time' can't be read"):
        plan(experiments)


def test_groups_of_rows_are_compared_over_all_pairs_together(experiments):
    names = {"a_x": (0.5, 0.6), "b_x": (0.4, 0.5), "a_y": (0.7, 0.8), "b_y": (0.6, 0.75), "a_z": (0.9, 0.9)}
    for name in names:
        (experiments / f"g_{name}.flags").write_text(HEADER + COMMON + ROWS["t_a"])
    members = plan(experiments, seeds=("0", "1"), rows=[f"g_{name}" for name in names], study="g_*")
    for name, accuracies in names.items():
        for seed, accuracy in enumerate(accuracies):
            finish(members[f"g_{name}-seed{seed}"], student=accuracy)
    outcomes = run_matrix.gather(list(members.values()))
    # Two pairs, 10 and 7.5 points on average: t = 7 on one degree of freedom, p = 2 atan(1 / 7) / pi.
    (line,) = run_matrix.contrasts(outcomes, [("g_a_*", "g_b_*")])
    shown = "**g_a_*** minus **g_b_***, students' test points, 2 pairs of rows: +8.75 [-7.13, +24.63], p = 0.09: "
    assert line == f"{shown}undecided at n = 2."
    (line,) = run_matrix.contrasts(outcomes, [("g_a_y", "g_b_y")])
    assert "2 seeds of one pair of rows: +7.50 [" in line
    assert run_matrix.contrasts(outcomes, [("g_a_*", "g_b_*")] * 2)[0].endswith("p = 0.18, Holm: undecided at n = 2.")
    for pattern, reason in (("g_*_*", "as many"), ("g_c_*", "no two such rows")):
        with pytest.raises(InputError, match=reason):
            run_matrix.contrasts(outcomes, [("g_a_*", pattern)])


def test_the_seeds_of_a_row_share_its_teacher(experiments):
    (experiments / "t_b.flags").write_text(f"{HEADER}{COMMON}{ROWS['t_a']}--teacher_seed=7\n")
    members = plan(experiments, seeds=("3", "4"), rows=("t_a", "t_b"))
    for row, seed in (("t_a", 3), ("t_b", 7)):
        first, second = members[f"{row}-seed3"], members[f"{row}-seed4"]
        assert teacher_of(first) == teacher_of(second) and settings(second).teacher.seed == seed
        assert settings(second).training.seed == 4


def test_a_teacher_that_was_named_is_taken(experiments):
    members = plan(experiments, "--teacher_from=elsewhere", rows=("t_a", "t_b"), seeds=("0", "1"))
    folders = {settings(member).teacher.folders for member in members.values()}
    assert folders == {(pathlib.Path("elsewhere").absolute(),)}


# ---- the table ----


def finish(member, teacher=0.9, baseline=0.5, student=0.6):
    """Leaves what a finished run leaves, the same accuracy on each split."""
    rows = []
    roles = {"teacher": "teacher", "baseline": "baseline (no teacher)", "student": "student distilled"}
    models, store = {}, member.run.workdir.parent / "store"
    for (stage, role), value in zip(roles.items(), (teacher, baseline, student), strict=True):
        accuracies = dict.fromkeys(("train_accuracy", "val_accuracy", "test_accuracy"), value)
        rows.append(
            tables.row(role, f"net_{stage[0]}", stage=stage, parameters=1_234_000, latency_ms_median=1.5, **accuracies)
        )
        series = {"loss": [1.0, value], "val_loss": [1.0, value], "accuracy": [0.1, value], "val_accuracy": [0, value]}
        models[stage] = {"architecture": f"net_{stage[0]}", "content": f"{stage} {value}"}
        tables.write_json(
            {"content": f"{stage} {value}", "series": series}, store / "train" / f"{stage}{value}" / "record.json"
        )
    rows.append(tables.row("TFLite int8", "net_s", stage="student_int8", test_accuracy=0.1))
    tables.write_table(rows, member.run.workdir)
    tables.write_json({"models": models}, member.run.workdir / "workdir.json")


def test_the_table_by_hand(experiments):
    published = "teacher 91.2 / 1.23 / 2.0, student 65.4 / 0.12 / 1.0 (test % / parameters M / latency ms)"
    for path in experiments.glob("*.flags"):
        path.write_text(path.read_text().replace(HEADER, f"# Row: {path.stem}\n# Published: {published}\n"))
    members = plan(experiments, seeds=("0", "1"), rows=("t_a", "t_b", "t_c"))
    for row, gain in (("t_a", 0.10), ("t_b", -0.02)):
        finish(members[f"{row}-seed0"], student=0.5 + gain)
        finish(members[f"{row}-seed1"], baseline=0.54, student=0.54 + gain + 0.04)
    lines = run_matrix.table(run_matrix.gather(list(members.values()))).splitlines()
    assert lines[0] == (
        "| row | role | architecture | n | test % published | test % | parameters M published | parameters M | "
        "latency ms published | latency ms | gain, test points |"
    )
    same = "1.23 | 2.0 | 1.500"
    # Both seeds have one teacher.
    assert lines[2] == f"| t_a | teacher | `net_t` | 1 | 91.2 | 90.00 | 1.23 | {same} |  |"
    assert lines[3] == "| t_a | baseline (no teacher) | `net_b` | 2 | – | 52.00 ± 2.83 | – | 1.23 | – | 1.500 |  |"
    assert lines[4].endswith("| 65.4 | 64.00 ± 5.66 | 0.12 | 1.23 | 1.0 | 1.500 | +12.00 ± 2.83, undecided at n = 2 |")
    # Models that rows share have one line.
    assert lines[5].startswith("| t_b | student distilled |") and lines[5].endswith(
        "| +0.00 ± 2.83, undecided at n = 2 |"
    )
    assert lines[6:] == ["", "Not run: t_c."]


def test_a_teacher_that_does_not_beat_the_baseline_is_marked(experiments):
    members = plan(experiments, rows=("t_a", "t_b"))
    finish(members["t_a-seed0"], teacher=0.5)
    finish(members["t_b-seed0"])
    text = run_matrix.table(run_matrix.gather(list(members.values())))
    marked = [line for line in text.splitlines() if line.endswith("† |")]
    assert len(marked) == 1 and marked[0].startswith("| t_a | student distilled |")
    assert "† The teacher does not beat the baseline" in text
    # Where a study prints no figures there is no column for them.
    assert "published" not in text


def test_s1_has_its_teachers_in_columns(tmp_path):
    rows = read_rows(ROOT / "experiments", "s1_normal_*_resnet*")
    members = run_matrix.plan(rows, ["0"], tmp_path, [])
    for member in members[1:]:
        finish(member)
    lines = run_matrix.table(run_matrix.gather(members)).splitlines()
    assert lines[0] == "normal, train % / validation % / test %, n = 0 to 1:"
    assert lines[2] == (
        "| student | seresnet101 published | seresnet101 ours | gain, test points | seresnet50 published | "
        "seresnet50 ours | gain, test points | baseline, ours |"
    )
    # A teacher's figures are those of a pair that has been run.
    teacher = "90.00 / 90.00 / 90.00 |  |"
    assert lines[4] == f"| (the teacher) | 98.82 / 95.24 / 81.38 | {teacher} 99.92 / 98.80 / 98.17 | {teacher}  |"
    assert lines[5] == (
        "| resnet18 | 97.98 / 95.39 / 96.64 | – | – | 98.01 / 95.64 / 97.04 | 60.00 / 60.00 / 60.00 | +10.00 | "
        "50.00 / 50.00 / 50.00 |"
    )
    assert lines[-1] == "Not run: s1_normal_seresnet101_resnet18."


def test_curves_of_all_students_in_one_figure(experiments, tmp_path, monkeypatch):
    members = plan(experiments, seeds=("0", "1"), rows=("t_a", "t_b"))
    with pytest.raises(InputError, match="no run of seed 0 has ended"):
        run_matrix.draw(list(members.values()), tmp_path / "curves.png")
    for name, member in members.items():
        finish(member, student=0.6 if "t_a" in name else 0.7)
    # A student that was cut out of another model has its curves there.
    store = experiments.parent / "runs" / "store"
    (store / "train" / "student0.7").rename(store / "train" / "peers")
    record = json.loads((store / "train" / "peers" / "record.json").read_text())
    tables.write_json({**record, "content": "peers"}, store / "train" / "peers" / "record.json")
    made = {"content": "student 0.7", "inputs": {"train/peers": "peers"}}
    tables.write_json(made, store / "build" / "student" / "record.json")
    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda histories, path: drawn.update(histories))
    run_matrix.draw(list(members.values()), tmp_path / "curves.png")
    assert list(drawn) == ["baseline (no teacher)", "t_a", "t_b"]
    assert drawn["t_b"]["val_accuracy"][-1] == 0.7
    monkeypatch.undo()
    run_matrix.draw(list(members.values()), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_leads_are_paired():
    runs = [{"student": {"x": a}, "baseline": {"x": b}} for a, b in ((0.6, 0.5), (0.9, 0.4))]
    assert results.leads(runs, "x") == pytest.approx([10, 50]) and results.leads([{}], "x") == []
    assert tables.spread([10.0, 50.0], sign="+") == "+30.00 ± 28.28" and tables.spread([1.0]) == "1.00"


# ---- the command line ----


def test_dry_run_prints_the_commands_and_makes_nothing(experiments, capsys):
    options = ["t", f"--experiments={experiments}", f"--workdir={experiments.parent / 'runs'}", "--seeds=0,1"]
    assert run_matrix.main(["run_matrix", *options, "--dry_run", "--rows=t_a,t_b", "--", "--epochs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("python -m kd_keras.run --tracking_uri=sqlite:") for line in lines)
    assert all("--epochs=2" in line and "--teacher_seed=0" in line for line in lines)
    assert all(f"--store={experiments.parent / 'runs' / 'store'}" in line for line in lines)
    assert not (experiments.parent / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "has no nothing_*.flags that --rows=* selects"),
        (["t", "--rows=x*"], "has no t_*.flags that --rows=x* selects"),
        (["t", "--", "--epoch=2"], "Unknown command line flag 'epoch'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_run(experiments, capsys, options, message):
    line = ["run_matrix", options[0], f"--experiments={experiments}", f"--workdir={experiments / 'runs'}", *options[1:]]
    assert run_matrix.main(line) == 2
    assert message in capsys.readouterr().err and not (experiments / "runs").exists()


def test_two_rows_are_compared_by_run_and_columns_chosen(tmp_path, capsys):
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
    # Standard error 2.5, t(0.975, 1) = 12.7062.
    assert "+7.50 ± 3.54 points (+10.00, +5.00), 95 % interval [-24.27, +39.27]: undecided at n = 2" in line
    assert "0.250 × the bytes" in line and "0.400 × the lat" in line
    text = results.table(runs, ["bytes", "accuracy_change"])
    assert "| n = 2 | architecture | bytes | to float [95 % over images] |" in text
    assert "| a | `a` | 100 | -0.50 [-3.00, +1.50] |" in text
    assert line.startswith("**a** against b: ")
    with pytest.raises(SystemExit, match="no row 'c' in every run: there are 'a', 'b'"):
        results.compare(runs, "a", "c")
    with pytest.raises(SystemExit, match="--columns names nix"):
        results.table(runs, ["nix"])


def test_print_says_what_has_not_run_and_into_writes_it_to_a_page(experiments, tmp_path, capsys):
    options = ["run_matrix", "t", f"--experiments={experiments}", f"--workdir={tmp_path / 'runs'}", "--print"]
    assert run_matrix.main(options) == 0
    assert capsys.readouterr().out == "Not run: t_a, t_b, t_c, t_d.\n"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin t -->\nold\n<!-- end t -->\nafter\n")
    assert run_matrix.main([*options, f"--into={page}"]) == 0
    assert "Not run:" in page.read_text() and "old" not in page.read_text() and page.read_text().endswith("after\n")


ROLES_BY_STAGE = {
    "teacher": "teacher",
    "teacher2": "teacher 2",
    "baseline": "student without KD",
    "student": "student distilled",
    "direct": "student distilled directly",
    "ensemble": "teacher ensemble",
    "peer2": "peer 2",
    "student_int8": "TFLite int8",
    "peer2_int8": "peer 2 TFLite int8",
    "teacher_float32": "teacher, TFLite float32",
    "baseline_float32": "student without KD, TFLite float32",
    "student distilled, qat()_int8": "student distilled, qat(), TFLite int8",
}


def test_tables_of_version_0_1_are_read_by_their_roles(tmp_path):
    rows = [
        {"role": role, "architecture": "net", "test_accuracy": 0.5, "val_accuracy": 0.5}
        for role in ROLES_BY_STAGE.values()
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    read = results.read(tmp_path)
    assert {stage: row["role"] for stage, row in read.items()} == {
        stage: role.replace("student without KD", "baseline (no teacher)") for stage, role in ROLES_BY_STAGE.items()
    }
    # Rows are still named as in published commands.
    line = results.compare([read], "student distilled, qat(), TFLite int8", "student without KD, TFLite float32")
    assert line.startswith("**student distilled, qat(), TFLite int8** against baseline (no teacher), TFLite float32: ")
    assert "baseline (no teacher)" in results.table([read]) and "Student minus baseline" in results.table([read])


def test_a_table_of_this_version_is_read_by_its_stages(tmp_path):
    tables.write_table([tables.row("anything", "net", stage="student", test_accuracy=0.5)], tmp_path)
    assert results.read(tmp_path)["student"]["role"] == "anything"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_matrix_shares_goes_on_and_survives_a_failed_row(experiments, capsys):
    path = experiments / "t_b.flags"
    path.write_text(path.read_text() + "--loss=hint(pairs='stage9:stage1')\n")
    runs = experiments.parent / "runs"
    command = ["run_matrix", "t", f"--experiments={experiments}", f"--workdir={runs}", "--seeds=0,1"]
    assert run_matrix.main(command) == 1
    out = capsys.readouterr().out
    assert "t_b, seed 1: failed (" in out and "'stage9'" in out and "Not run: t_b." in out
    assert len(list(runs.glob("mlflow.db"))) == 1 and not list(runs.glob("*/mlflow.db"))
    # What has ended is left alone; the row that failed is tried again.
    path.write_text(HEADER + COMMON + ROWS["t_b"])
    before = {path: path.stat().st_mtime_ns for path in runs.glob("t_a-seed0/*") if path.is_file()}
    assert run_matrix.main(command) == 0
    after = {path: path.stat().st_mtime_ns for path in runs.glob("t_a-seed0/*") if path.is_file()}
    assert {path: time for path, time in after.items() if not path.name.startswith(".")} == {
        path: time for path, time in before.items() if not path.name.startswith(".")
    }
    assert "Not run" not in capsys.readouterr().out
    records = [json.loads(path.read_text()) for path in runs.glob("store/train/*/record.json")]
    # The ensemble's first teacher is the teacher of t_a; its second has another seed than that of t_c.
    counts = collections.Counter(record["stage"] for record in records)
    assert counts.pop("teacher") + counts.pop("teacher1", 0) == 2
    assert counts == {"teacher2": 1, "baseline": 2, "student": 8}
    assert run_matrix.main([*command, f"--figure={runs / 'curves.png'}"]) == 0 and (runs / "curves.png").exists()
