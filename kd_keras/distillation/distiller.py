"""`Distiller`: a `keras.Model` that trains a student with a teacher's help."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kd_keras.distillation.batch import contains_weights, may_contain, teacher_taps_in, unpack_batch
from kd_keras.distillation.fast_teacher import fast_copy
from kd_keras.distillation.metrics import Accuracy
from kd_keras.distillation.pretraining import check_pretrained, pretraining
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.losses.base import Loss

if keras.backend.backend() == "tensorflow":
    from kd_keras.distillation.tensorflow_step import Step
else:
    from kd_keras._compat.keras import Trainer

    class Step(Trainer):
        """Predicts, and refuses to train."""

        def fit(self, *args, **kwargs):
            raise InputError("a Distiller trains under Keras' TensorFlow backend: set KERAS_BACKEND=tensorflow")


@keras.saving.register_keras_serializable(package="kd_keras")
class Distiller(Step):
    """Trains a student with a teacher's help. In everything but training it behaves like the student.

    A training step runs the teacher once, without gradient (not at all where the batch contains its taps, or where no
    loss reads it), runs the student once, and sums the weighted losses and the student's own regularisation losses,
    averaged over the global batch. `evaluate` reports the student's metrics, with the cross-entropy of the labels as
    ``loss``, whatever the losses are; `predict` returns the student's logits.

    The teacher is not trained, tracked or saved, and the object that was given is not changed. A Distiller that was
    loaded from a file predicts and evaluates at once; `fit` needs `attach_teacher` first.

    Example:

        distiller = Distiller(student=student, teacher=teacher, losses=[losses.CE(weight=0.1), losses.KD(weight=0.9)])
        distiller.compile(optimizer="adam", metrics=["accuracy"])
        distiller.fit(x, y, validation_data=(x_val, y_val))

    Args:
        student: a built classifier. A final softmax is removed for training and predictions.
        teacher: a built classifier of the same classes and input, or None where no loss reads one.
        losses: the loss terms (`kd_keras.losses`), each with its own weight.
        teacher_dtype: ``'float32'``, ``'bfloat16'``, ``'float16'`` or ``'auto'`` runs a fast copy of a functional
            teacher in that dtype (see `fast_teacher.fast_copy`); None runs the teacher as it is.
        **kwargs: see `keras.Model`.

    Attributes:
        student: the student, as given.
        terms: the losses (`losses` is Keras' name for regularisation losses).
        term_names: their names in the logs.

    Raises:
        InputError: teacher and student differ in classes or input, a loss reads a tap that does not exist, or a model
            is not a classifier.
    """

    def __init__(
        self,
        *,
        student: keras.Model,
        losses: Sequence[Loss],
        teacher: keras.Model | None = None,
        teacher_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": student.dtype_policy, "autocast": False, **kwargs})
        terms = list(losses)
        _check_terms(terms)
        logits_of_teacher = None if teacher is None else Taps(teacher, "teacher").logits_model()
        for term in terms:
            student = term.adapted(student, logits_of_teacher)
        self.student = student
        self.terms = terms
        self.is_pretraining = False
        self.teacher_dtype = teacher_dtype
        self.epoch = self._counter("epoch")
        self.step = self._counter("step")
        for term in terms:
            term.clock = lambda: (ops.cast(self.epoch, "float32"), ops.cast(self.step, "float32"))
        self.term_names = _numbered([term.name for term in terms])
        self._term_trackers = [keras.metrics.Mean(name=name) for name in self.term_names]
        self._student_taps = _Untracked(Taps(student, "student"))
        self._teacher, self._teacher_taps = _Untracked(), _Untracked()
        self._tap_names = _Untracked(self._match(None))
        if teacher is not None:
            self.attach_teacher(teacher)
        elif not self.needs_teacher:
            self._build_terms(None)
        self.built = True

    def _counter(self, name):
        return self.add_weight(
            name=name, shape=(), dtype="int64", initializer="zeros", trainable=False, aggregation="only_first_replica"
        )

    @property
    def teacher(self):
        """The teacher, as given, or None."""
        return self._teacher.value

    def __dir__(self):
        # Keras saves and loads every model that dir() leads to: the teacher would be in each checkpoint, and loading
        # one would overwrite the user's own object.
        return [name for name in super().__dir__() if name != "teacher"]

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss reads the teacher."""
        return bool(self.teacher_taps) or self._waits_for_teacher()

    @property
    def needs_index(self) -> bool:
        """Whether a loss reads each sample's position in its split."""
        return any("index" in term.needs for term in self.terms)

    @property
    def pretrains(self) -> bool:
        """Whether a loss has something to pretrain."""
        return any(term.pretrain_taps() is not None for term in self.terms)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """Names of the teacher's taps that the losses read: those that a teacher cache needs."""
        return self._tap_names.value[1]

    def _waits_for_teacher(self) -> bool:
        """Whether a loss needs the teacher before it can name its taps or make its adapters."""
        names = self._student_taps.value.names
        return self.teacher is None and any(term.taps(names, None) == ((), ()) for term in self.terms)

    def require_teacher(self) -> None:
        """Raises InputError where a loss reads the teacher and there is none."""
        if self.needs_teacher and self.teacher is None:
            raise InputError("the losses read a teacher and there is none: call distiller.attach_teacher(model)")

    def attach_teacher(self, teacher: keras.Model) -> None:
        """Sets the teacher, such as that of a Distiller that was loaded from a file.

        Raises:
            InputError: its classes, input or taps don't fit the student, the losses or the adapters trained so far.
        """
        taps = Taps(teacher, "teacher")
        _check_pair(taps, self._student_taps.value)
        names = self._match(taps)
        if self.teacher_dtype is not None:
            taps = Taps(fast_copy(teacher, self.teacher_dtype, keep=names[1]), "teacher")
        self._build_terms(taps)
        self._tap_names.value, self._teacher.value, self._teacher_taps.value = names, teacher, taps
        self.train_function = None

    def _match(self, teacher):
        """Which taps the losses read: (the student's names, the teacher's names)."""
        student = self._student_taps.value
        names = [term.taps(student.names, None if teacher is None else teacher.names) for term in self.terms]
        student_names = tuple(dict.fromkeys(("logits", *(name for read, _ in names for name in read))))
        teacher_names = tuple(dict.fromkeys(name for _, read in names for name in read))
        student.require(student_names)
        if teacher is not None:
            teacher.require(teacher_names)
        return student_names, teacher_names

    def _build_terms(self, teacher):
        student = self._student_taps.value
        for term in self.terms:
            names, teacher_names = term.taps(student.names, None if teacher is None else teacher.names)
            shapes = student.shapes(names), {} if teacher is None else teacher.shapes(teacher_names)
            if not term.built:
                term.build(student_shape=shapes[0], teacher_shape=shapes[1])
            elif "student_shape" in (config := term.get_build_config() or {}):
                for before, now in zip((config["student_shape"], config["teacher_shape"]), shapes, strict=True):
                    if any(tuple(before[name])[1:] != tuple(now[name])[1:] for name in before):
                        raise InputError(
                            f"{term.name}'s adapters were made for {before}, but these models have {now}: "
                            "attach the teacher that they were trained with"
                        )

    def compile(self, optimizer: Any = "rmsprop", loss: None = None, metrics: Any = None, **kwargs: Any) -> None:
        """As `keras.Model.compile`, without a loss: the losses are given to the constructor.

        ``"accuracy"`` takes labels as classes and, after mixup, as class weights.

        Raises:
            InputError: a loss is given.
        """
        if loss is not None:
            raise InputError("Distiller.compile takes no loss: give the losses to Distiller(losses=[…])")
        if isinstance(metrics, (list, tuple)):
            metrics = [Accuracy(name=m) if m in ("accuracy", "acc") else m for m in metrics]
        super().compile(optimizer=optimizer, metrics=metrics, **kwargs)

    def call(self, inputs, training=None):
        """The student's float32 logits (B, K) for images, or for a batch dict."""
        image = unpack_batch(inputs).image
        return self._student_taps.value(image, ("logits",), training=bool(training))["logits"]

    def fit(self, x=None, y=None, *, callbacks=None, **kwargs):
        """As `keras.Model.fit`. Batches may also be dicts with the fields of `Batch`.

        Raises:
            InputError: a loss reads something that the batches don't contain, or needs pretraining first, or there is
                no teacher for it.
        """
        self._check_data(x, kwargs)
        clock = _EpochClock()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            clock.set_model(self)
            callbacks.callbacks.append(clock)
        else:
            callbacks = [clock, *(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks] * bool(callbacks))]
        return super().fit(x, y, callbacks=callbacks, **kwargs)

    def _check_data(self, x, options):
        taps = teacher_taps_in(x)
        if self._waits_for_teacher() or taps is None:
            self.require_teacher()
        elif missing := [name for name in self.teacher_taps if name not in taps]:
            raise InputError(
                f"the batches contain the teacher's {', '.join(taps)}, and the losses also read {', '.join(missing)}: "
                "make the teacher cache with these taps"
            )
        if self.needs_index and not may_contain(x, "index"):
            raise InputError("a loss reads each sample's index: give batches {image, label, index}, with_index=True")
        if self.is_pretraining:
            return
        check_pretrained(self.terms)
        is_weighted = options.get("class_weight") or options.get("sample_weight") is not None or contains_weights(x)
        refusing = [term.name for term in self.terms if term.compares_samples and not term.needs]
        if is_weighted and refusing:
            raise InputError(
                f"these losses don't support sample weights: {', '.join(refusing)}; "
                "leave out sample_weight and class_weight"
            )

    def pretrain(self, x, *, epochs=1, **kwargs):
        """Trains what some losses need pretrained: FT's paraphraser; the student by AB or FSP alone.

        It uses an optimizer of its own, configured like the compiled one, and the schedules of `fit` don't advance. A
        loss's weight is not read here: set it to 0 for a loss that is used for pretraining only.

        Args:
            x: as for `fit`.
            epochs: as for `fit`.
            **kwargs: as for `fit`.

        Returns:
            Keras' History.

        Raises:
            InputError: no loss needs pretraining; see also `fit`.
        """
        with pretraining(self):
            return self.fit(x, epochs=epochs, **kwargs)

    def get_config(self):
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "losses": [keras.saving.serialize_keras_object(term) for term in self.terms],
            "teacher_dtype": self.teacher_dtype,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialized(part):
            return keras.saving.deserialize_keras_object(part, custom_objects=custom_objects)

        parts = {"student": deserialized(config["student"]), "losses": [deserialized(t) for t in config["losses"]]}
        return cls(**{**config, **parts})

    def compile_from_config(self, config):
        # Keras leaves models with a compile method of their own to compile themselves after loading.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)


class _Untracked:
    """Hides a value from Keras: from weights, checkpoints and `summary`."""

    def __init__(self, value=None):
        self.value = value


class _EpochClock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.epoch.assign(epoch)


def _check_terms(terms):
    if not terms:
        raise InputError("a Distiller needs at least one loss, such as losses.CE()")
    for term in terms:
        if isinstance(term, type) or not hasattr(term, "taps"):
            raise InputError(f"{term!r} is no loss: give those of kd_keras.losses, such as losses.KD()")


def _check_pair(teacher: Taps, student: Taps):
    if teacher.num_classes != student.num_classes:
        raise InputError(
            f"the teacher has {teacher.num_classes} classes and the student {student.num_classes}: "
            "they have to be the same"
        )
    sides = zip(teacher.input_shape, student.input_shape, strict=False)
    same_rank = len(teacher.input_shape) == len(student.input_shape)
    if not same_rank or any(None not in side and side[0] != side[1] for side in sides):
        raise InputError(
            f"the teacher takes images of {teacher.input_shape}, the student of {student.input_shape}: "
            "both see the same batch, so put any resizing inside a model"
        )


def _numbered(names: list[str]) -> list[str]:
    """``['kd', 'kd']`` as ``['kd', 'kd_2']``."""
    return [name if (n := names[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(names)]
