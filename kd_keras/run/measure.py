"""Runs the `Measure` stages of a plan: quality, size and latency of models and files, and what they decide."""

import hashlib
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras import data as datasets
from kd_keras import files
from kd_keras.distillation import device
from kd_keras.distillation.fast_teacher import LEAST_AGREEMENT, can_be_copied, fast_copy
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.evaluate import cost, multilabel, quality
from kd_keras.export import metadata, tflite
from kd_keras.run.report import tables
from kd_keras.schemes.plan import Export, Measure

# Validation images on which a file is compared with its model.
_FILE_IMAGES = 256
# Enough validation images to tell an agreement of 99.5 % from one of 99 %.
_AGREEMENT_IMAGES = 4096
# What may be wrong with a teacher that knows nothing.
_LOOK_AT = (
    "look at --teacher_scaling (the pixels that it takes: 0…1, -1…1 …), --teacher_image_size, --teacher_channels, and "
    "what it was trained on"
)


class Measurer:
    """Measures what a plan asks for.

    Args:
        session: the machine and the data.
        store: where finished stages are.
        load: gives the model of a stage.
    """

    def __init__(self, session, store, load):
        self.session, self.facts, self.store, self.load = session, session.facts, store, load
        # Of each model that files are made of, by its key: what its output is, and its logits to compare them with.
        self._outputs: dict[str, str] = {}
        self._logits: dict[str, np.ndarray] = {}

    def measure(self, stage: Measure, folder: pathlib.Path) -> dict:
        """Runs a measurement.

        Args:
            stage: the measurement; its ``what`` is the name of a method.
            folder: where its files go.

        Returns:
            What the record holds; ``figures`` are columns of the table.

        Raises:
            InputError: the measurement refuses what it reads.
        """
        if isinstance(stage.of, Export) and "refused" in self.store.record(stage.of):
            return {"figures": {}, "content": "refused"}
        record = getattr(self, f"_{stage.what}")(stage, folder)
        record.setdefault("content", hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest())
        return record

    def _file(self, stage) -> pathlib.Path:
        return self.store.folder(stage.of) / "model.tflite"

    def _quality(self, stage, folder) -> dict:
        """Figures on the test split, and of models the accuracy on the other splits; leaves the test logits."""
        if self.session.splits.multi_label:
            return self._quality_of_labels(stage, folder)
        test, others = self.facts.source(stage.data[0]), stage.data[1:]
        if isinstance(stage.of, Export):
            logits, seen = self.logits_of_file(self._file(stage), test), {}
        else:
            with self.session.timed("evaluation"):
                predict = self._predictor(self.load(stage.of))
                logits, _ = predict(test)
                seen = {
                    f"{name}_accuracy": quality.metrics(*predict(self.facts.source(data)))["accuracy"]
                    for name, data in zip(("train", "val"), others, strict=True)
                }
        figures = quality.metrics(logits, test.labels)
        figures["test_accuracy"] = figures.pop("accuracy")
        files.write(folder / "logits.npy", lambda file: np.save(file, logits))
        return {"figures": {**seen, **figures}}

    def _quality_of_labels(self, stage, folder) -> dict:
        """The same for independent labels, decided at thresholds that were chosen on the validation split."""
        sources = {
            name: self.facts.source(data) for name, data in zip(("test", "train", "val"), stage.data, strict=False)
        }
        if isinstance(stage.of, Export):
            logits = {"test": self.logits_of_file(self._file(stage), sources["test"])}
            limits = np.array(list(metadata.read(self._file(stage))["thresholds"].values()))
        else:
            with self.session.timed("evaluation"):
                predict = self._predictor(self.load(stage.of))
                logits = {name: predict(source)[0] for name, source in sources.items()}
            limits = multilabel.thresholds(logits["val"], sources["val"].labels)
        figures = multilabel.metrics(logits["test"], sources["test"].labels, limits)
        del figures["map"]
        for name, values in logits.items():
            figures[f"{name}_map"] = multilabel.metrics(values, sources[name].labels, limits)["map"]
        files.write(folder / "logits.npy", lambda file: np.save(file, logits["test"]))
        return {"figures": figures, "thresholds": limits.tolist()}

    def _predictor(self, model):
        """A function from a split to the model's logits (N, K) and the labels; images are of the model's shape."""
        logits = quality.logits(model)
        return lambda source: quality.predict(logits, self.session.batches(source, model))

    def logits_of_file(self, file, source) -> np.ndarray:
        """The logits (N, K) of a TFLite file, or of its content, for a split."""
        interpreter = tflite.load(file)
        batches = self.session.batches(source, interpreter)
        return np.concatenate([interpreter.predict(x.numpy()) for x, _ in batches])

    def _size(self, stage, folder) -> dict:
        """Parameters and multiply-accumulates."""
        del folder
        model = Taps(self.load(stage.of), stage.of.name).logits_model()
        figures = {"parameters": cost.parameters(model)}
        try:
            figures["macs"] = cost.macs(model)
        # A SavedModel hides its shapes, and a figure that is missing is no reason to stop.
        except InputError as error:
            logging.warning("%s: %s", stage.of.name, error)
        return {"figures": figures}

    def _latency(self, stage, folder) -> dict:
        """Time at batch 1, of files also with all threads, and their peak memory."""
        del folder
        if not isinstance(stage.of, Export):
            latency = cost.keras_latency(self.load(stage.of))
            figures = {"latency_ms_median": latency.median_ms, "latency_ms_iqr": latency.iqr_ms}
            return {
                "figures": figures,
                "runtime": f"Keras rows: {latency.runtime}, {latency.threads} threads, batch 1",
            }
        figures, runtime = latency_of_file(self._file(stage), self.session)
        return {"figures": figures, "runtime": runtime}

    def _layers(self, stage, folder) -> dict:
        """The error of each layer of a model's int8 file, as a table."""
        with self.session.timed("export"):
            images = self.session.representative(stage.data[0], int(stage.data[1]))
            errors = tflite.layer_report(self.load(stage.of), images)
        tables.write_csv(errors, folder / "layers.csv")
        worst = sorted(errors, key=lambda row: -row["rmse_in_steps"])[:3]
        text = ", ".join(f"{row['layers'] or row['operator']} {row['rmse_in_steps']:.2f}" for row in worst)
        self.session.console.print(
            f"int8     rounding errors in steps of the layer itself (0.29 is rounding alone), the largest: {text}; all "
            f"in {stage.name}.csv",
        )
        return {}

    def output_of(self, model: keras.Model, stage) -> str:
        """What the output of a stage's model is, one of `heads.KINDS`, found out from validation images."""
        if stage.key not in self._outputs:
            splits = self.session.splits
            images, _ = next(iter(self.session.batches(splits.val, model)))
            taps = Taps(model, stage.name, is_multilabel=splits.multi_label)
            self._outputs[stage.key] = taps.decide(images).kind
        return self._outputs[stage.key]

    def file_agreement(self, file: pathlib.Path, model: keras.Model, stage) -> dict:
        """How often a TFLite file gives the class that the model of a stage gives, on validation images.

        Returns:
            ``agreement``, in [0, 1], and the number of ``images``.
        """
        splits = self.session.splits
        source = splits.val
        if len(source) > _FILE_IMAGES:
            source = datasets.take(source, max(_FILE_IMAGES, splits.num_classes), self.session.config.training.seed)
        if stage.key not in self._logits:
            self._logits[stage.key] = self._predictor(model)(source)[0]
        ours = self.logits_of_file(file, source)
        return {"agreement": self._agree(ours, self._logits[stage.key]), "images": len(ours)}

    def _agree(self, logits, reference) -> float:
        """Share of decisions, of classes or of each label, that two models have in common."""
        agreement = multilabel.agreement if self.session.splits.multi_label else quality.agreement
        return agreement(logits, reference)

    def _class_order(self, stage, folder) -> dict:
        """Refuses a ready-made teacher whose outputs mean other classes than the data's.

        A file says nothing of its class order, but the validation split does: a teacher that is right far more often
        once its outputs are renamed has them in another order.
        """
        from scipy.optimize import linear_sum_assignment

        del folder
        splits = self.session.splits
        if splits.multi_label:
            return self._label_order(stage)
        predicted, labels = self._predictor(self.load(stage.of))(splits.val)
        matrix = quality.confusion(predicted, labels, splits.num_classes)
        rows, columns = linear_sum_assignment(-matrix)
        right, renamed = np.trace(matrix) / matrix.sum(), matrix[rows, columns].sum() / matrix.sum()
        if renamed > right + 0.2:
            raise InputError(
                f"the teacher is right on {right:.1%} of the validation images, but on {renamed:.1%} with its classes "
                f"renamed: its class order is not the data's ({', '.join(splits.class_names[:10])} …); the stages that "
                "are finished are kept"
            )
        recall, limit = quality.recall_by_chance(matrix)
        if recall <= limit:
            raise InputError(
                f"{stage.of.name} knows nothing of these data: its mean recall is {recall:.1%} on the validation "
                f"images ({right:.1%} are right), and guessing has up to {limit:.1%}; {_LOOK_AT}"
            )
        return {"accuracy": float(right)}

    def _knn(self, stage, folder) -> dict:
        """The accuracy on the test split of the k nearest labelled images, by a model's pooled features."""
        del folder
        model = self.load(stage.of)
        taps = Taps(model, stage.name)
        taps.require(["pooled"])

        def features(source):
            batches = self.session.batches(source, model)
            values = [np.asarray(taps(x, ("pooled",), training=False)["pooled"], np.float64) for x, _ in batches]
            return np.concatenate(values), source.labels

        (test, labels), (train, train_labels) = (features(self.facts.source(data)) for data in stage.data)
        accuracy = quality.knn_accuracy(train, train_labels, test, labels)
        self.session.console.print(
            f"knn      {stage.name.removesuffix('-knn')} student: {accuracy:.2%} of the test images, by the nearest of "
            f"{len(train)} labelled ones"
        )
        return {"figures": {"knn_accuracy": accuracy}}

    def _label_order(self, stage) -> dict:
        """The same for independent labels: each output is a predictor of every label, by the area under the curve."""
        from scipy.optimize import linear_sum_assignment

        splits = self.session.splits
        logits, labels = self._predictor(self.load(stage.of))(splits.val)
        areas = multilabel.areas(logits, labels)
        rows, columns = linear_sum_assignment(-areas)
        right, renamed = float(np.trace(areas) / len(areas)), float(areas[rows, columns].mean())
        if renamed > right + 0.1:
            raise InputError(
                f"the teacher's outputs have an AUC of {right:.3f} on the validation images, but of {renamed:.3f} with "
                f"its labels renamed: its label order is not the data's ({', '.join(splits.class_names[:10])} …); the "
                "stages that are finished are kept"
            )
        if right < 0.55:
            raise InputError(
                f"{stage.of.name} knows nothing of these data: its AUC is {right:.3f} on the validation images, and "
                f"guessing has 0.5; {_LOOK_AT}"
            )
        return {"auc": right}

    def _dtype(self, stage, folder) -> dict:
        """What the teacher computes in: the dtype that this machine is fastest in, if it agrees with float32."""
        del folder
        record = self._choose_dtype(self.load(stage.of))
        if record["agreement"] is not None:
            self.session.console.print(
                f"{stage.of.name:<8} computes in {record['dtype']}: the {self._decides} that it gives in float32 for "
                f"{record['agreement']:.2%} of {record['images']} validation images",
            )
        return {**record, "content": str(record["dtype"])}

    @property
    def _decides(self) -> str:
        """What a model says of an image, for messages."""
        return "labels" if self.session.splits.multi_label else "class"

    def _choose_dtype(self, teacher: keras.Model) -> dict:
        chosen = device.teacher_dtype()
        exact = {"dtype": "float32", "agreement": None, "images": 0}
        if not can_be_copied(teacher):
            return {**exact, "dtype": None}
        if chosen == "float32":
            return exact
        agreement, images = self._agreement_of(teacher, chosen)
        if agreement < LEAST_AGREEMENT:
            logging.warning(
                "in %s the teacher gives the %s that it gives in float32 for only %.2f %% of %d validation images: "
                "it computes in float32",
                *(chosen, self._decides, 100 * agreement, images),
            )
            return exact
        return {"dtype": chosen, "agreement": agreement, "images": images}

    def _agreement(self, stage, folder) -> dict:
        """Warns of a dtype named by the user in which the teacher is another."""
        del folder
        dtype = stage.data[1]
        agreement, images = self._agreement_of(self.load(stage.of), dtype)
        if agreement < LEAST_AGREEMENT:
            logging.warning(
                "in %s the teacher gives the %s that it gives in float32 for only %.2f %% of %d validation images: "
                "consider --teacher_dtype=float32",
                *(dtype, self._decides, 100 * agreement, images),
            )
        return {"agreement": agreement, "images": images}

    def _agreement_of(self, teacher: keras.Model, dtype: str) -> tuple[float, int]:
        """Share of validation images that a teacher gives the class that it gives in float32; and how many were run."""
        source = self.session.splits.val
        if len(source) > _AGREEMENT_IMAGES:
            source = datasets.take(source, _AGREEMENT_IMAGES, self.session.config.training.seed)
        full, fast = (self._predictor(fast_copy(teacher, name))(source)[0] for name in ("float32", dtype))
        return (self._agree(fast, full) if np.isfinite(fast).all() else 0.0), len(full)


def latency_of_file(path: pathlib.Path, session) -> tuple[dict, str]:
    """Time of a TFLite file at batch 1, with one thread and with all, and its peak memory; and what it was run by."""
    cores = cost.cores()
    loaded = [tflite.load(path, threads=n) for n in (1, cores)]
    test = session.as_input(session.splits.test, loaded[0])
    image = test.read(tf.constant([0]))[0][0].numpy()
    single, every = (file.latency(image, cost.latency) for file in loaded)
    figures = {
        "memory_bytes": cost.peak_memory(path),
        "latency_ms_median": single.median_ms,
        "latency_ms_iqr": single.iqr_ms,
        "latency_all_threads_ms_median": every.median_ms,
        "latency_all_threads_ms_iqr": every.iqr_ms,
    }
    return figures, f"TFLite rows: {single.runtime}, 1 thread and {cores}, batch 1"
