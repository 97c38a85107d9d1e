"""Many runs of one experiment: ``python -m kd_keras.sweep --flagfile=… --vary='loss: kd() | soft_ce()' --seeds=0,1,2``.

Every combination of the varied flags is one run of `kd_keras.run`, in a process and a folder of its own. The runs share
a store, so that each teacher and baseline is trained once. The settings of the teacher are those of the first run, but
for ``teacher`` and ``teacher_`` flags that are varied: a sweep over seeds or learning rates has one teacher. The same
command goes on where it stopped; started twice, two processes share the work.

With ``--search='learning_rate: 1e-4..1e-2 log; loss.kd.temperature: 1..20 log'`` Optuna chooses the values, by the
accuracy on the validation split: docs/sweeps.md.
"""

import hashlib
import itertools
import json
import os
import pathlib
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from kd_keras import files, flagfiles
from kd_keras.errors import InputError
from kd_keras.processes import exit_code, show
from kd_keras.run import config as configuration
from kd_keras.run import tracking
from kd_keras.run.page import report
from kd_keras.run.page.folders import Run as FinishedRun
from kd_keras.run.report import tables
from kd_keras.run.tracking import names
from kd_keras.sweep import curve
from kd_keras.sweep.runs import Run, folder_name, run_all, teacher_flags

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string(
    "vary", [], "A flag and its values: 'loss: kd() | soft_ce()'; several give every combination.", flag_values=FLAGS
)
flags.DEFINE_list("seeds", [], "Short for --vary='seed: …'.", flag_values=FLAGS)
flags.DEFINE_multi_string(
    "search",
    [],
    "What to search, several separated by ; such as 'loss.kd.temperature: 1..20 log; epochs: 10..40'; auto takes the "
    "ranges of the losses, the learning rate and the epochs.",
    flag_values=FLAGS,
)
flags.DEFINE_enum("sampler", "tpe", ["tpe", "random", "grid"], "How a search chooses values.", flag_values=FLAGS)
flags.DEFINE_enum(
    "pruner",
    "hyperband",
    ["hyperband", "none"],
    "What ends trials early that are worse than others.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "storage",
    None,
    "Where a search is kept: the URL of a database, sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME; by default "
    "a file in --workdir.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "trials",
    None,
    "Trials of a search, of all processes together; by default 20, or without end with --minutes.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "minutes", None, "Minutes after which this process ends its part of a search.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "confirm",
    0,
    "Number of new seeds on which a search's best configuration is compared with that of the flags.",
    lower_bound=0,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "workdir", None, "Folder of all runs; by default runs/sweep-<hash of the flags>.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "shared_teacher", True, "Train the teacher of every run with the first run's settings.", flag_values=FLAGS
)


#: Flags that --search alone reads.
_OF_SEARCH = ("sampler", "pruner", "storage", "trials", "minutes", "confirm")


def read(argv: list[str]) -> list[str]:
    """Reads the flags of the sweep into `FLAGS`; returns those that go to each run.

    Raises:
        InputError: a flag's value is not accepted.
    """
    FLAGS.unparse_flags()
    arguments, _ = flagfiles.expand(argv[1:])
    try:
        common = FLAGS([argv[0], *arguments], known_only=True)[1:]
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    given = [f"--{name}" for name in _OF_SEARCH if FLAGS[name].present]
    if given and not FLAGS.search:
        raise InputError(f"{', '.join(given)} has no effect without --search: give both, or neither")
    if FLAGS.search and (FLAGS.vary or FLAGS.seeds):
        raise InputError("--search goes without --vary and --seeds: give values as --search='loss: kd() | soft_ce()'")
    return common


def check(argv: list[str]) -> None:
    """Raises InputError where a command line is refused; nothing is run."""
    common = read(argv)
    if FLAGS.search:
        from kd_keras.sweep import search

        search.plan(common, _options())
    else:
        plan(argv)


def _options():
    from kd_keras.sweep import search

    return search.Options(
        search=tuple(FLAGS.search),
        workdir=FLAGS.workdir,
        shared_teacher=FLAGS.shared_teacher,
        **{name: FLAGS[name].value for name in _OF_SEARCH},
    )


def plan(argv: list[str]) -> tuple[pathlib.Path, list[Run], list[dict[str, str]]]:
    """Reads the command line, and checks every run's flags.

    Args:
        argv: as `sys.argv`.

    Returns:
        The sweep's folder, its runs, and what is varied in each of them, flag → value.

    Raises:
        InputError: a varied flag has no values, is varied twice or also set, or a run's flags are refused.
    """
    common = read(argv)
    varied = _varied(FLAGS.vary + ([f"seed: {' | '.join(FLAGS.seeds)}"] if FLAGS.seeds else []))
    for flag in ("workdir", "store"):
        if flag in varied:
            raise InputError(f"--{flag} can't be varied: the sweep sets it")
    digest = hashlib.sha256(json.dumps([common, varied, FLAGS.shared_teacher]).encode()).hexdigest()[:8]
    root = pathlib.Path(FLAGS.workdir or f"runs/sweep-{digest}").absolute()
    own = [*tracking.shared_flags(common, root), f"--experiment={root.name}", f"--store={root / 'store'}"]
    shared = [*own, *common]
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    runs = []
    for combination in combinations:
        fixed = []
        if FLAGS.shared_teacher:
            own = {flag: value for flag, value in combination.items() if flag.startswith("teacher")}
            flags_of_teacher = _as_flags({**combinations[0], **own})
            fixed = teacher_flags(configuration.read([argv[0], *shared, *flags_of_teacher, f"--workdir={root}"]))
        title = ", ".join(f"{flag}={value}" for flag, value in combination.items())
        flags, folder = (*shared, *fixed, *_as_flags(combination)), root / folder_name(combination)
        config = configuration.read([argv[0], *flags, f"--workdir={folder}"])
        name = names.run_name(config, tuple(flag for flag in varied if len(varied[flag]) > 1))
        if config.tracking.run_name is None and name != names.run_name(config):
            flags += (f"--run_name={name}",)
        runs.append(Run(title, flags, folder))
    return root, runs, combinations


def _as_flags(values: dict[str, str]) -> list[str]:
    return [f"--{flag}={value}" for flag, value in values.items()]


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
        raise InputError("nothing is varied: give --vary='flag: value | value', --seeds=0,1,2 or --search=auto")
    return varied


def main(argv: list[str]) -> int:
    """Runs a sweep.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code: 0 finished, 1 where a run failed, and those of `kd_keras.processes.exit_code`.
    """
    if {"--help", "-h"} & set(argv[1:]):
        return show(f"{__doc__}\n{FLAGS.get_help()}\nEvery other flag goes to each run: python -m kd_keras.run --help")
    return exit_code(lambda: _run(argv), "stopped; the same command goes on where it stopped")


def _run(argv) -> int:
    # TensorFlow reports every instruction set that it was not built for.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    console = Console(soft_wrap=True)
    common = read(argv)
    if FLAGS.search:
        from kd_keras.sweep import search

        return search.run(common, _options(), console)
    root, runs, varied = plan(argv)
    failed = run_all(runs, console)
    pairs = list(zip(runs, varied, strict=True))
    summary = [{"flags": flags_, "workdir": str(run.workdir), "rows": run.results} for run, flags_ in pairs]
    files.write(root / "sweep.json", json.dumps(summary, indent=2) + "\n")
    _print(pairs, console)
    console.print(f"{root / 'sweep.json'}", highlight=False)
    if curve.draw(pairs, root / curve.NAME):
        console.print(f"{root / curve.NAME}", highlight=False)
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
