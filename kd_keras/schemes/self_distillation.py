"""Self-distillation: a network's deepest classifier teaches early exits that are put on its stages."""

from kd_keras.errors import check_switch
from kd_keras.schemes import common
from kd_keras.schemes.plan import Build, Part, Plan


def plan(config, facts, *, export_exits: bool = False) -> Plan:
    """The baseline, then the student with a classifier on each stage, trained together and cut apart; no teacher.

    An exit brings its stage to the channels and the grid of the last stage by depthwise separable convolutions, and has
    a pooled classifier of its own. It learns by ``--loss``, from the labels and from the deepest classifier, which gets
    no gradient; the deepest learns by ``--baseline_loss``. A loss on features compares the exit's map with the last
    stage's: ``--loss='ce(weight=0.7) + kd(weight=0.3, temperature=3.0) + hint(weight=0.03)'`` has all three sources of
    the paper. The student is exported without the exits. Each exit is a smaller and faster model, with its own row.

    Args:
        export_exits: also exports the model that ends at each exit.

    Reference: Zhang et al., "Be Your Own Teacher", arXiv:1905.08094, equations 2 to 6.
    """
    check_switch("self_distillation's export_exits", export_exits)
    common.teachers(config, facts, "self_distillation", most=0)
    baseline = common.baseline(config, facts)
    model = common.new(config, facts, config.student.model)
    whole = Build(what=Part("add_exits"), of=(model,), precision=model.precision)
    *stages, last = facts.exit_stages(whole, model)
    terms = [*common.terms(config.student.baseline_loss, facts, model, None, flag="--baseline_loss")]
    for number in range(1, len(stages) + 1):
        learner = {"learner": f"student.exit{number}", "taps": ("logits", last, "pooled")}
        voices = ((1.0, (("student", 1.0),)),)
        terms += common.terms(config.student.loss, facts, model, model, voices=voices, **learner)
    common.must_teach("self_distillation", terms)
    spec = model.architecture
    together = common.train(
        config, facts, "exits", "student with exits", whole, tuple(terms), architecture=f"{spec}, with exits"
    )

    def cut(name, role, tap, architecture):
        labels = {"name": name, "role": role, "architecture": architecture}
        return Build(**labels, what=Part("cut", {"tap": tap}), of=(together,))

    exits = [cut(f"exit{n}", f"exit {n}", f"exit{n}", f"{spec}, to exit {n}") for n in range(1, len(stages) + 1)]
    student = cut("student", common.STUDENT, "logits", spec)
    return Plan((*baseline, *exits, student), students=(student, *(exits if export_exits else ())))
