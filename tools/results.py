"""Puts the results of several runs (seeds) of one experiment into a Markdown table: mean ± standard deviation, n.

    python tools/results.py runs/cifar-0 runs/cifar-1 runs/cifar-2
    python tools/results.py --into experiments/RESULTS.md --section cifar_resnet runs/cifar-*

The runs have to be of one experiment: their settings may differ in seeds and folders only. Files and folders that hold
no run are passed over, and a run that is named twice, or copied, counts once.

With ``--into``, what stands between ``<!-- begin SECTION -->`` and ``<!-- end SECTION -->`` in that file is replaced.
Differences are paired by run. The 95 % t interval of two runs or more says what they decide: *better*, *worse*, *equal
within ± 1* point, or *undecided*.

``--columns`` chooses some and their order; ``--compare A B`` adds a line on two rows, named by stage or role: their
accuracies paired by run, and how many times smaller and faster. ``--beside plain runs/plain-*`` adds the rows of other
runs of the same data, matched by seed, as "plain, …".
"""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Sequence

from kd_keras.run.config import EXPERIMENT, Config
from kd_keras.run.kinds import Folder
from kd_keras.run.report import tables
from kd_keras.run.settings import declared
from kd_keras.run.workdir import SETTINGS, read_state
from kd_keras.sweep import statistics as seeds

PERCENT = {
    "train_accuracy": "train %",
    "val_accuracy": "val %",
    "test_accuracy": "test %",
    "train_map": "train mAP %",
    "val_map": "val mAP %",
    "test_map": "test mAP %",
    "auc": "AUC %",
    "f1": "macro F1 %",
    "f1_micro": "micro F1 %",
    "subset_accuracy": "all labels right %",
    "ece": "ECE %",
    "teacher_agreement": "= teacher %",
    "float_agreement": "= float %",
    "accuracy_change": "to float [95 % over images]",
    "worst_class_drop": "worst class loses",
    "map_change": "to float [95 % over images]",
    "worst_label_drop": "worst label loses",
}
PLAIN = {
    "parameters": "parameters",
    "macs": "MACs",
    "bytes": "bytes",
    "zip_bytes": "zipped",
    "memory_bytes": "peak memory",
    "latency_ms_median": "latency ms",
    "latency_all_threads_ms_median": "all threads ms",
}
#: Columns that the same network has in common over the seeds; the median is shown, without a spread.
TYPICAL = tuple(PLAIN)


def read(workdir: pathlib.Path) -> dict[str, dict]:
    """A finished run's rows by stage."""
    path = workdir / "results.json"
    if not path.exists():
        sys.exit(f"{path} is not there: give the workdirs of finished runs")
    rows = _json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row.get("role") for row in rows):
        sys.exit(f"{path} holds no table of a run: give the workdirs of finished runs")
    table = tables.read_table(path)
    for row, stored in zip(table.values(), rows, strict=False):
        row["stored_role"] = stored["role"]  # as a reader of the file finds it
    return table


def runs_among(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The runs among paths, each once; says on stderr what is passed over."""
    workdirs, passed_over, seen = [], [], set()
    for path in paths:
        # A folder that is missing, or that a run has begun to fill, is a mistake. Others lie beside the runs.
        if path.exists() and not any((path / name).exists() for name in ("results.json", SETTINGS, "store")):
            passed_over.append(path)
            continue
        file = path / "results.json"
        content = file.read_bytes() if file.exists() else str(path.resolve()).encode()
        if content not in seen:
            seen.add(content)
            workdirs.append(path)
    if passed_over:
        print(f"no runs, passed over: {', '.join(map(str, passed_over))}", file=sys.stderr)
    if not workdirs:
        sys.exit("none of these is a run: give the workdirs of finished runs")
    return workdirs


def check_one_experiment(workdirs: Sequence[pathlib.Path], runs: Sequence[dict[str, dict]]) -> None:
    """Ends the program where runs differ in more than seeds and folders, by their settings or their architectures."""
    first, *others = zip(workdirs, runs, map(_settings, workdirs), strict=True)
    for workdir, run, settings in others:
        differing = [f"--{flag}" for flag, text in settings.items() if first[2].get(flag, text) != text]
        differing += [
            f"the architecture of {row['role']}"
            for stage, row in run.items()
            if (other := first[1].get(stage)) and row.get("architecture") != other.get("architecture")
        ]
        if differing:
            sys.exit(
                f"{first[0]} and {workdir} are two experiments (they differ in {', '.join(differing)}): a mean over "
                "them says nothing; make a table of each"
            )


def beside(workdirs: Sequence[pathlib.Path], runs: list[dict[str, dict]], name: str, others: Iterable[str]) -> None:
    """Adds to each run the rows of another experiment's run of the same seed, with a name before their roles."""
    folders = runs_among(map(pathlib.Path, others))
    tables_of = [read(folder) for folder in folders]
    check_one_experiment(folders, tables_of)
    found = {_seed(folder): (folder, rows) for folder, rows in zip(folders, tables_of, strict=True)}
    for workdir, run in zip(workdirs, runs, strict=True):
        if _seed(workdir) not in found:
            sys.exit(
                f"--beside {name}: no run of the seed of {workdir}, {_seed(workdir)}, is among {', '.join(others)}"
            )
        folder, rows = found[_seed(workdir)]
        if _test_images(folder) != _test_images(workdir):
            sys.exit(f"--beside {name}: {folder} and {workdir} have other test images, so they can't be compared")
        for stage, row in rows.items():
            roles = {key: f"{name}, {row[key]}" for key in ("role", "stored_role")}
            run[f"{name}_{stage}"] = {**row, **roles}


def _seed(workdir: pathlib.Path) -> str:
    return _json(workdir / SETTINGS).get("seed", "0")


def _test_images(workdir: pathlib.Path) -> str:
    return read_state(workdir, "--beside")["data"]["test split"]


def tell_missing_rows(workdirs: Sequence[pathlib.Path], runs: Sequence[dict[str, dict]]) -> None:
    """Says on stderr which rows are means of fewer runs than the table."""
    names = {stage: row["stored_role"] for run in runs for stage, row in run.items()}
    for workdir, run in zip(workdirs, runs, strict=True):
        if missing := [name for stage, name in names.items() if stage not in run]:
            print(f"{workdir} has no row {', '.join(map(repr, missing))}", file=sys.stderr)


def _settings(workdir: pathlib.Path) -> dict[str, str]:
    """The settings that make the experiment, without seeds, and without folders, which differ from seed to seed."""
    path = workdir / SETTINGS
    stored = _json(path) if path.exists() else {}
    return {
        flag: stored[flag]
        for flag, setting in declared(Config).items()
        if flag in stored
        and {"data", "compress", *EXPERIMENT} & set(setting.affects)
        and not flag.endswith("seed")
        and not isinstance(getattr(setting.kind, "item", getattr(setting.kind, "inner", setting.kind)), Folder)
    }


def _json(path: pathlib.Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path} can't be read ({error}): give the workdirs of finished runs")


def distinct(rows: list[dict]) -> list[dict]:
    """Returns a row for each model: runs that share a model have the same figures to the last digit, latency included.

    Only the training images, which a seed draws where ``--train_examples`` is given, differ over the runs of a model.
    """
    drawn = {"train_accuracy": None, "train_map": None}
    return list({json.dumps({**row, **drawn}, sort_keys=True): row for row in reversed(rows)}.values())[::-1]


def cell(rows: list[dict], column: str) -> str:
    """One cell: mean ± sample standard deviation over the models of the runs, or what is typical of them."""
    rows = distinct(rows)
    values = [row.get(column) for row in rows]
    if any(value is None for value in values):
        return "–"
    if column in ("accuracy_change", "map_change"):
        # The runs have their test images in common: the mean of the intervals, and none that is narrower.
        ends = [[row.get(f"{column}{end}") for row in rows] for end in ("_low", "_high")]
        texts = [f"{100 * statistics.mean(end):+.2f}" for end in ends if None not in end]
        change = f"{100 * statistics.mean(values):+.2f}"
        return f"{change} [{', '.join(texts)}]" if len(texts) == 2 else change
    if column in TYPICAL:
        middle = statistics.median(values)
        return f"{middle:.3f}" if column.endswith("_ms_median") else f"{middle:,.0f}"
    return tables.spread([100 * value for value in values])


def leads(runs: list[dict], column: str) -> list[float]:
    """The student's lead over the baseline in points, for each run; empty where a run lacks one of the figures."""
    pairs = [[run.get(stage, {}).get(column) for stage in ("student", "baseline")] for run in runs]
    return [] if any(None in pair for pair in pairs) else [100 * (a - b) for a, b in pairs]


def gain(runs: list[dict], column: str) -> str:
    """`leads` as text."""
    return _points(leads(runs, column))


def _points(differences: list[float]) -> str:
    if not differences:
        return ""
    singles = ", ".join(f"{difference:+.2f}" for difference in differences)
    return f"{tables.spread(differences, sign='+')} points ({singles}){verdict(differences)}"


def verdict(differences: list[float]) -> str:
    """What paired differences decide; nothing of one alone, which has no interval."""
    if len(differences) < 2:
        return ""
    effect = seeds.effect(differences)
    return f", 95 % interval [{effect.low:+.2f}, {effect.high:+.2f}]: {effect.verdict()}"


def compare(runs: list[dict], first: str, second: str) -> str:
    """A line on two rows, named by stage or role: their accuracies, paired by run, and their bytes and latencies."""
    pairs = [(_row(run, first), _row(run, second)) for run in runs]
    score = f"test_{tables.score(pairs[0][0])[0]}"
    scores = [[row.get(score) for row in pair] for pair in pairs]
    if any(None in pair for pair in scores):
        sys.exit(f"{first!r} and {second!r} can't be compared: a run has no {score} of one of them")
    texts = [_points([100 * (a - b) for a, b in scores])]
    for column, name in (("bytes", "bytes"), ("zip_bytes", "bytes zipped"), ("latency_ms_median", "latency")):
        values = [[row.get(column) for row in rows] for rows in zip(*pairs, strict=True)]
        if None not in values[0] + values[1]:
            share = statistics.median(values[0]) / statistics.median(values[1])
            texts.append(f"{share:.3f} × the {name}")
    roles = [row["role"] for row in pairs[0]]
    return f"**{roles[0]}** against {roles[1]}: {', '.join(texts)}."


def _row(run: dict[str, dict], name: str) -> dict:
    """The row whose stage or role has a name."""
    role = tables.current_role(name)
    rows = [row for stage, row in run.items() if name == stage or role == row["role"]]
    if not rows:
        sys.exit(f"no row {name!r} in every run: there are {', '.join(repr(row['role']) for row in run.values())}")
    return rows[0]


def table(runs: list[dict], wanted: Sequence[str] = ()) -> str:
    """The Markdown table, and the paired gain below it."""
    # Runs of an older version have fewer, and without TFLite files some are empty.
    filled = {name for run in runs for row in run.values() for name, value in row.items() if value is not None}
    titles = {**PERCENT, **PLAIN}
    if unknown := [name for name in wanted if name not in titles]:
        sys.exit(f"--columns names {', '.join(unknown)}: known are {', '.join(titles)}")
    columns = {name: titles[name] for name in wanted or titles if name in filled}
    lines = [f"| n = {len(runs)} | architecture | {' | '.join(columns.values())} |", "|---" * (len(columns) + 2) + "|"]
    notes = []
    for stage in dict.fromkeys(stage for run in runs for stage in run):
        rows = [run[stage] for run in runs if stage in run]
        cells = [cell(rows, column) for column in columns]
        role, architecture = rows[0]["role"], rows[0].get("architecture") or "–"
        lines.append(f"| {role} | `{architecture}` | {' | '.join(cells)} |")
        if len(rows) < len(runs):
            notes += ["", f"{role}: of {len(rows)} of the {len(runs)} runs; the others have no such row."]
    lines += notes
    score, score_name = tables.score(next(iter(runs[0].values())))
    for split, name in (("test", "test"), ("val", "validation")):
        if lead := gain(runs, f"{split}_{score}"):
            lines += ["", f"Student minus baseline, paired by seed, {name} {score_name}: {lead}."]
    return "\n".join(lines)


def put(page: pathlib.Path, section: str, text: str) -> None:
    """Replaces what stands between a page's marks of that section."""
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    try:
        old = page.read_text(encoding="utf-8")
    except OSError as error:
        sys.exit(f"{page} can't be read ({error.strerror}): give --into a page that is there")
    if begin not in old or end not in old:
        sys.exit(f"{page} has no lines {begin} and {end}: add them where the table belongs")
    before, _, rest = old.partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path)
    parser.add_argument("--section")
    parser.add_argument("--columns", default="", help="names of figures in results.json, joined by commas")
    parser.add_argument("--compare", nargs=2, action="append", default=[], metavar=("ROW", "ROW"))
    parser.add_argument("--beside", nargs="+", action="append", default=[], metavar=("NAME", "RUN"))
    options = parser.parse_args()
    if options.into and not options.section:
        sys.exit("--into needs --section, the part of the page that is replaced")
    workdirs = runs_among(options.workdirs)
    runs = [read(workdir) for workdir in workdirs]
    check_one_experiment(workdirs, runs)
    tell_missing_rows(workdirs, runs)
    for name, *others in options.beside:
        beside(workdirs, runs, name, others)
    lines = [compare(runs, *roles) for roles in options.compare]
    text = "\n\n".join([table(runs, [name for name in options.columns.split(",") if name]), *lines])
    if options.into is None:
        print(text)
        return
    put(options.into, options.section, text)


if __name__ == "__main__":
    main()
