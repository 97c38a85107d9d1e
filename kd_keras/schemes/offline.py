"""Offline distillation: a teacher is trained or loaded, then frozen, and teaches one student."""

from kd_keras.errors import InputError


def build():
    """The scheme: teacher, the student without it (``--baseline``), the student with it.

    Source: Hinton et al., arXiv:1503.02531; the name after the survey arXiv:2006.05525, section 4.1.
    """
    return Offline()


class Offline:
    """See `build`."""

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing, so that bad input is refused at once."""
        config = experiment.config
        experiment.check_teacher_from()
        teacher = None
        if config.teacher is not None:
            teacher = experiment.model(config.teacher)
            experiment.check_teacher(teacher)
            epochs = experiment.teacher_epochs
            experiment.distiller(teacher, config.teacher_loss, epochs=epochs, of_teacher=True)
        student = experiment.model(config.student)
        if config.baseline:
            experiment.distiller(student, config.baseline_loss, epochs=config.epochs)
        distiller = experiment.distiller(student, config.loss, teacher=teacher, epochs=config.epochs)
        if teacher is None and distiller.needs_teacher:
            raise InputError(
                "--loss reads a teacher and --teacher is none: name one, such as --teacher='resnet(depth=50)'"
            )
        if config.cache_views and not distiller.teacher_taps:
            raise InputError(f"--cache_views={config.cache_views} but no loss of --loss reads a teacher: leave it out")
        experiment.cache(distiller)

    def run(self, experiment):
        """Trains the models.

        Returns:
            (all of them in the table's order, the one to export).
        """
        config, models, teacher = experiment.config, [], None
        if config.teacher is not None:
            teacher = experiment.train(
                "teacher", config.teacher, config.teacher_loss, epochs=experiment.teacher_epochs, of_teacher=True
            )
            models.append(teacher)
        if config.baseline:
            models.append(experiment.train("baseline", config.student, config.baseline_loss))
        student = experiment.train("student", config.student, config.loss, teacher=teacher)
        return [*models, student], student
