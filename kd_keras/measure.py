"""What is measured of an experiment's models: the test split is read, TFLite files are made, tables are written."""

import numpy as np
import tensorflow as tf

from kd_keras import evaluate, files, report
from kd_keras.distiller import Taps
from kd_keras.evaluate import logits
from kd_keras.experiment import Experiment, Trained
from kd_keras.export import tflite

_REPRESENTATIVE = 256


def measure(experiment: Experiment, models: list[Trained], exported: list[Trained], teacher: Trained | None) -> None:
    """Reads the test split, once a model: the table, figures, TFLite files and their figures, all in the workdir.

    Args:
        experiment: whose models have been trained.
        models: in the table's order.
        exported: those that are converted to TFLite, the student first.
        teacher: the one that the others' agreement is measured with; those before it in the table have none.
    """
    _Measuring(experiment, teacher).run(models, exported)


class _Measuring:
    def __init__(self, experiment: Experiment, teacher: Trained | None):
        self.experiment, self.config, self.splits = experiment, experiment.config, experiment.splits
        self.teacher = teacher
        #: Test logits (N, K) by stage.
        self.logits: dict[str, np.ndarray] = {}

    def run(self, models, exported):
        folder, tracker = self.config.workdir, self.experiment.tracker
        done = [self._model(trained) for trained in models]
        rows, runtimes = [one["row"] for one in done], [one["runtime"] for one in done]
        for trained in exported:
            told = "" if trained is exported[0] else f"{trained.role} "
            rows += self._export(trained, told, runtimes)
        report.curves({t.role: t.series for t in models if t.series}, folder / "curves.png")
        notes = [*dict.fromkeys(runtimes), *_notes(models, rows, exported[0], self.teacher)]
        report.write_table(rows, folder, runtime_note="; ".join(notes))
        for path in ("results.csv", "results.json", "results.txt", "curves.png"):
            tracker.artifact(folder / path)
        stages = {trained.role: trained.stage for trained in models}
        for row in rows:
            name = stages.get(row["role"], row["role"]).replace(" ", "_")
            tracker.metrics({f"{name}_test_accuracy": row["test_accuracy"]}, 0)
        self.experiment.finish("measured", {"rows": rows, "notes": notes})

    def _model(self, trained) -> dict:
        """A model's row and what ran it; found where it was measured before, or by another run."""
        experiment, stage = self.experiment, f"{trained.stage}-measured"
        kept = self.config.workdir / "state" / f"{stage}.npy"
        done = experiment.done(stage)
        if done is None:
            with experiment.console.status(f"measuring {trained.stage}"):
                model = experiment.load(trained)
                with experiment.timed("evaluation"):
                    own, labels = evaluate.predict(logits(model), experiment.batches(self.splits.test))
                    row, runtime = self._row(trained, model, own, labels)
                files.write(kept, lambda file: np.save(file, own))
                self._figures(trained.stage, trained.role, own, labels)
                done = experiment.finish(stage, {"row": row, "runtime": runtime})
        own = self.logits[trained.stage] = np.load(kept)
        if done["row"]["role"] != trained.role:
            self._figures(trained.stage, trained.role, own, self.splits.test.labels)
        # Another run has measured its agreement with another teacher.
        row = {**done["row"], "role": trained.role, "teacher_agreement": self._agreement(trained.stage, own)}
        if row != done["row"]:
            done = experiment.finish(stage, {**done, "row": row})
        self._log(trained.stage, row, [trained.path])
        return done

    def _row(self, trained, model, own, labels):
        figures = evaluate.metrics(own, labels)
        latency = evaluate.keras_latency(model)
        batches = self.experiment.batches
        seen = {
            f"{name}_accuracy": evaluate.metrics(*evaluate.predict(logits(model), batches(source)))["accuracy"]
            for name, source in (("train", self.splits.train), ("val", self.splits.val))
        }
        row = report.row(
            trained.role,
            trained.architecture,
            **seen,
            test_accuracy=figures.pop("accuracy"),
            **figures,
            parameters=evaluate.parameters(model),
            macs=evaluate.macs(model),
            bytes=trained.path.stat().st_size,
            latency_ms_median=latency.median_ms,
            latency_ms_iqr=latency.iqr_ms,
        )
        return row, f"Keras rows: {latency.runtime}, {latency.threads} threads, batch 1"

    def _agreement(self, stage, own):
        if self.teacher is None or stage == self.teacher.stage or self.teacher.stage not in self.logits:
            return None
        return evaluate.agreement(own, self.logits[self.teacher.stage])

    def _export(self, exported, told, runtimes) -> list[dict]:
        experiment, config, splits, rows = self.experiment, self.config, self.splits, []
        model = Taps(experiment.load(exported), exported.stage).logits_model()
        representative = self._representative() if "int8" in config.export else None
        cost = {"parameters": evaluate.parameters(model), "macs": evaluate.macs(model)} if config.export else {}
        for variant in config.export:
            with experiment.timed("export"), experiment.console.status(f"exporting {variant}"):
                path = config.workdir / f"{exported.stage}_{variant}.tflite"
                files.write(path, tflite.convert(model, variant, representative))
                interpreter = tflite.load(path)
                outputs = np.concatenate([interpreter.predict(x.numpy()) for x, _ in experiment.batches(splits.test)])
                figures = evaluate.metrics(outputs, splits.test.labels)
                image = splits.test.read(tf.constant([0]))[0][0].numpy()
                latency = interpreter.latency(image, evaluate.latency)
            runtimes.append(f"TFLite rows: {latency.runtime}, {latency.threads} thread(s), batch 1")
            rows.append(
                report.row(
                    f"{told}TFLite {variant}",
                    exported.architecture,
                    test_accuracy=figures.pop("accuracy"),
                    **figures,
                    teacher_agreement=self._agreement(variant, outputs),
                    float_agreement=evaluate.agreement(outputs, self.logits[exported.stage]),
                    **cost,
                    bytes=path.stat().st_size,
                    latency_ms_median=latency.median_ms,
                    latency_ms_iqr=latency.iqr_ms,
                )
            )
            self._log(exported.stage, rows[-1], [path], prefix=f"tflite_{variant}_")
        return rows

    def _representative(self) -> np.ndarray:
        """Training images for the ranges of int8, drawn from the seed."""
        source = self.splits.train
        count = min(_REPRESENTATIVE, len(source))
        chosen = np.sort(np.random.default_rng(self.config.seed).choice(len(source), count, replace=False))
        return source.read(tf.constant(chosen))[0].numpy()

    def _figures(self, stage, role, logits, labels) -> None:
        folder, names = self.config.workdir, list(self.splits.class_names)
        matrix = evaluate.confusion(logits, labels, len(names))
        per_class = evaluate.class_report(logits, labels, names)
        report.confusion_figure(matrix, names, folder / f"{stage}_confusion.png", f"{role}, test split")
        report.write_json({"class_names": names, "matrix": matrix}, folder / f"{stage}_confusion.json")
        report.class_report_figure(per_class, names, folder / f"{stage}_report.png", f"{role}, test split")
        report.write_json(per_class, folder / f"{stage}_report.json")

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
