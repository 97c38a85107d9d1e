"""Students that learn on while they are compressed (``--compress``), by the same losses, the teacher still teaching.

A chain of ways is trained way by way. Each is a stage that leaves a Keras model, so that chains which begin alike
share what they have in common; one that ends in quantisation leaves the ranges that it has learnt as well.
"""

import dataclasses
import math
import pathlib

import keras
import numpy as np

from kd_keras import files, spec
from kd_keras.compress import _bridge
from kd_keras.config import QUANTISED, Config
from kd_keras.errors import InputError
from kd_keras.experiment import Experiment, Recipe, Trained
from kd_keras.export import tflite
from kd_keras.spec import Spec


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A compressed student.

    Attributes:
        trained: its model, in Keras.
        chain: the ways it has been through.
        before: what the last of them began with.
        of: the student that the first of them began with.
    """

    trained: Trained
    chain: tuple[Spec, ...]
    before: Trained
    of: Trained

    @property
    def ranges(self) -> pathlib.Path:
        """Where a quantised one's variables are kept, the ranges among them."""
        return self.trained.path.with_suffix(".npz")

    @property
    def quantised(self) -> bool:
        """Whether it ends in quantisation, so that its integer file is made of what was learnt."""
        return _steps(self.chain)[-1].quantises


def check_chains(config: Config) -> None:
    """Raises InputError where a way of ``--compress`` has a wrong key or value, or comes in the wrong place."""
    for chain in config.compress:
        ranks = [way.rank for way in _steps(chain)]
        if ranks != sorted(set(ranks)):
            told = " + ".join(map(str, chain))
            raise InputError(f"--compress={told}: each way once, prune() before cluster() before qat()")
        if _steps(chain)[-1].quantises and not set(config.compress_export) <= set(QUANTISED):
            raise InputError(
                f"--compress_export={','.join(config.compress_export)} but {chain[-1]} learns for integers: give "
                f"{' or '.join(QUANTISED)}"
            )


def check(experiment: Experiment) -> None:
    """Builds the student in each way's wrappers, and converts what will be quantised, so that nothing fails later.

    Raises:
        InputError: a layer or a loss does not fit, or the quantised student can't be converted.
    """
    config = experiment.config
    if not config.compress:
        return
    student = experiment.model(config.student)
    for losses, flag in ((config.compress_loss, "--compress_loss"), (config.baseline_loss, "--baseline_loss")):
        terms = [experiment.term(one) for one in losses]
        if needy := [term.name for term in terms if term.needs_pretraining]:
            raise InputError(f"{flag} has {', '.join(needy)}, part of which is trained ahead: not with --compress")
    # Each way by itself: the student has no zeros or clusters yet that others could keep.
    for one in {str(one): one for chain in config.compress for one in chain}.values():
        wrapped, model = _wrapped(student, (one,), steps=100)
        distiller = experiment.distiller(model, config.compress_loss, epochs=1, teacher=_any_teacher(experiment))
        if distiller.needs_teacher and not config.teacher:
            raise InputError(
                "--compress_loss (by default --loss) reads a teacher, and this scheme has none to go on with: give "
                "--compress_loss='ce()'"
            )
        if _steps((one,))[0].quantises:
            tflite.convert_quantised(wrapped)


def _any_teacher(experiment):
    return experiment.model(experiment.config.teacher[0]) if experiment.config.teacher else None


def run(experiment: Experiment, models: list[Trained], student: Trained, teacher: Trained | None):
    """Trains every chain's ways on the student, and on the one without a teacher where that is asked for.

    Args:
        experiment: the tools.
        models: all that were trained.
        student: the distilled one.
        teacher: who teaches on, or None.

    Returns:
        list of `Compressed`, in the order of ``--compress``.
    """
    config, found = experiment.config, []
    baselines = [one for one in models if one.stage == "baseline" and config.compress_baseline]
    for of, losses, tutor in (
        (student, config.compress_loss, teacher),
        *((one, config.baseline_loss, None) for one in baselines),
    ):
        made = {(): of}
        for stage, chain in _stages(config.compress).items():
            before = made[_text(chain[:-1])]
            made[_text(chain)] = _train(experiment, f"{stage}-{of.stage}", chain, before, of, losses, tutor)
        found += [Compressed(made[_text(chain)], chain, made[_text(chain[:-1])], of) for chain in config.compress]
    return found


def _train(experiment, stage, chain, before, of, losses, teacher) -> Trained:
    config = experiment.config
    path = config.workdir / f"{stage}.keras"
    way = _steps(chain)[-1]
    epochs, per_epoch = config.compress_epochs, experiment.steps_per_epoch
    settled = way.settled(epochs * per_epoch)
    kept: dict[str, keras.Model] = {}

    def make():
        kept["plain"] = experiment.load(before)
        with experiment.strategy.scope():
            return _wrapped(kept["plain"], chain, epochs * per_epoch)[1]

    def strip(model):
        if way.quantises:
            values = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(model.variables)}
            files.write(path.with_suffix(".npz"), lambda file: np.savez(file, **values))
        _bridge.weights_back(way.strip(model.wrapped()), kept["plain"])
        return kept["plain"]

    recipe = Recipe(
        config.compress_optimizer,
        config.compress_learning_rate,
        keep_from=min(epochs, max(1, math.ceil(settled / per_epoch))) - 1,
        callbacks=lambda model: way.callbacks(model.wrapped()),
    )
    told = " + ".join(map(str, chain))
    return experiment.train(
        *(stage, f"{of.role}, {told}", f"{of.architecture}, {told}", losses),
        teacher=teacher,
        epochs=epochs,
        recipe=recipe,
        make=make,
        strip=strip,
    )


def convert(one: Compressed, variant: str) -> bytes:
    """The integer TFLite file of a student that was quantised as it learnt."""
    # How many clusters a kernel has was read from the weights that it began with.
    wrapped, model = _wrapped(keras.models.load_model(one.before.path, compile=False), one.chain, steps=1)
    with np.load(one.ranges) as values:
        for i, variable in enumerate(model.variables):
            variable.assign(values[str(i)])
    return tflite.convert_quantised(wrapped, variant)


def _wrapped(plain, chain, steps):
    """The tf_keras model in the last way's wrappers, and the Keras 3 model that trains it."""
    before = tuple(one.name for one in chain[:-1])
    wrapped = _steps(chain)[-1].wrap(_bridge.twin(plain), before, steps)
    return wrapped, _bridge.trainable(wrapped, plain)


def _steps(chain) -> list:
    return [spec.build("kd_keras.compress", one) for one in chain]


def _text(chain) -> tuple[str, ...]:
    return tuple(map(str, chain))


def _stages(chains) -> dict[str, tuple[Spec, ...]]:
    """Every chain's beginnings, each once and the shorter first, by a name: its ways', numbered if that is taken."""
    beginnings = {_text(chain[:n]): chain[:n] for chain in chains for n in range(1, len(chain) + 1)}
    found = {}
    for chain in beginnings.values():
        name, number = "-".join(one.name for one in chain), 2
        while name in found:
            name, number = f"{name.rstrip('0123456789')}{number}", number + 1
        found[name] = chain
    return found
