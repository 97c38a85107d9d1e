"""What a report says first: the gain over the baseline in a sentence, with its interval."""

import dataclasses

from kd_keras.run.page.folders import AGAIN
from kd_keras.run.page.groups import Group, letter, ranked
from kd_keras.run.report import tables
from kd_keras.sweep.statistics import MARGIN, Effect

_NO_BASELINE = "There is no baseline to compare it with."

_ONE_TEACHER = " All runs share one teacher: the interval does not include the variation between teachers."

# Characters of a group's name that a sentence has room for.
_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Headline:
    """A sentence, and what has to be known with it.

    Attributes:
        text: the sentence.
        interval: how sure it is, and the scores that it is made of.
    """

    text: str
    interval: str


def of_groups(groups: list[Group]) -> Headline:
    """The headline of one or more groups of runs."""
    chosen = ranked(groups)[0]
    name = "" if len(groups) == 1 else f" {_which(chosen, groups)}"
    if chosen.gain is None:
        text = f"The student reaches {spread(chosen.scores('student', 'test'))} % test {chosen.first.score[1]}."
        return Headline(text, f"{_interval_of_score(chosen)}{_NO_BASELINE} {_reached(chosen)}{name}")
    if chosen.gain.n == 1:
        found, interval = _of_run(chosen)
    else:
        found = chosen.gain
        interval = f"95 % interval over {found.n} seeds: {found.low:+.2f} to {found.high:+.2f} points (paired t)."
        interval += _ONE_TEACHER * _share_a_teacher(chosen)
    return Headline(_verdict(found, chosen.first.score[1]), f"{interval} {_reached(chosen)}{name}")


def _which(chosen: Group, groups: list[Group]) -> str:
    name = f"{chosen.name}." if len(chosen.name) <= _LONGEST_NAME else f"{chosen.name[:_LONGEST_NAME]}…"
    line = letter(groups.index(chosen))
    return f"This is line {line}, the best of {len(groups)} settings on validation data: {name}"


def _of_run(group: Group) -> tuple[Effect, str]:
    """The gain of a single run with its interval over the test images."""
    gain = next(run.summary.get("gain") for run in group.runs.values() if run.gain is not None)
    if gain is None:
        return group.gain, f"Its interval is missing: {AGAIN}."
    change, low, high = (100 * gain[end] for end in ("change", "low", "high"))
    return Effect(change, low, high, 1.0, 1), (
        f"95 % interval over the {gain['images']} test images: {low:+.2f} to {high:+.2f} points. This is one training: "
        "the interval does not include the variation between seeds."
    )


def _share_a_teacher(group: Group) -> bool:
    contents = {run.state.get("models", {}).get(run.stage("teacher"), {}).get("content") for run in group.runs.values()}
    return len(contents) == 1 and None not in contents


def _verdict(gain: Effect, score: str) -> str:
    points, verdict = f"{abs(gain.mean):.2f} points of test {score}", gain.verdict()
    if verdict == "better":
        return f"Distillation gains {points} over the baseline."
    if verdict == "worse":
        return f"Distillation loses {points} against the baseline."
    if verdict.startswith("equal"):
        return f"Student and baseline are equal within {MARGIN:g} point: {gain.mean:+.2f} points of test {score}."
    return f"It is undecided whether distillation helps: {gain.mean:+.2f} points of test {score} to the baseline."


def _reached(group: Group) -> str:
    """The test scores of student, baseline and teacher."""
    scores = {model: group.scores(model, "test") for model in ("student", "baseline", "teacher")}
    parts = [f"the {model} {spread(values)} %" for model, values in scores.items() if values]
    what = "mean ± standard deviation over seeds" if len(group.runs) > 1 else "one run"
    return f"Test {group.first.score[1]} ({what}): {', '.join(parts)}."


def spread(values: list[float]) -> str:
    """Mean and standard deviation of scores; of runs that share a model its score alone."""
    return tables.spread(values if len(set(values)) > 1 else values[:1])


def _interval_of_score(group: Group) -> str:
    run = group.first
    if len(group.runs) > 1 or run.score[0] != "accuracy" or not run.test_images:
        return ""
    low, high = interval_of_share(run.row("student")["test_accuracy"], run.test_images)
    return f"95 % interval over the {run.test_images} test images: {100 * low:.2f} to {100 * high:.2f} %. "


def interval_of_share(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was seen in ``count`` samples.

    Reference: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
