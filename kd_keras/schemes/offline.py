"""Offline distillation: one teacher, trained or loaded, teaches one student."""

from kd_keras.schemes import common
from kd_keras.schemes.plan import Plan, Train


def plan(config, facts) -> Plan:
    """Teacher, baseline, student.

    Reference: Hinton et al., arXiv:1503.02531.
    """
    teachers = common.teachers(config, facts, "offline")
    teacher = teachers[0] if teachers else None
    student = common.student(config, facts, teacher)
    teaches = teacher if not isinstance(student, Train) or student.teacher is not None else None
    models = (*teachers, *common.baseline(config, facts), student)
    return Plan(models, students=(student,), reference=teacher, teacher=teaches)
