"""Probabilistic knowledge transfer: the probability that one sample is another's neighbour."""

import keras
from keras import ops

from kd_keras.losses.base import unit_norm
from kd_keras.losses.relations import RelationalLoss

_EPSILON = 1e-7


@keras.saving.register_keras_serializable(package="kd_keras", name="PKT")
class PKT(RelationalLoss):
    """Σ over pairs of mean over B² of K_t·log((K_t + ε) / (K_s + ε)), K = (cosine + 1) / 2 with rows of sum 1.

    Args:
        weight: factor in the total, applied by the Distiller; 30000 in the CIFAR-100 benchmarks.
        pairs: ``'pooled:pooled'``, student:teacher; by default the pooled features.
        **kwargs: see `Loss`.

    Returns:
        A scalar, a statistic of the (global) batch; 0 where the probabilities are equal.

    Reference: Passalis and Tefas, arXiv:1803.10837, equations 4 to 7, ε = 1e-7.
    """

    reads_labels = False

    def relation(self, features):
        features = unit_norm(features, axis=-1)
        kernel = (features @ ops.transpose(features) + 1) / 2
        return kernel / ops.sum(kernel, axis=-1, keepdims=True)

    def distance(self, student, teacher):
        return ops.mean(teacher * (ops.log(teacher + _EPSILON) - ops.log(student + _EPSILON)))
