"""Self-distillation: a network's deepest classifier teaches early exits that are put on its stages."""

import dataclasses
import re

from kd_keras.distillation import exits
from kd_keras.distillation import parts as _terms
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError, check_switch
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
        student = experiment.derive("student", _base.DISTILLED, str(config.student), [whole], exits.cut_at("logits"))
        # It is what was validated, and what the curves are of.
        student = dataclasses.replace(student, series=whole.series, best_epoch=whole.best_epoch)
        shallow = [
            experiment.derive(
                f"exit{n}", f"exit {n}", f"{config.student}, to exit {n}", [whole], exits.cut_at(f"exit{n}")
            )
            for n in range(1, len(exits.stages_of(experiment.model(config.student))))
        ]
        return [*baseline, *shallow, student], [student, *shallow] if self.export_exits else [student], None

    def _whole(self, experiment):
        student = experiment.model(experiment.config.student)
        with experiment.strategy.scope():
            return exits.with_exits(student)

    def _adapt(self, experiment):
        """See `Experiment.train`: ``--loss`` for each exit, and what trains a student alone for the deepest."""

        def adapt(terms, model):
            names = Taps(model, "student").names
            last = exits.stages_of(model)[-1]
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
