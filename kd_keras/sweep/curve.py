"""How much distillation gains, by the value of one flag: the figure of a sweep over it and over seeds."""

import pathlib

import numpy as np

from kd_keras.run.report import figures, tables
from kd_keras.sweep.runs import Run
from kd_keras.sweep.statistics import effect

NAME = "gains.png"
_MODELS = {"teacher": "teacher", "student": "student, distilled", "baseline": "the same student without a teacher"}
_COLOURS = {"teacher": "tab:gray", "student": "tab:blue", "baseline": "tab:orange"}


def draw(pairs: list[tuple[Run, dict[str, str]]], path: pathlib.Path) -> bool:
    """Draws the test scores of teacher, student and baseline, and the student's gain with its 95 % t interval.

    Args:
        pairs: the runs of a sweep, and what is varied in each, flag → value.
        path: of the PNG.

    Returns:
        Whether there was something to draw: one flag is varied beside the seed, and two of its values or more have
        runs that have ended, with a baseline.
    """
    flags = {flag for _, varied in pairs for flag in varied} - {"seed"}
    if len(flags) != 1:
        return False
    (flag,) = flags
    by_value = {}
    for run, varied in pairs:
        rows = run.results
        if rows is not None and {"student", "baseline"} <= rows.keys():
            by_value.setdefault(varied[flag], []).append(rows)
    if len(by_value) < 2:
        return False
    column, name = tables.score(by_value[next(iter(by_value))][0]["student"])
    figure = figures.new_figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    at = _places(left, right, list(by_value))
    for model, label in _MODELS.items():
        scores = [[100 * rows[model][f"test_{column}"] for rows in runs if model in rows] for runs in by_value.values()]
        if all(scores):
            _line(left, at, scores, _COLOURS[model], label)
    gains = [
        [100 * (rows["student"][f"test_{column}"] - rows["baseline"][f"test_{column}"]) for rows in runs]
        for runs in by_value.values()
    ]
    right.axhline(0, color="black", linewidth=0.8)
    _line(right, at, gains, _COLOURS["student"], None)
    left.set_ylabel(f"test {name}, %")
    right.set_ylabel(f"gain over no teacher, test {'points' if column == 'accuracy' else f'{name} points'}")
    left.legend(frameon=False, fontsize=9)
    counts = sorted({len(values) for values in gains})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    right.set_title(f"{n}; band: 95 % interval of the mean, paired by seed" if counts[-1] > 1 else n, fontsize=10)
    left.set_title(f"{n}; dots: seeds", fontsize=10)
    figure.supxlabel(flag, fontsize=10)
    figures.save_figure(figure, path)
    return True


def _places(left, right, values: list[str]) -> list[float]:
    """Where the values stand: numbers in proportion, or by their logarithm where they span a factor of ten."""
    try:
        at = [float(value) for value in values]
    except ValueError:
        at = list(map(float, range(len(values))))
        labels = values
    else:
        labels = [f"{value:g}" for value in at]
    for panel in (left, right):
        if labels is not values and min(at) > 0 and max(at) >= 10 * min(at):
            panel.set_xscale("log")
        panel.set_xticks(at, labels, minor=False, fontsize=8, rotation=0 if max(map(len, labels)) < 12 else 20)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    return at


def _line(panel, at, values, colour, label) -> None:
    """The means, joined in the order of their places; the seeds as dots; without a label the interval as a band."""
    order = np.argsort(at)
    x, means = np.array(at)[order], np.array([np.mean(values[i]) for i in order])
    panel.plot(x, means, "o-", color=colour, label=label, linewidth=1.8, markersize=4)
    for i in order:
        panel.plot([at[i]] * len(values[i]), values[i], ".", color=colour, alpha=0.5, markersize=5)
    if label is None and all(len(values[i]) > 1 for i in order):
        effects = [effect(values[i]) for i in order]
        panel.fill_between(
            x, [e.low for e in effects], [e.high for e in effects], color=colour, alpha=0.18, linewidth=0
        )
