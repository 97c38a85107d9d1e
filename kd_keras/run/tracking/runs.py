"""The tracking of one run of the command line, the same whenever the run goes on; and ``history.csv``."""

import contextlib
import hashlib
from collections.abc import Iterator

from kd_keras.run import tracking
from kd_keras.run.report import card, tables
from kd_keras.run.tracking import environment, history, names
from kd_keras.run.tracking.base import Dataset, NullWriter, Opening, Served

_CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
_FILES = ("results.csv", "results.json", "results.txt", "curves.png", card.NAME, history.NAME, "environment.json")
# What runs are compared by: in alphabetical lists validation stands before test, and these before all others.
_COMPARED = (
    "compare/gain_over_baseline",
    "compare/student_best_val_{0}",
    "compare/student_test_{0}",
    "compare/baseline_test_{0}",
    "compare/teacher_test_{0}",
)


class Tracking(NullWriter):
    """What the runner tells while it trains, and what is told of the results.

    Args:
        session: the machine and the data.
        workdir: keeps the id of the tracker's run.
    """

    def __init__(self, session, workdir):
        self.session, self.config, self._workdir = session, session.config, workdir
        self.writer, self._history = NullWriter(), None

    @contextlib.contextmanager
    def tracked(self, trains: bool) -> Iterator[None]:
        """Opens the tracker's run and ends it: as ``FINISHED``, after a signal as ``KILLED``, else as ``FAILED``.

        Args:
            trains: whether models are trained here and now.
        """
        status = "FAILED"
        try:
            self._open(trains)
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.close(status)
        if self.writer.run_id is not None:
            self._keep(is_finished=self.writer.is_complete)

    def _open(self, trains) -> None:
        """Opens the tracker's run, and tells it the settings, the data and the machine; only the chief does."""
        config, folder = self.config, self._workdir.path
        if not self.session.is_chief:
            return
        machine = environment.environment()
        if trains:
            tables.write_json(machine, folder / "environment.json")
            self._history = history.HistoryFile(folder / history.NAME)
        if config.tracking.tracker == tracking.NONE:
            return
        state = self._state
        self.writer = tracking.module(config.tracking.tracker).Writer(
            Opening(
                uri=self.uri,
                experiment=config.tracking.experiment,
                run_name=config.tracking.run_name or names.run_name(config),
                folder=folder,
                run_id=state.get("parent"),
                system_metrics=config.tracking.system_metrics,
            )
        )
        is_new = state.get("parent") != self.writer.run_id or "first_epochs" not in state
        if is_new and self.writer.run_id is not None:
            self._keep(parent=self.writer.run_id, first_epochs={}, is_finished=False)
        self.writer.params(names.parameters(config))
        self.writer.tags({name: value for name, value in self._tags(machine).items() if value is not None})
        self.writer.datasets(self._datasets())

    @property
    def uri(self) -> str | None:
        """Where the tracker writes."""
        return tracking.uri_of(self.config.tracking.tracker, self.config.tracking.uri, self._workdir.path)

    @property
    def _state(self) -> dict:
        """The run as it was begun; of one that is tracked elsewhere nothing."""
        state = self._workdir.state.get("tracking_runs", {})
        return state if all(state.get(key) == value for key, value in self._place.items()) else {}

    @property
    def _place(self) -> dict:
        """Which tracker, and where: an address may hold a password."""
        config = self.config.tracking
        uri = "default" if config.uri is None else hashlib.sha256(config.uri.encode()).hexdigest()[:16]
        return {"tracker": config.tracker, "uri": uri}

    def _keep(self, **values) -> None:
        self._workdir.update(tracking_runs={**self._place, **self._state, **values})

    @property
    def is_due(self) -> bool:
        """Whether the tracker has still to be told of the results."""
        is_tracked = self.session.is_chief and self.config.tracking.tracker != tracking.NONE
        return is_tracked and not self._state.get("is_finished", False)

    def _tags(self, machine) -> dict:
        config = self.config
        return {
            "study": config.tracking.experiment,
            "scheme": names.label(config.training.scheme),
            "seed": config.training.seed,
            "data": config.data.source,
            "workdir": self._workdir.path.name,
            "git_revision": machine["git_revision"],
            "python": machine["python"],
        }

    def _datasets(self) -> list[Dataset]:
        splits, source = self.session.splits, str(self.config.data.source)
        return [
            Dataset(
                name=f"{source} {name}",
                context=context,
                digest=getattr(splits, name).fingerprint,
                source=source,
                count=len(getattr(splits, name)),
                image_shape=tuple(splits.image_shape),
                num_classes=splits.num_classes,
            )
            for name, context in _CONTEXTS.items()
        ]

    # ---- while it trains ----

    def params(self, params):
        """Logs what is known of a stage when it begins."""
        self.writer.params(params)

    def epoch(self, stage, epoch, metrics):
        """Logs an epoch, and writes it to ``history.csv``."""
        if self._history is None:
            return
        self._history.epoch(stage, epoch, metrics)
        if self.writer.run_id is not None and stage not in (firsts := self._state.get("first_epochs", {})):
            self._keep(first_epochs={**firsts, stage: epoch})
        self.writer.epoch(stage, epoch, metrics)

    def close(self, status="FINISHED"):
        """Ends the tracker's run."""
        self.writer.close(status)

    # ---- at the end ----

    def write_history(self, results) -> None:
        """Writes ``history.csv`` of all trainings, whoever has run them."""
        history.HistoryFile(self._workdir.path / history.NAME).replace(results.curves())

    def finish(self, results, rows: list[dict]) -> None:
        """Tells the results: curves of models that others have trained, the table, figures, files, the student."""
        if self.writer.run_id is None:
            return
        self._catch_up(results.curves())
        figures = _figures({row["stage"]: row for row in rows}, results.gain, results.plan.students[0].name)
        self.writer.metrics(figures)
        folder = self._workdir.path
        for name in _FILES:
            self.writer.artifact(folder / name)
        for row in rows:
            stage, file = row["stage"], folder / f"{row['stage']}.tflite"
            paths = [file] if file.exists() else [folder / f"{stage}.keras"]
            for path in (*paths, *sorted(folder.glob(f"{stage}_*.png")), *sorted(folder.glob(f"{stage}_*.json"))):
                self.writer.artifact(path, f"models/{stage}")
        self._serve(results)
        score = tables.score(rows[0])[0]
        compared = [name.format(score) for name in _COMPARED]
        changed = names.changed(self.config)
        text = self._description(results, rows, changed)
        self.writer.describe(text, [name for name in compared if name in figures], list(changed))
        self.close()

    def _catch_up(self, curves) -> None:
        """Logs the epochs that were trained by another run, or before this one was tracked."""
        firsts = self._state.get("first_epochs", {})
        for stage, series in curves.items():
            epochs = [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]
            self.writer.epochs(stage, epochs[: firsts.get(stage, len(epochs) + 1) - 1])
        self._keep(first_epochs={**firsts, **dict.fromkeys(curves, 1)})

    def _serve(self, results) -> None:
        student = results.plan.students[0]
        path = self._workdir.path / f"{student.name}.keras"
        classes = tuple(map(str, self.session.splits.class_names))
        self.writer.model(Served(student.name, path, classes, student.architecture))

    def _description(self, results, rows, changed) -> str:
        """What a run's page shows first."""
        score, name = tables.score(rows[0])
        lines = [f"- {note}" for note in results.notes(rows)]
        lines += ["", f"| model | validation {name} | test {name} | kB |", "|---|---|---|---|"]
        for row in rows:
            scores = [row[f"{split}_{score}"] for split in ("val", "test")]
            cells = ["–" if value is None else f"{value:.2%}" for value in scores]
            lines.append(f"| {row['role']} {row['architecture']} | {' | '.join(cells)} | {row['bytes'] / 1000:.0f} |")
        lines += ["", "Settings that are not at their default:", ""]
        return "\n".join([*lines, *(f"- `--{flag}={text}`" for flag, text in changed.items())])


def _figures(rows: dict[str, dict], gain: dict | None, student: str) -> dict[str, float]:
    """The table's numbers as ``models/student/test_accuracy``; what runs are compared by as ``compare/…``.

    Args:
        rows: the table by stage.
        gain: the student's over the baseline, see `Results.gain`.
        student: the student's stage.
    """
    figures = {}
    for stage, row in rows.items():
        numbers = {column: float(value) for column, value in row.items() if isinstance(value, (int, float))}
        # The epochs have a `val_accuracy` of their own.
        numbers = {f"best_{name}" if name.startswith("val_") else name: value for name, value in numbers.items()}
        figures |= {f"models/{stage}/{name}": value for name, value in numbers.items()}
        score = tables.score(row)[0]
        if stage in ("teacher", "baseline"):
            figures[f"compare/{stage}_test_{score}"] = numbers[f"test_{score}"]
        if stage == student:
            figures |= {f"compare/student_{name}_{score}": numbers[f"{name}_{score}"] for name in ("best_val", "test")}
    if gain is not None:
        ends = {"": "change", "_low": "low", "_high": "high"}
        figures |= {f"compare/gain_over_baseline{end}": gain[key] for end, key in ends.items()}
    # MLflow's lists show every digit.
    return {name: round(value, 4) if name.startswith("compare/") else value for name, value in figures.items()}
