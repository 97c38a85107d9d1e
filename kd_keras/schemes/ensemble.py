"""Several teachers, each trained by itself, teach one student together."""

from kd_keras.errors import InputError, is_number
from kd_keras.schemes import common
from kd_keras.schemes.plan import Plan


def plan(config, facts, *, combine: str = "logits", weights=None) -> Plan:
    """The teachers of ``--teacher='a + b'``, the model that joins them, the baseline, the student.

    Teachers of one spec start from different weights (the seed, plus one for each). Losses on logits are taught by the
    ensemble; losses on features name the teacher by its tap: ``hint(pairs='stage1:teacher2.stage1')``.

    Args:
        combine: what a loss on logits reads. ``'logits'``: the weighted mean of the teachers' logits.
            ``'probabilities'``: that of their class probabilities, each softened by the loss's own temperature before
            the mean is taken. ``'terms'``: the loss is computed once for each teacher, times that teacher's share; for
            kd and soft_ce that has the same gradient as ``'probabilities'``.
        weights: one positive number for each teacher, made to sum to 1; None weighs them equally.

    The table's row "teacher ensemble" is the joined model: the mean of logits for ``'logits'``, else the mean of
    probabilities at temperature 1.

    Reference: Hinton et al., arXiv:1503.02531, section 1: the arithmetic mean of the models' distributions
    (``'probabilities'``) or the geometric mean (``'logits'``, whose softmax it is).
    """
    voices_of = {
        "logits": lambda heard: common.WHOLE,
        "probabilities": lambda heard: ((1.0, heard),),
        "terms": lambda heard: tuple((share, ((part, 1.0),)) for part, share in heard),
    }
    if combine not in voices_of:
        raise InputError(f"ensemble(combine={combine!r}): known are {', '.join(voices_of)}")
    teachers = common.teachers(config, facts, "ensemble", least=2, most=None)
    if len({teacher.key for teacher in teachers}) < len(teachers):
        raise InputError(
            "two teachers of --teacher are identical, so their ensemble is that teacher: name others, or train them"
        )
    shares = _shares(weights, len(teachers))
    voices = voices_of[combine](tuple((f"teacher.teacher{n}", share) for n, share in enumerate(shares, start=1)))
    how = {"combine": "logits" if combine == "logits" else "probabilities", "shares": shares, "prefix": "teacher"}
    together = common.joined(config, facts, "ensemble", "teacher ensemble", teachers, **how)
    baseline = common.baseline(config, facts)
    student = common.student(config, facts, together, voices=voices)
    common.must_teach("ensemble", getattr(student, "terms", ()))
    models = (*teachers, together, *baseline, student)
    return Plan(models, students=(student,), reference=together, teacher=together, voices=voices)


def _shares(weights, count) -> tuple[float, ...]:
    if weights is None:
        return (1 / count,) * count
    numbers = isinstance(weights, (tuple, list)) and all(is_number(w) and w > 0 for w in weights)
    if not numbers or len(weights) != count:
        raise InputError(
            f"ensemble(weights={weights!r}): give {count} positive numbers, one for each teacher, in order"
        )
    return tuple(weight / sum(weights) for weight in weights)
