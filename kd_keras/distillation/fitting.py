"""What a Distiller checks before it fits or evaluates, and at the first batch."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

from kd_keras._compat import ops as backend_ops
from kd_keras.distillation import checks, heads
from kd_keras.distillation.batch import (
    batch_count,
    contains_weights,
    may_contain,
    shows_its_fields,
    split_arrays,
    teacher_taps_in,
)
from kd_keras.distillation.metrics import OfHead
from kd_keras.distillation.pretraining import check_pretrained
from kd_keras.errors import InputError
from kd_keras.losses import labels
from kd_keras.schedules import Schedule

if keras.backend.backend() == "tensorflow":
    from kd_keras.distillation.tensorflow_step import Step
else:
    from kd_keras._compat.keras import Trainer

    class Step(Trainer):
        """Predicts, and refuses to train."""

        def fit(self, *args, **kwargs):
            raise InputError("a Distiller trains under Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow")


class Fitting(Step):
    """`fit` and `evaluate` of a Distiller, whose attributes it reads."""

    def fit(self, x=None, y=None, *, callbacks=None, sample_weight=None, validation_data=None, **kwargs):
        """As `keras.Model.fit`. Batches may also be dicts with the fields of `Batch`.

        Raises:
            InputError: a loss reads something that the batches don't contain, or needs pretraining first, or there is
                no teacher for it; or the labels are not those of a classifier.
        """
        x, y, sample_weight = split_arrays(x, y, sample_weight, self.input_names)
        self._check_data(x, sample_weight, kwargs.get("class_weight"))
        self._renew_fast_teacher()
        self._looked.value, self._manners.value = set(), None
        if not self.is_pretraining:
            self._check_labels(x, y, training=True)
            if isinstance(validation_data, (tuple, list)):
                self._check_labels(*validation_data[:2], training=False)
        # Keras makes a list of its own of these: the user's stays as it is.
        callbacks = getattr(callbacks, "callbacks", callbacks)
        callbacks = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] * bool(callbacks)
        if kwargs.get("epochs", 1) < 1:
            raise InputError(f"fit is asked for no epoch: epochs={kwargs['epochs']}")
        epochs = range(kwargs.get("initial_epoch", 0), kwargs.get("epochs", 1))
        return super().fit(
            *(x, y),
            callbacks=[_Clock(epochs), *callbacks],
            sample_weight=sample_weight,
            validation_data=validation_data,
            **kwargs,
        )

    def evaluate(self, x=None, y=None, *, sample_weight=None, **kwargs):
        """As `keras.Model.evaluate`, of the student alone; ``loss`` is the cross-entropy with the labels.

        Raises:
            InputError: there are no labels, or not those of a classifier.
        """
        x, y, sample_weight = split_arrays(x, y, sample_weight, self.input_names)
        self._check_labels(x, y, training=False)
        return super().evaluate(x, y, sample_weight=sample_weight, **kwargs)

    def _check_data(self, x, sample_weight, class_weight):
        checks.class_weight(class_weight)
        if class_weight and self.is_multilabel:
            raise InputError(
                "class_weight weights each image by its one class, and the labels are independent: give sample_weight"
            )
        if batch_count(x) == 0:
            raise InputError("there is nothing to train on: the data have no sample")
        taps = teacher_taps_in(x)
        if self._waits_for_teacher() or (taps is None and shows_its_fields(x)):
            self.require_teacher()
        elif taps is not None and (missing := [name for name in self.teacher_taps if name not in taps]):
            raise InputError(
                f"the batches contain the teacher's {', '.join(taps)}, and the losses also read {', '.join(missing)}: "
                "make the teacher cache with these taps"
            )
        if self.needs_index and not may_contain(x, "index"):
            raise InputError("a loss reads each sample's index: give batches {image, label, index}, with_index=True")
        if not (self if self.is_pretraining else self.student).trainable_variables:
            raise InputError(
                "nothing of the student is trainable: set student.trainable = True, or that of some layers"
            )
        if self.is_pretraining:
            return
        check_pretrained(self.terms)
        if class_weight or sample_weight is not None or contains_weights(x):
            checks.can_be_weighted(self.terms)

    @property
    def manners(self) -> list[checks.Manner]:
        """How each loss is called; see `checks.manner`."""
        if self._manners.value is None:
            student, teacher = self._student_taps.value, self._teacher_taps.value
            with backend_ops.outside_of_graphs():
                self._manners.value = [checks.manner(term, student, teacher) for term in self.terms]
        return self._manners.value

    def reads_labels(self, training: bool) -> bool:
        """Whether a loss, a compiled metric or the evaluation reads labels."""
        losses_do = training and any(manner.reads_labels for manner in self.manners)
        return not training or losses_do or bool(self._compiled_metrics.value)

    def labels_may_be_missing(self, training: bool) -> bool:
        """Whether all that reads labels can leave out a sample without one: Keras' own metrics and scalars can't."""
        manners = self.manners if training else ()
        return all(metric is None or isinstance(metric, OfHead) for metric in self._compiled_metrics.value) and not any(
            manner.reads_labels and manner.is_scalar for manner in manners
        )

    def _check_labels(self, x, y, training):
        """Refuses labels that are missing altogether, and arrays of labels that are none of a classifier."""
        is_array = hasattr(x, "shape") or isinstance(x, (Mapping, list, tuple))
        spec = getattr(x, "element_spec", None)
        label = self.unpack(spec).label if spec is not None else y
        names = [t.name for t, manner in zip(self.terms, self.manners, strict=True) if manner.reads_labels]
        if label is None and (is_array or spec is not None) and (names or not training):
            who = ", ".join(names) if training else "evaluation"
            raise InputError(
                f"{who} needs labels, and there are none: give them" + ", or leave the loss out" * training
            )
        if is_array and hasattr(y, "shape") and self.reads_labels(training):
            missing = self.labels_may_be_missing(training)
            self._look_at_labels(y)
            num_classes = self._student_taps.value.num_classes
            if reason := labels.fault(np.asarray(y), num_classes, missing, self.is_multilabel):
                raise InputError(reason)

    @property
    def is_multilabel(self) -> bool:
        """Whether the labels are independent of each other: as losses, student or labels say."""
        head = self._student_taps.value.head
        return bool(self._multilabel.value) or (
            self._multilabel.value is None and head is not None and head.is_multilabel
        )

    def _look_at_labels(self, y):
        """Takes labels for independent ones that can be nothing else, where neither losses nor student say it."""
        if self._multilabel.value is None and y is not None and labels.are_multi_hot(np.asarray(y)):
            self._multilabel.value = True
            self._student_taps.value.are_independent()

    def look_at(self, data: Any, mode: str) -> None:
        """Finds out, on the first batch, what the outputs of student and teacher are, before anything moves.

        Args:
            data: a batch, of one replica.
            mode: ``'train'``, ``'test'`` or ``'predict'``: only in training the teacher is looked at.

        Raises:
            InputError: an output is no number, or of another kind than the losses are for.
        """
        if mode in self._looked.value:
            return
        batch, student, teacher = self.unpack(data), self._student_taps.value, self._teacher_taps.value
        parts = keras.tree.flatten(batch.image)
        # Of several replicas, one may have got nothing of the batch.
        if not all(hasattr(part, "shape") for part in parts) or not parts[0].shape[0]:
            return
        images = student.inputs_of(batch)
        checks.images(images, student)
        if batch.label is not None and backend_ops.has_values(batch.label):
            self._look_at_labels(ops.convert_to_numpy(batch.label))
        found = {"student": student.decide(images)}
        for metric in self._compiled_metrics.value:
            if isinstance(metric, OfHead):
                metric.head = found["student"]
        if mode == "train":
            head = self._look_at_teacher(batch)
            found |= {} if head is None else {"teacher": head}
            checks.heads(self.terms, self._names_by_term(teacher), found)
        self._looked.value.add(mode)

    def _look_at_teacher(self, batch) -> heads.Head | None:
        """What the teacher's output is, or what stands for it in a batch; None where no loss reads it."""
        teacher, given = self._teacher_taps.value, batch.teacher
        if given is None:
            self.require_teacher()
        else:
            checks.one_each(given, len(keras.tree.flatten(batch.image)[0]))
        if given is not None and "logits" in given:
            num_classes = self._student_taps.value.num_classes
            logits = checks.teacher_logits(ops.convert_to_tensor(given["logits"]), num_classes)
            head = heads.of_values(logits, "teacher", self.teacher_output, self.is_multilabel)
            self._given_head.value = head
            self._compare_with_teacher(batch, head.to_logits(logits))
            return head
        if teacher is None or not self.teacher_taps:
            return None
        images = self.images_of_teacher(batch)
        checks.images(images, teacher)
        return teacher.decide(images) if "logits" in self.teacher_taps else None

    def _compare_with_teacher(self, batch, given):
        """Warns where the teacher that is attached says something else than its outputs in the batch."""
        teacher = self._teacher_taps.value
        if teacher is None or teacher.is_headless:
            return
        images = self.images_of_teacher(batch)
        if checks.shapes_of(images) != teacher.input_shape:
            return
        images = keras.tree.map_structure(lambda part: part[: heads.ROWS], images)
        read = teacher(images, ("logits",), training=False)["logits"], given[: heads.ROWS]
        # By the teacher's likeliest class of each image, which every way of storing logits keeps.
        p, q = map(ops.sigmoid if self.is_multilabel else ops.softmax, read)
        gap = float(ops.mean(ops.sum(ops.abs(p - q) * ops.one_hot(ops.argmax(p, axis=-1), p.shape[-1]), axis=-1)))
        if gap > 0.1:
            logging.warning(
                "the teacher gives its likeliest classes probabilities that differ from those in the batches by %.2f: "
                "were the outputs in the batches made for other images, or before the teacher's weights changed?",
                gap,
            )


class _Clock(keras.callbacks.Callback):
    """Sets the Distiller's epoch and step, which schedules read; the training step counts the steps.

    Args:
        epochs: those that `fit` was asked for.
    """

    def __init__(self, epochs: range):
        super().__init__()
        self._epochs = epochs

    def on_train_begin(self, logs=None):
        if self.model.is_pretraining:
            return
        first, steps = self._epochs.start, self.params.get("steps")
        goes_on = first == _number(self.model.epoch) + 1 and _number(self.model.step) > 0
        if first == 0 or (steps and not goes_on):
            self.model.step.assign(first * (steps or 0))
        elif not goes_on and any(_reads_steps(schedule) for t in self.model.terms for schedule in t.schedules.values()):
            raise InputError(
                f"a schedule counts steps, and how many there were before epoch {first} is not known: give fit "
                "steps_per_epoch"
            )
        self.model.epoch.assign(first)
        self._check(self._epochs, steps or 1)

    def on_epoch_begin(self, epoch, logs=None):
        steps = self._steps_of_last_epoch(epoch)
        self.model.epoch.assign(epoch)
        if not self.params.get("steps") and not self.model.is_pretraining and steps:
            self._check(range(epoch, epoch + 1), steps)

    def _steps_of_last_epoch(self, epoch):
        before, self._step = getattr(self, "_step", None), _number(self.model.step)
        return 0 if before is None else self._step - before

    def _check(self, epochs, steps):
        for term in self.model.terms:
            term.check_schedules(epochs=epochs, first_step=_number(self.model.step), steps_per_epoch=steps)


def _number(counter) -> int:
    # int() takes no variable of several replicas.
    return int(ops.convert_to_numpy(counter))


def _reads_steps(schedule) -> bool:
    """Whether a schedule, or one inside it, counts steps."""
    return getattr(schedule, "per", "epoch") == "step" or any(
        _reads_steps(value) for value in vars(schedule).values() if isinstance(value, Schedule)
    )
