"""Teacher assistants: between a large teacher and a small student, each model teaches the next smaller one."""

from kd_keras.errors import check_switch
from kd_keras.schemes import common
from kd_keras.schemes.plan import Plan


def plan(config, facts, *, chain, direct: bool = False) -> Plan:
    """Teacher, baseline, the assistants, the student taught by the last of them.

    ``assistant(chain=resnet(depth=32) + resnet(depth=20))``: the teacher teaches the first assistant, each assistant
    the next, and the last the student, all by ``--loss`` with the student's optimizer and epochs. Agreement in the
    table is with the teacher.

    Args:
        chain: the assistants' specs, joined by ``+``, from the teacher's end.
        direct: also trains the student with the teacher itself, for comparison.

    Reference: Mirzadeh et al., arXiv:1902.03393, section 3.
    """
    check_switch("assistant's direct", direct)
    specs = common.specs("assistant", "chain", chain, "resnet(depth=32) + resnet(depth=20)")
    (teacher,) = common.teachers(config, facts, "assistant", least=1)
    models = [teacher, *common.baseline(config, facts)]
    last = teacher
    for number, spec in enumerate(specs, start=1):
        labels = {"name": f"assistant{number}", "role": f"assistant {number}"}
        last = common.student(config, facts, last, spec=spec, **labels)
        common.must_teach("assistant", last.terms)
        models.append(last)
    if direct:
        models.append(common.student(config, facts, teacher, name="direct", role="student distilled directly"))
    student = common.student(config, facts, last)
    return Plan((*models, student), students=(student,), reference=teacher, teacher=last)
