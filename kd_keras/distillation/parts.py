"""Loss terms that stand around another one: what a scheme makes of ``--loss``."""

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses.base import Loss


class Wrapped(Loss):
    """A term that reads its taps for another, whose value it gives.

    Args:
        term: the other; its weight and schedules are this one's.
        share: factor of the value.
        **kwargs: see `Loss`.

    Raises:
        InputError: the term changes the student, which is not one model here, or has to be trained ahead.
    """

    def __init__(self, *, term, share=1.0, **kwargs):
        super().__init__(**{"name": term.name, **kwargs})
        if type(term).adapted is not Loss.adapted:
            raise InputError(f"{term.name} changes the student, which only one teacher can do: give --scheme=offline()")
        if term.needs_pretraining:
            raise InputError(
                f"{term.name} is trained ahead on one teacher's maps, which is not done here: give --scheme=offline()"
            )
        self.term, self.share = term, share
        self.weight, self._schedules = term.weight, dict(term._schedules)
        self.compares_samples, self.needs = term.compares_samples, term.needs

    def value(self, student, teacher, labels, training, **given):
        """The term's value for taps under its own names for them."""
        # The Distiller gives its clock to the terms that it knows.
        self.term.clock = self.clock
        return self.share * self.term(student, teacher, labels, training=training, **given)

    def get_config(self):
        config = {key: value for key, value in super().get_config().items() if key not in self._schedules}
        return {**config, "term": keras.saving.serialize_keras_object(self.term), "share": self.share}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "term": keras.saving.deserialize_keras_object(config["term"])})


@keras.saving.register_keras_serializable(package="kd_keras", name="Within")
class Within(Wrapped):
    """A term whose student and whose teacher are parts of the one model that is trained.

    Args:
        term: a loss.
        student: the term's name for a tap → the model's, of the part that learns by it.
        teacher: likewise of the part that teaches, which gets no gradient; None where the term reads no teacher.
        share: factor of the value.
        **kwargs: see `Loss`.
    """

    def __init__(self, *, term, student, teacher=None, share=1.0, **kwargs):
        super().__init__(term=term, share=share, **kwargs)
        self.student, self.teacher = dict(student), dict(teacher or {})

    def _reads(self):
        return self.term.taps(list(self.student), list(self.teacher) or None)

    def taps(self, student, teacher):
        own, others = self._reads()
        names = [*(self.student[name] for name in own), *(self.teacher[name] for name in others)]
        return tuple(dict.fromkeys(names)), ()

    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        own, others = self._reads()
        self._shapes = student_shape, teacher_shape
        # One that comes from a file has been built by Keras.
        if not self.term.built:
            self.term.build(
                student_shape={name: student_shape[self.student[name]] for name in own},
                teacher_shape={name: student_shape[self.teacher[name]] for name in others},
            )
        self.built = True

    def call(self, student, teacher, labels, training=None, **given):
        own, others = self._reads()
        taught = {name: ops.stop_gradient(student[self.teacher[name]]) for name in others}
        return self.value({name: student[self.student[name]] for name in own}, taught, labels, training, **given)

    def get_config(self):
        return {**super().get_config(), "student": dict(self.student), "teacher": dict(self.teacher)}


def copy(term: Loss) -> Loss:
    """A term like it, with trainable parts of its own."""
    return type(term).from_config(term.get_config())


def reads_teacher(term: Loss, student, teacher) -> bool:
    """Whether a term reads the teacher, where these are the taps on offer."""
    return bool(copy(term).taps(list(student), list(teacher))[1])
