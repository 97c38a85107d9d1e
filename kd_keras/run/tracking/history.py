"""``history.csv``: every epoch of every stage, which any program can read."""

import contextlib
import csv
import io
import pathlib

from kd_keras import files

NAME = "history.csv"


class HistoryFile:
    """The epochs of a run's trainings, in a file that is whole after each of them.

    Args:
        path: the file. What it holds already is kept: a training that was interrupted goes on.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._epochs: dict[str, dict[int, dict]] = {}
        if path.exists():
            # One that was damaged is written anew: in the end it is made of what the store has.
            with open(path, newline="", encoding="utf-8") as file, contextlib.suppress(KeyError, ValueError):
                for row in csv.DictReader(file):
                    epoch, stage = int(row.pop("epoch")), row.pop("stage")
                    values = {name: float(value) for name, value in row.items() if value}
                    self._epochs.setdefault(stage, {})[epoch] = values

    def epoch(self, stage: str, epoch: int, metrics: dict[str, float]) -> None:
        """Adds an epoch, counted from 1."""
        epochs = self._epochs.setdefault(stage, {})
        # What follows it is of a training that has begun again.
        self._epochs[stage] = {number: values for number, values in epochs.items() if number < epoch}
        self._epochs[stage][epoch] = {name: float(value) for name, value in metrics.items()}
        self._write()

    def replace(self, curves: dict[str, dict[str, list[float]]]) -> None:
        """Writes the file anew.

        Args:
            curves: by stage, each figure's values over the epochs.
        """
        self._epochs = {
            stage: {at + 1: {name: values[at] for name, values in series.items()} for at in range(_length(series))}
            for stage, series in curves.items()
        }
        self._write()

    def _write(self) -> None:
        rows = [
            {"epoch": epoch, "stage": stage, **values}
            for stage, epochs in self._epochs.items()
            for epoch, values in epochs.items()
        ]
        names = dict.fromkeys(["epoch", "stage", *(name for row in rows for name in row)])
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.update(self.path, text.getvalue())


def _length(series: dict[str, list[float]]) -> int:
    return min(map(len, series.values()), default=0)
