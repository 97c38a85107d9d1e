"""Distillation with Keras objects: `Distiller`, taps, ensembles, early exits, teacher cache.

Importing this package registers every class of kd_keras that Keras saves, so that ``import kd_keras.distillation`` is
all that ``keras.models.load_model`` needs.
"""

from kd_keras import losses as _losses
from kd_keras import schedules as _schedules
from kd_keras.distillation import distiller, ensemble, exits, fast_teacher, parts  # noqa: F401

_schedules.learning_rate_class()
for _name in _losses.__all__:
    getattr(_losses, _name)
