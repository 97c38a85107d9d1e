"""One experiment under one folder: what a scheme trains with, and what is measured of it afterwards.

Every stage is done once: it leaves ``state/<stage>.json`` when it has ended, and the same command, run again, goes on
behind the last one.
"""

import dataclasses
import json
import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from rich.console import Console

from kd_keras import data as datasets
from kd_keras import distribute, evaluate, files, report, spec, tracking, training
from kd_keras.config import Config
from kd_keras.distiller import Distiller, Taps
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.spec import Spec

#: What the table calls a stage's model.
ROLES = {"teacher": "teacher", "baseline": "student without KD", "student": "student distilled"}
_REPRESENTATIVE = 256


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage's model.

    Attributes:
        stage: its name, and that of ``<stage>.keras`` in the workdir.
        architecture: the spec that built it.
        path: the saved model.
        series: figure → value an epoch; empty where nothing was trained.
        best_epoch: the epoch (from 0) whose weights were kept, or None.
    """

    stage: str
    architecture: str
    path: pathlib.Path
    series: dict[str, list[float]]
    best_epoch: int | None = None


class Experiment:
    """The tools that a scheme is handed.

    Args:
        config: the resolved flags.
        console: where progress is printed.

    Attributes:
        splits: the data set.

    Raises:
        InputError: the data can't be used, or is not what this workdir was begun with.
    """

    def __init__(self, config: Config, console: Console | None = None):
        self.config = config
        # First, since machines can only be joined before TensorFlow has computed anything.
        self.strategy = distribute.strategy(config.strategy, timeout=config.worker_timeout)
        #: (number of this worker, number of workers): worker 0 alone writes and prints.
        self.worker = distribute.worker(self.strategy)
        self.chief = self.worker[0] == 0
        if not self.chief:
            logging.set_verbosity(logging.ERROR)
        # A pipe or a log has no width of its own; Rich would take 80 columns, which is narrow for the table.
        width = None if sys.stdout.isatty() else 120
        self.console = console or Console(soft_wrap=True, width=width, quiet=not self.chief)
        keras.config.set_dtype_policy(config.precision)
        keras.config.disable_interactive_logging()
        if config.deterministic:
            keras.utils.set_random_seed(config.seed)
            tf.config.experimental.enable_op_determinism()
        self.augment = [spec.build("kd_keras.data._augment", one) for one in config.augment]
        self.splits = self._load()
        self.tracker = tracking.NullWriter()

    def _load(self):
        config = self.config
        splits = spec.build("kd_keras.data", config.data)
        if config.train_examples is not None:
            splits = dataclasses.replace(splits, train=datasets.take(splits.train, config.train_examples, config.seed))
        return splits

    # ---- state on disk ----

    @property
    def _state(self) -> pathlib.Path:
        return self.config.workdir / "state"

    def _done(self, stage: str) -> dict | None:
        path = self._state / f"{stage}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def _finish(self, stage: str, record: dict) -> dict:
        if self.chief:
            report.write_json(record, self._state / f"{stage}.json")
        return record

    @property
    def finished(self) -> bool:
        """Whether everything has been trained and measured."""
        return self._done("measured") is not None

    def begin(self) -> None:
        """Claims the data for this workdir and opens the tracking run.

        Raises:
            InputError: the workdir was begun with other data.
        """
        splits = self.splits
        sizes = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test)}
        now = {**sizes, "classes": list(splits.class_names), "image_shape": list(splits.image_shape)}
        before = self._done("data") or self._finish("data", now)
        if before != now:
            raise InputError(
                f"{self.config.workdir} was begun with other data ({before}, now {now}): name another --workdir"
            )
        counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
        self.console.print(
            f"data     {self.config.data}: {counts}; {splits.num_classes} classes, "
            f"{'×'.join(map(str, splits.image_shape))}"
        )
        self._open_tracker()

    def _open_tracker(self) -> None:
        config = self.config
        if config.tracking == "none" or not self.chief:
            return
        uri, artifacts = tracking.local_store(config.workdir)
        if config.tracking_uri is not None:
            uri, artifacts = config.tracking_uri, None
        runs = self._done("runs") or {}
        self.tracker = tracking.MLflowWriter(
            uri, config.experiment, config.workdir.name, artifact_location=artifacts, run_id=runs.get("parent")
        )
        if runs.get("parent") != self.tracker.run_id:
            runs = {"parent": self.tracker.run_id}
        self._finish("runs", runs)
        self.tracker.params(config.resolved())
        environment = tracking.environment()
        report.write_json(environment, config.workdir / "environment.json")
        self.tracker.tags({"git_revision": environment["git_revision"], "python": environment["python"]})
        self.tracker.artifact(config.workdir / "environment.json")

    def _child(self, stage: str):
        runs = self._done("runs") or {}
        child = self.tracker.child(stage, run_id=runs.get(stage))
        if child.run_id is not None and child.run_id != runs.get(stage):
            self._finish("runs", {**runs, stage: child.run_id})
        return child

    # ---- training ----

    def model(self, one: Spec) -> keras.Model:
        """Builds a model for this data; the same spec has the same initial weights each time."""
        keras.utils.set_random_seed(self.config.seed)
        with self.strategy.scope():
            shape = {"num_classes": self.splits.num_classes, "input_shape": self.splits.image_shape}
            return spec.build("kd_keras.models", one, **shape)

    def distiller(self, student: keras.Model, losses, *, teacher=None, epochs, of_teacher=False) -> Distiller:
        """A compiled `Distiller` of ``student``, with the teacher's or the student's optimizer."""
        config = self.config
        self._check_last_batch(student)
        with self.strategy.scope():
            distiller = Distiller(
                student=student,
                teacher=teacher,
                losses=[spec.build("kd_keras.losses", one) for one in losses],
                teacher_dtype=config.teacher_dtype,
            )
            optimizer = training.optimizer(
                config.teacher_optimizer if of_teacher else config.optimizer,
                config.teacher_learning_rate if of_teacher else config.learning_rate,
                epochs=epochs,
                steps_per_epoch=self.steps_per_epoch,
            )
            distiller.compile(optimizer=optimizer, metrics=["accuracy"], steps_per_execution=config.steps_per_execution)
        return distiller

    def _check_last_batch(self, model) -> None:
        """Refuses batches of which a replica gets nothing, where that changes what is learnt.

        It is given a blank image instead, which no loss counts but batch norm does.
        """
        count, size, replicas = len(self.splits.train), self.config.batch_size, self.strategy.num_replicas_in_sync
        if size < replicas:
            raise InputError(f"--batch_size={size} is less than the {replicas} replicas: it is the global batch size")
        left = count % size
        if 0 < left < replicas and any(isinstance(x, keras.layers.BatchNormalization) for x in _layers(model)):
            fits = next(n for n in range(size - 1, 0, -1) if count % n == 0 or count % n >= replicas)
            raise InputError(
                f"the last of {count} images in batches of {size} are {left}, fewer than the {replicas} replicas, and "
                f"{model.name}'s batch norm would count blank images: give another --batch_size, such as {fits}"
            )

    @property
    def steps_per_epoch(self) -> int:
        return datasets.steps_per_epoch(len(self.splits.train), self.config.batch_size)

    @property
    def teacher_epochs(self) -> int:
        """Epochs of the teacher: as asked for; else none for a model that comes trained, and the student's."""
        config = self.config
        if config.teacher_epochs is not None:
            return config.teacher_epochs
        module = spec.builder("kd_keras.models", config.teacher.name).__globals__
        return 0 if module.get("TRAINED", False) else config.epochs

    def train(self, stage: str, one: Spec, losses, *, teacher=None, epochs=None, of_teacher=False) -> Trained:
        """Trains a model, or goes on with it, or finds it finished.

        Args:
            stage: name of the stage and of the file ``<stage>.keras``.
            one: spec of the model.
            losses: specs of its loss terms.
            teacher: `Trained` whose model teaches.
            epochs: by default the student's.
            of_teacher: use the teacher's optimizer and learning rate.
        """
        config, path = self.config, self.config.workdir / f"{stage}.keras"
        epochs = config.epochs if epochs is None else epochs
        done = self._done(stage)
        # All have looked before one of them may write, and all do the same: making a model takes every worker.
        if len(set(distribute.gather(self.strategy, int(done is not None)))) > 1:
            raise InputError(f"not all workers find the stage {stage!r} finished: put --workdir where all share it")
        if done is None:
            model = self.model(one)
            teacher_model = None if teacher is None else self.load(teacher)
            history = training.History()
            if epochs:
                history = self._fit(stage, model, losses, teacher_model, epochs, of_teacher)
            else:
                self._check_class_order(model)
            if self.chief:
                save_model(model, path)
            record = {"architecture": str(one), "series": history.series, "best_epoch": history.best_epoch}
            done = self._finish(stage, {**record, "seconds": round(history.seconds, 1)})
            if self.chief:
                self._checkpoint(stage).unlink(missing_ok=True)
            distribute.gather(self.strategy, 1)
        distribute.wait_for(path)
        trained = Trained(stage, done["architecture"], path, done["series"], done["best_epoch"])
        self.console.print(f"{stage:<8} {_summary(trained, done['seconds'])}")
        return trained

    def _checkpoint(self, stage: str) -> pathlib.Path:
        return self._state / f"{stage}.npz"

    def _fit(self, stage, model, losses, teacher, epochs, of_teacher) -> training.History:
        config, splits = self.config, self.splits
        distiller = self.distiller(model, losses, teacher=teacher, epochs=epochs, of_teacher=of_teacher)
        # Dropout draws from the seed alone, whichever stage of whichever scheme is trained first.
        keras.utils.set_random_seed(config.seed)
        child = self._child(stage)
        child.params({"stage": stage, "model": model.name, "losses": " + ".join(map(str, losses)), "epochs": epochs})

        def stream(initial_epoch):
            return datasets.batches(
                splits.train,
                config.batch_size,
                training=True,
                seed=config.seed,
                epochs=epochs,
                initial_epoch=initial_epoch,
                augment=self.augment,
                num_classes=splits.num_classes,
                shard=self.worker,
            )

        try:
            history = training.fit(
                distiller,
                stream,
                datasets.batches(splits.val, config.batch_size, shard=self.worker),
                epochs=epochs,
                steps_per_epoch=self.steps_per_epoch,
                checkpoint=self._checkpoint(stage),
                callbacks=[_Track(child)],
                progress=f"{stage:<8}" if config.progress == "auto" and self.chief else None,
            )
        except BaseException:
            child.close("FAILED")
            raise
        child.close()
        return history

    def leave_cluster(self) -> None:
        """What is built from now on is this worker's alone, so that the chief can measure by itself."""
        if self.worker[1] > 1:
            self.strategy = tf.distribute.get_strategy()

    def batches(self, source):
        """A split once, in order, as (image, label) batches."""
        return datasets.batches(source, self.config.batch_size)

    def load(self, trained: Trained) -> keras.Model:
        """A stage's saved model."""
        with self.strategy.scope():
            return keras.models.load_model(trained.path, compile=False)

    def _check_class_order(self, model) -> None:
        """Refuses a ready-made teacher whose outputs mean other classes than the data's.

        A file says nothing of its class order, but the validation split does: a teacher that is right far more often
        once its outputs are renamed has them in another order.
        """
        from scipy.optimize import linear_sum_assignment

        logits, labels = evaluate.predict(_logits(model), self.batches(self.splits.val))
        matrix = evaluate.confusion(logits, labels, self.splits.num_classes)
        rows, columns = linear_sum_assignment(-matrix)
        right, renamed = np.trace(matrix) / matrix.sum(), matrix[rows, columns].sum() / matrix.sum()
        if renamed > right + 0.2:
            raise InputError(
                f"the teacher is right on {right:.1%} of the validation images, but on {renamed:.1%} with its classes "
                f"renamed: its class order is not the data's ({', '.join(self.splits.class_names[:10])} …)"
            )
        if right < 1.5 / self.splits.num_classes:
            logging.warning("the teacher is right on only %.1f %% of the validation images", 100 * right)

    # ---- measuring ----

    def measure(self, models: list[Trained], exported: Trained) -> None:
        """Reads the test split, once: the table, figures, TFLite files and their figures, all written to the workdir.

        Args:
            models: in the table's order; the one whose stage is ``teacher`` is what agreement is measured with.
            exported: the model that is converted to TFLite.
        """
        folder, splits = self.config.workdir, self.splits
        rows, runtimes, logits = [], [], {}
        for trained in models:
            with self.console.status(f"measuring {trained.stage}"):
                model = self.load(trained)
                logits[trained.stage], labels = evaluate.predict(_logits(model), self.batches(splits.test))
                rows.append(self._row(trained, model, logits, labels, runtimes))
                self._figures(trained.stage, ROLES.get(trained.stage, trained.stage), logits[trained.stage], labels)
                self._log(trained.stage, rows[-1], [trained.path])
        rows += self._export(exported, logits, labels, runtimes)
        report.curves({ROLES.get(t.stage, t.stage): t.series for t in models if t.series}, folder / "curves.png")
        notes = [*dict.fromkeys(runtimes), *self._doubts(rows)]
        report.write_table(rows, folder, runtime_note="; ".join(notes))
        for path in ("results.csv", "results.json", "results.txt", "curves.png"):
            self.tracker.artifact(folder / path)
        for row in rows:
            name = {role: stage for stage, role in ROLES.items()}.get(row["role"], row["role"]).replace(" ", "_")
            self.tracker.metrics({f"{name}_test_accuracy": row["test_accuracy"]}, 0)
        self._finish("measured", {"rows": rows, "notes": notes})

    def results(self) -> tuple[list[dict], list[str]]:
        """The rows of a finished experiment's table, and what has to be known to read them."""
        done = self._done("measured")
        return done["rows"], done["notes"]

    def print_places(self) -> None:
        """Prints where things are and how to open them."""
        folder = self.config.workdir
        names = ", ".join(sorted(path.name for path in folder.glob("*.keras")))
        lines = {
            "table": f"{folder}/results.csv, results.json, results.txt",
            "figures": f"{folder}/curves.png, *_confusion.png, *_report.png",
            "models": f"{folder}/{names}",
        }
        if self.config.export:
            lines["edge"] = f"{folder}/*.tflite"
        if self.config.tracking == "mlflow":
            uri = self.config.tracking_uri or tracking.local_store(folder)[0]
            lines["compare"] = uri
            if not uri.startswith("http"):
                lines["compare"] = f"mlflow ui --backend-store-uri '{uri}', then open http://127.0.0.1:5000"
        for name, text in lines.items():
            self.console.print(f"{name:<8} {text}", highlight=False)

    def _row(self, trained, model, logits, labels, runtimes) -> dict:
        splits, own = self.splits, logits[trained.stage]
        figures = evaluate.metrics(own, labels)
        latency = evaluate.keras_latency(model)
        runtimes.append(f"Keras rows: {latency.runtime}, {latency.threads} threads, batch 1")
        seen = {
            f"{name}_accuracy": evaluate.metrics(*evaluate.predict(_logits(model), self.batches(source)))["accuracy"]
            for name, source in (("train", splits.train), ("val", splits.val))
        }
        return report.row(
            ROLES.get(trained.stage, trained.stage),
            trained.architecture,
            **seen,
            test_accuracy=figures.pop("accuracy"),
            **figures,
            teacher_agreement=self._agreement(trained.stage, own, logits),
            parameters=evaluate.parameters(model),
            macs=evaluate.macs(model),
            bytes=trained.path.stat().st_size,
            latency_ms_median=latency.median_ms,
            latency_ms_iqr=latency.iqr_ms,
        )

    @staticmethod
    def _agreement(stage, own, logits):
        return evaluate.agreement(own, logits["teacher"]) if "teacher" in logits and stage != "teacher" else None

    def _export(self, exported, logits, labels, runtimes) -> list[dict]:
        config, splits, rows = self.config, self.splits, []
        model = Taps(self.load(exported), exported.stage).logits_model()
        representative = self._representative() if "int8" in config.export else None
        cost = {"parameters": evaluate.parameters(model), "macs": evaluate.macs(model)} if config.export else {}
        for variant in config.export:
            with self.console.status(f"exporting {variant}"):
                path = config.workdir / f"{exported.stage}_{variant}.tflite"
                files.write(path, tflite.convert(model, variant, representative))
                interpreter = tflite.load(path)
                outputs = np.concatenate([interpreter.predict(x.numpy()) for x, _ in self.batches(splits.test)])
                figures = evaluate.metrics(outputs, labels)
                image = splits.test.read(tf.constant([0]))[0][0].numpy()
                latency = interpreter.latency(image, evaluate.latency)
            runtimes.append(f"TFLite rows: {latency.runtime}, {latency.threads} thread(s), batch 1")
            rows.append(
                report.row(
                    f"TFLite {variant}",
                    exported.architecture,
                    test_accuracy=figures.pop("accuracy"),
                    **figures,
                    teacher_agreement=self._agreement(variant, outputs, logits),
                    float_agreement=evaluate.agreement(outputs, logits[exported.stage]),
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
        child = self._child(stage)
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

    @staticmethod
    def _doubts(rows) -> list[str]:
        accuracy = {row["role"]: row["val_accuracy"] for row in rows}
        teacher, baseline = accuracy.get(ROLES["teacher"]), accuracy.get(ROLES["baseline"])
        if teacher is None or baseline is None or teacher > baseline:
            return []
        return [
            f"the teacher does not beat the student without KD on validation data ({teacher:.2%} against "
            f"{baseline:.2%}), so the distilled row says nothing about distillation"
        ]


class _Track(keras.callbacks.Callback):
    """Logs each epoch's figures to a tracking run, epochs counted from 1."""

    def __init__(self, writer):
        super().__init__()
        self.writer = writer

    def on_epoch_end(self, epoch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.writer.metrics({**logs, "learning_rate": float(rate)}, epoch + 1)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a ``.keras`` file so that a reader never meets half of one."""
    partial = path.with_name(f"partial-{path.name}")
    model.save(partial)
    partial.replace(path)


def _layers(model):
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)


def _logits(model):
    """The model as `evaluate.predict` calls it, a final softmax taken off."""
    taps = Taps(model)
    return lambda images, training: taps(images, ("logits",), training=training)["logits"]


def _summary(trained: Trained, seconds: float) -> str:
    if trained.best_epoch is None:
        return f"{trained.architecture}: loaded"
    best, series = trained.best_epoch, trained.series
    return (
        f"{trained.architecture}: validation accuracy {series['val_accuracy'][best]:.4f} in epoch {best + 1} of "
        f"{len(series['loss'])}, {time.strftime('%H:%M:%S', time.gmtime(seconds))}"
    )
