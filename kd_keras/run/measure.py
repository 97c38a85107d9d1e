"""What is measured of an experiment's models: the test split is read, TFLite files are made, tables are written."""

import zlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras import files
from kd_keras.compress.base import check_layers
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.evaluate import cost as costs
from kd_keras.evaluate import quality
from kd_keras.evaluate.quality import logits
from kd_keras.export import metadata, tflite
from kd_keras.export.variants import CALIBRATED
from kd_keras.run import compressed
from kd_keras.run.experiment import Experiment, Trained
from kd_keras.run.report import figures, tables

_REPRESENTATIVE = 256


def check(experiment: Experiment) -> None:
    """Raises InputError where a layer of ``--keep_float`` is none of the student's."""
    config, lesson = experiment.config, experiment.lesson
    if config.keep_float:
        student = experiment.model(config.student) if lesson is None else lesson.student
        known = [layer.name for layer in student.layers]
        check_layers(config.keep_float, known, "--keep_float")


def measure(
    experiment: Experiment,
    models: list[Trained],
    exported: list[Trained],
    teacher: Trained | None,
    smaller: Sequence[compressed.Compressed] = (),
) -> None:
    """Reads the test split, once a model: the table, figures, TFLite files and their figures, all in the workdir.

    Args:
        experiment: whose models have been trained.
        models: in the table's order.
        exported: those that are converted to TFLite, the student first.
        teacher: the one that the others' agreement is measured with; those before it in the table have none.
        smaller: the compressed students.
    """
    _Measuring(experiment, teacher).run(models, exported, smaller)


class _Measuring:
    def __init__(self, experiment: Experiment, teacher: Trained | None):
        self.experiment, self.config, self.splits = experiment, experiment.config, experiment.splits
        self.teacher = teacher
        #: Test logits (N, K) by stage.
        self.logits: dict[str, np.ndarray] = {}
        #: What can't be converted, a line each.
        self.refused: list[str] = []

    def run(self, models, exported, smaller):
        folder, tracker = self.config.workdir, self.experiment.tracker
        done = [self._model(trained) for trained in models]
        rows, runtimes = [one["row"] for one in done], [one["runtime"] for one in done]
        for trained in self._beside(models):
            rows += self._export(trained, f"{trained.role}, ", ("float32",), runtimes)
        for trained in exported:
            told = "" if trained is exported[0] else f"{trained.role} "
            rows += self._export(trained, told, self.config.export, runtimes)
        for one in smaller:
            found, runtime = self._compressed(one)
            rows += found
            runtimes += runtime
        shown = [*models, *(one.trained for one in smaller)]
        figures.curves({t.role: t.series for t in shown if t.series}, folder / "curves.png")
        notes = [*dict.fromkeys(runtimes), *self.refused, *_notes(models, rows, exported[0], self.teacher)]
        if any(row["marked"] for row in rows):
            notes.append(
                f"‡ less accurate than the Keras student that it was made of by more than --max_accuracy_drop="
                f"{self.config.max_accuracy_drop:g}"
            )
        tables.write_table(rows, folder, runtime_note="; ".join(notes))
        for path in ("results.csv", "results.json", "results.txt", "curves.png"):
            tracker.artifact(folder / path)
        stages = {trained.role: trained.stage for trained in models}
        for row in rows:
            name = stages.get(row["role"], row["role"]).replace(" ", "_")
            tracker.metrics({f"{name}_test_accuracy": row["test_accuracy"]}, 0)
        self.experiment.finish("measured", {"rows": rows, "notes": notes, "files": self.experiment.files})

    def _model(self, trained) -> dict:
        """A model's row and what ran it; found where it was measured before, or by another run."""
        experiment, stage = self.experiment, f"{trained.stage}-measured"
        kept = self.config.workdir / "state" / f"{stage}.npy"
        done = experiment.done(stage)
        if done is None:
            with experiment.console.status(f"measuring {trained.stage}"):
                model = experiment.load(trained)
                with experiment.timed("evaluation"):
                    own, labels = quality.predict(logits(model), experiment.batches(self.splits.test))
                    row, runtime = self._row(trained, model, own, labels)
                files.write(kept, lambda file: np.save(file, own))
                self._figures(trained.stage, trained.role, own, labels)
                done = experiment.finish(stage, {"row": row, "runtime": runtime})
        own = self.logits[trained.stage] = np.load(kept)
        if done["row"]["role"] != trained.role:
            self._figures(trained.stage, trained.role, own, self.splits.test.labels)
        # Another run has measured its agreement with another teacher.
        # An older version may have measured fewer figures.
        new = {"role": trained.role, "teacher_agreement": self._agreement(trained.stage, own)}
        row = tables.row(**{**done["row"], **new})
        if row != done["row"]:
            done = experiment.finish(stage, {**done, "row": row})
        self._log(trained.stage, row, [trained.path])
        return done

    def _row(self, trained, model, own, labels):
        figures = quality.metrics(own, labels)
        latency = costs.keras_latency(model)
        batches = self.experiment.batches
        seen = {
            f"{name}_accuracy": quality.metrics(*quality.predict(logits(model), batches(source)))["accuracy"]
            for name, source in (("train", self.splits.train), ("val", self.splits.val))
        }
        row = tables.row(
            trained.role,
            trained.architecture,
            **seen,
            test_accuracy=figures.pop("accuracy"),
            **figures,
            parameters=costs.parameters(model),
            macs=costs.macs(model),
            bytes=trained.path.stat().st_size,
            latency_ms_median=latency.median_ms,
            latency_ms_iqr=latency.iqr_ms,
        )
        return row, f"Keras rows: {latency.runtime}, {latency.threads} threads, batch 1"

    def _agreement(self, stage, own):
        if self.teacher is None or stage == self.teacher.stage or self.teacher.stage not in self.logits:
            return None
        return quality.agreement(own, self.logits[self.teacher.stage])

    def _beside(self, models) -> list[Trained]:
        """What --export_beside names: the teacher is the one that the agreement is with, an ensemble as a whole."""
        wanted = self.config.export_beside
        found = [self.teacher] if "teacher" in wanted and self.teacher is not None else []
        return found + [one for one in models if one.stage == "baseline" and "baseline" in wanted]

    def _export(self, exported, told, variants, runtimes) -> list[dict]:
        config = self.config
        model = Taps(self.experiment.load(exported), exported.stage).logits_model()
        if config.layer_report and "int8" in variants:
            self._layer_report(exported, model)
        kept = [name for name in config.keep_float if name in {layer.name for layer in model.layers}]

        def content(variant):
            return self._converted(model, variant, kept)

        files_of = (exported, exported, variants, f"{told}TFLite", content)
        return self._files(*files_of, self._cost(model) if variants else {}, runtimes)

    def _compressed(self, one) -> tuple[list[dict], list[str]]:
        """The rows of a compressed student: in Keras, unless its Keras model has no ranges, and as TFLite."""
        trained, runtimes = one.trained, []
        rows = []
        if not one.quantised:
            done = self._model(trained)
            rows.append({**done["row"], **self._against(self.logits[trained.stage], self.logits[one.of.stage])})
            runtimes.append(done["runtime"])
        model = Taps(self.experiment.load(trained), trained.stage).logits_model()

        def content(variant):
            if one.quantised:
                return compressed.convert(one, variant)
            return self._converted(model, variant, self.config.keep_float)

        files_of = (trained, one.of, one.variants(self.config), f"{trained.role}, TFLite", content)
        rows += self._files(*files_of, self._cost(model), runtimes)
        return rows, runtimes

    def _converted(self, model, variant, keep_float) -> bytes:
        kept = keep_float if variant == "int8" else ()
        return tflite.convert(model, variant, self._representative(variant), kept)

    def _cost(self, model) -> dict:
        return {"parameters": costs.parameters(model), "macs": costs.macs(model)}

    def _files(self, exported, of, variants, told, content, cost, runtimes) -> list[dict]:
        """The rows of a model's files; one that can't be made is told of, and the others go on."""
        rows = []
        for variant in variants:
            try:
                row, runtime = self._file(exported, of, variant, f"{told} {variant}", content, cost)
            except InputError as error:
                logging.warning("%s", error)
                self.refused.append(str(error))
                continue
            rows.append(row)
            runtimes.append(runtime)
        return rows

    def _file(self, exported, of, variant, role, content, cost) -> tuple[dict, str]:
        """Writes a TFLite file and measures it: its row, and what ran it."""
        experiment, config, splits = self.experiment, self.config, self.splits
        path = config.workdir / f"{exported.stage}_{variant}.tflite"
        with experiment.timed("export"), experiment.console.status(f"exporting {path.name}"):
            made = content(variant)
            made = metadata.attach(made, splits.class_names, variant=variant, architecture=exported.architecture)
            files.write(path, made)
            interpreter = tflite.load(path)
            outputs = np.concatenate([interpreter.predict(x.numpy()) for x, _ in experiment.batches(splits.test)])
            figures = quality.metrics(outputs, splits.test.labels)
            image = splits.test.read(tf.constant([0]))[0][0].numpy()
            one, cores = interpreter.latency(image, costs.latency), costs.cores()
            every = tflite.load(path, threads=cores).latency(image, costs.latency)
            peak = costs.peak_memory(path)
        experiment.console.print(
            f"edge     {path.name}: {', '.join(metadata.read(path)['operators'])}", highlight=False
        )
        reference = self.logits[of.stage]
        row = tables.row(
            role,
            exported.architecture,
            test_accuracy=figures.pop("accuracy"),
            **figures,
            teacher_agreement=self._agreement(variant, outputs),
            float_agreement=quality.agreement(outputs, reference),
            **self._against(outputs, reference),
            **cost,
            bytes=path.stat().st_size,
            zip_bytes=len(zlib.compress(made, level=9)),
            memory_bytes=peak,
            latency_ms_median=one.median_ms,
            latency_ms_iqr=one.iqr_ms,
            latency_all_threads_ms_median=every.median_ms,
            latency_all_threads_ms_iqr=every.iqr_ms,
        )
        self._log(exported.stage, row, [path], prefix=f"tflite_{variant}_")
        return row, f"TFLite rows: {one.runtime}, 1 thread and {cores}, batch 1"

    def _against(self, outputs, reference) -> dict:
        """What is lost against the Keras model that it was made of."""
        labels = self.splits.test.labels
        change, low, high = quality.accuracy_change(outputs, reference, labels)
        return {
            "accuracy_change": change,
            "accuracy_change_low": low,
            "accuracy_change_high": high,
            "worst_class_drop": quality.worst_class_drop(outputs, reference, labels),
            "marked": change < -self.config.max_accuracy_drop,
        }

    def _layer_report(self, exported, model) -> None:
        with self.experiment.timed("export"), self.experiment.console.status("measuring each layer in int8"):
            found = tflite.layer_report(model, self._representative("int8"))
        path = self.config.workdir / f"{exported.stage}_int8_layers.csv"
        tables.write_csv(found, path)
        worst = sorted(found, key=lambda one: -one["rmse_in_steps"])[:3]
        told = ", ".join(f"{one['layers'] or one['operator']} {one['rmse_in_steps']:.2f}" for one in worst)
        self.experiment.console.print(
            f"int8     rounding errors in steps of the layer's own (0.29 is rounding alone), the worst: {told}; all in "
            f"{path}",
            highlight=False,
        )

    def _representative(self, variant) -> np.ndarray | None:
        """Training images for the ranges of integer activations, drawn from the seed."""
        if variant not in CALIBRATED:
            return None
        source = self.splits.train
        count = min(_REPRESENTATIVE, len(source))
        chosen = np.sort(np.random.default_rng(self.config.seed).choice(len(source), count, replace=False))
        return source.read(tf.constant(chosen))[0].numpy()

    def _figures(self, stage, role, logits, labels) -> None:
        folder, names = self.config.workdir, list(self.splits.class_names)
        matrix = quality.confusion(logits, labels, len(names))
        per_class = quality.class_report(logits, labels, names)
        figures.confusion_figure(matrix, names, folder / f"{stage}_confusion.png", f"{role}, test split")
        tables.write_json({"class_names": names, "matrix": matrix}, folder / f"{stage}_confusion.json")
        figures.class_report_figure(per_class, names, folder / f"{stage}_report.png", f"{role}, test split")
        tables.write_json(per_class, folder / f"{stage}_report.json")

    def _log(self, stage, row, paths, prefix="") -> None:
        child = self.experiment.child(stage)
        # `val_accuracy` is the name of the series over the epochs.
        names = {"val_accuracy": "best_val_accuracy"}
        figures = {f"{prefix}{names.get(k, k)}": value for k, value in row.items() if isinstance(value, (int, float))}
        child.metrics(figures, 0)
        if not prefix:
            child.tags({"role": row["role"], "architecture": row["architecture"]})
            paths = [*paths, *sorted(self.config.workdir.glob(f"{stage}_*.png"))]
            paths += sorted(self.config.workdir.glob(f"{stage}_*.json"))
        for path in paths:
            child.artifact(path)
        child.close()


def _notes(models, rows, exported, teacher) -> list[str]:
    """What has to be known to read the table: a line each."""
    row_of = {trained.stage: row for trained, row in zip(models, rows, strict=False)}
    notes = [_stopped(trained) for trained in models if trained.stop is not None]
    if teacher is None:
        return notes
    own, student = row_of[teacher.stage], row_of[exported.stage]
    if teacher.role != "teacher":
        notes.append(f"agreement is with the {teacher.role}")
    reverse = own["parameters"] < student["parameters"]
    if reverse:
        notes.append("reverse: the teacher has fewer parameters than the student")
    baseline = row_of.get("baseline")
    if baseline is None or baseline is own or own["val_accuracy"] > baseline["val_accuracy"]:
        return notes
    defective = any(trained.stop is not None and trained.stop["step"] is not None for trained in models)
    if defective:
        meaning = ", as it is a defective teacher, on purpose"
    elif reverse:
        meaning = ", as may be of a smaller teacher, in reverse on purpose"
    else:
        meaning = ", so the distilled row says nothing about distillation"
    return [
        *notes,
        f"the {teacher.role} does not beat the student without KD on validation data ({own['val_accuracy']:.2%} "
        f"against {baseline['val_accuracy']:.2%}){meaning}",
    ]


def _stopped(trained) -> str:
    stop = trained.stop
    if stop["step"] is None:
        return (
            f"{trained.role} not defective: it never reached validation accuracy {stop['at_val_accuracy']:.2%}, and "
            "was trained to the end"
        )
    return (
        f"defective {trained.role}: training ended on purpose in step {stop['step']}, at validation accuracy "
        f"{stop['val_accuracy']:.2%}, the first check that found {stop['at_val_accuracy']:.2%}"
    )
