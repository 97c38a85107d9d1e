"""Born-again networks: a student teaches the next of its own kind, over generations."""

from kd_keras.errors import InputError, check_switch, is_count
from kd_keras.schemes import common
from kd_keras.schemes.plan import Plan


def plan(config, facts, *, generations: int = 3, ensemble: bool = False) -> Plan:
    """The baseline, then generations of the student, each taught by the generation before.

    The first generation is taught by ``--teacher``, or with ``--teacher=none`` by the baseline, which has the student's
    architecture, as in the paper. Generation g starts from the weights of the seed plus g; the last generation is the
    student. All learn by ``--loss`` with the student's optimizer and epochs.

    Args:
        generations: how many are trained, at least 1.
        ensemble: also measures the ensemble of all generations, by the mean of their class probabilities.

    Reference: Furlanello et al., arXiv:1805.04770, section 3; the ensemble is its BANE, section 3.2.
    """
    if not is_count(generations):
        raise InputError(f"born_again(generations={generations!r}): give a whole number of at least 1")
    check_switch("born_again's ensemble", ensemble)
    if ensemble and generations < 2:
        raise InputError("born_again(ensemble=True, generations=1): one generation is no ensemble; give 2 or more")
    before = [*common.teachers(config, facts, "born_again"), *common.baseline(config, facts)]
    if not before:
        raise InputError(
            "--scheme=born_again() with --teacher=none and --nobaseline has nothing to begin with: leave out one"
        )
    last, trained = before[0], []
    for number in range(1, generations + 1):
        labels = {"name": f"generation{number}", "role": f"generation {number}"} if number < generations else {}
        trained.append(common.student(config, facts, last, variant=number, **labels))
        common.must_teach("born_again", getattr(trained[-1], "terms", ()))
        teacher, last = last, trained[-1]
    models = [*before, *trained]
    if ensemble:
        how = {"combine": "probabilities", "prefix": "generation"}
        models.append(common.joined(config, facts, "ensemble", "ensemble of generations", trained, **how))
    return Plan(tuple(models), students=(last,), reference=before[0], teacher=teacher)
