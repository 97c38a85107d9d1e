"""The report of one or several runs: a page in one file, which needs no network and no script."""

import functools
import pathlib
from typing import Any

from kd_keras import __version__, files
from kd_keras.errors import InputError
from kd_keras.run.config import Config
from kd_keras.run.page import classes, figures, headline
from kd_keras.run.page.folders import AGAIN, MODELS, Run
from kd_keras.run.page.groups import Group, corrected, differing, group, letter, ranked
from kd_keras.run.report import tables
from kd_keras.run.settings import declared

NAME = "report.html"
# Settings of which the curves and the frontier are drawn.
_DRAWN = 8
# Settings that have a column each; more of them share one.
_COLUMNS = 3


def write(runs: list[Run], path: pathlib.Path, notes: list[str] | None = None) -> None:
    """Writes the page, unless the file holds it already.

    Args:
        runs: finished ones, one or more.
        path: the file.
        notes: sentences that stand with the warnings.

    Raises:
        InputError: the runs can't be compared, or one can't be read.
    """
    files.update(path, page(runs, notes))


def page(runs: list[Run], notes: list[str] | None = None) -> str:
    """The page as text; see `write`."""
    groups, repeated = group(runs)
    chosen, *_ = shown = ranked(groups)[:_DRAWN]
    drawn = [item for item in groups if item in shown]
    letters = {i: letter(groups.index(item)) for i, item in enumerate(drawn)} if len(groups) > 1 else {}
    is_single = len(runs) == 1
    several_labels = chosen.first.score[0] == "map"
    return _template().render(
        title=_title(runs, groups),
        headline=headline.of_groups(groups),
        first=chosen.first,
        chosen=chosen,
        chosen_letter=letter(groups.index(chosen)) if letters else None,
        runs=runs,
        is_single=is_single,
        score=chosen.first.score,
        tiles=_tiles(chosen),
        tables=_tables(chosen.first),
        groups=_group_rows(groups) if not is_single else [],
        differing=(flags := differing(runs)),
        seeds=[flag for flag in flags if flag.endswith("seed")],
        lines={run: letter(i) for i, item in enumerate(groups) for run in item.runs.values()},
        columns=list(chosen.values) if len(chosen.values) <= _COLUMNS else [],
        warnings=[*(notes or []), *repeated, *_warnings(runs, groups)],
        frontier=figures.frontier(drawn, letters),
        curves=figures.curves(drawn, letters),
        left_out=len(groups) - len(drawn),
        confusion=None if several_labels else classes.confusions(chosen),
        reliability=figures.reliability(chosen),
        gains=classes.gains(chosen),
        images=classes.differing(chosen),
        missing=f"Missing, as it is not stored by older versions: {AGAIN}.",
        single_class="Shown for one class for each image only; these images have several labels.",
        several_labels=several_labels,
        sizes=_sizes(chosen.first),
        settings=_settings(chosen.first),
        version=__version__,
        models=MODELS,
        cells=classes.CELLS,
    )


@functools.cache
def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: "–" if value is None else f"{100 * value:.2f}",
        "points": lambda value: f"{value + 0.0:+.2f}",
        "size": lambda value: "–" if value is None else tables.size_text(value),
        "mean": lambda values: headline.spread(values) if values else "–",
        "p": lambda value: "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}",
    }
    return environment.get_template("report.html")


def _title(runs: list[Run], groups: list[Group]) -> str:
    if len(runs) == 1:
        return runs[0].name
    settings = f"{len(groups)} settings, " if len(groups) > 1 else ""
    return f"{settings}{len(runs)} runs"


def _tiles(item: Group) -> list[tuple[str, str, str]]:
    """(what, number, unit and more) of what readers look for first."""
    run, tiles = item.first, []
    for model in reversed(MODELS):
        if scores := item.scores(model, "test"):
            tiles.append((model, f"{headline.spread(scores)} %", f"test {run.score[1]}"))
    student, teacher = run.row("student"), run.row("teacher")
    if teacher is not None and student["parameters"] and teacher["parameters"]:
        times = teacher["parameters"] / student["parameters"]
        tiles.append(("parameters", tables.count_text(student["parameters"]), f"1/{times:.3g} of the teacher's"))
    exported = [row for row in run.rows.values() if "TFLite" in row["role"] and row["bytes"]]
    if exported:
        smallest = min(exported, key=lambda row: row["bytes"])
        scores = [100 * run.rows[smallest["stage"]][f"test_{run.score[0]}"] for run in item.runs.values()]
        score = f"test {run.score[1]} {headline.spread(scores)} %"
        tiles.append((f"smallest file ({smallest['role']})", tables.size_text(smallest["bytes"]), score))
    return tiles


def _tables(run: Run) -> list[dict[str, Any]]:
    """The run's table in two: each model's quality, and its cost. ``texts`` of the columns are text."""
    (role, architecture), quality, cost = tables.columns(list(run.rows.values()))
    parts = []
    for name, texts, numbers in (("Quality", [role], quality), ("Cost", [role, architecture], cost)):
        headings = [heading.replace("-\n", "").replace("\n", " ") for heading, _ in (*texts, *numbers)]
        rows = list(zip(*(cells for _, cells in (*texts, *numbers)), strict=True))
        parts.append({"name": name, "texts": len(texts), "headings": headings, "rows": rows})
    return parts


def _group_rows(groups: list[Group]) -> list[dict[str, Any]]:
    gains = [item.gain for item in groups]
    against = [None, *(item.against(groups[0]) for item in groups[1:])]
    columns = zip(groups, gains, corrected(gains), against, corrected(against), strict=True)
    return [
        {"letter": letter(i), "group": item, "gain": gain, "p": p, "against": other, "p_against": p_other}
        for i, (item, gain, p, other, p_other) in enumerate(columns)
    ]


def _warnings(runs: list[Run], groups: list[Group]) -> list[str]:
    """The runs' own warnings, each once with the runs that it is of, and what is to be known of the comparison."""
    found = {}
    for run in runs:
        for text in run.summary.get(
            "warnings", [] if run.summary else [f"The warnings of an older run are not stored: {AGAIN}."]
        ):
            found.setdefault(text, []).append(run.name)
    texts = [
        text if len(names) == len(runs) else f"{', '.join(names[:6])}{' …' * (len(names) > 6)}: {text}"
        for text, names in found.items()
    ]
    if len({run.data.get("test split") for run in runs}) > 1:
        texts.append(
            "These runs were tested on different images: scores of different settings can't be compared, the gains "
            "over each run's baseline can."
        )
    if len(groups) > 1 and any(len(item.runs) == 1 for item in groups):
        texts.append("Some settings were run with one seed alone: what differs between them may be chance.")
    if len({str(run.environment.get("packages", {}).get("tensorflow")) for run in runs}) > 1:
        texts.append("These runs were made with different versions of TensorFlow.")
    if len({(run.environment.get("platform"), str(run.environment.get("devices"))) for run in runs}) > 1:
        texts.append("These runs were made on different machines: their latencies can't be compared.")
    return texts


def _sizes(run: Run) -> list[dict[str, Any]]:
    """The model files in a run's folder, with their sizes, the largest first."""
    paths = [path for end in ("*.keras", "*.tflite") for path in run.path.glob(end)]
    found = [
        {"name": path.name, "bytes": path.stat().st_size, "row": run.rows.get(path.stem, {})}
        for path in sorted(paths, key=lambda path: (-path.stat().st_size, path.name))
    ]
    largest = max((file["bytes"] for file in found), default=1)
    return [{**file, "share": file["bytes"] / largest} for file in found]


def _settings(run: Run) -> list[tuple[str, str, bool]]:
    """(flag, value, whether it is not the default) of every setting."""
    from kd_keras.run import config

    try:
        made = config.make(Config, run.settings)
        changed = {flag for flag in declared(Config) if made[flag] != made.default(flag)}
    except InputError:  # of parts that are gone, or of another version
        changed = set(run.settings)
    return [(flag, value, flag in changed) for flag, value in run.settings.items()]
