"""Pretraining by a teacher's features: the student first imitates them without labels, then learns from labels."""

import dataclasses

from kd_keras import schedules
from kd_keras.errors import InputError, check_switch, is_count
from kd_keras.schemes import common
from kd_keras.schemes.plan import Build, Measure, Part, Plan, Train
from kd_keras.spec import Spec


def plan(
    config,
    facts,
    *,
    loss,
    epochs: int | None = None,
    finetune_learning_rate: schedules.ScheduleLike | None = None,
    probe: bool = False,
    knn: bool = False,
) -> Plan:
    """The baseline, a student pretrained by a teacher's features on all images, then trained by ``--loss``.

    ``pretrain(loss=hint(pairs='pooled:output'))``: the first of ``--teacher`` teaches by its features alone, so it
    needs no classes: ``saved(path='backbone.keras', features=True)``, or a network of a family with published weights.
    A second one, of the data's classes, teaches while the student learns by ``--loss``; with one teacher the losses of
    ``--loss`` read that one, or none, as in ``ce()``. Pretraining needs no labels, and its last epoch is kept.

    Args:
        loss: the loss on features, or several joined by ``+``; none may read labels or the teacher's logits.
        epochs: of the pretraining; by default ``--epochs``.
        finetune_learning_rate: a number or a schedule, of the training by ``--loss`` alone; by default
            ``--learning_rate``, which may be so large that the training forgets what the pretraining taught.
        probe: also trains a classifier alone, on the pretrained student and on one that is not trained, by
            ``--baseline_loss``: what the features are worth.
        knn: also measures both by the k nearest neighbours among the labelled images (k 20, cosine similarities at the
            temperature 0.07, as arXiv:2104.14294).

    Reference: the two stages of FitNets, arXiv:1412.6550; here the first one needs no labels.
    """
    given = loss if isinstance(loss, tuple) else (loss,)
    if not given or not all(isinstance(spec, Spec) for spec in given):
        raise InputError(f"pretrain(loss={loss!r}): give losses on features, loss=hint(pairs='pooled:output')")
    if epochs is not None and not is_count(epochs):
        raise InputError(f"pretrain(epochs={epochs!r}): give a whole number of at least 1")
    check_switch("pretrain's probe", probe)
    check_switch("pretrain's knn", knn)
    rate = config.training.learning_rate if finetune_learning_rate is None else schedules.get(finetune_learning_rate)
    schedules.check(rate, "pretrain's finetune_learning_rate", total=1)
    first, *others = common.teachers(config, facts, "pretrain", least=1, most=2)
    second = others[0] if others else first
    new = common.new(config, facts, config.student.model)
    terms = common.terms(given, facts, new, first, flag="--scheme=pretrain(loss=…)")
    if refused := [term.loss.name for term in terms if not term.teachers or not facts.learns_without_labels(term)]:
        raise InputError(f"pretrain(loss=…) has {', '.join(refused)}: give losses that read features and no labels")
    if "logits" in facts.teacher_taps(terms, new, first):
        raise InputError(
            "pretrain(loss=…) reads the teacher's logits: give losses on features, and the others to --loss"
        )
    pretrained = common.train(config, facts, "pretrained", "pretrained", new, terms, first)
    epochs = epochs or config.training.epochs
    pretrained = dataclasses.replace(
        pretrained, recipe=common.recipe(facts, config.training, epochs, keep_from=epochs - 1)
    )
    losses = common.terms(config.student.loss, facts, new, second)
    student = common.train(
        config, facts, "student", common.STUDENT, pretrained, losses, second, architecture=new.architecture
    )
    student = dataclasses.replace(student, recipe=dataclasses.replace(student.recipe, learning_rate=rate))
    teachers = [model for model in (first, *others) if facts.is_classifier(model)]
    models = [*teachers, *common.baseline(config, facts)]
    if probe:
        models += [_probe(config, facts, *what) for what in (("untrained", new), ("pretrained", pretrained))]
    extras = [_knn(facts, *what) for what in (("untrained", new), ("pretrained", pretrained))] if knn else []
    reads = common.reads_teacher(losses)
    return Plan(
        (*models, student),
        students=(student,),
        reference=teachers[-1] if teachers else None,
        teacher=second if reads else None,
        extras=tuple(extras),
    )


def _probe(config, facts, name, model) -> Train:
    """A classifier that is trained on the features of a model, which stay as they are."""
    frozen = Build(what=Part("freeze"), of=(model,), precision=facts.precision(config.hardware.precision))
    terms = common.terms(config.student.baseline_loss, facts, model, None, flag="--baseline_loss")
    spec = str(config.student.model)
    return common.train(config, facts, f"{name}_probe", f"{name}, probe", frozen, terms, architecture=spec)


def _knn(facts, name, model) -> Measure:
    data = facts.student_data()
    return Measure(name=f"{name}-knn", of=model, what="knn", data=(data.test, data.labelled))
