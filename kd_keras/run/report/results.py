"""The results of a run, made from the records of its stages: rows, notes, figures, and what is logged of them."""

import functools

import numpy as np

from kd_keras.evaluate import multilabel, quality
from kd_keras.run.report import figures, tables
from kd_keras.schemes.plan import Build, Export, Plan, Row, Train

# A file that agrees with its model less often is not what was trained.
_LEAST_FILE_AGREEMENT = 0.9


def doubt_about(stage: Export, record: dict) -> str | None:
    """A warning of a file that gives another class than its model for many images; None where there is none to give."""
    if record.get("agreement", 1.0) >= _LEAST_FILE_AGREEMENT:
        return None
    return (
        f"{stage.name}.tflite gives its model's class for only {record['agreement']:.1%} of {record['images']} "
        "validation images: --layer_report says which layers lose most, docs/edge.md what to do"
    )


class Results:
    """What the stages of a finished plan left.

    Args:
        plan: the stages.
        session: for the test labels and the settings.
        store: where the records are.
    """

    def __init__(self, plan: Plan, session, store):
        self.plan, self.session, self.store = plan, session, store
        self.labels = session.splits.test.labels
        self.agreement = multilabel.agreement if session.splits.multi_label else quality.agreement
        self._logits: dict[str, np.ndarray] = {}

    def logits(self, stage) -> np.ndarray:
        """The test logits (N, K) of a model or file of the table."""
        if stage.key not in self._logits:
            (row,) = [row for row in self.plan.rows if row.stage.key == stage.key][:1]
            self._logits[stage.key] = np.load(self.store.folder(row.measures[0]) / "logits.npy")
        return self._logits[stage.key]

    def is_refused(self, row: Row) -> bool:
        """Whether a row's file could not be made."""
        return isinstance(row.stage, Export) and "refused" in self.store.record(row.stage)

    def rows(self) -> list[dict]:
        """The table; a file that could not be made has no row."""
        rows, reference_seen = [], False
        reference = self.plan.reference
        for row in self.plan.rows:
            if self.is_refused(row):
                continue
            is_reference = reference is not None and row.stage.key == reference.key
            agreement = None
            if reference_seen and not is_reference:
                agreement = self.agreement(self.logits(row.stage), self.logits(reference))
            reference_seen = reference_seen or is_reference
            rows.append(self._row(row, teacher_agreement=agreement))
        return rows

    def _row(self, row: Row, **columns) -> dict:
        stage, values = row.stage, dict(columns)
        for measure in row.measures:
            values |= self.store.record(measure)["figures"]
        if isinstance(stage, Export):
            values |= self.store.record(stage)["figures"]
            values["float_agreement"] = self.agreement(self.logits(stage), self.logits(row.reference))
        else:
            values["bytes"] = (self.store.folder(stage) / "model.keras").stat().st_size
            values |= self._seen(stage)
        if row.reference is not None:
            values |= self._against(stage, row.reference)
        return tables.row(stage.role, stage.architecture, stage=stage.name, **values)

    def _seen(self, stage) -> dict:
        """What a model was trained on, where some images have no label."""
        if not isinstance(stage, Train) or not self._some_unlabelled:
            return {}
        samples, updates = stage.samples, self.store.record(stage).get("updates")
        return {"labelled_images": samples.labelled, "unlabelled_images": samples.unlabelled, "updates": updates}

    @property
    def _some_unlabelled(self) -> bool:
        trained = [stage for stage in self.plan.models if isinstance(stage, Train)]
        return any(stage.samples.unlabelled or stage.samples.length for stage in trained)

    def _against(self, stage, reference) -> dict:
        """What is lost against the Keras model that a file or compressed student was made of."""
        logits, full = self.logits(stage), self.logits(reference)
        most = self.session.config.export.max_accuracy_drop
        if self.session.splits.multi_label:
            change, low, high = multilabel.map_change(logits, full, self.labels)
            columns = {"map_change": change, "map_change_low": low, "map_change_high": high}
            drop = multilabel.worst_label_drop(logits, full, self.labels)
            return {**columns, "worst_label_drop": drop, "marked": change < -most}
        change, low, high = quality.accuracy_change(logits, full, self.labels)
        return {
            "accuracy_change": change,
            "accuracy_change_low": low,
            "accuracy_change_high": high,
            "worst_class_drop": quality.worst_class_drop(logits, full, self.labels),
            "marked": change < -most,
        }

    def series(self) -> dict[str, dict]:
        """Each trained model's curves by its role."""
        series = {}
        for stage in (*self.plan.models, *self.plan.compressed):
            trained = stage
            if isinstance(stage, Build) and stage.what.name in ("cut", "strip"):
                trained = stage.of[0]
            # What was validated of a student with exits is the deepest classifier: its curves are the student's alone.
            is_exit = isinstance(stage, Build) and stage.what.kwargs.get("tap", "logits") != "logits"
            if isinstance(trained, Train) and not is_exit:
                series[stage.role] = self.store.record(trained)["series"]
        return series

    def curves(self) -> dict[str, dict]:
        """The series of each training by its stage; pretraining of losses has no validation and is left out."""
        trained = (stage for stage in self.plan.stages if isinstance(stage, Train) and stage.name)
        return {stage.title: self.store.record(stage)["series"] for stage in trained if not stage.pretraining}

    def notes(self, rows: list[dict]) -> list[str]:
        """What has to be known to read the table."""
        return [*self._gain_note(), *self.runtimes(), *self.warnings(rows)]

    def runtimes(self) -> list[str]:
        """What the latencies were measured with."""
        runtimes = [self.store.record(row.measures[2]).get("runtime") for row in self.plan.rows]
        return list(dict.fromkeys(filter(None, runtimes)))

    def warnings(self, rows: list[dict]) -> list[str]:
        """Sentences on what a reader of the table could take wrongly."""
        notes = [self.store.record(row.stage)["refused"] for row in self.plan.rows if self.is_refused(row)]
        records = [(row.stage, self.store.record(row.stage)) for row in self.plan.rows if isinstance(row.stage, Export)]
        notes += filter(None, (doubt_about(stage, record) for stage, record in records))
        for stage in self.plan.compressed:
            notes += [f"{stage.name}: {text}" for text in self.store.record(stage).get("shortfalls", ())]
        for measure in (stage for stage in self.plan.extras if "knn_accuracy" in self._figures(stage)):
            accuracy = self._figures(measure)["knn_accuracy"]
            notes.append(
                f"{measure.name.removesuffix('-knn')} student by its nearest neighbours: {accuracy:.2%} (test)"
            )
        notes += self._teacher_notes({row["stage"]: row for row in rows})
        if any(row["marked"] for row in rows):
            drop = self.session.config.export.max_accuracy_drop
            what = "a lower mAP" if self.session.splits.multi_label else "less accurate"
            notes.append(f"‡ {what} than the Keras student that it was made of by more than {drop:g}")
        if self.session.splits.multi_label:
            notes.append("several labels: mAP and AUC are means over labels; F1 is at thresholds from validation data")
        return notes

    def _figures(self, stage) -> dict:
        return self.store.record(stage).get("figures", {})

    @functools.cached_property
    def gain(self) -> dict | None:
        """How much better the student is than the baseline; None where there is no other model as baseline.

        Returns:
            ``change``, ``low`` and ``high`` of the ``score``, shares in [-1, 1] with the paired 95 % interval over the
            test ``images``.
        """
        baseline = next((row.stage for row in self.plan.rows if row.stage.name == "baseline"), None)
        student = self.plan.students[0]
        if baseline is None or student.key == baseline.key:
            return None
        difference = multilabel.map_change if self.session.splits.multi_label else quality.accuracy_change
        change, low, high = difference(self.logits(student), self.logits(baseline), self.labels)
        score = "mAP" if self.session.splits.multi_label else "accuracy"
        return {"score": score, "change": change, "low": low, "high": high, "images": len(self.labels)}

    def _gain_note(self) -> list[str]:
        if (gain := self.gain) is None:
            return []
        return [
            f"distillation: {100 * gain['change']:+.2f} points of test {gain['score']} over the baseline (95 % "
            f"interval over the {gain['images']} test images of this one run: {100 * gain['low']:+.2f} to "
            f"{100 * gain['high']:+.2f})"
        ]

    def _stops(self) -> list[tuple[str, dict]]:
        """(role, what was recorded) of every teacher whose training was to end early."""
        trained = [stage for stage in self.plan.models if isinstance(stage, Train) and stage.recipe.stop is not None]
        return [(stage.role, self.store.record(stage)["stop"]) for stage in trained]

    def _teacher_notes(self, row_of: dict[str, dict]) -> list[str]:
        notes = [_stop_note(role, stop) for role, stop in self._stops()]
        teacher = self.plan.reference
        if teacher is None:
            return notes
        row, student = row_of[teacher.name], row_of[self.plan.students[0].name]
        if teacher.role != "teacher":
            notes.append(f"agreement is with the {teacher.role}")
        is_reverse = row["parameters"] < student["parameters"]
        if is_reverse:
            notes.append("reverse: the teacher has fewer parameters than the student")
        baseline, (score, score_name) = row_of.get("baseline"), tables.score(row)
        score, prefix = f"val_{score}", "" if score == "accuracy" else f"{score_name} "
        if baseline is None or baseline is row or row[score] > baseline[score]:
            return notes
        if any(stop["step"] is not None for _, stop in self._stops()):
            meaning = ", as it is a defective teacher, on purpose"
        elif is_reverse:
            meaning = ", as may be of a smaller teacher, in reverse on purpose"
        else:
            meaning = ", so the distilled row says nothing about distillation"
        return [
            *notes,
            f"the {teacher.role} does not beat the baseline on validation data ({prefix}{row[score]:.2%} "
            f"against {baseline[score]:.2%}){meaning}",
        ]

    def draw(self) -> None:
        """Draws the curves, and for each model its confusion matrix and its figures by class."""
        folder, names = self.session.config.run.workdir, list(self.session.splits.class_names)
        figures.curves(self.series(), folder / "curves.png")
        for row in (row for row in self.plan.rows if not isinstance(row.stage, Export)):
            stage, logits, title = row.stage, self.logits(row.stage), f"{row.stage.role}, test split"
            if self.session.splits.multi_label:
                limits = self.store.record(row.measures[0])["thresholds"]
                by_label = multilabel.label_report(logits, self.labels, limits)
                by_label = dict(zip(names, by_label, strict=True))
                figures.class_report_figure(by_label, names, folder / f"{stage.name}_report.png", title)
                tables.write_json(by_label, folder / f"{stage.name}_report.json")
                continue
            matrix = quality.confusion(logits, self.labels, len(names))
            by_class = quality.class_report(logits, self.labels, names)
            figures.confusion_figure(matrix, names, folder / f"{stage.name}_confusion.png", title)
            tables.write_json({"class_names": names, "matrix": matrix}, folder / f"{stage.name}_confusion.json")
            figures.class_report_figure(by_class, names, folder / f"{stage.name}_report.png", title)
            tables.write_json(by_class, folder / f"{stage.name}_report.json")


def _stop_note(role: str, stop: dict) -> str:
    if stop["step"] is None:
        return (
            f"{role} not defective: it never reached validation accuracy {stop['at_val_accuracy']:.2%}, and was "
            "trained to the end"
        )
    return (
        f"defective {role}: training ended on purpose in step {stop['step']}, at validation accuracy "
        f"{stop['val_accuracy']:.2%}, the first check that found {stop['at_val_accuracy']:.2%}"
    )
