"""Many runs of one experiment: ``python -m kd_keras.sweep --flagfile=… --vary='loss: kd() | soft_ce()' --seeds=0,1,2``.

Every combination of the varied flags is one run of `kd_keras.run`, in a process and a folder of its own. The first run
trains and measures the teacher; the others take it from there, with its cache where ``--cache_views`` asks for one. The
same command, run again, goes on where it stopped.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from kd_keras import files
from kd_keras.errors import InputError, exit_code
from kd_keras.run import config as configuration
from kd_keras.run.tracking import mlflow as tracking

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string(
    "vary", [], "A flag and its values: 'loss: kd() | soft_ce()'; several give every combination.", flag_values=FLAGS
)
flags.DEFINE_list("seeds", [], "Short for --vary='seed: …'.", flag_values=FLAGS)
flags.DEFINE_string(
    "workdir", None, "Folder of all runs; by default runs/sweep-<hash of the flags>.", flag_values=FLAGS
)
flags.DEFINE_bool("shared_teacher", True, "Train one teacher for all runs, of the first one's seed.", flag_values=FLAGS)
# Flags that change the data or the teacher by name: runs that differ in one have teachers of their own.
_OF_THE_TEACHER = (
    *("data", "image_size", "val_fraction", "skip_bad_images", "train_examples"),
    *("teacher", "teacher_loss", "teacher_epochs", "teacher_optimizer", "teacher_learning_rate"),
    *("teacher_stop_at_val_accuracy", "teacher_stop_check_steps", "pretrained"),
)


@dataclasses.dataclass
class Run:
    """One of many runs.

    Attributes:
        title: what tells it from the others.
        flags: its flags, but for those that follow from the other attributes.
        workdir: its folder.
        teacher_from: folders of the runs that it takes its teachers from.
        baseline_from: folder of the run that it takes the student without a teacher from, or None.
    """

    title: str
    flags: list[str]
    workdir: pathlib.Path
    teacher_from: tuple[pathlib.Path, ...] = ()
    baseline_from: pathlib.Path | None = None

    @property
    def results(self) -> dict[str, dict] | None:
        """Rows by role, or None where it has not ended."""
        path = self.workdir / "results.json"
        return {row["role"]: row for row in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else None

    def has(self, stage: str) -> bool:
        """Whether that stage, such as ``teacher``, has ended."""
        return _has(self.workdir, stage)

    def command(self) -> list[str]:
        """What `kd_keras.run` is started with."""
        flags_ = [*self.flags, f"--workdir={self.workdir}"]
        if self.teacher_from:
            flags_.append(f"--teacher_from={configuration.folders_text(self.teacher_from)}")
        if self.baseline_from is not None:
            flags_.append(f"--baseline_from={self.baseline_from}")
        return flags_


def _has(folder, stage):
    return (folder / "state" / f"{stage}.json").exists()


def plan(argv: list[str]) -> tuple[pathlib.Path, list[Run], list[dict[str, str]]]:
    """Reads the command line, and checks every run's flags.

    Args:
        argv: as `sys.argv`.

    Returns:
        The sweep's folder, its runs, and what is varied in each of them, flag → value.

    Raises:
        InputError: a varied flag has no values, is varied twice or set beside, or a run's flags are refused.
    """
    FLAGS.unparse_flags()
    try:
        common = FLAGS(argv, known_only=True)[1:]
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    varied = _varied(FLAGS.vary + ([f"seed: {' | '.join(FLAGS.seeds)}"] if FLAGS.seeds else []))
    for flag in ("teacher_from", "workdir"):
        if any(flag == name for name in varied):
            raise InputError(f"--{flag} can't be varied: the sweep sets it")
    digest = hashlib.sha256(json.dumps([common, varied, FLAGS.shared_teacher]).encode()).hexdigest()[:8]
    root = pathlib.Path(FLAGS.workdir or f"runs/sweep-{digest}").absolute()
    runs, first = [], {}
    each = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    for one in each:
        title = ", ".join(f"{flag}={value}" for flag, value in one.items())
        own = [f"--{flag}={value}" for flag, value in one.items()]
        run = Run(title, [f"--tracking_uri={tracking.local_store(root)}", *common, *own], root / _folder(one))
        resolved = configuration.read([argv[0], *run.command()])
        if FLAGS.shared_teacher and resolved.teacher and not resolved.teacher_from:
            lender = first.setdefault(tuple(one.get(flag) for flag in _OF_THE_TEACHER), run.workdir)
            run.teacher_from = () if lender == run.workdir else (lender,) * len(resolved.teacher)
        runs.append(run)
    return root, runs, each


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
    """A name that can be read, and is a run's own whatever else is varied later."""
    text = ",".join(f"{flag}={value}" for flag, value in varied.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9.=,_-]+', '_', text)[:80]}-{digest}"


def main(argv: list[str]) -> int:
    """Runs a sweep.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code: 0 done, 1 where a run failed, 2 bad input, 130 interrupted.
    """
    if {"--help", "-h"} & set(argv[1:]):
        print(f"{__doc__}\n{FLAGS.get_help()}\nEvery other flag goes to each run: python -m kd_keras.run --help")
        return 0
    return exit_code(lambda: _run(argv), "stopped; the same command goes on where it stopped")


def _run(argv) -> int:
    console = Console(soft_wrap=True)
    root, runs, varied = plan(argv)
    failed = run_all(runs, console)
    pairs = list(zip(runs, varied, strict=True))
    summary = [{"flags": flags_, "workdir": str(run.workdir), "rows": run.results} for run, flags_ in pairs]
    files.write(root / "sweep.json", json.dumps(summary, indent=2) + "\n")
    _print(pairs, console)
    console.print(f"{root / 'sweep.json'}", highlight=False)
    return 1 if failed else 0


def run_all(runs: list[Run], console: Console) -> list[Run]:
    """Runs what has not ended, each in a process of its own; one that fails does not stop the others.

    Args:
        runs: in this order; one that lends its teacher or baseline comes before those that take it.
        console: where it is told how each ended.

    Returns:
        Those that failed, or could not be started as another had failed.

    Raises:
        InputError: a run's flags are refused, or its folder holds another experiment.
    """
    for run in runs:
        configuration.check_workdir(configuration.read(["kd_keras", *run.command()]))
    failed = []
    for number, run in enumerate(runs, start=1):
        title = f"run {number}/{len(runs)}  {run.title}"
        if error := None if run.has("measured") else _run_one(run, console, title):
            failed.append(run)
        console.print(f"{title}: {error or _headline(run)}", highlight=False)
    return failed


def _run_one(run, console, title) -> str | None:
    """What went wrong, or None."""
    lacking = [("teacher", folder) for folder in run.teacher_from if not any((folder / "state").glob("teacher*.json"))]
    if run.baseline_from is not None and not _has(run.baseline_from, "baseline"):
        lacking.append(("baseline", run.baseline_from))
    if lacking:
        return f"left out, for its {lacking[0][0]}'s run failed ({lacking[0][1].name})"
    log = run.workdir.with_name(f"{run.workdir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kd_keras.run", *run.command(), "--progress=none"]
    with open(log, "ab") as out, console.status(title):
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"failed ({lines[-1] if lines else 'no output'}); see {log}"


def _headline(run):
    return f"test accuracy {_student(run)['test_accuracy']:.4f}"


def _student(run) -> dict:
    return run.results["student distilled"]


def _print(pairs, console) -> None:
    """A table of the runs, and of each combination over its seeds."""
    flags_ = list(pairs[0][1])
    table = Table("n", *flags_, "val acc %", "test acc %")
    groups = {}
    for run, varied in pairs:
        if run.results is not None:
            key = tuple(value for flag, value in varied.items() if flag != "seed")
            groups.setdefault(key, []).append((run, varied))
            row = _student(run)
            figures = (f"{100 * row[name]:.2f}" for name in ("val_accuracy", "test_accuracy"))
            table.add_row("1", *varied.values(), *figures)
    if "seed" in flags_ and groups:
        table.add_section()
        for members in groups.values():
            values = ["all" if flag == "seed" else members[0][1][flag] for flag in flags_]
            cells = [_spread([_student(run)[name] for run, _ in members]) for name in ("val_accuracy", "test_accuracy")]
            table.add_row(str(len(members)), *values, *cells)
    console.print(table)


def _spread(values) -> str:
    mean = 100 * statistics.mean(values)
    return f"{mean:.2f} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


if __name__ == "__main__":
    # TensorFlow tells of every instruction set it was not built for.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv))
