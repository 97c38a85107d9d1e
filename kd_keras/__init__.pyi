# Written by tools/stubs.py.
from kd_keras import compress as compress
from kd_keras import data as data
from kd_keras import losses as losses
from kd_keras import models as models
from kd_keras import recipes as recipes
from kd_keras import schedules as schedules
from kd_keras import testing as testing
from kd_keras.distillation.batch import unpack_batch as unpack_batch
from kd_keras.distillation.distiller import Distiller as Distiller
from kd_keras.distillation.precomputed import teacher_outputs as teacher_outputs
from kd_keras.distillation.taps import Taps as Taps
from kd_keras.distillation.teacher_cache import TeacherCache as TeacherCache
from kd_keras.distillation.teacher_inputs import TeacherInputs as TeacherInputs
from kd_keras.errors import InputError as InputError
from kd_keras.losses.building import hinton as hinton
from kd_keras.run.distill import distill as distill

__version__: str
