"""The charts of a report: the frontier, the curves and the reliability diagram, each with its values as a table."""

import dataclasses
import math
import statistics
from typing import Any

import numpy as np

from kd_keras.evaluate.quality import CALIBRATION_BINS, calibration_bins
from kd_keras.run.page import charts
from kd_keras.run.page.folders import MODELS
from kd_keras.run.page.groups import Group
from kd_keras.run.page.headline import interval_of_share
from kd_keras.run.report import tables

#: The number of each model's colour in the page; further models have the numbers after these, up to `COLOURS` in all.
COLOUR_OF = {"student": 0, "baseline": 1, "teacher": 2}
COLOURS = 8
# Of a bin of the confidence with fewer images the accuracy is chance.
_JOINED = 10


@dataclasses.dataclass(frozen=True)
class Point:
    """A model or file in the frontier: its mean over a group's runs, from ``low`` to ``high`` where that is known."""

    name: str
    colour: int | str
    score: float
    low: float | None
    high: float | None
    bytes: float | None
    latency: float | None


def points(groups: list[Group], letters: dict[int, str]) -> list[Point]:
    """The rows of all groups' tables; of a model that groups share, one.

    Args:
        groups: in order.
        letters: what the page calls each group, by its place; empty for a single one.
    """
    found: dict[tuple, tuple[str, bool, Point]] = {}
    for place, group in enumerate(groups):
        for number, (stage, row) in enumerate(group.first.rows.items()):
            rows = [run.rows[stage] for run in group.runs.values() if stage in run.rows]
            scores = [100 * row[f"test_{group.first.score[0]}"] for row in rows]
            times = [row["latency_ms_median"] for row in rows if row["latency_ms_median"] is not None]
            model = next((model for model in MODELS if group.first.stage(model) == stage), None)
            colour = place % COLOURS if letters else COLOUR_OF.get(model, 3 + number % (COLOURS - 3))
            time = statistics.median(times) if times else None
            point = Point(row["role"], colour, statistics.mean(scores), *_spread(group, scores), row["bytes"], time)
            may_be_shared, letter = model in ("teacher", "baseline"), letters.get(place, "")
            key = (row["role"], row["architecture"], point.score, point.bytes, "" if may_be_shared else letter)
            found.setdefault(key, (letter, may_be_shared, point))
    roles = [point.name for _, _, point in found.values()]
    return [_named(letter, point, shared and roles.count(point.name) == 1) for letter, shared, point in found.values()]


def _named(letter: str, point: Point, is_shared: bool) -> Point:
    """A point as the page calls it: a model that all groups share has no letter, and no group's colour."""
    if not letter:
        return point
    if is_shared:
        return dataclasses.replace(point, colour="line")
    return dataclasses.replace(point, name=f"{letter} · {point.name}")


def _spread(group: Group, scores: list[float]) -> tuple[float, float] | tuple[None, None]:
    run = group.first
    if len(scores) == 1:
        if run.score[0] != "accuracy" or not run.test_images:
            return None, None
        low, high = interval_of_share(scores[0] / 100, run.test_images)
        return 100 * low, 100 * high
    return min(scores), max(scores)


def frontier(groups: list[Group], letters: dict[int, str]) -> dict[str, Any]:
    """Score against size and against latency.

    Returns:
        ``charts``; ``rows`` of the table: the point, its number, and in which charts no other point beats it;
        ``spread``: what the vertical lines are.
    """
    shown, score = points(groups, letters), groups[0].first.score[1]
    best_of = {i: [] for i in range(len(shown))}
    drawn = []
    kinds = (
        ("size", "bytes", "size of the file", tables.size_text),
        ("latency", "latency", "latency, ms", lambda value: f"{value:g}"),
    )
    for kind, attribute, title, text in kinds:
        chosen = [i for i, point in enumerate(shown) if getattr(point, attribute)]
        if not chosen:
            continue
        costs = [getattr(shown[i], attribute) for i in chosen]
        heights = [v for i in chosen for v in (shown[i].low, shown[i].score, shown[i].high) if v is not None]
        x = charts.logarithmic(title, costs, text)
        y = charts.linear(f"test {score}, %", heights, vertical=True, bounds=(0, 100.0))
        first = charts.pareto([(cost, shown[i].score) for cost, i in zip(costs, chosen, strict=True)])
        for place in first:
            best_of[chosen[place]].append(kind)
        chart = charts.Chart(
            f"Test {score} against {kind}",
            f"{len(chosen)} models and files, numbered as in the table below, which has all values. On the frontier: "
            + ", ".join(f"{chosen[i] + 1} ({shown[chosen[i]].name})" for i in first),
            x,
            y,
        )
        chart.line([costs[i] for i in first], [shown[chosen[i]].score for i in first], "line", dashed=True)
        for cost, i in zip(costs, chosen, strict=True):
            if shown[i].low is not None:
                chart.span(cost, shown[i].low, shown[i].high, shown[i].colour)
            chart.dots.append((x.at(cost), y.at(shown[i].score), 5, f"f{shown[i].colour}"))
        chart.label([(cost, shown[i].score, str(i + 1)) for cost, i in zip(costs, chosen, strict=True)])
        drawn.append(chart)
    spreads = {"95 % intervals over the test images": any(len(group.runs) == 1 for group in groups)}
    spreads["the lowest and the highest score over the seeds"] = any(len(group.runs) > 1 for group in groups)
    has_spread = any(point.low is not None for point in shown)
    spread = ", or ".join(text for text, is_drawn in spreads.items() if is_drawn and has_spread)
    rows = [(i + 1, point, best_of[i]) for i, point in enumerate(shown)]
    return {"charts": drawn, "rows": rows, "spread": spread}


@dataclasses.dataclass(frozen=True)
class Curve:
    """The training of a model: its series by name, each a value for each epoch; a group's curves share a label."""

    name: str
    colour: int
    series: dict[str, list]
    label: str = ""

    def best(self, column: str) -> tuple[int, float] | None:
        """(epoch, value) of the highest value of a series."""
        values = {i: value for i, value in enumerate(self.series.get(column, ()), 1) if value is not None}
        return max(values.items(), key=lambda item: item[1]) if values else None


def curves(groups: list[Group], letters: dict[int, str]) -> dict[str, Any] | None:
    """Score and loss over the epochs: of one run each model's, of several the students'; None where there are none."""
    found, (column, score) = [], groups[0].first.score
    for place, group in enumerate(groups):
        for seeds, run in group.runs.items():
            series = run.summary.get("series", {})
            if not letters and len(group.runs) == 1:
                roles = {run.row(model)["role"]: model for model in MODELS if run.row(model)}
                for number, (role, values) in enumerate(series.items()):
                    colour = COLOUR_OF.get(roles.get(role), 3 + number % (COLOURS - 3))
                    found.append(Curve(role, colour, values))
            elif values := series.get(run.row("student")["role"]):
                name = (
                    f"{letters.get(place, '')} seed {'/'.join(seeds)}" if any(seeds) else letters.get(place, run.name)
                )
                found.append(Curve(name.strip(), place % COLOURS, values, letters.get(place, "")))
    if not found:
        return None
    is_single = not letters and len(groups[0].runs) == 1
    last = max(len(values) for curve in found for values in curve.series.values())
    drawn = []
    for title, validation, training, factor in (
        (f"{score}, %", f"val_{column}", (column,), 100),
        ("cross-entropy on hard labels", "val_loss", ("ce", "bce", "loss"), 1),
    ):
        lines = []
        for number, curve in enumerate(found, 1):
            lines.append((number, curve, curve.series.get(validation, []), False))
            name = next((name for name in training if name in curve.series), None)
            if is_single and name:
                lines.append((None, curve, curve.series[name], True))
        values = [factor * v for _, _, series, _ in lines for v in series if v is not None and math.isfinite(v)]
        if values:
            drawn.append(_curve_chart(title, lines, values, last, factor))
    rows = [(number, curve, curve.best(f"val_{column}"), curve.series) for number, curve in enumerate(found, 1)]
    return {"charts": drawn, "rows": rows, "trained": is_single}


def _curve_chart(title, lines, values, last, factor) -> charts.Chart:
    bounds = (0, 100.0) if factor == 100 else (0, math.inf)
    chart = charts.Chart(
        f"{title[:1].upper()}{title[1:]} over the epochs",
        f"Validation {title} of {len({id(curve) for _, curve, _, _ in lines})} trainings over {last} epochs; the table "
        "below has each one's best epoch.",
        charts.epochs(last),
        charts.linear(title, values, vertical=True, bounds=bounds),
    )
    ends = []
    for number, curve, series, dashed in lines:
        scaled = [None if value is None else factor * value for value in series]
        chart.line(range(1, len(scaled) + 1), scaled, curve.colour, dashed)
        if number is not None and scaled and scaled[-1] is not None:
            ends.append((len(scaled), scaled[-1], curve.label or str(number)))
    chart.label(ends, beside=True)
    return chart


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often a model is right when it is as sure as it says.

    Attributes:
        name: the model.
        colour: its number.
        counts, confidence, accuracy: of each bin of the confidence, (15,): images, and their means.
    """

    name: str
    colour: int
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float((self.counts * gaps).sum() / self.counts.sum())

    @property
    def excess(self) -> float:
        """How much its mean confidence is above its accuracy."""
        return float((self.counts * (self.confidence - self.accuracy)).sum() / self.counts.sum())


def reliability(group: Group) -> dict[str, Any] | None:
    """The reliability diagram of the models and the smallest file; None where predictions are not kept."""
    runs = [run for run in group.runs.values() if run.predictions is not None]
    if not runs:
        return None
    stages = {model: runs[0].stage(model) for model in MODELS}
    files = [stage for stage, row in runs[0].rows.items() if row["role"].rpartition("TFLite")[1] and row["bytes"]]
    if files:
        stages["file"] = min(files, key=lambda stage: runs[0].rows[stage]["bytes"])
    found = []
    for model, stage in stages.items():
        kept = [run.predictions for run in runs if stage in run.predictions.classes]
        if kept:
            right = np.concatenate([predictions.is_right(stage) for predictions in kept])
            sure = np.concatenate([predictions.confidences[stage] for predictions in kept])
            name = runs[0].rows[stage]["role"]
            found.append(_reliability(name, COLOUR_OF.get(model, 3), sure.astype(np.float64), right))
    percents = [v / 100 for v in range(0, 101, 20)]
    chart = charts.Chart(
        "Accuracy against confidence",
        "On the diagonal a model is right as often as it says; below it, it is too sure. A table has the values.",
        charts.fixed("confidence, %", percents, False, lambda v: f"{100 * v:.0f}"),
        charts.fixed("accuracy, %", percents, True, lambda v: f"{100 * v:.0f}"),
    )
    chart.line((0, 1), (0, 1), "line", dashed=True)
    for item in found:
        seen = item.counts > 0
        joined = item.counts >= _JOINED
        chart.line(item.confidence[joined], item.accuracy[joined], item.colour)
        for count, x, y in zip(item.counts[seen], item.confidence[seen], item.accuracy[seen], strict=True):
            radius = round(2.5 + 6 * math.sqrt(count / item.counts.sum()), 1)
            faint = "" if count >= _JOINED else " faint"
            chart.dots.append((chart.x.at(x), chart.y.at(y), radius, f"f{item.colour}{faint}"))
    return {"chart": chart, "models": found, "bins": _bins(found), "joined": _JOINED}


def _reliability(name, colour, confidence, right) -> Reliability:
    bins = calibration_bins(confidence)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = (np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) for values in (confidence, right))
    return Reliability(name, colour, counts, *(total / np.maximum(counts, 1) for total in sums))


def _bins(models: list[Reliability]) -> list[tuple]:
    """(from, to, each model's images and accuracy) of the bins in which there is an image."""
    edges = np.linspace(0, 100, CALIBRATION_BINS + 1)
    seen = [i for i in range(CALIBRATION_BINS) if any(model.counts[i] for model in models)]
    return [(edges[i], edges[i + 1], [(m.counts[i], m.accuracy[i]) for m in models]) for i in seen]
