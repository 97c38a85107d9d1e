"""What schemes share: their checks before anything is trained, the teachers, the student without one.

A scheme has ``check(experiment)``, which builds all that will be trained, trains nothing and refuses what it can't do,
and ``run(experiment)``, which trains and returns (all `Trained` in the table's order, those to export, the student
first, and the one that agreement is measured with or None).
"""

import keras

from kd_keras.distillation.distiller import Distiller
from kd_keras.errors import InputError
from kd_keras.run import teaching
from kd_keras.run.experiment import Experiment, Lesson, Trained

DISTILLED = "student distilled"


def check_teachers(experiment: Experiment, scheme: str, most: int | None = 1, least: int = 0) -> list[keras.Model]:
    """The teachers, as they are before they are trained.

    Args:
        experiment: the tools.
        scheme: its name, for messages.
        most: how many teachers the scheme takes; None for any number.
        least: how many it needs.

    Raises:
        InputError: too many or too few, one can't be built or trained as asked, or is not in ``--teacher_from``, or
            ``--teacher_loss`` reads a teacher.
    """
    config = experiment.config
    count = len(config.teacher)
    if most == 0 and count:
        raise InputError(f"--scheme={scheme} takes no teacher, and --teacher names {count}: give --teacher=none")
    if most is not None and count > most:
        raise InputError(
            f"--teacher names {count} models and --scheme={scheme} takes one: name one, or give --scheme='ensemble()'"
        )
    if count < least:
        raise InputError(
            f"--scheme={scheme} takes {least} teacher{'s or more' * (least > 1)}, and --teacher names {count or 'none'}"
        )
    lenders = experiment.sources
    models = []
    for number, (stage, one) in enumerate(config.teachers.items()):
        model = experiment.model(one, variant=number)
        teaching.check(config, model)
        epochs = experiment.teacher_epochs(one)
        trained = epochs or stage in lenders or experiment.done(stage) is not None
        if config.teacher_stop_at_val_accuracy is not None and not trained:
            raise InputError(
                f"--teacher_stop_at_val_accuracy={config.teacher_stop_at_val_accuracy} but {one} is not trained: give "
                "--teacher_epochs"
            )
        distiller = experiment.distiller(model, config.teacher_loss, epochs=epochs, recipe=experiment.teacher_recipe)
        _check_untaught(distiller, "--teacher_loss")
        models.append(model)
    return models


def check_baseline(experiment: Experiment, student: keras.Model) -> None:
    """Raises InputError where the student can't be trained without a teacher as asked."""
    config = experiment.config
    if config.baseline:
        distiller = experiment.distiller(student, config.baseline_loss, epochs=config.epochs)
        _check_untaught(distiller, "--baseline_loss")


def _check_untaught(distiller: Distiller, flag: str) -> None:
    if distiller.needs_teacher:
        raise InputError(f"{flag} reads a teacher, and what it trains has none: leave such terms out, as in ce()")


def check_taught(experiment: Experiment, student: keras.Model, teacher: keras.Model | None, *, adapt=None, must=None):
    """Checks that a teacher can teach a student by ``--loss``.

    Args:
        experiment: the tools.
        student: to be trained.
        teacher: its teacher, or None.
        adapt: see `Experiment.train`.
        must: name of the scheme, if it makes no sense without a loss that reads the teacher.

    Raises:
        InputError: the losses don't fit the models, or the cache.
    """
    config = experiment.config
    distiller = experiment.distiller(student, config.loss, teacher=teacher, epochs=config.epochs, adapt=adapt)
    if teacher is None and distiller.needs_teacher:
        raise InputError("--loss reads a teacher and --teacher is none: name one, such as --teacher='resnet(depth=50)'")
    if must and not distiller.needs_teacher:
        raise InputError(f"--scheme={must} but no loss of --loss reads a teacher: add one, such as kd()")
    if config.pretrain_epochs and not distiller.pretrains:
        raise InputError(
            f"--pretrain_epochs={config.pretrain_epochs} but no loss of --loss is trained ahead here: ft, ab and fsp "
            "are, by a teacher"
        )
    if needy := [term.name for term in distiller.terms if term.needs_pretraining and not config.pretrain_epochs]:
        raise InputError(
            f"--loss has {', '.join(needy)}, part of which is trained ahead: give --pretrain_epochs=10, say"
        )
    if config.cache_views and not distiller.teacher_taps:
        raise InputError(f"--cache_views={config.cache_views} but no loss of --loss reads a teacher: leave it out")
    teaching.cache(experiment, distiller)
    experiment.lesson = None if teacher is None else Lesson(distiller.student, teacher, adapt)


def teachers(experiment: Experiment) -> list[Trained]:
    """Trains the teachers; those of one spec start from initial weights that differ."""
    config, trained = experiment.config, []
    for number, (stage, one) in enumerate(config.teachers.items()):
        role = stage if stage == "teacher" else f"teacher {number + 1}"
        epochs = experiment.teacher_epochs(one)
        recipe = experiment.teacher_recipe
        trained.append(
            experiment.train(stage, role, one, config.teacher_loss, epochs=epochs, recipe=recipe, variant=number)
        )
    return trained


def baseline(experiment: Experiment) -> list[Trained]:
    """The student without a teacher, if it is wanted."""
    config = experiment.config
    if not config.baseline:
        return []
    return [experiment.train("baseline", "student without KD", config.student, config.baseline_loss)]


def student(experiment: Experiment, teacher: Trained | None, **options) -> Trained:
    """The student that is exported; options as for `Experiment.train`."""
    config = experiment.config
    return experiment.train("student", DISTILLED, config.student, config.loss, teacher=teacher, **options)
