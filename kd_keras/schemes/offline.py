"""Offline distillation: a teacher is trained or loaded, then frozen, and teaches one student."""

from kd_keras.schemes import _base


def build():
    """The scheme: teacher, the student without it (``--baseline``), the student with it.

    Reverse distillation is this with a teacher smaller than the student, and defective distillation with
    ``--teacher_stop_at_val_accuracy``.

    Source: Hinton et al., arXiv:1503.02531; the name after the survey arXiv:2006.05525, section 4.1; reverse and
    defective (there "Re-KD" and "De-KD") after arXiv:1909.11723.
    """
    return Offline()


class Offline:
    """See `build`."""

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing, so that bad input is refused at once."""
        teachers = _base.check_teachers(experiment, "offline()")
        teacher = teachers[0] if teachers else None
        student = experiment.model(experiment.config.student)
        _base.check_baseline(experiment, student)
        _base.check_taught(experiment, student, teacher)

    def run(self, experiment):
        """Trains the models; see `_base`."""
        teachers = _base.teachers(experiment)
        baseline = _base.baseline(experiment)
        teacher = teachers[0] if teachers else None
        student = _base.student(experiment, teacher)
        return [*teachers, *baseline, student], [student], teacher
