"""Finished runs as they are read from their folders, without the package's models or data."""

import dataclasses
import functools
import pathlib
from typing import Any

from kd_keras.errors import InputError
from kd_keras.run import workdir
from kd_keras.run.config import Config
from kd_keras.run.report import predictions, summary, tables
from kd_keras.run.settings import Follows, declared

#: The models that a report compares.
MODELS = ("teacher", "baseline", "student")
#: What to do about a part that an older run has no file for.
AGAIN = "give the run's command again, which stores it and trains nothing"
_RESULTS = "results.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        path: its folder.
    """

    path: pathlib.Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @functools.cached_property
    def rows(self) -> dict[str, dict]:
        """The table's rows by stage.

        Raises:
            InputError: the table can't be read.
        """
        try:
            return tables.read_table(self.path / _RESULTS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path / _RESULTS} can't be read: {AGAIN}") from error

    @functools.cached_property
    def settings(self) -> dict[str, str]:
        """Every setting as text. One that the run's version did not have is at its default."""
        given = self._json(workdir.SETTINGS) or {}
        return {flag: _text(flag, given) for flag in declared(Config)}

    @functools.cached_property
    def state(self) -> dict:
        """What the package keeps of the run."""
        return self._json(workdir.STATE) or {}

    @functools.cached_property
    def summary(self) -> dict:
        """What `report.summary` has written; empty for an older run."""
        return self._json(summary.NAME) or {}

    @functools.cached_property
    def environment(self) -> dict:
        """What it ran on."""
        return self._json("environment.json") or {}

    @functools.cached_property
    def predictions(self) -> predictions.Predictions | None:
        """Predictions of the test images; None for an older run, or for several labels for an image."""
        path = self.path / predictions.NAME
        return predictions.read(path) if path.exists() else None

    @property
    def data(self) -> dict:
        """The content hashes of the splits, the class names and the shape of the images."""
        return self.state.get("data", {})

    @property
    def score(self) -> tuple[str, str]:
        """The column that models are compared by, without its split, and its name for people."""
        return tables.score(self.row("student"))

    @property
    def test_images(self) -> int:
        """Number of test images; 0 where it is not known."""
        matrix = (self.file("student", "confusion") or {}).get("matrix", [])
        return self.summary.get("images", {}).get("test") or sum(map(sum, matrix))

    def stage(self, model: str) -> str | None:
        """The stage of one of `MODELS`, or None where there is no such model."""
        stage = self.summary.get("stages", {}).get(model, model)
        return stage if stage in self.rows else None

    def row(self, model: str) -> dict | None:
        """The table's row of one of `MODELS`; every run has a student."""
        stage = self.stage(model)
        if stage is None and model == "student":
            raise InputError(f"{self.path / _RESULTS} has no row of a student: reports are of runs that have one")
        return self.rows[stage] if stage is not None else None

    @property
    def gain(self) -> float | None:
        """Points of the test score that the student is above the baseline; None without a baseline."""
        baseline, column = self.row("baseline"), f"test_{self.score[0]}"
        return None if baseline is None else 100 * (self.row("student")[column] - baseline[column])

    def file(self, model: str, end: str) -> Any | None:
        """What a model's JSON file of that ending holds, such as ``confusion``; None where there is none."""
        stage = self.stage(model)
        return None if stage is None else self._json(f"{stage}_{end}.json")

    def _json(self, name: str) -> dict | None:
        path = self.path / name
        return workdir.read_json(path, "run") if path.exists() else None


def _text(flag: str, given: dict[str, str]) -> str:
    """The text of a setting, by default of one that was not declared when the run was made."""
    setting = declared(Config)[flag]
    if flag in given:
        return given[flag]
    if not isinstance(setting.default, Follows):
        return setting.kind.text(setting.read(setting.default))
    return _text(setting.default.flags[0], given) if len(setting.default.flags) == 1 else "none"


def find(paths: list[pathlib.Path]) -> tuple[list[Run], list[str]]:
    """The finished runs of folders of runs and of sweeps.

    Args:
        paths: folders; one that holds no run is taken for a sweep's, whose folders are runs.

    Returns:
        The runs in order, and a sentence about each that has not ended.

    Raises:
        InputError: a folder holds no finished run, or a run is named twice.
    """
    runs, unfinished = [], []
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is no folder: give the --workdir of a run or of a sweep")
        folders = [path] if (path / workdir.SETTINGS).exists() or (path / _RESULTS).exists() else sorted(path.iterdir())
        finished = [folder for folder in folders if (folder / _RESULTS).exists()]
        begun = [folder for folder in folders if (folder / workdir.SETTINGS).exists() and folder not in finished]
        if not finished:
            what = "a run that has not ended" if begun else "no run"
            raise InputError(f"{path} holds {what}: give the --workdir of a finished run, or of a sweep")
        for folder in finished:
            if not (folder / workdir.STATE).exists():
                raise InputError(f"{folder} is a run of version 0.1: reports are of runs of this version")
        runs += map(Run, finished)
        unfinished += [f"{folder} has not ended: it is left out." for folder in begun]
    seen = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise InputError(f"{run.path} is named twice: name each run once")
        seen.add(run.path.resolve())
    return runs, unfinished
