"""Self-distillation: a network's deepest classifier teaches early exits that are put on its stages."""

import dataclasses
import re

import keras

from kd_keras._compat import keras as graph
from kd_keras.distillation import ensemble as joined
from kd_keras.distillation import parts as _terms
from kd_keras.distillation.distiller import Taps
from kd_keras.errors import InputError, check_switch
from kd_keras.models import layers as _layers
from kd_keras.schemes import _base


def build(export_exits: bool = False):
    """The scheme: the student by itself (``--baseline``), then with a classifier on each of its stages; no teacher.

    An exit brings its stage to the channels and the grid of the last by depthwise separable convolutions, and has a
    pooled classifier of its own. It learns by ``--loss``, from the labels and from the deepest classifier, which is
    detached; that one learns by ``--baseline_loss``, which is the labels. A loss on features compares the exit's map
    with the last stage's: ``--loss='ce(weight=0.7) + kd(weight=0.3, temperature=3.0) + hint(weight=0.03)'`` has all
    three sources of the paper, with weights of ours; the hint's regressor comes on top of the exit's own layers.

    The student ships without the exits. Each exit is a smaller and faster model too, with a row of its own.

    Args:
        export_exits: export these as well.

    Raises:
        InputError: a value is out of range.

    Source: Zhang et al., "Be Your Own Teacher", arXiv:1905.08094, equations 2 to 6.
    """
    check_switch("self_distillation's export_exits", export_exits)
    return SelfDistillation(export_exits)


class SelfDistillation:
    """See `build`."""

    def __init__(self, export_exits):
        self.export_exits = export_exits

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing."""
        _base.check_teachers(experiment, "self_distillation()", most=0)
        _base.check_baseline(experiment, experiment.model(experiment.config.student))
        _base.check_taught(experiment, self._whole(experiment), None, adapt=self._adapt(experiment))

    def run(self, experiment):
        """Trains the models; see `_base`."""
        config = experiment.config
        baseline = _base.baseline(experiment)
        whole = experiment.train(
            *("exits", "student with exits", f"{config.student}, with exits", config.loss),
            make=lambda: self._whole(experiment),
            adapt=self._adapt(experiment),
        )
        student = experiment.derive("student", _base.DISTILLED, str(config.student), [whole], _cut_at("logits"))
        # It is what was validated, and what the curves are of.
        student = dataclasses.replace(student, series=whole.series, best_epoch=whole.best_epoch)
        exits = [
            experiment.derive(f"exit{n}", f"exit {n}", f"{config.student}, to exit {n}", [whole], _cut_at(f"exit{n}"))
            for n in range(1, len(_stages_of(experiment.model(config.student))))
        ]
        return [*baseline, *exits, student], [student, *exits] if self.export_exits else [student], None

    def _whole(self, experiment):
        student = experiment.model(experiment.config.student)
        with experiment.strategy.scope():
            return with_exits(student)

    def _adapt(self, experiment):
        """See `Experiment.train`: ``--loss`` for each exit, and what trains a student alone for the deepest."""

        def adapt(terms, model):
            names = Taps(model, "student").names
            last = _stages_of(model)[-1]
            of_exits = [name for name in names if re.match(r"exit\d+\.", name)]
            deepest = {name: name for name in names if name not in of_exits}
            found = [experiment.term(one) for one in experiment.config.baseline_loss]
            for exit_ in sorted({name.partition(".")[0] for name in of_exits}):
                own = {"logits": f"{exit_}.logits", last: f"{exit_}.map", "pooled": f"{exit_}.pooled"}
                for term in terms:
                    taught = deepest if _terms.reads_teacher(term, own, deepest) else None
                    told = {"student": own, "teacher": taught, "name": f"{exit_}_{term.name}"}
                    found.append(_terms.Within(term=_terms.copy(term), **told))
            if not any(getattr(term, "teacher", None) for term in found):
                raise InputError("--scheme=self_distillation() but no loss of --loss reads a teacher: add kd()")
            return found

        return adapt


def with_exits(student: keras.Model) -> keras.Model:
    """The student with a classifier on each stage but the last; its output and its layers are the student's own.

    Taps ``exitN.map`` (B, H, W, C) of the last stage's shape, ``exitN.pooled`` (B, C), ``exitN.logits`` (B, K), N the
    stage from 1. Source: arXiv:1905.08094, figure 2; the bottlenecks are its code's, depthwise separable ones.

    Raises:
        InputError: the student is no graph, or has no two stages that are maps, each as large as the next or larger.
    """
    taps = Taps(student, "student")
    stages = _stages_of(student)
    maps = [student.get_layer(name).output for name in stages]
    if len(maps) < 2 or any(len(one.shape) != 4 or None in one.shape[1:] for one in maps):
        raise InputError(
            f"--scheme=self_distillation() takes a functional student of two stages or more, maps of known size; this "
            f"has {', '.join(stages) or 'none'}"
        )
    whole = taps.logits_model()
    logits = [whole.outputs[0]]
    for number, one in enumerate(maps[:-1], start=1):
        logits.append(_exit(f"exit{number}", one, maps[number:], taps.num_classes))
    return keras.Model(whole.inputs[0], joined.Exits(name="exits", dtype="float32")(logits), name=student.name)


def _exit(name, x, later, num_classes):
    for i, target in enumerate(later, start=1):
        strides = [max(1, -(-have // want)) for have, want in zip(x.shape[1:3], target.shape[1:3], strict=True)]
        x = _separable(x, target.shape[-1], strides, f"{name}.{i}")
    if tuple(x.shape[1:3]) != tuple(later[-1].shape[1:3]):
        raise InputError(
            f"--scheme=self_distillation(): from {name} on {tuple(later[0].shape[1:])} no strides lead to the last "
            f"stage's {tuple(later[-1].shape[1:])}: take a student whose stages halve the grid, or keep it"
        )
    x = keras.layers.Identity(name=f"{name}.map")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name=f"{name}.pooled")(x)
    return keras.layers.Dense(num_classes, dtype="float32", name=f"{name}.logits")(pooled)


def _separable(x, channels, strides, name):
    # Keras takes one stride for both sides; a stage's grid is square or halves on both.
    for part, stride in (("a", max(strides)), ("b", 1)):
        x = keras.layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}{part}_depth")(x)
        filters = x.shape[-1] if part == "a" else channels
        x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}{part}_point")(x)
        x = _layers.relu(_layers.batch_norm(x, name=f"{name}{part}_bn"), name=f"{name}{part}_relu")
    return x


def _stages_of(model) -> list[str]:
    return graph.stages(layer.name for layer in model.layers)


def _cut_at(tap):
    """What makes a model of its own of the one with exits: that up to some logits."""

    def make(whole: keras.Model) -> keras.Model:
        made = whole.get_layer("exits").input[0] if tap == "logits" else whole.get_layer(f"{tap}.logits").output
        return keras.Model(whole.inputs[0], made, name=whole.name)

    return make
