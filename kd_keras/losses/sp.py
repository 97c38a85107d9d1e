"""Similarity-preserving distillation: samples that are similar for the teacher are similar for the student."""

import keras
from keras import ops

from kd_keras.losses.base import unit_norm
from kd_keras.losses.relations import RelationalLoss


@keras.saving.register_keras_serializable(package="kd_keras", name="SP")
class SP(RelationalLoss):
    """Σ over pairs of ‖G_t − G_s‖²_F / B², G = F·Fᵀ with rows of L2 norm 1, F a sample's features in one row.

    Args:
        weight: factor in the total, applied by the Distiller; 3000 in the CIFAR-100 benchmarks.
        pairs: ``'stage3:stage3'``, student:teacher; by default the last stage of each.
        **kwargs: see `Loss`.

    Returns:
        A scalar, a statistic of the (global) batch; 0 where the similarities are equal.

    Reference: Tung and Mori, arXiv:1907.09682, equations 1 to 4. L2, where some public code has L1.
    """

    reads_labels = False

    def default_pairs(self, student, teacher):
        return self.stages(student, teacher)[-1:]

    def relation(self, features):
        return unit_norm(features @ ops.transpose(features), axis=-1)

    def distance(self, student, teacher):
        return ops.mean(ops.square(student - teacher))
