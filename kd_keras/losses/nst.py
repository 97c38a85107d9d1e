"""Neuron selectivity transfer: the distribution of the channels' activation patterns."""

import keras
from keras import ops

from kd_keras.losses.base import unit_norm
from kd_keras.losses.features import FeatureLoss, on_one_grid


@keras.saving.register_keras_serializable(package="kd_keras", name="NST")
class NST(FeatureLoss):
    """Σ over pairs of the squared MMD between the sets of channels: mean k(t, t) + mean k(s, s) − 2 mean k(s, t).

    A channel is its map over the grid, with L2 norm 1; k(a, b) = (aᵀb)². Student and teacher may have any number of
    channels.

    Args:
        weight: factor in the total, applied by the Distiller; 50 in the CIFAR-100 benchmarks.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default all stages, matched from the last.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the sets are equal. Maps of different grids are resized to the smaller grid.

    Reference: Huang and Wang, arXiv:1707.01219, equation 9 with the polynomial kernel (d = 2, c = 0).
    """

    reads_labels = False

    def compare(self, student, teacher, adapter, training):
        s, t = (
            unit_norm(ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3])), axis=1)
            for x in on_one_grid(student, teacher)
        )
        return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a, b):
    return ops.mean(ops.square(ops.einsum("bpi,bpj->bij", a, b)), axis=(1, 2))
