"""One trial of a search, in a process of its own: ``python -m kd_keras.sweep.trial FLAGS``.

It trains the student, and what that needs, and reads the validation split alone: nothing is exported, and no model is
run on the test split. Each line that it writes to stdout is JSON: ``{"epoch": 3, "value": 0.9}`` after each epoch, for
which the search answers ``go`` or ``end``, and the result at last. All else is printed to stderr.
"""

import dataclasses
import json
import os
import sys

from kd_keras.errors import InputError
from kd_keras.processes import exit_code
from kd_keras.run import config as configuration


class _Ended(Exception):
    """The search has ended this trial, or has ended itself."""


def main(argv: list[str]) -> int:
    """Runs a trial.

    Args:
        argv: as `sys.argv`; the flags of `kd_keras.run`.

    Returns:
        The exit code.
    """
    # Before anything is printed: what libraries write must not stand between the lines of JSON.
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**values) -> None:
        try:
            print(json.dumps(values), file=lines, flush=True)
        except BrokenPipeError as error:
            raise _Ended("the search has ended") from error

    try:
        return exit_code(lambda: _run(configuration.read(argv), tell), "stopped")
    except _Ended as ended:
        print(ended, file=sys.stderr)
        return 0


def _run(config, tell) -> int:
    from kd_keras._compat import distribute
    from kd_keras.run.runner import Runner, best_score, plan_of
    from kd_keras.run.session import Session
    from kd_keras.run.store import Store
    from kd_keras.run.tracking.base import NullWriter
    from kd_keras.schemes.plan import Train

    class Reporter(NullWriter):
        """Takes what is logged of the student's training."""

        def epoch(self, stage, epoch, metrics):
            if stage != student.title:
                return
            tell(epoch=epoch, value=float(metrics["val_map" if "val_map" in metrics else "val_accuracy"]))
            if sys.stdin.readline().strip() != "go":
                raise _Ended(f"ended by the search after epoch {epoch}; the checkpoint is kept")

    session = Session(config)
    store = Store(config.run.store, config.cache.folder, session.made_by)
    with distribute.watch(session.strategy):
        whole = plan_of(config, session.facts)
        # The student and what it is made from: no measurement of the test split, no file.
        plan = dataclasses.replace(whole, models=whole.students[:1], compressed=(), rows=(), extras=())
        trainings = [stage for stage in plan.stages if isinstance(stage, Train) and not stage.pretraining]
        if not trainings or not _is_made_by(plan.models[0], trainings[-1]):
            raise InputError("--search needs a student that is trained: leave out --student_from")
        student = trainings[-1]
        runner = Runner(plan, session, store, Reporter())
        runner.check()
        runner.run()
    record = store.record(student)
    value, metric = best_score(record)
    tell(result=value, metric=metric, epochs=len(record["series"]["loss"]), best_epoch=record["best_epoch"] + 1)
    return 0


def _is_made_by(model, training) -> bool:
    """Whether a model is what a training left, or a part of it."""
    return model.key == training.key or any(_is_made_by(part, training) for part in getattr(model, "of", ()))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
