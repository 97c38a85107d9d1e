"""Runs a study's whole set of flagfiles and prints their results, with the published ones, as a table.

    python tools/run_matrix.py s2
    python tools/run_matrix.py s4 --figure=experiments/figures/s4_curves.png -- --epochs=5
    python tools/run_matrix.py s1 --print --into=experiments/RESULTS.md --section=s1
    python tools/run_matrix.py s1 --print --compare 's1_defective_*' 's1_normal_*'

Every row (``experiments/<STUDY>_*.flags``) and seed is a run of `kd_keras.run`, in a process and a folder of its own,
with one MLflow store for all. The flags after ``--`` go to every run. All runs share a store of models, so that each
teacher and baseline is trained once; a row's teacher has the settings of the first seed and serves all seeds. A row has
as many seeds as the line ``# n: 3`` of its header says, or those of ``--seeds``. The same command goes on where it
stopped; a row that fails does not stop the others, and makes the exit code 1.

The table: mean ± sample standard deviation over n models, gains over the baseline (the student trained without a
teacher) paired by seed. † marks rows whose teacher does not beat the baseline on validation data.

``--compare A B`` adds a line on two groups of rows, globs whose ``*`` stand for the same: the students of A minus those
of B, test accuracy, each pair of rows one difference, the mean over its seeds. p values of several such lines are
corrected by Holm's method.
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

from kd_keras.errors import InputError
from kd_keras.processes import exit_code
from kd_keras.run import config as configuration
from kd_keras.run import tracking
from kd_keras.run.report import figures, tables
from kd_keras.run.workdir import read_state
from kd_keras.sweep import runs as sweep
from kd_keras.sweep import statistics as seeds

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
TEACHER, BASELINE, STUDENT = "teacher", "baseline", "student"
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
#: S1's rows are pairs: s1_<direction>_<teacher>_<student>; their table has the teachers in columns.
_PAIRS = re.compile(r"s1_(normal|reverse|defective)_([a-z0-9]+)_([a-z0-9]+)")


@dataclasses.dataclass(frozen=True)
class Row:
    """A flagfile and what its header says.

    Attributes:
        path: the flagfile.
        title: what the row is called in a table.
        baseline: what the baseline is called, or None where it has the row's title.
        columns: those of the study's tables, of `COLUMNS`.
        published: stage → column → the printed figure.
        n: how many seeds it is run with; decided before it is run.
    """

    path: pathlib.Path
    title: str
    baseline: str | None
    columns: tuple[str, ...]
    published: dict[str, dict[str, str]]
    n: int = 1


def read_row(path: pathlib.Path) -> Row:
    """Reads a flagfile's header.

    Raises:
        InputError: its line ``# Published:`` is missing or can't be read, or ``# n:`` is no count.
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
        if name not in (TEACHER, BASELINE, STUDENT) or len(values) != len(columns):
            known = ", ".join((TEACHER, BASELINE, STUDENT))
            raise InputError(f"{path}: '{part}' can't be read: write {known} and {len(columns)} figures")
        published[name] = dict(zip(columns, values, strict=True))
    count = re.match(r"[1-9]\d*(?!\S)", header.get("n", "1").replace(",", " "))
    if count is None:
        raise InputError(f"{path}: '# n: {header['n']}' can't be read: write a number of seeds, '# n: 3'")
    return Row(path, header.get("Row", path.stem), header.get("Baseline"), columns, published, int(count[0]))


@dataclasses.dataclass(frozen=True)
class Member:
    """A row's run of one seed."""

    row: Row
    seed: str
    run: sweep.Run


def plan(rows: list[Row], seeds: list[str] | None, root: pathlib.Path, common: list[str]) -> list[Member]:
    """Every row and seed, in the order in which they are run.

    Args:
        rows: of the study.
        seeds: of the runs; None for 0 to n − 1, by each row's header.
        root: folder of all runs.
        common: flags of every run.

    Raises:
        InputError: a row's flags are refused.
    """
    shared = [*tracking.shared_flags(common, root), f"--store={root / 'store'}"]
    members = []
    for row in rows:
        of_row = seeds or [str(seed) for seed in range(row.n)]
        flags = [*shared, f"--flagfile={row.path}", *common]
        first = configuration.read(["kd_keras", *flags, f"--seed={of_row[0]}", f"--workdir={root}"])
        flags += sweep.teacher_flags(first)
        for at, seed in enumerate(of_row):
            title = row.path.stem if len(of_row) == 1 else f"{row.path.stem}, seed {seed}"
            run = sweep.Run(title, (*flags, f"--seed={seed}"), root / f"{row.path.stem}-seed{seed}")
            configuration.read(["kd_keras", *run.command()])
            members.append((at, Member(row, seed, run)))
    # One seed of all rows before the next.
    return [member for _, member in sorted(members, key=lambda member: member[0])]


# ---- the table ----


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The results of one row's seeds.

    Attributes:
        row: the flagfile.
        by_seed: the table's rows by stage, without files, for each finished seed.
    """

    row: Row
    by_seed: dict[str, dict[str, dict]]

    @property
    def runs(self) -> list[dict[str, dict]]:
        """Those of all seeds."""
        return list(self.by_seed.values())

    def rows(self, stage: str) -> list[dict]:
        """What the seeds gave for a stage; seeds that share a model give one row."""
        return results.distinct([run[stage] for run in self.runs if stage in run])

    def cell(self, stage: str, column: str) -> str:
        """Our figure, as text."""
        key, rows = COLUMNS[column], self.rows(stage)
        if not rows or any(row[key] is None for row in rows):
            return "–"
        if column == "parameters M":
            return f"{statistics.median(row[key] for row in rows) / 1e6:.2f}"
        return results.cell(rows, key)

    @property
    def gain(self) -> str:
        """The student's lead over the baseline, test accuracy, paired by seed."""
        leads = results.leads(self.runs, "test_accuracy")
        return "–" if not leads else tables.spread(leads, sign="+")

    @property
    def verdict(self) -> str:
        """What the seeds' leads decide; nothing of one seed."""
        leads = results.leads(self.runs, "test_accuracy")
        return f", {seeds.effect(leads).verdict()}" if len(leads) > 1 else ""

    @property
    def is_doubtful(self) -> bool:
        """Whether the teacher, or the ensemble of teachers, does not beat the baseline on validation data."""
        teacher = "ensemble" if self.rows("teacher1") else TEACHER
        values = [[row["val_accuracy"] for row in self.rows(stage)] for stage in (teacher, BASELINE)]
        return all(values) and statistics.mean(values[0]) <= statistics.mean(values[1])

    @property
    def mark(self) -> str:
        return " †" if self.is_doubtful else ""


def gather(members: list[Member]) -> list[Outcome]:
    """The finished runs by row, rows in their flagfiles' order."""
    outcomes = {}
    for member in sorted(members, key=lambda member: (member.row.path.name, member.seed)):
        by_seed = outcomes.setdefault(member.row.path, Outcome(member.row, {})).by_seed
        if (rows := member.run.results) is not None:
            by_seed[member.seed] = {stage: row for stage, row in rows.items() if "TFLite" not in row["role"]}
    return list(outcomes.values())


def table(outcomes: list[Outcome]) -> str:
    """The Markdown of a study: S1's pairs with the teachers in columns, every other row in lines of its own."""
    pairs, others = {}, []
    for outcome in outcomes:
        match = _PAIRS.fullmatch(outcome.row.path.stem)
        if match:
            pairs.setdefault(match[1], {})[match[2], match[3]] = outcome
        else:
            others.append(outcome)
    blocks = [_pairs(direction, outcome_of) for direction, outcome_of in pairs.items()]
    if any(outcome.runs for outcome in others):
        blocks.append(_lines(others))
    notes = []
    if any(outcome.is_doubtful for outcome in outcomes):
        notes = [
            "† The teacher does not beat the baseline on validation data: where that is not on purpose (reverse, "
            "defective), the row says nothing about distillation."
        ]
    if missing := [outcome.row.title for outcome in outcomes if not outcome.runs]:
        notes.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join([*blocks, *notes])


def _lines(outcomes) -> str:
    columns = outcomes[0].row.columns
    sides = (" published", "") if any(outcome.row.published for outcome in outcomes) else ("",)
    heads = [f"{name}{side}" for name in columns for side in sides]
    lines = [
        f"| row | role | architecture | n | {' | '.join(heads)} | gain, test points |",
        "|---" * (len(heads) + 5) + "|",
    ]
    shown = set()
    for outcome in outcomes:
        for stage in dict.fromkeys(stage for run in outcome.runs for stage in run):
            rows = outcome.rows(stage)
            role, architecture = rows[0]["role"], rows[0]["architecture"]
            cells = [
                _published(outcome, stage, name) if side else outcome.cell(stage, name)
                for name in columns
                for side in sides
            ]
            # A teacher or baseline that several rows share has one line.
            line = (role, architecture, len(rows), *cells)
            if stage != STUDENT and line in shown:
                continue
            shown.add(line)
            gain = f"{outcome.gain}{outcome.verdict}{outcome.mark}" if stage == STUDENT else ""
            title = outcome.row.baseline if stage == BASELINE and outcome.row.baseline else outcome.row.title
            lines.append(f"| {title} | {role} | `{architecture}` | {len(rows)} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)


def _published(outcome, stage, column) -> str:
    return outcome.row.published.get(stage, {}).get(column, "–")


def _pairs(direction, outcome_of) -> str:
    """A table of S1: students in lines, teachers in columns.

    Args:
        outcome_of: (teacher, student) → their outcome.
    """
    teachers, students = (list(dict.fromkeys(key[at] for key in outcome_of)) for at in (0, 1))
    columns = next(iter(outcome_of.values())).row.columns
    heads = [text for name in teachers for text in (f"{name} published", f"{name} ours", "gain, test points")]
    runs = [len(outcome.runs) for outcome in outcome_of.values()]
    n = f"n = {min(runs)}" if min(runs) == max(runs) else f"n = {min(runs)} to {max(runs)}"
    lines = [
        f"{direction}, {' / '.join(columns)}, {n}:",
        "",
        f"| student | {' | '.join(heads)} | baseline, ours |",
        "|---" * (len(heads) + 2) + "|",
    ]

    def together(outcome, stage):
        ours = [outcome.cell(stage, name) for name in columns]
        printed = [_published(outcome, stage, name) for name in columns]
        return [" / ".join(texts) if set(texts) != {"–"} else "–" for texts in (printed, ours)]

    cells = []
    for teacher in teachers:
        # A pair that has been run, if there is any.
        ours = [outcome for key, outcome in outcome_of.items() if key[0] == teacher]
        cells += [*together(max(ours, key=lambda outcome: len(outcome.runs)), TEACHER), ""]
    lines.append(f"| (the teacher) | {' | '.join(cells)} |  |")
    for student in students:
        cells, baseline = [], "–"
        for teacher in teachers:
            outcome = outcome_of.get((teacher, student))
            cells += ["–"] * 3 if outcome is None else [*together(outcome, STUDENT), f"{outcome.gain}{outcome.mark}"]
            if outcome is not None and baseline == "–":
                baseline = together(outcome, BASELINE)[1]
        lines.append(f"| {student} | {' | '.join(cells)} | {baseline} |")
    return "\n".join(lines)


def contrasts(outcomes: list[Outcome], asked: list[tuple[str, str]]) -> list[str]:
    """A line for each two groups of rows: what their students' test accuracies show over all pairs of rows together.

    Args:
        asked: two globs each, of flagfiles' names without ending, with as many ``*`` in either.

    Raises:
        InputError: the globs differ in their ``*``, or no pair of rows has ended with a seed in common.
    """
    told = []
    for first, second in asked:
        differences = _differences(outcomes, first, second)
        unit = f"{len(differences)} pairs of rows"
        if len(differences) == 1:
            (differences,) = differences.values()
            unit = f"{len(differences)} seeds of one pair of rows"
        else:
            differences = [statistics.mean(of_seeds) for of_seeds in differences.values()]
        told.append((first, second, unit, seeds.effect(differences)))
    lines, method = [], ", Holm" if len(told) > 1 else ""
    adjusted = seeds.holm([effect.p for *_, effect in told])
    for (first, second, unit, effect), p in zip(told, adjusted, strict=True):
        # What only the correction takes away is undecided.
        verdict = effect.verdict() if p < 0.05 or effect.p >= 0.05 else f"undecided at n = {effect.n}"
        shown = f"{effect.mean:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}], p = {p:.2g}{method}: {verdict}"
        lines.append(f"**{first}** minus **{second}**, students' test points, {unit}: {shown}.")
    return lines


def _differences(outcomes, first, second) -> dict[tuple[str, ...], list[float]]:
    """What the ``*`` stand for → the differences of the two rows in points, for each seed that both have."""
    if first.count("*") != second.count("*"):
        raise InputError(f"--compare {first} {second}: write as many * in either, which stand for the same")
    groups = []
    for pattern in (first, second):
        expression = "(.+)".join(map(re.escape, pattern.split("*")))
        matches = {outcome: re.fullmatch(expression, outcome.row.path.stem) for outcome in outcomes}
        groups.append({match.groups(): outcome for outcome, match in matches.items() if match})
    found = {}
    for key in groups[0].keys() & groups[1].keys():
        sides = [groups[i][key].by_seed for i in (0, 1)]
        pairs = [[side[seed][STUDENT]["test_accuracy"] for side in sides] for seed in sides[0] if seed in sides[1]]
        if pairs:
            found[key] = [100 * (a - b) for a, b in pairs]
    if not found:
        raise InputError(f"--compare {first} {second}: no two such rows have ended with a seed in common")
    return found


def draw(members: list[Member], path: pathlib.Path) -> None:
    """Draws loss and accuracy of every row's student and of the baselines, of the first seed.

    Raises:
        InputError: no run of that seed has ended.
    """
    seed, students, baselines = members[0].seed, {}, {}
    series_of = _series_by_content(configuration.read(["kd_keras", *members[0].run.command()]).run.store)
    for member in sorted(members, key=lambda member: member.row.path.name):
        row, run = member.row, member.run
        if member.seed != seed or run.results is None:
            continue
        models = read_state(run.workdir, "--workdir")["models"]
        students[row.title] = series_of(models[STUDENT]["content"])
        if BASELINE in models and (series := series_of(models[BASELINE]["content"])) not in baselines.values():
            title = row.baseline or run.results[BASELINE]["role"]
            baselines[f"{title}, {row.title}" if baselines else title] = series
    if not students:
        raise InputError(f"no run of seed {seed} has ended: there is nothing to draw")
    figures.curves({**baselines, **students}, path)


def _series_by_content(store: pathlib.Path):
    """Returns a function that gives the curves of a model in a store by the model's content."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in store.glob("*/*/record.json")]
    record_of = {record["content"]: record for record in records}

    def series(content):
        record = record_of[content]
        # A model that was cut out of another has that one's curves.
        return record["series"] if "series" in record else series(next(iter(record["inputs"].values())))

    return series


# ---- the command line ----


def main(argv: list[str]) -> int:
    """Runs a study, or prints its table.

    Args:
        argv: as `sys.argv`.

    Returns:
        The exit code: 0 finished, 1 where a run failed, and those of `kd_keras.processes.exit_code`.
    """
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="what the flagfiles' names begin with: s0, s1, s2, s3, s4, ensemble …")
    parser.add_argument("--seeds", help="seeds, joined by commas; by default as many as each row's header says (# n:)")
    parser.add_argument("--rows", default="*", help="only these flagfiles: globs, joined by commas")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs; by default runs/<study>")
    parser.add_argument("--experiments", type=pathlib.Path, default=EXPERIMENTS, help="folder of the flagfiles")
    parser.add_argument("--print", action="store_true", help="run nothing, print what has ended")
    parser.add_argument("--dry_run", action="store_true", help="run nothing, print the commands")
    parser.add_argument(
        "--compare", nargs=2, action="append", default=[], metavar=("A", "B"), help="compare two groups of rows"
    )
    parser.add_argument("--figure", type=pathlib.Path, help="draw the students' curves of the first seed to this PNG")
    parser.add_argument("--into", type=pathlib.Path, help="put the table into this Markdown page …")
    parser.add_argument("--section", help="… in place of what stands in this section; by default the study's")
    options = parser.parse_args(argv[1:at])
    return exit_code(lambda: _main(options, argv[at + 1 :]), "stopped; the same command goes on where it stopped")


def _main(options, common) -> int:
    paths = sorted(options.experiments.glob(f"{options.study}_*.flags"))
    rows = [
        read_row(path)
        for path in paths
        if any(fnmatch.fnmatch(path.stem, pattern) for pattern in options.rows.split(","))
    ]
    if not rows:
        raise InputError(f"{options.experiments} has no {options.study}_*.flags that --rows={options.rows} selects")
    chosen = None if options.seeds is None else list(dict.fromkeys(options.seeds.split(",")))
    members = plan(rows, chosen, _root(options, common), common)
    if options.dry_run:
        for member in members:
            print(shlex.join(["python", "-m", "kd_keras.run", *member.run.command()]))
        return 0
    console = Console(soft_wrap=True)
    failed = []
    if not options.print:
        failed = sweep.run_all([member.run for member in members], console)
    outcomes = gather(members)
    text = "\n\n".join([table(outcomes), *contrasts(outcomes, options.compare)])
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
