"""Models that no run has made: measured, and written as TFLite files."""

import pathlib
import tempfile
import zlib
from collections.abc import Sequence

import numpy as np

from kd_keras import files
from kd_keras.errors import InputError
from kd_keras.evaluate import multilabel, quality
from kd_keras.export import tflite
from kd_keras.run.config import Config
from kd_keras.run.distill import Work
from kd_keras.run.measure import latency_of_file
from kd_keras.run.report import tables
from kd_keras.run.report.results import Results
from kd_keras.run.session import Session
from kd_keras.run.settings import make, read_flags
from kd_keras.schemes.plan import Export

#: Settings of a run that trains nothing.
NO_TRAINING = {"teacher": "none", "loss": "ce()", "baseline": "false", "tracking": "none"}


def evaluate(argv: Sequence[str]) -> None:
    """Prints the table of models on a data set: ``MODEL… --data=…``.

    Args:
        argv: files, ``.keras`` or ``.tflite``, and flags of `kd_keras.run`.

    Raises:
        InputError: a file is no such model, or does not fit the data.
    """
    paths, flags = _paths(argv, "evaluate", (".keras", ".tflite"))
    rows, notes = [], []
    with tempfile.TemporaryDirectory(prefix="kd_keras-") as folder:
        for path in paths:
            row, runtime = _of_file(path, flags, folder) if path.suffix == ".tflite" else _of_model(path, flags, folder)
            rows.append({**row, "role": path.name})
            notes.append(runtime)
    tables.print_table(rows, caption="; ".join(dict.fromkeys(filter(None, notes))))


def export(argv: Sequence[str]) -> list[pathlib.Path]:
    """Writes the files of ``--export`` beside a model, ``MODEL.keras --export=int8 --data=…``; prints their table.

    Returns:
        The files: ``model.keras`` becomes ``model_int8.tflite``.

    Raises:
        InputError: the file is no model, does not fit the data, or can't be converted; a file is there already.
    """
    (path, *more), flags = _paths(argv, "export", (".keras",))
    if more:
        raise InputError(f"export takes one model, not {len(more) + 1}: run it for each")
    with tempfile.TemporaryDirectory(prefix="kd_keras-") as folder:
        work = Work(_texts(path, flags, folder))
        stages = [stage for stage in work.plan.stages if isinstance(stage, Export)]
        targets = {stage: path.with_name(f"{path.stem}_{stage.variant}.tflite") for stage in stages}
        if there := [str(target) for target in targets.values() if target.exists()]:
            raise InputError(
                f"{', '.join(there)} is there already: move it away, or leave that variant out of --export"
            )
        work.run()
        results = Results(work.plan, work.session, work.store)
        rows = results.rows()
        tables.print_table(rows, caption="\n".join(results.notes(rows)))
        refused = [record["refused"] for record in map(work.store.record, stages) if "refused" in record]
        for stage, target in targets.items():
            if "refused" not in work.store.record(stage):
                files.copy(work.store.folder(stage) / "model.tflite", target)
        if refused:
            raise InputError(refused[0])
    return list(targets.values())


def _paths(argv, command, endings):
    """The files and the flags among arguments."""
    paths = [pathlib.Path(text).expanduser().absolute() for text in argv if not text.startswith("-")]
    if not paths:
        raise InputError(f"{command} needs a file: kd-keras {command} student.keras --data='folder(path=…)'")
    for path in paths:
        if path.suffix not in endings:
            raise InputError(f"{path} does not end in {' or '.join(endings)}: give a file of that kind")
        if not path.exists():
            raise InputError(f"there is no file {str(path)!r}: check the path")
    flags, _ = read_flags(Config, [f"kd-keras {command}", *(text for text in argv if text.startswith("-"))])
    return paths, flags


def _texts(path, flags, folder) -> dict[str, str]:
    own = {"student_from": str(path), "workdir": folder, "export": "none"}
    if clash := sorted({*NO_TRAINING, "student_from", "workdir"} & set(flags)):
        raise InputError(f"--{clash[0]} has no meaning for a model that is not trained: leave it out")
    return {**NO_TRAINING, **own, **flags}


def _of_model(path, flags, folder) -> tuple[dict, str]:
    """The row of a ``.keras`` file."""
    work = Work(_texts(path, {**flags, "export": "none"}, folder))
    work.run()
    (row,) = Results(work.plan, work.session, work.store).rows()
    return {**row, "architecture": "Keras", "bytes": path.stat().st_size}, work.store.record(
        work.plan.rows[0].measures[2]
    ).get("runtime")


def _of_file(path, flags, folder) -> tuple[dict, str]:
    """The row of a ``.tflite`` file, of this package or of another."""
    session = Session(make(Config, {**NO_TRAINING, **flags, "workdir": folder}))
    splits, file = session.splits, tflite.load(path)
    outputs = {}
    for name, source in (("val", splits.val), ("test", splits.test)):
        parts = [file.predict(images.numpy()) for images, _ in session.batches(source, file)]
        outputs[name] = np.concatenate(parts)
    if outputs["test"].shape[1] != splits.num_classes:
        raise InputError(
            f"{path} tells {outputs['test'].shape[1]} classes apart where the data has {splits.num_classes}: give the "
            "data that it was made for"
        )
    figures, runtime = latency_of_file(path, session)
    logits = {name: file.to_logits(values) for name, values in outputs.items()}
    if splits.multi_label:
        limits = multilabel.thresholds(logits["val"], splits.val.labels)
        figures |= multilabel.metrics(logits["test"], splits.test.labels, limits)
        figures["test_map"] = figures.pop("map")
    else:
        figures |= quality.metrics(logits["test"], splits.test.labels)
        figures["test_accuracy"] = figures.pop("accuracy")
        figures["val_accuracy"] = quality.metrics(logits["val"], splits.val.labels)["accuracy"]
    content = path.read_bytes()
    sizes = {"bytes": len(content), "zip_bytes": len(zlib.compress(content, level=9))}
    return tables.row(path.name, "TFLite", stage=path.stem, **sizes, **figures), runtime
