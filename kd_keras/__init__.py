"""kd_keras: knowledge distillation for Keras, from a large teacher to a measured TFLite student.

    from kd_keras import Distiller, data, losses, models

Importing the package is quick: TensorFlow is imported with the first name that needs it.
"""

from kd_keras import _lazy

__version__ = "0.2.0.dev0"
__getattr__, __dir__, __all__ = _lazy.exports(
    __name__,
    {
        "Distiller": "distillation.distiller",
        "InputError": "errors",
        "Taps": "distillation.taps",
        "TeacherCache": "distillation.teacher_cache",
        "TeacherInputs": "distillation.teacher_inputs",
        "compress": "compress",
        "data": "data",
        "distill": "run.distill",
        "hinton": "losses.building",
        "losses": "losses",
        "models": "models",
        "recipes": "recipes",
        "schedules": "schedules",
        "teacher_outputs": "distillation.precomputed",
        "testing": "testing",
        "unpack_batch": "distillation.batch",
    },
)
