"""Attention transfer: where a feature map is active, summed over the channels."""

import keras
from keras import ops

from kd_keras.losses.base import unit_norm
from kd_keras.losses.features import FeatureLoss, mean_over_features, on_one_grid


@keras.saving.register_keras_serializable(package="kd_keras", name="Attention")
class Attention(FeatureLoss):
    """Σ over pairs of mean (a_s − a_t)², a the map mean_c F² as a vector of L2 norm 1.

    Args:
        weight: factor in the total, applied by the Distiller; 1000 in the CIFAR-100 benchmarks.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default all stages, matched from the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the attention maps are equal. Maps of different grids are resized to the smaller grid.

    Reference: Zagoruyko and Komodakis, arXiv:1612.03928, section 3.1. The mean over the grid is that of the benchmarks,
    and the weight belongs to it.
    """

    reads_labels = False

    def compare(self, student, teacher, adapter, training):
        maps = (ops.mean(ops.square(features), axis=-1, keepdims=True) for features in (student, teacher))
        a_s, a_t = (unit_norm(a, axis=(1, 2)) for a in on_one_grid(*maps))
        return mean_over_features(ops.square(a_s - a_t))
