"""`summary.json`: those results of a run that none of its other files hold. Reports are made from it."""

import pathlib
import shlex

import numpy as np

from kd_keras.run.report import predictions, tables

NAME = "summary.json"
# What the curves show of a training.
_SERIES = ("loss", "ce", "bce", "val_loss", "accuracy", "val_accuracy", "map", "val_map")


def write(results, rows: list[dict], is_new: bool) -> None:
    """Writes `summary.json`, and `predictions.npz` where it is not there yet.

    Args:
        results: a `Results`.
        rows: its table.
        is_new: whether a stage has been run since the files were written.
    """
    session, plan, folder = results.session, results.plan, results.session.config.run.workdir
    stages = {
        "teacher": plan.reference.name if plan.reference is not None else None,
        # One that is the student itself is none.
        "baseline": "baseline" if results.gain is not None else None,
        "student": plan.students[0].name,
    }
    splits, train = session.splits, session.facts.student_data()
    summary = {
        "stages": stages,
        "gain": results.gain,
        "runtimes": results.runtimes(),
        "warnings": results.warnings(rows),
        "series": {role: _kept(series) for role, series in results.series().items()},
        "command": shlex.join(["python", "-m", "kd_keras.run", *session.config.command_line()]),
        "images": {"train": train.count, "labelled": train.labels, "val": len(splits.val), "test": len(splits.test)},
        "several_labels": splits.multi_label,
    }
    tables.write_json(summary, folder / NAME)
    if not splits.multi_label and (is_new or not (folder / predictions.NAME).exists()):
        _predictions(results, stages, folder / predictions.NAME)


def _kept(series: dict) -> dict:
    return {name: np.round(np.array(series[name], float), 6) for name in _SERIES if series.get(name)}


def _predictions(results, stages: dict, path: pathlib.Path) -> None:
    test = results.session.splits.test
    logits = {row.stage.name: results.logits(row.stage) for row in results.plan.rows if not results.is_refused(row)}
    made = predictions.of_logits(results.labels, logits)
    made.with_images(lambda indices: test.read(indices)[0], **stages).write(path)
