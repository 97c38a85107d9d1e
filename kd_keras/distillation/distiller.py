"""`Distiller`: a `keras.Model` that trains a student with a teacher's help."""

import dataclasses
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import keras
from absl import logging
from keras import ops

from kd_keras.distillation import checks
from kd_keras.distillation.batch import Batch, unpack_batch
from kd_keras.distillation.fast_teacher import fast_copy, update
from kd_keras.distillation.fitting import Fitting
from kd_keras.distillation.metrics import Accuracy
from kd_keras.distillation.model_hash import weights_hash
from kd_keras.distillation.pretraining import pretraining
from kd_keras.distillation.taps import Taps
from kd_keras.distillation.teacher_inputs import TeacherInputs
from kd_keras.errors import InputError
from kd_keras.losses.base import Loss


@keras.saving.register_keras_serializable(package="kd_keras")
class Distiller(Fitting):
    """Trains a student with a teacher's help. In everything but training it behaves like the student.

    A training step runs the teacher once, without gradient (not at all where the batch contains its taps, or where no
    loss reads it), runs the student once, and sums the weighted losses and the student's own regularisation losses,
    averaged over the global batch. `evaluate` reports the student's metrics, with the cross-entropy of the labels as
    ``loss`` (of independent labels the binary one), whatever the losses are; `predict` returns the student's logits.

    The teacher is not trained, tracked or saved, and the object that was given is not changed. A Distiller that was
    loaded from a file predicts and evaluates at once; `fit` needs `attach_teacher` first.

    Example:

        distiller = Distiller(student=student, teacher=teacher, losses=[losses.CE(weight=0.1), losses.KD(weight=0.9)])
        distiller.compile(optimizer="adam", metrics=["accuracy"])
        distiller.fit(x, y, validation_data=(x_val, y_val))

    Args:
        student: a built classifier. Where it gives probabilities, their logits are trained and predicted.
        teacher: a built classifier of the same classes, or None where no loss reads one. Where losses read its features
            alone, any model of images will do: other classes, or no classifier's head at all.
        losses: the loss terms (`kd_keras.losses`), each with its own weight.
        teacher_output, student_output: what the models' outputs are, one of `heads.KINDS`; by default it is found out
            on the first batch. Probabilities become logits; one unit is two classes, with the logits (0, z). That
            logits are of independent labels is said by the losses, by the labels (several 1 in a row) or here.
        teacher_dtype: ``'float32'``, ``'bfloat16'``, ``'float16'`` or ``'auto'`` runs a fast copy of a functional
            teacher in that dtype (see `fast_teacher.fast_copy`); None runs the teacher as it is.
        teacher_inputs: how the teacher's images are made of the batch's: a `TeacherInputs`, its ``scaling`` alone, or a
            function of the images. By default size and channels are the teacher's, and the values stay as they are.
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
        teacher_output: str | None = None,
        student_output: str | None = None,
        teacher_inputs: TeacherInputs | str | Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        checks.models(student, teacher)
        super().__init__(**{"dtype": student.dtype_policy, "autocast": False, **kwargs})
        terms = checks.losses(losses)
        student = _adapted(terms, student, teacher, teacher_output)
        self.student = student
        self.terms = terms
        self.is_pretraining = False
        self.teacher_dtype, self.teacher_output, self.student_output = teacher_dtype, teacher_output, student_output
        if teacher_inputs is None or isinstance(teacher_inputs, str):
            teacher_inputs = TeacherInputs(scaling=teacher_inputs)
        if not isinstance(teacher_inputs, TeacherInputs) and not callable(teacher_inputs):
            raise InputError(f"teacher_inputs={teacher_inputs!r:.60}: give TeacherInputs(…), a scaling or a function")
        # Not an attribute that Keras tracks: a function may be a model.
        self._teacher_inputs = _Untracked(teacher_inputs)
        self.epoch = self._counter("epoch")
        self.step = self._counter("step")
        for term in terms:
            term.clock = lambda: (ops.cast(self.epoch, "float32"), ops.cast(self.step, "float32"))
        self.term_names = checks.term_names(terms)
        self._term_trackers = [keras.metrics.Mean(name=name) for name in self.term_names]
        given = (student_output or "").startswith("multilabel") if student_output else None
        of_losses = checks.are_multilabel(terms)
        # Whether labels are independent, as far as it is known.
        self._multilabel = _Untracked(given if of_losses is None else of_losses)
        self._student_taps = _Untracked(
            Taps(student, "student", student_output, is_multilabel=bool(of_losses), several=True)
        )
        self._looked, self._given_head = _Untracked(set()), _Untracked()
        self._compiled_metrics, self._manners = _Untracked([]), _Untracked()
        self._teacher, self._teacher_taps, self._copied_hash = _Untracked(), _Untracked(), _Untracked()
        self._for_teacher = _Untracked()
        self._tap_names = _Untracked(self._match(None))
        if teacher is not None:
            checks.augments(student)
            self.attach_teacher(teacher)
        elif not self.needs_teacher:
            self._build_terms(None)
        self.build(self._student_taps.value.batch_shape)

    def build(self, input_shape=None):
        # By its call Keras knows the shapes of the images, which its exports ask for.
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
        taps = self._taps_of_teacher(teacher)
        checks.pair(taps, self._student_taps.value, self._readers_of_logits(taps))
        inputs = self._teacher_inputs.value
        if isinstance(inputs, TeacherInputs):
            inputs = inputs.of(teacher, taps.input_shape, self._student_taps.value.shape_for(taps))
        self._for_teacher.value = inputs
        names = self._match(taps)
        if self.teacher_dtype is not None:
            taps = self._taps_of_teacher(
                fast_copy(teacher, self.teacher_dtype, keep=tuple(map(taps.without_part, names[1])))
            )
            self._copied_hash.value = weights_hash(teacher)
        self._build_terms(taps)
        self._tap_names.value, self._teacher.value, self._teacher_taps.value = names, teacher, taps
        self._looked.value, self._manners.value, self.train_function = set(), None, None

    def images_of_teacher(self, batch) -> Any:
        """What the teacher is given of a `Batch`."""
        if batch.teacher_image is not None:
            batch = dataclasses.replace(batch, image=batch.teacher_image)
        reader = self._teacher_taps if isinstance(self._teacher_inputs.value, TeacherInputs) else self._student_taps
        return self._for_teacher.value(reader.value.inputs_of(batch))

    def unpack(self, data: Any) -> Batch:
        """A batch, in any form; see `unpack_batch`."""
        return unpack_batch(data, self.input_names)

    @property
    def input_names(self) -> set[str]:
        """The names of the inputs of models that take several, by name."""
        return {
            name for taps in (self._student_taps.value, self._teacher_taps.value) if taps for name in taps.input_names
        }

    def _renew_fast_teacher(self):
        """Gives the fast copy the weights that the teacher has now."""
        if self._copied_hash.value is None:
            return
        if (now := weights_hash(self.teacher)) != self._copied_hash.value:
            logging.info("the teacher's weights have changed since its fast copy was made: the copy is made again")
            keep = tuple(map(self._teacher_taps.value.without_part, self.teacher_taps))
            update(self._teacher_taps.value.model, self.teacher, keep=keep)
            self._copied_hash.value = now

    def _taps_of_teacher(self, model) -> Taps:
        return Taps(model, "teacher", self.teacher_output, False, bool(self._multilabel.value), True, several=True)

    def _readers_of_logits(self, teacher) -> list[str]:
        """Names of the losses that read the teacher's logits."""
        offered = [*teacher.names, *["logits"] * teacher.is_headless]
        names = [term.taps(self._student_taps.value.names, offered)[1] for term in self.terms]
        return [name for name, taps in zip(self.term_names, names, strict=True) if "logits" in taps]

    def _names_by_term(self, teacher):
        """For each loss the names of the student's taps and of the teacher's that it reads."""
        student = self._student_taps.value.names
        return [term.taps(student, None if teacher is None else teacher.names) for term in self.terms]

    def _match(self, teacher):
        """Which taps the losses read: (the student's names, the teacher's names)."""
        student, names = self._student_taps.value, self._names_by_term(teacher)
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

        ``"accuracy"`` takes labels as classes and, after mixup, as class weights; of independent labels it is the share
        of right labels, as Keras' binary accuracy. Metrics get what the student itself gives.

        Raises:
            InputError: a loss or weights of losses are given, or a metric has a name that the logs have already.
        """
        if loss is not None:
            raise InputError("Distiller.compile takes no loss: give the losses to Distiller(losses=[…])")
        if kwargs.get("loss_weights") is not None:
            raise InputError("Distiller.compile takes no loss_weights: give each loss its own, losses.KD(weight=0.9)")
        taken = checks.logged(self.terms, self.term_names)
        checks.metrics(metrics, taken)
        checks.metrics(kwargs.get("weighted_metrics"), taken)
        if isinstance(metrics, (list, tuple)):
            metrics = [Accuracy(name=m) if m in ("accuracy", "acc") else m for m in metrics]
        self._compiled_metrics.value = keras.tree.flatten([metrics or [], kwargs.get("weighted_metrics") or []])
        super().compile(optimizer=optimizer, metrics=metrics, **kwargs)

    def call(self, inputs, training=None):
        """The student's float32 logits (B, K) for images, or for a batch dict."""
        taps = self._student_taps.value
        batch = Batch(inputs) if isinstance(inputs, (list, tuple)) else self.unpack(inputs)
        return taps(taps.inputs_of(batch), ("logits",), training=bool(training))["logits"]

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

    def export(self, filepath: Any, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """As `keras.Model.export`, of the student alone; its output is the logits that `predict` returns."""
        self._student_taps.value.logits_model().export(filepath, format=format, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`, to a ``.keras`` file.

        Raises:
            InputError: the file is of another kind, from which a Distiller can't be loaded.
        """
        if not str(filepath).endswith(".keras"):
            raise InputError(
                f"a Distiller is saved as .keras, and {filepath} is another kind of file: save distiller.student, or "
                "call distiller.export(path)"
            )
        super().save(filepath, *args, **kwargs)

    def get_config(self):
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "losses": [keras.saving.serialize_keras_object(term) for term in self.terms],
            "teacher_dtype": self.teacher_dtype,
            "teacher_output": self.teacher_output,
            "student_output": self.student_output,
            "teacher_inputs": self._inputs_config(),
            "name": self.name,
        }

    def _inputs_config(self):
        inputs = self._teacher_inputs.value
        is_registered = isinstance(inputs, FunctionType) and ">" in keras.saving.get_registered_name(inputs)
        if is_registered or isinstance(inputs, (TeacherInputs, keras.Layer)):
            return keras.saving.serialize_keras_object(inputs)
        logging.warning("teacher_inputs is not saved: make it a function registered with Keras, or give it again")
        return None

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialized(part):
            return keras.saving.deserialize_keras_object(part, custom_objects=custom_objects)

        parts = {"student": deserialized(config["student"]), "losses": [deserialized(t) for t in config["losses"]]}
        if config.get("teacher_inputs") is not None:
            parts["teacher_inputs"] = deserialized(config["teacher_inputs"])
        return cls(**{**config, **parts})

    def compile_from_config(self, config):
        # Keras leaves models with a compile method of their own to compile themselves after loading.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)


class _Untracked:
    """Hides a value from Keras: from weights, checkpoints and `summary`."""

    def __init__(self, value=None):
        self.value = value


def _adapted(terms, student, teacher, teacher_output) -> keras.Model:
    """The model to train, which some losses put together from student and teacher."""
    for term in terms:
        if type(term).adapted is not Loss.adapted:
            whole = None if teacher is None else Taps(teacher, "teacher", teacher_output).logits_model()
            adapted = term.adapted(student, whole)
            if adapted is not student:
                logging.warning(
                    "%s trains the student with layers of the teacher: distiller.student is that model", term.name
                )
            student = adapted
    return student
