"""Cross-entropy with the teacher's soft targets."""

import keras
from keras import ops

from kd_keras.losses import base as _base


@keras.saving.register_keras_serializable(package="kd_keras", name="SoftCE")
class SoftCE(_base.ResponseLoss):
    """−T² · Σ_k softmax(z_t / T)_k log softmax(z_s / T)_k: `KD` plus the teacher's entropy, so the same gradient.

    Args:
        weight: factor in the total, applied by the Distiller.
        temperature: T > 0, a number or a schedule.
        standardize: standardise the logits first (arXiv:2403.01427).
        squared: whether to multiply by T², as in `KD`.
        **kwargs: see `Loss`.

    Returns:
        (B,) values; the least is T² times the entropy of the teacher's softened distribution.

    Source: Hinton et al., arXiv:1503.02531, section 2.
    """

    def __init__(self, *, weight=1.0, temperature=1.0, standardize=False, squared=True, **kwargs):
        super().__init__(weight=weight, temperature=temperature, standardize=standardize, squared=squared, **kwargs)

    def call(self, student, teacher, labels):
        factor, log_p_s, log_p_t = self.softened(student, teacher)
        return -factor * ops.sum(ops.exp(log_p_t) * log_p_s, axis=-1)
