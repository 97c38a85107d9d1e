"""Deep mutual learning: students learn together, each from the labels and from the others."""

from kd_keras.schemes import common
from kd_keras.schemes.plan import Build, Part, Plan


def plan(config, facts, *, peers) -> Plan:
    """The baseline, then the student and its peers, trained together and cut apart; no teacher.

    ``mutual(peers=resnet(depth=20) + cnn())`` trains ``--student`` and these. Each peer has every loss of ``--loss``
    that reads no teacher once (the paper's is ``ce() + kd(temperature=1.0)``), and every loss that reads a teacher once
    for each other peer, divided by their number; the teaching peer gets no gradient. All see a batch once and are
    updated at once, where the paper lets them take turns within a step. The epoch kept is the best by the joint
    validation accuracy (mean of their probabilities). Each peer is exported; the table has a row for each, and for all
    together.

    Args:
        peers: the other students' specs, joined by ``+``.

    Reference: Zhang et al., arXiv:1706.00384, equations 4 to 7.
    """
    others = common.specs("mutual", "peers", peers, "resnet(depth=20) + cnn()")
    common.teachers(config, facts, "mutual", most=0)
    baseline = common.baseline(config, facts)
    students = {
        f"peer{number}": common.new(config, facts, spec, variant=number - 1)
        for number, spec in enumerate((config.student.model, *others), start=1)
    }
    how = {"combine": "probabilities", "prefix": "peer"}
    model = common.joined(config, facts, "", "", students.values(), **how)
    terms = []
    for name, peer in students.items():
        teaching = {other: model for other, model in students.items() if other != name}
        voices = tuple((1 / len(teaching), ((f"student.{other}", 1.0),)) for other in teaching)
        learner = {"learner": f"student.{name}", "voices": voices}
        terms += common.terms(config.student.loss, facts, peer, next(iter(teaching.values())), **learner)
    common.must_teach("mutual", terms)
    together = common.train(config, facts, "peers", "peers together", model, tuple(terms))
    labels = {"peer1": {"name": "student", "role": common.STUDENT}}
    apart = tuple(
        Build(
            **labels.get(name, {"name": name, "role": name.replace("peer", "peer ")}),
            architecture=peer.architecture,
            what=Part("member", {"prefix": name}),
            of=(together,),
        )
        for name, peer in students.items()
    )
    return Plan((*baseline, *apart, together), students=apart)
