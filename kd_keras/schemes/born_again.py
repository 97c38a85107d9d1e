"""Born-again networks: a student teaches the next of its own kind, over generations."""

from kd_keras.errors import InputError, check_switch, is_count
from kd_keras.schemes import _base


def build(generations: int = 3, ensemble: bool = False):
    """The scheme: the student without a teacher, then generations of it, each taught by the one before.

    The first generation is taught by ``--teacher``, or with ``--teacher=none`` by the student without a teacher, which
    is of its own architecture as in the paper. Each starts from initial weights of its own (generation g from the seed
    plus g); the last is the "student distilled". All learn by ``--loss`` with the student's optimizer and epochs.

    Args:
        generations: how many are trained, at least 1.
        ensemble: also measure the ensemble of all generations, by the mean of their class probabilities.

    Raises:
        InputError: a value is out of range.

    Source: Furlanello et al., arXiv:1805.04770, section 3; its BANE, section 3.2, for the ensemble.
    """
    if not is_count(generations):
        raise InputError(f"born_again(generations={generations!r}): give a whole number of at least 1")
    check_switch("born_again's ensemble", ensemble)
    if ensemble and generations < 2:
        raise InputError("born_again(ensemble=True, generations=1): one generation is no ensemble; give 2 or more")
    return BornAgain(generations, ensemble)


class BornAgain:
    """See `build`."""

    def __init__(self, generations, ensemble):
        self.generations, self.ensemble = generations, ensemble

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing."""
        config = experiment.config
        teachers = _base.check_teachers(experiment, "born_again()")
        if not teachers and not config.baseline:
            raise InputError(
                "--scheme=born_again() with --teacher=none and --nobaseline has nothing to begin with: leave out one"
            )
        student = experiment.model(config.student)
        _base.check_baseline(experiment, student)
        first = teachers[0] if teachers else experiment.model(config.student)
        _base.check_taught(experiment, student, first, must="born_again()")
        if self.generations > 1:
            _base.check_taught(experiment, student, experiment.model(config.student), must="born_again()")

    def run(self, experiment):
        """Trains the models; see `_base`."""
        config = experiment.config
        first = _base.teachers(experiment)
        baseline = _base.baseline(experiment)
        before = [*first, *baseline]
        teacher, generations = before[0], []
        last = teacher
        for number in range(1, self.generations):
            last = experiment.train(
                *(f"generation{number}", f"generation {number}", config.student, config.loss),
                teacher=last,
                variant=number,
            )
            generations.append(last)
        student = _base.student(experiment, last, variant=self.generations)
        generations.append(student)
        rows = [*before, *generations]
        if self.ensemble:
            told = ("ensemble", "ensemble of generations")
            rows.append(experiment.join(*told, generations, "probabilities", prefix="generation"))
        return rows, [student], teacher
