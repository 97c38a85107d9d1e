"""Several teachers, trained each by itself, teach one student together."""

import keras
from keras import ops

from kd_keras.distillation import ensemble as joined
from kd_keras.distillation import parts as _terms
from kd_keras.distillation.distiller import Taps
from kd_keras.errors import InputError
from kd_keras.schemes import _base

_COMBINE = (*joined.COMBINE, "terms")


def build(combine: str = "logits", weights=None):
    """The scheme: the teachers of ``--teacher='a + b'``, their ensemble, the student without it, the student with it.

    Teachers of one spec start from other initial weights each (the seed, and one more for each). Losses on logits are
    taught by the ensemble; losses on features name the teacher by its tap: ``hint(pairs='stage1:teacher2.stage1')``.

    Args:
        combine: ``'logits'``: the weighted mean of the teachers' logits. ``'probabilities'``: that of their class
            probabilities, each softened by the loss's own temperature before the mean is taken. ``'terms'``: each loss
            on logits once a teacher, times that teacher's share; for kd and soft_ce that has the same gradient as
            ``'probabilities'``, as the cross-entropy is linear in the teacher's probabilities.
        weights: one positive number a teacher, made to sum to 1; None weighs them equally.

    The table's row "teacher ensemble" is the joined teacher: of ``'logits'`` their mean, else the mean of the
    probabilities at temperature 1.

    Raises:
        InputError: an unknown ``combine``.

    Source: Hinton et al., arXiv:1503.02531, section 1: the arithmetic mean of the models' distributions
    (``'probabilities'``) or the geometric one (``'logits'``, whose softmax it is).
    """
    if combine not in _COMBINE:
        raise InputError(f"ensemble(combine={combine!r}): known are {', '.join(_COMBINE)}")
    return Ensemble(combine, weights)


class Ensemble:
    """See `build`."""

    def __init__(self, combine, weights):
        self.combine, self.weights = combine, weights
        self._joins = "logits" if combine == "logits" else "probabilities"

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing."""
        config = experiment.config
        teachers = _base.check_teachers(experiment, "ensemble()", most=None, least=2)
        finished = [one for one in config.teacher if not config.teacher_from and not experiment.teacher_epochs(one)]
        for one in finished:
            if finished.count(one) > 1:
                raise InputError(f"--teacher names {one} twice and does not train it: an ensemble of equals is one")
        shares = joined.shares(self.weights, len(teachers))
        student = experiment.model(config.student)
        _base.check_baseline(experiment, student)
        teacher = joined.joined(teachers, self._joins, shares)
        _base.check_taught(experiment, student, teacher, adapt=self._adapt(len(teachers)), must="ensemble()")

    def run(self, experiment):
        """Trains the models; see `_base`."""
        teachers = _base.teachers(experiment)
        ensemble = experiment.join("ensemble", "teacher ensemble", teachers, self._joins, self.weights)
        baseline = _base.baseline(experiment)
        student = _base.student(experiment, ensemble, adapt=self._adapt(len(teachers)))
        return [*teachers, ensemble, *baseline, student], [student], ensemble

    def _adapt(self, count):
        """See `Experiment.train`: terms on logits read the teachers' own; with ``'logits'`` the joined model's do."""
        if self.combine == "logits":
            return None
        taps = {f"teacher{n}.logits": w for n, w in enumerate(joined.shares(self.weights, count), start=1)}

        def adapt(terms, student):
            names = Taps(student, "student").names
            return [new for term in terms for new in self._of_teachers(term, term.taps(names, None)[1], taps)]

        return adapt

    def _of_teachers(self, term, reads, taps) -> list:
        if "logits" not in reads:
            return [term]
        if reads != ("logits",):
            raise InputError(
                f"{term.name} reads the teacher's {', '.join(reads)}: with features beside them only ensemble("
                "combine='logits') has one teacher's logits"
            )
        if self.combine == "probabilities":
            return [OfTeachers(term=term, teachers=taps)]
        return [
            OfTeachers(
                term=_terms.copy(term),
                teachers={tap: 1.0},
                share=share,
                name=f"{term.name}_{tap.partition('.')[0]}",
            )
            for tap, share in taps.items()
        ]


@keras.saving.register_keras_serializable(package="kd_keras", name="OfTeachers")
class OfTeachers(_terms.Wrapped):
    """A term on logits, its teacher one or several of an ensemble's.

    Of several the term is given logits T · log Σ_m w_m softmax(z_m / T), T its own temperature at that step (1 where it
    has none): softened by T these are the mean of the teachers' softened distributions, Σ_m w_m softmax(z_m / T).

    Args:
        term: a loss that reads the teacher's logits and nothing else of it. Its weight is this one's.
        teachers: tap → w_m: the teachers' logits, and their shares of the mean, which sum to 1.
        share: factor of the value: these teachers' part, where others have a term of their own.
        **kwargs: see `Loss`.

    Returns:
        As the term.

    Raises:
        InputError: the term standardises the logits, or reads them at several temperatures: those of a mean of
            probabilities are not what it is made for.
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

    def call(self, student, teacher, labels, training=None, **given):
        logits = [ops.cast(teacher[name], "float32") for name in self.teachers]
        if len(logits) == 1:
            mean = logits[0]
        else:
            temperature = self.now(self.term.temperature) if hasattr(self.term, "temperature") else 1.0
            mean = joined.mean_probabilities(logits, list(self.teachers.values()), temperature)
        return self.value(student, {"logits": mean}, labels, training, **given)

    def get_config(self):
        return {**super().get_config(), "teachers": dict(self.teachers)}
