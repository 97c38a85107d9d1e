"""Cross-entropy with the hard labels."""

from typing import Any

import keras

from kd_keras.errors import InputError, plain
from kd_keras.losses.base import Loss
from kd_keras.losses.labels import cross_entropy
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="CE")
class CE(Loss):
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

    reads_labels = True

    def __init__(self, *, weight: ScheduleLike = 1.0, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, **kwargs)
        label_smoothing = plain(label_smoothing)
        if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing < 1:
            raise InputError(f"{self.name}(label_smoothing={label_smoothing}): it lies in [0, 1)")
        self.label_smoothing = label_smoothing

    def taps(self, student, teacher):
        return ("logits",), ()

    def call(self, student, teacher, labels):
        return cross_entropy(labels, student["logits"], self.label_smoothing)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
