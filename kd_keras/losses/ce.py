"""Cross-entropy with the hard labels."""

from typing import Any

import keras

from kd_keras.losses.base import HardLabelLoss
from kd_keras.losses.labels import cross_entropy
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="CE")
class CE(HardLabelLoss):
    """−Σ_k y_k log softmax(z)_k, at temperature 1.

    Args:
        weight: factor in the total, applied by the Distiller.
        label_smoothing: ε in [0, 1): y becomes (1 − ε)·y + ε / K (arXiv:1512.00567, section 7).
        **kwargs: see `Loss`.

    Returns:
        (B,) values, at least 0.

    Raises:
        InputError: ε is out of range.
    """

    def __init__(self, *, weight: ScheduleLike = 1.0, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, label_smoothing=label_smoothing, **kwargs)

    def call(self, student, teacher, labels):
        return cross_entropy(labels, student["logits"], self.label_smoothing)
