"""Runs of a scheme in a second or two: real training, nothing measured."""

import dataclasses

from kd_keras.run import config
from kd_keras.run.runner import Runner, plan_of
from kd_keras.run.session import Session
from kd_keras.run.store import Store

TINY = [
    *("--data=digits()", "--train_examples=100", "--epochs=1", "--student=cnn(filters=(2,), dense=())"),
    *("--loss=ce() + kd()", "--tracking=none", "--export=none", "--progress=none", "--teacher_dtype=float32"),
]


def checked(tmp_path, *flags) -> Runner:
    """The runner of a plan without measurements, checked but not run."""
    settings = config.read(["kd_keras", *TINY, f"--workdir={tmp_path / 'w'}", *flags])
    session = Session(settings)
    plan = dataclasses.replace(plan_of(settings, session.facts), rows=())
    store = Store(settings.run.store, settings.cache.folder, session.made_by)
    runner = Runner(plan, session, store)
    runner.check()
    return runner


def trained(tmp_path, *flags) -> Runner:
    """The same, run."""
    runner = checked(tmp_path, *flags)
    runner.run()
    return runner


def stage_of(runner: Runner, name: str):
    """The stage of a name."""
    return next(stage for stage in (*runner.plan.roots, *runner.plan.stages) if stage.name == name)


def record(runner: Runner, name: str) -> dict:
    """What a finished stage left."""
    return runner.store.record(stage_of(runner, name))


def records(runner: Runner) -> dict[str, dict]:
    """What the finished trainings left, by name, in the order of the plan."""
    trainings = [stage for stage in runner.plan.stages if stage.name and hasattr(stage, "recipe")]
    found = {stage.name: runner.store.record(stage) for stage in trainings}
    return {name: left for name, left in found.items() if left is not None}


def weights(runner: Runner, name: str) -> list:
    """The weights of a finished model."""
    return runner.load(stage_of(runner, name)).get_weights()
