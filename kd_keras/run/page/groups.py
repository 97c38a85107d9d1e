"""Runs that differ in their seeds alone, what such a group shows, and what differs between groups."""

import dataclasses
import functools
import statistics
from collections.abc import Sequence

from kd_keras.errors import InputError
from kd_keras.run.config import Config
from kd_keras.run.page.folders import Run
from kd_keras.run.settings import Follows, Setting, declared
from kd_keras.sweep.statistics import Effect, effect, holm

_TRAINING = {"data", "teacher", "baseline", "student", "compress", "cache"}
_OFF = ("none", "0", "False")


def differing(runs: Sequence[Run], affects: set[str] | None = _TRAINING) -> list[str]:
    """The flags whose values differ between runs, without those that only follow another one.

    Args:
        runs: one or more.
        affects: only flags that affect one of these; None for all but those of folders and tracking.
    """
    flags = []
    for flag, setting in declared(Config).items():
        counts = set(setting.affects) & affects if affects is not None else setting.section not in ("tracking", "run")
        if counts and len({run.settings[flag] for run in runs}) > 1 and not _is_idle(flag, setting, runs):
            flags.append(flag)
    return flags


def _is_idle(flag: str, setting: Setting, runs: Sequence[Run]) -> bool:
    """Whether a setting has no effect of its own: it is what it follows, or what it is for is off."""
    if setting.needs and all(run.settings[setting.needs] in _OFF for run in runs):
        return True
    follows = setting.default.flags if isinstance(setting.default, Follows) else ()
    return len(follows) == 1 and all(run.settings[flag] == run.settings[follows[0]] for run in runs)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of the same settings and data, with different seeds.

    Attributes:
        values: flag → value, of the settings in which this group differs from the others.
        runs: by their seeds.
    """

    values: dict[str, str]
    runs: dict[tuple[str, ...], Run]

    @property
    def name(self) -> str:
        """What distinguishes it."""
        return ", ".join(f"{flag}={value}" for flag, value in self.values.items()) or "all runs"

    @property
    def first(self) -> Run:
        """Its first run."""
        return next(iter(self.runs.values()))

    def scores(self, model: str, split: str) -> list[float]:
        """The score in percent of a model in each run that has it."""
        rows = [(run.row(model), f"{split}_{run.score[0]}") for run in self.runs.values()]
        return [100 * row[column] for row, column in rows if row is not None and row.get(column) is not None]

    @functools.cached_property
    def gain(self) -> Effect | None:
        """What the student gains over the baseline, in points over the runs; None without a baseline."""
        gains = [run.gain for run in self.runs.values() if run.gain is not None]
        return effect(gains) if gains else None

    def against(self, other: "Group") -> Effect | None:
        """Its students' test score minus the other group's, paired by seed; None where they share no seed or data."""
        pairs = [(run, other.runs[seeds]) for seeds, run in self.runs.items() if seeds in other.runs]
        if not pairs or any(a.data.get("test split") != b.data.get("test split") for a, b in pairs):
            return None
        return effect([_student(a) - _student(b) for a, b in pairs])


def _student(run: Run) -> float:
    return 100 * run.row("student")[f"test_{run.score[0]}"]


def group(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Puts runs that differ in their seeds alone together.

    Args:
        runs: one or more.

    Returns:
        The groups in the order of the runs, and a sentence about each run that repeats another one.

    Raises:
        InputError: some runs are scored by accuracy, and some by mAP.
    """
    if len({run.score for run in runs}) > 1:
        raise InputError(
            "some of these runs have one class for each image, others several labels: their scores can't be compared; "
            "make a report of each kind"
        )
    flags = differing(runs)
    seeds = [flag for flag in flags if flag.endswith("seed")]
    prints = [tuple(sorted((k, str(v)) for k, v in run.data.items() if k.endswith("split"))) for run in runs]
    same_data = len(set(prints)) == 1
    rest = [flag for flag in flags if flag not in seeds and not (same_data and _is_of_data(flag))]
    groups, repeated = {}, []
    for run, data in zip(runs, prints, strict=True):
        values = {flag: run.settings[flag] for flag in rest}
        key, seeds_of_run = (*values.values(), data), tuple(run.settings[flag] for flag in seeds)
        members = groups.setdefault(key, Group(values, {})).runs
        if seeds_of_run in members:
            repeated.append(
                f"{run.name} has the settings and seeds of {members[seeds_of_run].name}: it is left out, as it is no "
                "further evidence."
            )
        else:
            members[seeds_of_run] = run
    return list(groups.values()), repeated


def _is_of_data(flag: str) -> bool:
    return declared(Config)[flag].affects == ("data",)


def letter(place: int) -> str:
    """What a page calls a group by its place: A, B … Z, A1, B1 …"""
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")


def ranked(groups: Sequence[Group]) -> list[Group]:
    """The groups by their students' validation score, the best first: the test data choose nothing."""

    def validation(group):
        scores = group.scores("student", "val")
        return statistics.mean(scores) if scores else float("-inf")

    return sorted(groups, key=validation, reverse=True)


def corrected(effects: Sequence[Effect | None]) -> list[float | None]:
    """The p values of effects after Holm's correction; None where there is no effect, or one run alone."""
    tested = [i for i, found in enumerate(effects) if found is not None and found.n > 1]
    adjusted = dict(zip(tested, holm([effects[i].p for i in tested]), strict=True))
    return [adjusted.get(i) for i in range(len(effects))]
