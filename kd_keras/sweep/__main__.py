"""Many runs of one experiment: ``python -m kd_keras.sweep --flagfile=… --vary='loss: kd() | soft_ce()' --seeds=0,1,2``.

Every combination of the varied flags is one run of `kd_keras.run`, in a process and a folder of its own. The runs share
a store, so that each teacher and baseline is trained once. The settings of the teacher are those of the first run, but
for ``teacher`` and ``teacher_`` flags that are varied: a sweep over seeds or learning rates has one teacher. The same
command goes on where it stopped; started twice, two processes share the work.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from absl import flags
from rich.console import Console
from rich.table import Table

from kd_keras import files, spec
from kd_keras.errors import InputError, exit_code
from kd_keras.run import config as configuration
from kd_keras.run.lease import Lease
from kd_keras.run.page import report
from kd_keras.run.page.folders import Run as FinishedRun
from kd_keras.run.report import tables
from kd_keras.run.settings import Follows, declared
from kd_keras.run.tracking import mlflow
from kd_keras.run.workdir import Workdir

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string(
    "vary", [], "A flag and its values: 'loss: kd() | soft_ce()'; several give every combination.", flag_values=FLAGS
)
flags.DEFINE_list("seeds", [], "Short for --vary='seed: …'.", flag_values=FLAGS)
flags.DEFINE_string(
    "workdir", None, "Folder of all runs; by default runs/sweep-<hash of the flags>.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "shared_teacher", True, "Train the teacher of every run with the first run's settings.", flag_values=FLAGS
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One of many runs.

    Attributes:
        title: what distinguishes it from the others.
        flags: its flags, without the workdir.
        workdir: its folder.
    """

    title: str
    flags: tuple[str, ...]
    workdir: pathlib.Path

    @property
    def results(self) -> dict[str, dict] | None:
        """Rows by stage, or None where it has not ended."""
        path = self.workdir / "results.json"
        return tables.read_table(path) if path.exists() else None

    def command(self) -> list[str]:
        """What `kd_keras.run` is started with."""
        return [*self.flags, f"--workdir={self.workdir}"]


def plan(argv: list[str]) -> tuple[pathlib.Path, list[Run], list[dict[str, str]]]:
    """Reads the command line, and checks every run's flags.

    Args:
        argv: as `sys.argv`.

    Returns:
        The sweep's folder, its runs, and what is varied in each of them, flag → value.

    Raises:
        InputError: a varied flag has no values, is varied twice or also set, or a run's flags are refused.
    """
    FLAGS.unparse_flags()
    try:
        common = FLAGS(argv, known_only=True)[1:]
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    varied = _varied(FLAGS.vary + ([f"seed: {' | '.join(FLAGS.seeds)}"] if FLAGS.seeds else []))
    for flag in ("workdir", "store"):
        if flag in varied:
            raise InputError(f"--{flag} can't be varied: the sweep sets it")
    digest = hashlib.sha256(json.dumps([common, varied, FLAGS.shared_teacher]).encode()).hexdigest()[:8]
    root = pathlib.Path(FLAGS.workdir or f"runs/sweep-{digest}").absolute()
    shared = [f"--tracking_uri={mlflow.local_store(root)}", f"--store={root / 'store'}", *common]
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    runs = []
    for combination in combinations:
        fixed = []
        if FLAGS.shared_teacher:
            own = {flag: value for flag, value in combination.items() if flag.startswith("teacher")}
            flags_of_teacher = _as_flags({**combinations[0], **own})
            fixed = teacher_flags(configuration.read([argv[0], *shared, *flags_of_teacher, f"--workdir={root}"]))
        title = ", ".join(f"{flag}={value}" for flag, value in combination.items())
        runs.append(Run(title, (*shared, *fixed, *_as_flags(combination)), root / _folder(combination)))
        configuration.read([argv[0], *runs[-1].command()])
    return root, runs, combinations


def _as_flags(values: dict[str, str]) -> list[str]:
    return [f"--{flag}={value}" for flag, value in values.items()]


def teacher_flags(config: configuration.Config) -> list[str]:
    """The flags that fix a teacher's training at what a config says, whatever other runs' settings are."""
    if not config.teacher.models or config.teacher.folders:
        return []
    following = {
        flag: setting
        for flag, setting in declared(configuration.Config).items()
        if flag.startswith("teacher_") and isinstance(setting.default, Follows)
    }
    fixed = [f"--{flag}={setting.kind.text(config[flag])}" for flag, setting in following.items()]
    if config.teacher.epochs is None and not any(
        spec.constant("kd_keras.models", model.name, "TRAINED") for model in config.teacher.models
    ):
        fixed.append(f"--teacher_epochs={config.training.epochs}")
    return fixed


def _varied(texts: list[str]) -> dict[str, list[str]]:
    varied = {}
    for text in texts:
        flag, colon, values = text.partition(":")
        flag, values = flag.strip().lstrip("-"), [value.strip() for value in values.split("|")]
        if not colon or not flag or not all(values):
            raise InputError(f"--vary={text!r}: give a flag and its values, such as 'seed: 0 | 1 | 2'")
        if flag in varied:
            raise InputError(f"--{flag} is varied twice: name all of its values once")
        if len(set(values)) < len(values):
            raise InputError(f"--vary={text!r} names a value twice: a run would be repeated")
        varied[flag] = values
    if not varied:
        raise InputError("nothing is varied: give --vary='flag: value | value' or --seeds=0,1,2")
    return varied


def _folder(varied: dict[str, str]) -> str:
    """A name that can be read, and that stays a run's whatever else is varied later."""
    text = ",".join(f"{flag}={value}" for flag, value in varied.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9.=,_-]+', '_', text)[:80]}-{digest}"


def main(argv: list[str]) -> int:
    """Runs a sweep.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code: 0 finished, 1 where a run failed, 2 bad input, 130 interrupted.
    """
    if {"--help", "-h"} & set(argv[1:]):
        print(f"{__doc__}\n{FLAGS.get_help()}\nEvery other flag goes to each run: python -m kd_keras.run --help")
        return 0
    return exit_code(lambda: _run(argv), "stopped; the same command goes on where it stopped")


def _run(argv) -> int:
    # TensorFlow reports every instruction set that it was not built for.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    console = Console(soft_wrap=True)
    root, runs, varied = plan(argv)
    failed = run_all(runs, console)
    pairs = list(zip(runs, varied, strict=True))
    summary = [{"flags": flags_, "workdir": str(run.workdir), "rows": run.results} for run, flags_ in pairs]
    files.write(root / "sweep.json", json.dumps(summary, indent=2) + "\n")
    _print(pairs, console)
    console.print(f"{root / 'sweep.json'}", highlight=False)
    _report(runs, root / report.NAME, console)
    return 1 if failed else 0


def _report(runs, path, console) -> None:
    """Writes the page of the runs that have ended."""
    finished = [FinishedRun(run.workdir) for run in runs if run.results is not None]
    missing = [f"{run.title} has no results: it is left out." for run in runs if run.results is None]
    if not finished:
        return
    try:
        report.write(finished, path, missing)
    except InputError as error:  # what is varied can make runs that can't be compared
        console.print(f"no report: {error}", highlight=False, markup=False)
    else:
        console.print(f"{path}", highlight=False, markup=False)


def run_all(runs: list[Run], console: Console) -> list[Run]:
    """Runs each in a process of its own; a failed run does not stop the others.

    A run that another sweep is working on is passed over until that sweep has ended it. It is then started all the
    same: where it is finished, it makes nothing and says so by its exit code.

    Args:
        runs: in this order.
        console: where it is printed how each ended.

    Returns:
        Those that failed.

    Raises:
        InputError: a run's flags are refused, or its folder holds another experiment.
    """
    waiting, failed = [], []
    for number, run in enumerate(runs, start=1):
        config = configuration.read(["kd_keras", *run.command()])
        Workdir(config).check()
        waiting.append((number, run, lease_of(config)))
    while waiting:
        passed_over = []
        for number, run, lease in waiting:
            if lease.take() is not None:
                passed_over.append((number, run, lease))
                continue
            try:
                failed += _run_one(number, run, len(runs), console)
            finally:
                lease.release()
        if len(passed_over) == len(waiting):
            time.sleep(0.5)
        waiting = passed_over
    return failed


def lease_of(config: configuration.Config) -> Lease:
    """The lease that a sweep holds while it works on a run, from before the run's process has started."""
    name = hashlib.sha256(str(config.run.workdir).encode()).hexdigest()[:16]
    return Lease(config.run.store / "leases" / f"run-{name}.json")


def _run_one(number, run, count, console) -> list[Run]:
    """Runs one; the run itself where it failed, else nothing."""
    title, error = f"run {number}/{count}  {run.title}", None
    log = run.workdir.with_name(f"{run.workdir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kd_keras.run", *run.command(), "--progress=none", "--wait"]
    with open(log, "ab") as out, console.status(title):
        ended = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        error = f"failed ({lines[-1] if lines else 'no output'}); see {log}"
    console.print(f"{title}: {error or _headline(run)}", highlight=False)
    return [run] if error else []


def _headline(run):
    row = run.results["student"]
    column, name = tables.score(row)
    return f"test {name} {row[f'test_{column}']:.4f}"


def _print(pairs, console) -> None:
    """A table of the runs, and of each combination over its seeds."""
    flags_ = list(pairs[0][1])
    finished = [run.results["student"] for run, _ in pairs if run.results is not None]
    column, name = tables.score(finished[0] if finished else {})
    name = {"accuracy": "acc"}.get(name, name)
    table = Table("n", *flags_, f"val {name} %", f"test {name} %")
    columns, groups = (f"val_{column}", f"test_{column}"), {}
    for run, varied in pairs:
        if run.results is not None:
            key = tuple(value for flag, value in varied.items() if flag != "seed")
            groups.setdefault(key, []).append((run, varied))
            row = run.results["student"]
            table.add_row("1", *varied.values(), *(f"{100 * row[name]:.2f}" for name in columns))
    if "seed" in flags_ and groups:
        table.add_section()
        for members in groups.values():
            values = ["all" if flag == "seed" else members[0][1][flag] for flag in flags_]
            cells = [tables.spread([100 * run.results["student"][name] for run, _ in members]) for name in columns]
            table.add_row(str(len(members)), *values, *cells)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
