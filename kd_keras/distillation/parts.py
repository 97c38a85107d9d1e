"""Losses around another loss: the same loss for an ensemble's teachers, or between parts of one model."""

import keras
from keras import ops

from kd_keras.distillation import ensemble
from kd_keras.errors import InputError
from kd_keras.losses.base import Loss


class Wrapped(Loss):
    """A loss that reads the taps for another loss and returns that loss's value.

    Args:
        term: the other loss; its weight and schedules are this one's.
        share: factor of the value.
        **kwargs: see `Loss`.

    Raises:
        InputError: the loss replaces the student by another model, or needs pretraining.
    """

    def __init__(self, *, term, share=1.0, **kwargs):
        super().__init__(**{"name": term.name, **kwargs})
        if type(term).adapted is not Loss.adapted:
            raise InputError(f"{term.name} changes the student, which only one teacher can do: give --scheme=offline()")
        if term.needs_pretraining:
            raise InputError(
                f"{term.name} needs pretraining with a single teacher, which this scheme does not have: "
                "give --scheme=offline()"
            )
        self.term, self.share = term, share
        self.weight, self._schedules, self._positive = term.weight, dict(term._schedules), set(term._positive)
        self.compares_samples, self.needs, self.reads_labels = term.compares_samples, term.needs, term.reads_labels
        self.heads = term.heads

    def value(self, student, teacher, labels, training, **extra):
        """The loss's value for taps under the names that it reads."""
        # The Distiller sets the clock of the losses that it was given, not of those inside them.
        self.term.clock = self.clock
        return self.share * self.term(student, teacher, labels, training=training, **extra)

    def get_config(self):
        config = {key: value for key, value in super().get_config().items() if key not in self._schedules}
        return {**config, "term": keras.saving.serialize_keras_object(self.term), "share": self.share}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "term": keras.saving.deserialize_keras_object(config["term"])})


@keras.saving.register_keras_serializable(package="kd_keras", name="Within")
class Within(Wrapped):
    """A loss between two parts of the model that is trained.

    Args:
        term: a loss.
        student: the loss's name for a tap → the model's, for the part that learns.
        teacher: the same for the part that teaches, which gets no gradient; None where the loss reads no teacher.
        share: factor of the value.
        **kwargs: see `Loss`.
    """

    def __init__(self, *, term, student, teacher=None, share=1.0, **kwargs):
        super().__init__(term=term, share=share, **kwargs)
        self.student, self.teacher = dict(student), dict(teacher or {})

    def _term_taps(self):
        return self.term.taps(list(self.student), list(self.teacher) or None)

    def taps(self, student, teacher):
        learner, source = self._term_taps()
        names = [*(self.student[name] for name in learner), *(self.teacher[name] for name in source)]
        return tuple(dict.fromkeys(names)), ()

    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        learner, source = self._term_taps()
        self._shapes = student_shape, teacher_shape
        # Keras has already built a loss that was loaded from a file.
        if not self.term.built:
            self.term.build(
                student_shape={name: student_shape[self.student[name]] for name in learner},
                teacher_shape={name: student_shape[self.teacher[name]] for name in source},
            )
        self.built = True

    def call(self, student, teacher, labels, training=None, **extra):
        learner, source = self._term_taps()
        constants = {name: ops.stop_gradient(student[self.teacher[name]]) for name in source}
        return self.value({name: student[self.student[name]] for name in learner}, constants, labels, training, **extra)

    def get_config(self):
        return {**super().get_config(), "student": dict(self.student), "teacher": dict(self.teacher)}


@keras.saving.register_keras_serializable(package="kd_keras", name="OfTeachers")
class OfTeachers(Wrapped):
    """A loss on logits whose teacher is one or several of an ensemble's teachers.

    For several teachers the loss reads logits T · log Σ_m w_m softmax(z_m / T), with T its own temperature at that step
    (1 where it has none). Softened by T, they are the mean of the teachers' softened distributions; for a loss on
    independent labels, of their sigmoids.

    Args:
        term: a loss that reads the teacher's logits and none of its other taps. Its weight is this one's.
        teachers: tap → w_m: the teachers' logits, and their shares of the mean, which sum to 1.
        share: factor of the value: these teachers' share, where other teachers have a loss of their own.
        **kwargs: see `Loss`.

    Returns:
        As the loss.

    Raises:
        InputError: the loss standardises the logits, or reads them at several temperatures, for which the mean of
            probabilities is not defined.
    """

    def __init__(self, *, term, teachers, share=1.0, **kwargs):
        super().__init__(term=term, share=share, **kwargs)
        if len(teachers) > 1 and getattr(term, "standardize", False):
            raise InputError(
                f"{term.name}(standardize=True) takes a teacher's logits, not a mean of probabilities: give the "
                "ensemble combine='logits' or combine='terms'"
            )
        if len(teachers) > 1 and not term.one_temperature:
            raise InputError(
                f"{term.name} reads the teacher at more than one temperature, and a mean of probabilities is made at "
                "one: give the ensemble combine='logits' or combine='terms'"
            )
        self.teachers = dict(teachers)

    def taps(self, student, teacher):
        return self.term.taps(student, None)[0], tuple(self.teachers)

    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        shape = next(iter(teacher_shape.values()))
        self.term.build(student_shape=student_shape, teacher_shape={"logits": shape})
        self.built = True

    def call(self, student, teacher, labels, training=None, **extra):
        logits = [ops.cast(teacher[name], "float32") for name in self.teachers]
        if len(logits) == 1:
            mean = logits[0]
        else:
            temperature = self.now(self.term.temperature) if hasattr(self.term, "temperature") else 1.0
            is_multilabel = "softmax" not in self.heads
            mean = ensemble.mean_probabilities(logits, list(self.teachers.values()), temperature, is_multilabel)
        return self.value(student, {"logits": mean}, labels, training, **extra)

    def get_config(self):
        return {**super().get_config(), "teachers": dict(self.teachers)}
