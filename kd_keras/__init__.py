"""kd_keras: a large image classifier teaches a small one, which ships as TFLite, and every gain and loss is measured.

    from kd_keras import Distiller, losses

Importing the package is quick: TensorFlow is imported with the first name that needs it.
"""

import importlib
import importlib.abc
import importlib.util
import sys

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
    "Taps": "kd_keras.distillation.distiller",
    "TeacherCache": "kd_keras.distillation.teacher_cache",
    "unpack_batch": "kd_keras.distillation.distiller",
    "InputError": "kd_keras.errors",
}
# What Keras saves by a registered name lives here; `keras.models.load_model` finds it once these are imported.
_REGISTERING = ("kd_keras.distillation.distiller", "kd_keras.distillation.parts", "kd_keras.distillation.exits")


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


class _RegisterWithKeras(importlib.abc.MetaPathFinder):
    """Registers the package's classes right after Keras is first imported, whoever imports it.

    So ``import kd_keras`` stays quick, and what it saved can still be loaded after it.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec("keras")
        if found is None:
            return None
        run = found.loader.exec_module

        def exec_module(module):
            run(module)
            _register()

        found.loader.exec_module = exec_module
        return found


def _register():
    from kd_keras import spec

    for module in (*_REGISTERING, *(f"kd_keras.losses.{name}" for name in spec.names("kd_keras.losses"))):
        importlib.import_module(module)


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterWithKeras())
