# Written by tools/stubs.py.
from kd_keras.compress.base import Step as Step
from kd_keras.compress.cluster import Cluster as Cluster
from kd_keras.compress.prune import Prune as Prune
from kd_keras.compress.qat import QAT as QAT
from kd_keras.compress.wrapped import Prepared as Prepared
from kd_keras.compress.wrapped import imitate as imitate
from kd_keras.compress.wrapped import prepare as prepare
