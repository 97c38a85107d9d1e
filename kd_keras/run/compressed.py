"""Students that learn on while they are compressed (``--compress``), by the same losses, the teacher still teaching.

A chain of ways is trained way by way. Each is a stage that leaves a Keras model, so that chains which begin alike
share what they have in common; one that ends in quantisation leaves the ranges that it has learnt as well.
"""

import dataclasses
import math
import pathlib

import keras
import numpy as np

from kd_keras import compress, spec
from kd_keras.compress import Prepared
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.export.variants import QUANTISED
from kd_keras.run import teaching, training
from kd_keras.run.config import Config
from kd_keras.run.experiment import Experiment, Recipe, Trained
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
    def quantised(self) -> bool:
        """Whether it ends in quantisation, so that its integer file is made of what was learnt."""
        return _ways(self.chain)[-1].quantises

    def variants(self, config: Config) -> tuple[str, ...]:
        """The TFLite files that it is to become."""
        return tuple(one for one in config.compress_export if not self.quantised or one in QUANTISED)


def check_chains(config: Config) -> None:
    """Raises InputError where a way of ``--compress`` has a wrong key or value, or comes in the wrong place."""
    for chain in config.compress:
        ways, told = _ways(chain), " + ".join(map(str, chain))
        if [way.rank for way in ways] != sorted({way.rank for way in ways}):
            raise InputError(f"--compress={told}: each way once, prune() before cluster() before qat()")
        if ways[-1].quantises and not set(config.compress_export) & set(QUANTISED):
            raise InputError(
                f"--compress_export={','.join(config.compress_export) or 'none'} but {told} learns for integers: add "
                f"{' or '.join(QUANTISED)}"
            )


def check(experiment: Experiment) -> None:
    """Builds the student in each chain's wrappers, as it will be trained, so that nothing fails later.

    Raises:
        InputError: a layer, a loss or an optimizer does not fit, or the quantised student can't be converted.
    """
    config, lesson = experiment.config, experiment.lesson
    if not config.compress:
        return
    flag = "--loss" if config.compress_loss == config.loss else "--compress_loss"
    student = experiment.model(config.student) if lesson is None else lesson.student
    weights = student.get_weights()
    for chain in _stages(config.compress).values():
        one = " + ".join(map(str, chain))
        *earlier, way = _ways(chain)
        before = {"steps": 100, "before": tuple(earlier)}
        with experiment.strategy.scope():
            student.set_weights(weights)
            compress.imitate(student, earlier)
            made = compress.prepare(student, way, **before)
        try:
            distiller = _distiller(experiment, made.model, lesson)
        except InputError as error:
            raise InputError(
                f"{flag} can't train what {one} makes of the student ({error}): give --compress_loss"
            ) from error
        if distiller.needs_teacher and lesson is None:
            raise InputError(
                f"{flag} reads a teacher, and there is none for a student to be compressed by: give "
                "--compress_loss='ce()'"
            )
        if needy := [term.name for term in distiller.terms if term.needs_pretraining]:
            raise InputError(f"{flag} has {', '.join(needy)}, part of which is trained ahead: give --compress_loss")
        teaching.cache(experiment, distiller)
        if way.quantises:
            wrapped = compress.prepare(student, way, **before).wrapped
            # All ranges begin alike, and so hide which of them the converter can't bring together.
            noise = np.random.default_rng(0).uniform(0, 255, (2, *wrapped.input_shape[1:]))
            wrapped(noise.astype(np.float32), training=True)
            tflite.convert_quantised(wrapped)


def _distiller(experiment, student, lesson):
    return experiment.distiller(
        student,
        experiment.config.compress_loss,
        teacher=None if lesson is None else lesson.teacher,
        epochs=experiment.config.compress_epochs,
        recipe=_recipe(experiment.config),
        adapt=None if lesson is None else lesson.adapt,
    )


def _recipe(config, keep_from=0) -> Recipe:
    return Recipe(config.compress_optimizer, config.compress_learning_rate, keep_from=keep_from)


def run(experiment: Experiment, models: list[Trained], student: Trained) -> list[Compressed]:
    """Trains every chain's ways on the student, and on what is compressed beside it.

    Args:
        experiment: the tools.
        models: all that were trained.
        student: the distilled one.

    Returns:
        the compressed students, in the order of ``--compress``, those with a teacher first.
    """
    config = experiment.config
    found = _chains(experiment, student, student.stage, config.compress_loss, student)
    if "untaught" in config.compress_controls:
        found += _chains(experiment, student, "untaught", config.baseline_loss, None)
    if "baseline" in config.compress_controls:
        (baseline,) = (one for one in models if one.stage == "baseline")
        found += _chains(experiment, baseline, baseline.stage, config.baseline_loss, None)
    return found


def _chains(experiment, of, suffix, losses, taught) -> list[Compressed]:
    """Every chain on one student; ``taught`` is the one whose teacher teaches on, or None."""
    made = {(): of}
    for stage, chain in _stages(experiment.config.compress).items():
        before = made[_text(chain[:-1])]
        made[_text(chain)] = _train(experiment, f"{stage}-{suffix}", chain, before, of, losses, taught)
    chains = experiment.config.compress
    return [Compressed(made[_text(chain)], chain, made[_text(chain[:-1])], of) for chain in chains]


def _train(experiment, stage, chain, before, of, losses, taught) -> Trained:
    config = experiment.config
    path = config.workdir / f"{stage}.keras"
    steps = config.compress_epochs * experiment.steps_per_epoch
    way = _ways(chain)[-1]
    kept: list[Prepared] = []

    def make():
        # Trainable parts of the losses are made next.
        keras.utils.set_random_seed(config.seed)
        student = experiment.load(before)
        with experiment.strategy.scope():
            kept.append(_prepared(student, chain, steps))
        _tell(experiment, stage, kept[0])
        return kept[0].model

    def strip(model):
        if way.quantises:
            training.write_variables(model, _ranges(path))
        return kept[0].finish()

    # A sparse student's best epoch is one of those at whose end it is sparse.
    settled = max(1, math.ceil(way.settled(steps) / experiment.steps_per_epoch))
    told = " + ".join(map(str, chain))
    untaught = ", untaught" if taught is None and of.teacher is not None else ""
    return experiment.train(
        *(stage, f"{of.role}, {told}{untaught}", f"{of.architecture}, {told}", losses),
        teacher=None if taught is None else taught.teacher,
        epochs=config.compress_epochs,
        recipe=_recipe(config, keep_from=min(settled, config.compress_epochs) - 1),
        make=make,
        adapt=None if taught is None else taught.adapt,
        strip=strip,
    )


def _tell(experiment, stage, made) -> None:
    if left := made.way.left_out(made.wrapped):
        what = "stays in float32" if made.way.quantises else "is left as it is"
        experiment.console.print(f"{stage:<8} {', '.join(left)}: {what}", highlight=False)


def convert(one: Compressed, variant: str) -> bytes:
    """The integer TFLite file of a student that was quantised as it learnt."""
    # How many clusters a kernel has was read from the weights that it began with.
    made = _prepared(keras.models.load_model(one.before.path, compile=False), one.chain, steps=1)
    training.read_variables(made.model, _ranges(one.trained.path))
    return tflite.convert_quantised(made.wrapped, variant)


def _ranges(path: pathlib.Path) -> pathlib.Path:
    """Where a quantised student's variables are kept, the ranges among them."""
    return path.with_suffix(".npz")


def _prepared(student, chain, steps) -> Prepared:
    """What a chain was before its last way, in that way's wrappers."""
    *earlier, way = _ways(chain)
    return compress.prepare(student, way, steps=steps, before=tuple(earlier))


def _ways(chain) -> list:
    return [spec.build("kd_keras.compress", one) for one in chain]


def _text(chain) -> tuple[str, ...]:
    return tuple(map(str, chain))


def _stages(chains) -> dict[str, tuple[Spec, ...]]:
    """Every chain's beginnings, each once and the shorter first, by a name: its ways', numbered if that is taken."""
    beginnings = {_text(chain[:n]): chain[:n] for chain in chains for n in range(1, len(chain) + 1)}
    found: dict[str, tuple[Spec, ...]] = {}
    for chain in beginnings.values():
        name = stem = "-".join(one.name for one in chain)
        number = 1
        while name in found:
            number += 1
            name = f"{stem}{number}"
        found[name] = chain
    return found
