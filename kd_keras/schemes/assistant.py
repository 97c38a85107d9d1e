"""Teacher assistants: between a large teacher and a small student others learn, each from the one before it."""

import itertools

from kd_keras.errors import InputError, check_switch
from kd_keras.schemes import _base
from kd_keras.spec import Spec


def build(chain, direct: bool = False):
    """The scheme: teacher, the student without it, the assistants, the student taught by the last of them.

    ``assistant(chain=resnet(depth=32) + resnet(depth=20))``: the teacher teaches the first, each teaches the next, and
    the last the student, all by ``--loss`` with the student's optimizer and epochs. Agreement in the table is with the
    teacher.

    Args:
        chain: the assistants' specs, joined by ``+``, from the teacher's end.
        direct: also train the student with the teacher itself, for comparison.

    Raises:
        InputError: the chain is no sum of specs, or ``direct`` neither True nor False.

    Source: Mirzadeh et al., arXiv:1902.03393, section 3.
    """
    chain = chain if isinstance(chain, tuple) else (chain,)
    if not chain or not all(isinstance(one, Spec) for one in chain):
        raise InputError(f"assistant(chain={chain!r}): give models, chain=resnet(depth=32) + resnet(depth=20)")
    check_switch("assistant's direct", direct)
    return Assistant(chain, direct)


class Assistant:
    """See `build`."""

    def __init__(self, chain, direct):
        self.chain, self.direct = chain, direct

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing."""
        (teacher,) = _base.check_teachers(experiment, "assistant()", least=1)
        student = experiment.model(experiment.config.student)
        _base.check_baseline(experiment, student)
        models = [teacher, *map(experiment.model, self.chain), student]
        for above, below in itertools.pairwise(models):
            _base.check_taught(experiment, below, above, must="assistant()")
        if self.direct:
            _base.check_taught(experiment, student, teacher)

    def run(self, experiment):
        """Trains the models; see `_base`."""
        config = experiment.config
        (teacher,) = _base.teachers(experiment)
        models = [teacher, *_base.baseline(experiment)]
        last = teacher
        for number, one in enumerate(self.chain, start=1):
            last = experiment.train(f"assistant{number}", f"assistant {number}", one, config.loss, teacher=last)
            models.append(last)
        if self.direct:
            models.append(
                experiment.train("direct", "student distilled directly", config.student, config.loss, teacher=teacher)
            )
        student = _base.student(experiment, last)
        return [*models, student], [student], teacher
