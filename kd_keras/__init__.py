"""kd_keras: a large image classifier teaches a small one, which ships as TFLite, and every gain and loss is measured.

    from kd_keras import Distiller, losses

Importing the package is quick: TensorFlow is imported with the first name that needs it.
"""

import importlib

__version__ = "0.1.0"
__all__ = [
    "Distiller",
    "InputError",
    "Taps",
    "TeacherCache",
    "compress",
    "data",
    "hinton",
    "losses",
    "models",
    "schedules",
    "unpack_batch",
]

_WHERE = {
    "Distiller": "kd_keras.distillation.distiller",
    "Taps": "kd_keras.distillation.taps",
    "TeacherCache": "kd_keras.distillation.teacher_cache",
    "unpack_batch": "kd_keras.distillation.batch",
    "InputError": "kd_keras.errors",
}


def __getattr__(name):
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in __all__:
        return importlib.import_module(f"kd_keras.{name}")
    raise AttributeError(f"module 'kd_keras' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


def hinton(*, alpha: float = 0.9, temperature: float = 4.0) -> list:
    """The classical pair of losses: (1 − alpha) · CE with the labels + alpha · KD with the teacher.

    Args:
        alpha: weight of the *soft* term, in [0, 1].
        temperature: T > 0 of the soft term.

    Source: Hinton et al., arXiv:1503.02531.
    """
    from kd_keras import losses

    return [losses.CE(weight=1 - alpha), losses.KD(weight=alpha, temperature=temperature)]
