"""Searches: who runs which trial, what is reported, and that the test split is not read for the choice."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from kd_keras.errors import InputError
from kd_keras.run import config as configuration
from kd_keras.sweep import __main__ as sweep
from kd_keras.sweep import confirm, report, search
from kd_keras.sweep.study import Trials, open_storage, shown

optuna = pytest.importorskip("optuna")

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f"--flagfile={ROOT / 'experiments' / 'digits.flags'}"
RANGES = "loss.kd.temperature: 1..20 log; loss.kd.weight: x0.1..x10 log"
OPTIONS = search.Options((RANGES,), None, True, "tpe", "none", None, None, None, 0)


def plan(tmp_path, *common, **options):
    return search.plan([DIGITS, *common], dataclasses.replace(OPTIONS, workdir=str(tmp_path / "s"), **options))


def trials_of(searched, storage=None, sampler="tpe", pruner="none", digest="x"):
    return Trials(searched.root, searched.space, storage, sampler=sampler, pruner=pruner, digest=digest)


# ---- the plan ----


def test_a_trial_has_the_flags_as_given_its_values_and_one_teacher(tmp_path):
    searched = plan(tmp_path, search=(f"{RANGES}; epochs: 10..40; learning_rate.cosine.start: 0.001..0.1 log",))
    values = {"loss.kd.temperature": 2.0, "loss.kd.weight": 0.5, "epochs": 12, "learning_rate.cosine.start": 0.01}
    config = configuration.read(["kd_keras", *searched.flags(values), f"--workdir={tmp_path}"])
    assert str(config.student.loss[1]) == "kd(weight=0.5, temperature=2.0)"
    assert config.training.epochs == 12 and config.training.learning_rate.start == 0.01
    # The teacher's settings are those of the flags as given, whatever is searched.
    assert config.teacher.epochs == 30 and config.teacher.learning_rate.start == 0.003
    assert config.run.store == searched.store == tmp_path / "s" / "store"
    own = plan(tmp_path, search=("epochs: 10..40",), shared_teacher=False)
    assert configuration.read(["kd_keras", *own.flags({"epochs": 12}), "--workdir=."]).teacher.epochs is None


def test_what_is_searched_names_the_folder_and_budgets_do_not(tmp_path):
    def digest(**options):
        return plan(tmp_path, **options).digest

    assert digest() == digest(trials=7, minutes=3.0, storage="sqlite:///x", confirm=3)
    assert len({digest(), digest(search=("epochs: 1..2",)), digest(sampler="random"), digest(pruner="hyperband")}) == 4


def test_budgets(tmp_path):
    assert plan(tmp_path).budget == 20 and plan(tmp_path, trials=7).budget == 7
    assert plan(tmp_path, minutes=1.0).budget == math.inf and plan(tmp_path, minutes=1.0, trials=7).budget == 7
    six = ("epochs: 1..3; augment: none | flip()",)
    assert plan(tmp_path, search=six, sampler="grid").budget == 6
    assert plan(tmp_path, search=six, sampler="grid", trials=4).budget == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials=3"], "--trials has no effect without --search"),
        (["--search=auto", "--seeds=0,1"], "--search goes without --vary and --seeds"),
        (["--search=auto", "--trials=0"], "trials"),
        (["--search=auto", "--sampler=tp"], "sampler"),
        (["--search=epochs: 5..2"], "give the lower end first"),
        (["--search=epochs: 0..2"], "--epochs=0: give a whole number of at least 1"),
        (["--search=loss: kd() | kdd()"], "did you mean 'kd'"),
        (["--search=loss.kd.weight: 0..1", "--sampler=grid"], "a grid needs values"),
        (["--search=epochs: 1..2", "--epoch=3"], "Unknown command line flag 'epoch'"),
        (["--search=epochs: 1..2", "--strategy=multi_worker"], "start a search on each instead"),
    ],
)
def test_mistakes_are_refused_before_anything_is_run(tmp_path, capsys, flags, message):
    assert sweep.main(["sweep", DIGITS, f"--workdir={tmp_path / 'w'}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "url", ["nothing://x/y", "sqlite:////nowhere/x.db", "postgresql+psycopg://u:secret@127.0.0.1:1/x", "x"]
)
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(tmp_path, url):
    with pytest.raises(InputError, match=r"--storage=.* can't be used") as error:
        trials_of(plan(tmp_path), url)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_password_is_not_shown():
    assert shown("postgresql://me:secret@host/study") == "postgresql://me:***@host/study"


# ---- who runs which trial ----


@pytest.mark.parametrize("kind", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_two_processes_share_a_budget(tmp_path, kind):
    storage = None if kind == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    searched = plan(tmp_path)
    both = [trials_of(searched, storage), trials_of(searched, storage)]
    claims = [both[i % 2].claim(4) for i in range(4)]
    assert both[0].claim(4) is None and both[1].claim(4) is None
    assert [claim.trial.number for claim in claims] == [0, 1, 2, 3]
    assert claims[0].is_start and claims[0].trial.params == {"loss.kd.temperature": 4.0, "loss.kd.weight": 0.9}
    assert len({json.dumps(claim.trial.params) for claim in claims}) == 4
    both[1].complete(claims[1], 0.5, metric="accuracy")
    both[0].prune(claims[2])
    both[1].refuse(claims[3], "why")
    assert both[0].claim(4) is None and [len(both[0].of(s)) for s in ("complete", "pruned", "running")] == [1, 1, 1]
    assert both[1].claim(5).trial.number == 4


def test_a_search_does_not_go_on_with_another(tmp_path):
    searched = plan(tmp_path)
    trials_of(searched)
    with pytest.raises(InputError, match="holds another search named s: name another --workdir"):
        trials_of(searched, digest="y")


_CLAIMS = """
import sys, time
from kd_keras.sweep import search
from kd_keras.sweep.study import Trials
options = search.Options((sys.argv[2],), sys.argv[3], True, "tpe", "none", None, None, None, 0)
searched = search.plan([sys.argv[1]], options)
trials = Trials(searched.root, searched.space, None, sampler="tpe", pruner="none", digest="x")
claim = trials.claim(9)
claim.is_worse(1, 0.5)
claim.is_worse(2, 0.25)
print("claimed", flush=True)
time.sleep(600)
"""


def test_a_trial_of_a_killed_process_is_run_again(tmp_path):
    searched = plan(tmp_path)
    command = [sys.executable, "-c", _CLAIMS, DIGITS, RANGES, str(searched.root)]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert killed.stdout.readline() == "claimed\n"
    trials = trials_of(searched)
    other = trials.claim(9)
    assert other.trial.number == 1 and "of" not in other.trial.user_attrs  # it is alive
    killed.kill()
    killed.wait()
    again = trials.claim(2)
    assert again.trial.number == 2 and again.is_start and again.trial.params["loss.kd.temperature"] == 4.0
    # The weights that are kept are those of the best epoch so far.
    assert again.best_values == {1: 0.5, 2: 0.5} and trials.of("fail")[0].number == 0 and not trials.refused
    again.is_worse(2, 0.1)
    again.is_worse(3, 0.75)
    trials.complete(again, 0.75)
    assert trials.of("complete")[0].intermediate_values == {1: 0.5, 2: 0.5, 3: 0.75}
    assert trials.claim(2) is None


def test_a_trial_that_is_killed_three_times_is_left(tmp_path):
    trials = trials_of(plan(tmp_path))
    for attempt in (1, 2, 3):
        claim = trials.claim(1)
        assert claim.is_start and claim.trial.user_attrs.get("attempt", 1) == attempt
        trials.put_back(claim, is_killed=True)
    assert trials.claim(1) is None and len(trials.refused) == 1 and len(trials.of("fail")) == 3


def test_a_trial_that_is_stopped_is_put_back_as_often_as_that_happens(tmp_path):
    trials = trials_of(plan(tmp_path))
    for _ in range(5):
        claim = trials.claim(1)
        assert claim.is_start
        trials.put_back(claim)
    assert not trials.refused


def test_a_grid_is_run_once_by_two_processes(tmp_path):
    grid = ("loss.kd.temperature: 2 | 4; epochs: 10..30 step 10",)
    searched = plan(tmp_path, search=grid, sampler="grid")
    both = [trials_of(searched, sampler="grid") for _ in range(2)]
    claims = [both[i % 2].claim(searched.budget) for i in range(6)]
    assert both[0].claim(searched.budget) is None
    values = sorted((claim.trial.params["loss.kd.temperature"], claim.trial.params["epochs"]) for claim in claims)
    assert values == [(t, epochs) for t in ("2", "4") for epochs in (10, 20, 30)]
    (start,) = [claim for claim in claims if claim.is_start]
    assert start.trial.params == {"loss.kd.temperature": "4", "epochs": 30}


def test_hyperband_ends_what_is_worse_and_never_the_flags_as_given(tmp_path):
    trials = trials_of(plan(tmp_path, "--epochs=9"), pruner="hyperband")
    for number in range(8):
        claim = trials.claim(8)
        # Each is worse than those before, but for the first, which is the worst.
        level = 0.1 if number == 0 else 0.5 - 0.01 * number
        worse = any(claim.is_worse(epoch, level + 0.001 * epoch) for epoch in (1, 3, 9))
        trials.prune(claim) if worse else trials.complete(claim, level)
    assert len(trials.of("pruned")) >= 2 and {0, 1} <= {trial.number for trial in trials.of("complete")}


def test_one_process_draws_the_same_values_each_time(tmp_path):
    def values(folder):
        trials = trials_of(plan(tmp_path / folder))
        claims = [trials.claim(3) for _ in range(3)]
        return [claim.trial.params for claim in claims]

    assert values("a") == values("b")


# ---- the report ----


@pytest.fixture
def finished(tmp_path):
    """A search of thirteen trials, whose value depends on the temperature alone; one is pruned."""
    searched = plan(tmp_path)
    trials = trials_of(searched)
    trials.complete(trials.claim(1), 0.87, metric="accuracy", epochs=30, best_epoch=28, seconds=1.5)
    draw = np.random.default_rng(0)
    for number in range(12):
        values = {"loss.kd.temperature": draw.uniform(1, 20), "loss.kd.weight": draw.uniform(0.09, 9)}
        value = 0.9 - 0.01 * abs(values["loss.kd.temperature"] - 7)
        state = optuna.trial.TrialState.PRUNED if number == 5 else optuna.trial.TrialState.COMPLETE
        kept = {"params": values, "distributions": trials.distributions, "user_attrs": {"metric": "accuracy"}}
        trials.study.add_trial(optuna.trial.create_trial(state=state, value=value, **kept))
    return searched, trials


def test_the_report(finished, capsys):
    searched, trials = finished
    found = report.find(trials)
    values = {trial.number: trial.value for trial in trials.of("complete")}
    assert found.best.number == max(values, key=values.get) != 0 and found.start.number == 0
    assert found.start.value == 0.87
    report.write(searched, trials, found, None)
    summary = json.loads((searched.root / "search.json").read_text())
    assert summary["trials"] == {"complete": 12, "pruned": 1, "running": 0, "waiting": 0, "failed": 0}
    assert summary["best"]["value"] == max(values.values()) and summary["as_given"]["trial"] == 0
    assert summary["confirmed"] is None and summary["importance"]["loss.kd.temperature"] > 0.8
    rows = (searched.root / "search.csv").read_text().splitlines()
    assert len(rows) == 14 and rows[0].startswith("trial,state,value,loss.kd.temperature,loss.kd.weight,as_given")
    for name in ("history.png", "parallel.png"):
        assert (searched.root / name).read_bytes().startswith(b"\x89PNG")
    # The flagfile is the best trial's configuration, in any folder.
    best = configuration.read(["x", f"--flagfile={searched.root / 'best.flags'}", "--workdir=w", "--store=s"])
    trial = configuration.read(["x", *searched.flags(found.best.params), "--workdir=w", "--store=s"])
    assert {**best.texts(), "tracking_uri": ""} == {**trial.texts(), "tracking_uri": ""}
    report.show(searched, trials, found, None, Console(width=150))
    out = capsys.readouterr().out
    assert (
        f"trial {found.best.number}, validation accuracy" in out and "the flags as given have 87.00 % (trial 0)" in out
    )
    assert "one seed chose it" in out and "12 complete, 1 pruned" in out


def test_where_nothing_is_better_than_the_flags_as_given_that_is_said(tmp_path, capsys):
    searched = plan(tmp_path)
    trials = trials_of(searched)
    for value in (0.9, 0.9, 0.8):
        trials.complete(trials.claim(3), value, metric="accuracy")
    found = report.find(trials)
    report.show(searched, trials, found, None, Console(width=150))
    out = capsys.readouterr().out
    assert "the flags as given; nothing that was tried is better" in out
    assert "not known: it takes 10 complete trials" in out


def _found(best, start):
    return report.Found(
        types.SimpleNamespace(value=best), start and types.SimpleNamespace(value=start), "accuracy", None
    )


def _tables(students, baselines, val=0.0):
    return [
        {"student": {"test_accuracy": s, "val_accuracy": v}, "baseline": {"test_accuracy": b}}
        for s, b, v in zip(students, baselines, np.broadcast_to(val, len(students)), strict=True)
    ]


def test_the_comparison_on_new_seeds():
    best, own = [0.95, 0.96, 0.94], [0.90, 0.91, 0.905]
    given, theirs = [0.93, 0.955, 0.945], [0.91, 0.90, 0.92]
    val = [0.95, 0.955, 0.945]
    rows = {"best": _tables(best, own, val), "the flags as given": _tables(given, theirs)}
    made = confirm.compare(_found(0.97, 0.94), [1, 2, 3], rows, has_own_baseline=True)
    raw = [stats.ttest_rel(best, other).pvalue for other in (own, given, theirs)]
    order = np.argsort(raw)
    expected = np.empty(3)
    expected[order] = np.minimum(np.maximum.accumulate(np.array([3, 2, 1]) * np.array(raw)[order]), 1)
    np.testing.assert_allclose([c.p for c in made.comparisons], expected, rtol=1e-9)
    means = [100 * np.mean(np.subtract(best, other)) for other in (own, given, theirs)]
    np.testing.assert_allclose([c.effect.mean for c in made.comparisons], means)
    assert [c.promised for c in made.comparisons] == [None, pytest.approx(3.0), None]
    assert made.comparisons[0].verdict == "better" and made.comparisons[1].verdict == "undecided at n = 3"
    np.testing.assert_allclose(made.shortfall.mean, -2.0)
    interval = stats.ttest_1samp(100 * (np.array(val) - 0.97), 0).confidence_interval(0.95)
    np.testing.assert_allclose([made.shortfall.low, made.shortfall.high], interval)
    first, *others = made.lines()
    assert "promised 97.00 %" in first and "the promise was not kept (difference -2.00" in first
    assert others == [
        "Nothing that was searched is shown to beat the baseline on new seeds.",
        "The search is not shown to have improved on the flags as given.",
    ]


def test_a_promise_that_was_kept():
    rows = {"best": _tables([0.95, 0.96, 0.955], [0.90, 0.912, 0.904], 0.95)}
    made = confirm.compare(_found(0.94, None), [1, 2, 3], rows, has_own_baseline=False)
    assert len(made.lines()) == 1 and "the promise was kept" in made.lines()[0]
    assert [c.against for c in made.comparisons] == ["the baseline, trained with the same settings"]
    without = [{"student": row["student"]} for row in rows["best"]]
    assert confirm.compare(_found(0.94, None), [1, 2, 3], {"best": without}, False).comparisons == []


# ---- real runs ----

SHORT = [DIGITS, "--epochs=4", "--export=none", "--tracking=none", "--train_examples=300"]
SHORT += ["--learning_rate=0.01"]
SHORT += ["--student=cnn(filters=(8,), dense=())", "--teacher=cnn(filters=(16,), dense=())"]


def command(root, *flags):
    return ["sweep", *SHORT, f"--workdir={root}", f"--search={RANGES}", *flags]


def start(root, *flags):
    line = [sys.executable, "-m", "kd_keras.sweep", *command(root, *flags)[1:]]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def summary_of(root):
    return json.loads((root / "search.json").read_text())


def stages(root):
    records = [json.loads(path.read_text()) for path in root.glob("store/*/*/record.json")]
    return sorted(record["stage"] for record in records)


@pytest.fixture(scope="module")
def three_trials(tmp_path_factory):
    root = tmp_path_factory.mktemp("search") / "three"
    assert sweep.main(command(root, "--trials=3", "--pruner=none")) == 0
    return root


@pytest.mark.slow
def test_trials_train_one_teacher_and_do_not_read_the_test_split(three_trials):
    # No baseline, no file, no measurement of quality; the teacher's dtype is chosen on the validation split.
    assert stages(three_trials) == ["student"] * 3 + ["teacher", "teacher-dtype"]
    summary = summary_of(three_trials)
    assert summary["trials"]["complete"] == 3 and summary["as_given"]["trial"] == 0
    assert 0.1 < summary["best"]["value"] <= 1 and '"test' not in json.dumps(summary)


@pytest.mark.slow
def test_the_same_command_reports_again_and_the_best_is_not_trained_again(three_trials, capsys):
    before = sorted(three_trials.glob("store/train/*/*")), (three_trials / "search.json").read_text()
    assert sweep.main(command(three_trials, "--trials=3", "--pruner=none")) == 0
    assert before == (sorted(three_trials.glob("store/train/*/*")), (three_trials / "search.json").read_text())
    assert not capsys.readouterr().out.startswith("trial")
    line = summary_of(three_trials)["best"]["command"].split()
    ended = subprocess.run([sys.executable, *line[1:], f"--workdir={three_trials / 'best'}"], cwd=ROOT, check=True)
    assert ended.returncode == 0 and stages(three_trials).count("student") == 3
    row = json.loads((three_trials / "best" / "results.json").read_text())[-1]
    assert row["stage"] == "student" and row["val_accuracy"] == pytest.approx(summary_of(three_trials)["best"]["value"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_best_is_confirmed_on_new_seeds(three_trials, capsys):
    assert sweep.main(command(three_trials, "--trials=3", "--pruner=none", "--confirm=2")) == 0
    confirmed = summary_of(three_trials)["confirmed"]
    assert confirmed["seeds"] == [1, 2] and len(confirmed["test"]) == 2 and confirmed["said"]
    assert stages(three_trials).count("teacher") == 1 and "The search promised" in capsys.readouterr().out
    given = summary_of(three_trials)["best"]["trial"] == 0
    assert len(confirmed["comparisons"]) == (1 if given else 2)


def run_with_a_kill(root, storage, *flags):
    """Two processes on one storage; one is killed in the middle of a training, and started again."""
    flags = ("--trials=4", "--epochs=40", *flags)
    processes = [start(root, *flags), start(root, *flags)]
    deadline = time.monotonic() + 300
    while not (root / "trials" / "1.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    study = optuna.load_study(study_name=root.name, storage=open_storage(storage, root))
    while len(study.trials[1].intermediate_values) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Whichever of them holds trial 1.
    holder = json.loads((root / "leases" / "trial-1.json").read_text())["pid"]
    (victim,) = [process for process in processes if process.pid == holder]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    processes = [process for process in processes if process is not victim] + [start(root, *flags)]
    outs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    summary = summary_of(root)
    counts = summary["trials"]
    assert counts["complete"] + counts["pruned"] == 4 and counts["running"] == counts["failed"] == 0
    rows = (root / "search.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows].count("fail") == 1 and len(rows) == 5
    assert stages(root).count("teacher") == 1
    return outs, summary


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_process_that_is_killed_and_started_again(tmp_path):
    outs, _ = run_with_a_kill(tmp_path / "s", None)
    # Both end with the same report.
    assert len({out[out.index("trials  ") :] for out in outs}) == 1


@pytest.mark.slow
def test_a_search_ends_where_its_first_trials_are_refused(tmp_path, capsys):
    # 5 pixels are no stride of 8 by 8 images: known only once the student is built.
    bad = "--student=cnn(filters=(8, 8, 8, 8, 8, 8))"
    assert sweep.main([*command(tmp_path / "s"), bad]) == 2
    assert "the first 3 trials failed" in capsys.readouterr().err


@pytest.mark.slow
def test_minutes_end_a_search_and_the_same_command_goes_on(tmp_path, capsys):
    root = tmp_path / "s"
    assert sweep.main(command(root, "--minutes=0.2", "--trials=2")) == 1
    assert "stopped, as --minutes are over" in capsys.readouterr().out
    assert sweep.main(command(root, "--trials=2")) == 0
    assert summary_of(root)["trials"]["complete"] == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_processes_on_a_postgresql_server(tmp_path, postgresql):
    outs, summary = run_with_a_kill(tmp_path / "s", postgresql, f"--storage={postgresql}", "--pruner=none")
    assert summary["trials"]["complete"] == 4 and not (tmp_path / "s" / "study.log").exists()
    texts = [*outs, *(path.read_text() for path in (tmp_path / "s").glob("*.*") if path.suffix in (".json", ".csv"))]
    assert not any("secret" in text for text in texts)
