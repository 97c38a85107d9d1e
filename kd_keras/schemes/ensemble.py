"""Several teachers, trained each by itself, teach one student together."""

from kd_keras.distillation import ensemble as joined
from kd_keras.distillation import parts as _terms
from kd_keras.distillation.taps import Taps
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
        teacher = joined.join(teachers, self._joins, shares)
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
            return [_terms.OfTeachers(term=term, teachers=taps)]
        return [
            _terms.OfTeachers(
                term=_terms.copy(term),
                teachers={tap: 1.0},
                share=share,
                name=f"{term.name}_{tap.partition('.')[0]}",
            )
            for tap, share in taps.items()
        ]
