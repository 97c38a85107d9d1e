"""kd_keras: knowledge distillation for Keras, from a large teacher to a measured TFLite student.

    from kd_keras import Distiller, data, losses, models

Importing the package is quick: TensorFlow is imported with the first name that needs it.
"""

import importlib
import importlib.abc
import importlib.util
import sys

from kd_keras import _lazy, spec

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = _lazy.exports(
    __name__,
    {
        "Distiller": "distillation.distiller",
        "InputError": "errors",
        "Taps": "distillation.distiller",
        "TeacherCache": "distillation.teacher_cache",
        "compress": "compress",
        "data": "data",
        "hinton": "losses.building",
        "losses": "losses",
        "models": "models",
        "schedules": "schedules",
        "testing": "testing",
        "unpack_batch": "distillation.distiller",
    },
)

# What Keras saves by a registered name; `keras.models.load_model` finds it once these are imported.
_REGISTERING = ("kd_keras.distillation.distiller", "kd_keras.distillation.ensemble")


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
    for module in (*_REGISTERING, *(f"kd_keras.losses.{name}" for name in spec.names("kd_keras.losses"))):
        importlib.import_module(module)


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterWithKeras())
