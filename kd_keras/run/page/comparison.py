"""Two runs side by side, as text: what differs in their settings, their machines and their numbers."""

from collections.abc import Iterator

from kd_keras.run.page.folders import AGAIN, Run
from kd_keras.run.page.groups import differing
from kd_keras.run.report import tables

# Columns of the table that are compared: name, heading, how a value is written, and what a difference is multiplied by.
_COLUMNS = (
    ("ece", "ECE %", "{:.2f}", 100),
    ("parameters", "parameters", "{:,.0f}", 1),
    ("macs", "MACs", "{:,.0f}", 1),
    ("bytes", "bytes", "{:,.0f}", 1),
    ("latency_ms_median", "latency, ms", "{:.4g}", 1),
)


def settings(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """(flag, value in a, value in b) of the settings that differ, without those that only follow another one."""
    return [(flag, a.settings[flag], b.settings[flag]) for flag in differing([a, b], affects=None)]


def surroundings(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """(what, in a, in b) of data, commit, machine and packages that differ."""
    pairs = [(name, a.data.get(name), b.data.get(name)) for name in {**a.data, **b.data}]
    here, there = a.environment, b.environment
    for name in ("git_revision", "git_dirty", "python", "platform", "cpus", "devices"):
        pairs.append((name.replace("_", " "), here.get(name), there.get(name)))
    first, second = here.get("packages", {}), there.get("packages", {})
    pairs += [(name, first.get(name), second.get(name)) for name in {**first, **second}]
    return [(name, _text(one), _text(other)) for name, one, other in pairs if one != other]


def numbers(a: Run, b: Run) -> list[tuple[str, str, str, str, str]]:
    """(stage, column, in a, in b, b minus a) of the stages that both have; of a column, only what differs."""
    found = []
    for stage in (stage for stage in a.rows if stage in b.rows):
        column, name = tables.score(a.rows[stage])
        scores = [(f"{split}_{column}", f"{split} {name} %", "{:.2f}", 100) for split in ("val", "test")]
        for key, heading, form, factor in (*scores, *_COLUMNS):
            one, other = (row.get(key) for row in (a.rows[stage], b.rows[stage]))
            if one is None or other is None or one == other:
                continue
            sign = form.replace(":", ":+")
            texts = (form.format(factor * one), form.format(factor * other), sign.format(factor * (other - one)))
            found.append((stage, heading, *texts))
    return found


def sentences(a: Run, b: Run) -> Iterator[str]:
    """What the difference between the students says."""
    if a.score != b.score:
        yield "The runs are scored differently: their scores can't be compared."
        return
    if a.data.get("test split") != b.data.get("test split"):
        yield "The runs were tested on different images: their scores can't be compared."
        return
    if only := sorted(set(a.rows) ^ set(b.rows)):
        yield f"In one of them alone: {', '.join(only)}."
    if a.score[0] != "accuracy":
        return
    if a.predictions is None or b.predictions is None:
        yield f"The interval of the students' difference needs predictions that a run has not stored: {AGAIN}."
        return
    change, low, high = _difference(a, b)
    yield (
        f"The student of {b.name} is {change:+.2f} points of test accuracy from that of {a.name} (95 % interval "
        f"over the {len(a.predictions.labels)} test images: {low:+.2f} to {high:+.2f}). Each is one training: "
        "the interval does not include the variation between seeds."
    )


def _difference(a: Run, b: Run) -> tuple[float, float, float]:
    """The students' difference in points, paired by image, with its 95 % interval."""
    from kd_keras.evaluate import quality

    right = [run.predictions.is_right(run.stage("student")) for run in (b, a)]
    return tuple(100 * value for value in quality.paired_change(*right))


def _text(value) -> str:
    if isinstance(value, list):
        text = ", ".join(map(str, value))
        return text if len(text) <= 60 else f"{text[:57]}…"
    if isinstance(value, str) and len(value) == 64:
        return value[:16]
    return "–" if value is None else str(value)
