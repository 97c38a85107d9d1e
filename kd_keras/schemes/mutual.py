"""Deep mutual learning: students of equal standing learn together, each from the labels and from the others."""

import functools

from kd_keras.distillation import ensemble as joined
from kd_keras.distillation import parts as _terms
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.schemes import _base
from kd_keras.spec import Spec


def build(peers):
    """The scheme: the student by itself (``--baseline``), then together with its peers; no teacher.

    ``mutual(peers=resnet(depth=20) + cnn())`` trains ``--student`` and these. Of a ``--loss`` (the paper's is
    ``ce() + kd(temperature=1.0)``) each peer has a term that reads no teacher once, and one that reads a teacher once
    for each other peer, over their number; the other is detached. All see a batch once and learn at once, where the
    paper lets them take turns within a step. The epoch kept is the best of their joint accuracy (mean of their
    probabilities) on validation data.

    Each is exported; the table has a row for each, and for all together.

    Args:
        peers: the other students' specs, joined by ``+``.

    Raises:
        InputError: peers is no sum of specs.

    Source: Zhang et al., arXiv:1706.00384, equations 4 to 7.
    """
    peers = peers if isinstance(peers, tuple) else (peers,)
    if not peers or not all(isinstance(one, Spec) for one in peers):
        raise InputError(f"mutual(peers={peers!r}): give models, peers=resnet(depth=20) + cnn()")
    return Mutual(peers)


class Mutual:
    """See `build`."""

    def __init__(self, peers):
        self.peers = peers

    def check(self, experiment) -> None:
        """Builds all that will be trained, and trains nothing."""
        _base.check_teachers(experiment, "mutual()", most=0)
        _base.check_baseline(experiment, experiment.model(experiment.config.student))
        _base.check_taught(experiment, self._together(experiment), None, adapt=self._adapt)

    def run(self, experiment):
        """Trains the models; see `_base`."""
        config = experiment.config
        baseline = _base.baseline(experiment)
        specs = (config.student, *self.peers)
        together = experiment.train(
            *("peers", "peers together", " + ".join(map(str, specs)), config.loss),
            make=lambda: self._together(experiment),
            adapt=self._adapt,
        )
        students = []
        for number, one in enumerate(specs, start=1):
            stage, role = (f"peer{number}", f"peer {number}") if number > 1 else ("student", _base.DISTILLED)
            students.append(
                experiment.derive(
                    stage, role, str(one), [together], functools.partial(joined.member, prefix=f"peer{number}")
                )
            )
        return [*baseline, *students, together], students, None

    def _together(self, experiment):
        """All peers as one model; those of one spec start from initial weights that differ."""
        specs = (experiment.config.student, *self.peers)
        models = [experiment.model(one, variant=number) for number, one in enumerate(specs)]
        with experiment.strategy.scope():
            return joined.join(models, "probabilities", prefix="peer")

    def _adapt(self, terms, model):
        """See `Experiment.train`: each term, once for a peer, or once for a pair of them."""
        names = Taps(model, "peers").names
        peers = {
            f"peer{n}": {name.partition(".")[2]: name for name in names if name.startswith(f"peer{n}.")}
            for n in range(1, len(self.peers) + 2)
        }
        found = []
        for me, own in peers.items():
            others = {other: taps for other, taps in peers.items() if other != me}
            for term in terms:
                if not _terms.reads_teacher(term, own, next(iter(others.values()))):
                    found.append(_terms.Within(term=_terms.copy(term), student=own, name=f"{me}_{term.name}"))
                    continue
                for other, taps in others.items():
                    told = {"share": 1 / len(others), "name": f"{me}_{term.name}_{other}"}
                    found.append(_terms.Within(term=_terms.copy(term), student=own, teacher=taps, **told))
        if not any(term.teacher for term in found):
            raise InputError("--scheme=mutual() but no loss of --loss reads a teacher: add one, such as kd()")
        return found
