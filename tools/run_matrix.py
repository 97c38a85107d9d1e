"""Runs a study's whole set of flagfiles and puts what the study published beside what came out.

    python tools/run_matrix.py s2 --seeds=0,1,2
    python tools/run_matrix.py s4 --figure=experiments/figures/s4_curves.png -- --epochs=5
    python tools/run_matrix.py s1 --print --into=experiments/RESULTS.md --section=s1

Every row (``experiments/<STUDY>_*.flags``) and seed is one run of `kd_keras.run`, in a process and a folder of its own,
all in one MLflow store. What stands behind ``--`` goes to every run. Rows of one seed whose teachers would be trained
alike share one teacher, and likewise the student without a teacher. The same command goes on where it stopped; a row
that fails does not stop the others, and makes the exit code 1.

The table: mean ± sample standard deviation over the n seeds, gains over the student without KD paired by seed. † marks
rows whose teacher does not beat that student on validation data.
"""

import argparse
import dataclasses
import fnmatch
import hashlib
import json
import pathlib
import re
import shlex
import statistics
import sys

import results
from rich.console import Console

from kd_keras.errors import InputError, exit_code
from kd_keras.run import config as configuration
from kd_keras.run import other_runs
from kd_keras.run.report import figures
from kd_keras.run.tracking import mlflow as tracking
from kd_keras.sweep import __main__ as sweep

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
TEACHER, BASELINE, STUDENT = "teacher", "student without KD", "student distilled"
#: Columns of a published table by the name that flagfiles give them, and their key in results.json.
COLUMNS = {
    "train %": "train_accuracy",
    "validation %": "val_accuracy",
    "test %": "test_accuracy",
    "precision %": "precision",
    "recall %": "recall",
    "F1 %": "f1",
    "parameters M": "parameters",
    "latency ms": "latency_ms_median",
}
_ROLES = {"teacher": TEACHER, "baseline": BASELINE, "student": STUDENT}
#: S1's rows are pairs: s1_<direction>_<teacher>_<student>; their table has the teachers in columns.
_PAIRS = re.compile(r"s1_(normal|reverse|defective)_([a-z0-9]+)_([a-z0-9]+)")
# Fields of a run that its teacher does not depend on; the teacher's own spec and epochs are compared apart.
_BESIDE_TEACHER = (
    *("student", "loss", "baseline_loss", "scheme", "baseline", "epochs", "pretrain_epochs"),
    *("optimizer", "learning_rate"),
    *("teacher", "teacher_epochs", "teacher_from", "teacher_dtype", "baseline_from"),
    *("cache_views", "cache_taps", "cache_dtype", "cache_top_k", "cache_seed"),
    *("compress", "compress_loss", "compress_controls", "compress_epochs", "compress_optimizer"),
    "compress_learning_rate",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A flagfile and what its header says.

    Attributes:
        path: the flagfile.
        title: what the row is called in a table.
        baseline: what the student without a teacher is called.
        columns: the study's own, of `COLUMNS`.
        published: role → column → the printed figure.
    """

    path: pathlib.Path
    title: str
    baseline: str
    columns: tuple[str, ...]
    published: dict[str, dict[str, str]]


def read_row(path: pathlib.Path) -> Row:
    """Reads a flagfile's header.

    Raises:
        InputError: its line ``# Published:`` is missing or can't be read.
    """
    header = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"# (\w+): (.*)", line):
            header.setdefault(match[1], match[2].rstrip("."))
    text = header.get("Published", "")
    match = re.fullmatch(r"(.*) \((.*)\)", text)
    columns = tuple(match[2].split(" / ")) if match else ()
    if not columns or set(columns) - set(COLUMNS):
        raise InputError(
            f"{path}: '# Published: {text}' can't be read: write 'teacher 99.92 / 98.80, student … (train % / test %)' "
            f"or 'none (test %)', the columns of {', '.join(COLUMNS)}"
        )
    published = {}
    for part in () if match[1] == "none" else match[1].split(", "):
        name, _, figures = part.partition(" ")
        values = figures.split(" / ")
        if name not in _ROLES or len(values) != len(columns):
            raise InputError(f"{path}: '{part}' can't be read: write {', '.join(_ROLES)} and {len(columns)} figures")
        published[_ROLES[name]] = dict(zip(columns, values, strict=True))
    title = header.get("Row", path.stem)
    return Row(path, title, header.get("Baseline", BASELINE), columns, published)


@dataclasses.dataclass(frozen=True)
class Member:
    """A row's run of one seed."""

    row: Row
    seed: str
    run: sweep.Run


def plan(rows: list[Row], seeds: list[str], root: pathlib.Path, common: list[str], selected) -> list[Member]:
    """Every row and seed, those that lend a teacher or a baseline ahead of those that take it.

    Args:
        rows: of the study.
        seeds: of the runs.
        root: folder of all runs.
        common: flags of every run.
        selected: tells whether a row is to be run.

    Raises:
        InputError: a row's flags are refused.
    """
    teachers, baselines, chosen = {}, {}, []
    for one in (Member(row, seed, _run(row, seed, len(seeds), root, common)) for seed in seeds for row in rows):
        path = one.run.workdir / "config.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if selected(one.row):
            config = configuration.read(["kd_keras", *one.run.command()])
            chosen.append((one, config, _lenders(one.run, before, config.identity())))
        elif before is not None:
            # Not to be run, it lends what it has finished, whatever its other flags were.
            if before["teacher_from"] == "none" and one.run.has("teacher"):
                teachers.setdefault(_teacher_key(before, before["teacher"]), one.run.workdir)
            if before["baseline_from"] == "none" and one.run.has("baseline"):
                baselines.setdefault(_baseline_key(before), one.run.workdir)
    # What has begun keeps to where it took its teacher from, whatever rows were selected then. An ensemble comes behind
    # the rows that have its teachers one by one.
    chosen.sort(key=lambda item: (item[2] is None, seeds.index(item[0].seed), len(item[1].teacher) > 1))
    for one, config, before in chosen:
        run, fields = one.run, config.identity()
        if before is not None:
            run.teacher_from, run.baseline_from = before
        else:
            _borrow(run, config, teachers, baselines)
        if not run.teacher_from and len(config.teacher) == 1:
            teachers.setdefault(_teacher_key(fields, str(config.teacher[0])), run.workdir)
        if run.baseline_from is None and config.baseline:
            baselines.setdefault(_baseline_key(fields), run.workdir)
    return [one for one, _, _ in chosen]


def _run(row, seed, seeds, root, common):
    title = row.path.stem if seeds == 1 else f"{row.path.stem}, seed {seed}"
    own = [f"--tracking_uri={tracking.local_store(root)}", f"--flagfile={row.path}", *common, f"--seed={seed}"]
    return sweep.Run(title, own, root / f"{row.path.stem}-seed{seed}")


def _lenders(run, before, now):
    """Where a run that has begun takes its teachers and its baseline from; None where it has not, or is another."""
    if before is None or any(
        before.get(key) != now[key] for key in now if key not in ("teacher_from", "baseline_from")
    ):
        return None
    root = run.workdir.parent

    def lenders(name):
        # Those of this matrix; one that the flags name needs no other word.
        text = before[name]
        texts = [] if text in ("none", now[name]) else text.removeprefix(f"{root}/").split(f",{root}/")
        return tuple(root / text for text in texts)

    return lenders("teacher_from"), next(iter(lenders("baseline_from")), None)


def _borrow(run, config, teachers, baselines):
    """Takes what another run of the matrix trains alike; an ensemble takes all of its teachers, or none."""
    fields = config.identity()
    if config.teacher and not config.teacher_from:
        lenders = [teachers.get(_teacher_key(fields, str(one))) for one in config.teacher]
        # The same architecture twice would be the same teacher twice.
        if all(lenders) and len(set(lenders)) == len(lenders):
            run.teacher_from = tuple(lenders)
    if config.baseline and config.baseline_from is None:
        run.baseline_from = baselines.get(_baseline_key(fields))


def _teacher_key(fields: dict[str, str], one: str) -> str:
    """What a teacher depends on: its spec, its epochs, and those of a run's resolved flags that have to do with it."""
    epochs = fields["epochs" if fields["teacher_epochs"] == "none" else "teacher_epochs"]
    own = {key: value for key, value in fields.items() if key not in _BESIDE_TEACHER}
    return json.dumps([one, epochs, own], sort_keys=True)


def _baseline_key(fields: dict[str, str]) -> str:
    return json.dumps(other_runs.of_the_baseline(fields), sort_keys=True)


# ---- the table ----


@dataclasses.dataclass(frozen=True)
class Done:
    """What the seeds of one row gave.

    Attributes:
        row: the flagfile.
        runs: rows by role, a dict a finished seed.
    """

    row: Row
    runs: list[dict[str, dict]]

    def values(self, role: str, key: str) -> list | None:
        """A figure over the seeds; None where there is none."""
        values = [run[role][key] for run in self.runs if role in run]
        return values if values and None not in values else None

    def cell(self, role: str, column: str) -> str:
        """Ours, as text."""
        values = self.values(role, COLUMNS[column])
        if values is None:
            return "–"
        if column == "parameters M":
            return f"{statistics.median(values) / 1e6:.2f}"
        return results.cell([run[role] for run in self.runs if role in run], COLUMNS[column])

    @property
    def teacher(self) -> str:
        """The role of what teaches the student."""
        return next((role for role in ("teacher ensemble", TEACHER) if self.runs and role in self.runs[0]), TEACHER)

    @property
    def gain(self) -> str:
        """The distilled student's lead over the same student without a teacher, test accuracy."""
        leads = results.leads(self.runs, "test_accuracy")
        return "–" if not leads else results.spread(leads, sign="+")

    @property
    def doubtful(self) -> bool:
        """Whether the teacher does not beat the student without a teacher, on validation data."""
        teacher, baseline = (self.values(role, "val_accuracy") for role in (self.teacher, BASELINE))
        return teacher is not None and baseline is not None and statistics.mean(teacher) <= statistics.mean(baseline)

    @property
    def mark(self) -> str:
        return " †" if self.doubtful else ""


def gather(members: list[Member]) -> list[Done]:
    """The finished runs by row, rows in their flagfiles' order."""
    found = {}
    for one in sorted(members, key=lambda one: (one.row.path.name, one.seed)):
        runs = found.setdefault(one.row.path, Done(one.row, [])).runs
        if (rows := one.run.results) is not None:
            runs.append({role: row for role, row in rows.items() if "TFLite" not in role})
    return list(found.values())


def table(done: list[Done]) -> str:
    """The Markdown of a study: S1's pairs with the teachers in columns, every other row in lines of its own."""
    pairs, others = {}, []
    for one in done:
        match = _PAIRS.fullmatch(one.row.path.stem)
        if match:
            pairs.setdefault(match[1], {})[match[2], match[3]] = one
        else:
            others.append(one)
    blocks = [_pairs(direction, found) for direction, found in pairs.items()]
    if any(one.runs for one in others):
        blocks.append(_lines(others))
    notes = []
    if any(one.doubtful for one in done):
        notes = [
            "† The teacher does not beat the student without KD on validation data: where that is not on purpose "
            "(reverse, defective), the row says nothing about distillation."
        ]
    if missing := [one.row.title for one in done if not one.runs]:
        notes.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join([*blocks, *notes])


def _lines(done) -> str:
    columns = done[0].row.columns
    sides = (" published", "") if any(one.row.published for one in done) else ("",)
    heads = [f"{name}{side}" for name in columns for side in sides]
    lines = [
        f"| row | role | architecture | n | {' | '.join(heads)} | gain, test points |",
        "|---" * (len(heads) + 5) + "|",
    ]
    shown = set()
    for one in done:
        for role in dict.fromkeys(role for run in one.runs for role in run):
            architecture = next(run[role]["architecture"] for run in one.runs if role in run)
            cells = [
                _published(one, role, name) if side else one.cell(role, name) for name in columns for side in sides
            ]
            # A teacher or baseline that another row lent has its line there.
            key = (role, architecture, len(one.runs), *cells)
            if role != STUDENT and key in shown:
                continue
            shown.add(key)
            gain = f"{one.gain}{one.mark}" if role == STUDENT else ""
            title = one.row.title if role != BASELINE or one.row.baseline == BASELINE else one.row.baseline
            lines.append(f"| {title} | {role} | `{architecture}` | {len(one.runs)} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)


def _published(one, role, column) -> str:
    return one.row.published.get(role, {}).get(column, "–")


def _pairs(direction, found) -> str:
    """One of S1's tables: students in lines, teachers in columns."""
    teachers, students = (list(dict.fromkeys(key[at] for key in found)) for at in (0, 1))
    columns = next(iter(found.values())).row.columns
    heads = [text for name in teachers for text in (f"{name} published", f"{name} ours", "gain, test points")]
    runs = [len(one.runs) for one in found.values()]
    n = f"n = {min(runs)}" if min(runs) == max(runs) else f"n = {min(runs)} to {max(runs)}"
    lines = [
        f"{direction}, {' / '.join(columns)}, {n}:",
        "",
        f"| student | {' | '.join(heads)} | without KD, ours |",
        "|---" * (len(heads) + 2) + "|",
    ]

    def together(one, role):
        ours = [one.cell(role, name) for name in columns]
        printed = [_published(one, role, name) for name in columns]
        return [" / ".join(texts) if set(texts) != {"–"} else "–" for texts in (printed, ours)]

    cells = []
    for teacher in teachers:
        # One that has been run, if there is any.
        one = max((one for key, one in found.items() if key[0] == teacher), key=lambda one: len(one.runs))
        cells += [*together(one, TEACHER), ""]
    lines.append(f"| (the teacher) | {' | '.join(cells)} |  |")
    for student in students:
        cells, alone = [], "–"
        for teacher in teachers:
            one = found.get((teacher, student))
            cells += ["–"] * 3 if one is None else [*together(one, STUDENT), f"{one.gain}{one.mark}"]
            if one is not None and alone == "–":
                alone = together(one, BASELINE)[1]
        lines.append(f"| {student} | {' | '.join(cells)} | {alone} |")
    return "\n".join(lines)


def draw(members: list[Member], path: pathlib.Path) -> None:
    """Draws loss and accuracy of every row's student, and of those without a teacher, of the first seed.

    Raises:
        InputError: no run of that seed has ended.
    """
    seed, students, baselines = members[0].seed, {}, {}
    for one in sorted(members, key=lambda one: one.row.path.name):
        if one.seed != seed or not one.run.has("measured"):
            continue
        if one.run.has("baseline"):
            series = _series(one.run, "baseline")
            if series not in baselines.values():
                baselines[one.row.baseline if not baselines else f"{one.row.baseline}, {one.row.title}"] = series
        students[one.row.title] = _series(one.run, "student")
    if not students:
        raise InputError(f"no run of seed {seed} has ended: there is nothing to draw")
    figures.curves({**baselines, **students}, path)


def _series(run, stage):
    record = json.loads((run.workdir / "state" / f"{stage}.json").read_text(encoding="utf-8"))
    # What was made of a model that several were trained in has the curves of that one.
    return record["series"] if "series" in record else _series(run, record["members"][0])


# ---- the command line ----


def main(argv: list[str]) -> int:
    """Runs a study, or prints its table.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code: 0 done, 1 where a run failed, 2 bad input, 130 interrupted.
    """
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="what the flagfiles' names begin with: s0, s1, s2, s3, s4, ensemble …")
    parser.add_argument("--seeds", default="0", help="seeds, joined by commas")
    parser.add_argument("--rows", default="*", help="only these flagfiles: globs, joined by commas")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs; by default runs/<study>")
    parser.add_argument("--experiments", type=pathlib.Path, default=EXPERIMENTS, help="folder of the flagfiles")
    parser.add_argument("--print", action="store_true", help="run nothing, print what has ended")
    parser.add_argument("--dry_run", action="store_true", help="run nothing, print the commands")
    parser.add_argument("--figure", type=pathlib.Path, help="draw the students' curves of the first seed to this PNG")
    parser.add_argument("--into", type=pathlib.Path, help="put the table into this Markdown page …")
    parser.add_argument("--section", help="… in place of what stands in this section; by default the study's")
    options = parser.parse_args(argv[1:at])
    return exit_code(lambda: _main(options, argv[at + 1 :]), "stopped; the same command goes on where it stopped")


def _main(options, common) -> int:
    paths = sorted(options.experiments.glob(f"{options.study}_*.flags"))
    globs = options.rows.split(",")

    def selected(row):
        return any(fnmatch.fnmatch(row.path.stem, glob) for glob in globs)

    rows = [read_row(path) for path in paths]
    if not any(map(selected, rows)):
        raise InputError(f"{options.experiments} has no {options.study}_*.flags that --rows={options.rows} selects")
    seeds = list(dict.fromkeys(options.seeds.split(",")))
    members = plan(rows, seeds, _root(options, common), common, selected)
    if options.dry_run:
        for one in members:
            print(shlex.join(["python", "-m", "kd_keras.run", *one.run.command()]))
        return 0
    console = Console(soft_wrap=True)
    failed = []
    if not options.print:
        failed = sweep.run_all([one.run for one in members], console)
    text = table(gather(members))
    if options.figure is not None:
        draw(members, options.figure)
    if options.into is None:
        print(text)
    else:
        results.put(options.into, options.section or options.study, text)
    return 1 if failed else 0


def _root(options, common) -> pathlib.Path:
    if options.workdir is not None:
        return options.workdir.absolute()
    digest = f"-{hashlib.sha256(json.dumps(common).encode()).hexdigest()[:8]}" if common else ""
    return pathlib.Path("runs", f"{options.study}{digest}").absolute()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
