"""Binary cross-entropy with the hard labels, for independent labels."""

from typing import Any

import keras

from kd_keras.errors import InputError
from kd_keras.losses.base import HardLabelLoss
from kd_keras.losses.labels import binary_cross_entropy
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="BCE")
class BCE(HardLabelLoss):
    """−mean over labels of y_k log σ(z_k) + (1 − y_k) log(1 − σ(z_k)): each label is a classification of its own.

        losses = [kd_keras.losses.BCE(weight=0.5), kd_keras.losses.BinaryKD(weight=0.5)]

    Args:
        weight: factor in the total, applied by the Distiller.
        label_smoothing: ε in [0, 1): y becomes (1 − ε)·y + ε / 2.
        **kwargs: see `Loss`.

    Call arguments:
        labels: (B, K) of 0 and 1, between them after mixup. A label of −1 is not known and is left out of its image's
            mean, as in arXiv:1902.09720 (section 3.1, normalised by the known labels).

    Returns:
        (B,) values, at least 0.

    Raises:
        InputError: ε is out of range, or the labels are classes.
    """

    heads = frozenset({"multilabel"})

    def __init__(self, *, weight: ScheduleLike = 1.0, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(weight=weight, label_smoothing=label_smoothing, **kwargs)

    def call(self, student, teacher, labels):
        logits = student["logits"]
        if tuple(labels.shape)[1:] != tuple(logits.shape)[1:]:
            raise InputError(f"{self.name} takes labels (B, {logits.shape[-1]}) of 0 and 1, not {tuple(labels.shape)}")
        return binary_cross_entropy(labels, logits, self.label_smoothing)
