"""Knowledge distillation of independent labels, each by its softened probability."""

from typing import Any

import keras
from keras import ops

from kd_keras.losses.base import Loss, divergence
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="BinaryKD")
class BinaryKD(Loss):
    """T² · mean over labels of KL(Bernoulli(σ(z_t / T)) ‖ Bernoulli(σ(z_s / T))).

    The mean over labels is that of `BCE`, so that the weights of the two don't depend on K. For two classes `KD` of the
    logits (0, z) is the same.

    Args:
        weight: factor in the total, applied by the Distiller.
        temperature: T > 0, a number or a schedule; 1 in the reference, which has no temperature.
        squared: whether to multiply by T², which keeps the gradient's size at high temperatures, as in `KD`.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where both are equal.

    Reference: Yang et al., arXiv:2308.06453, equation 3 (multi-label logits distillation), summed over labels there.
    """

    heads = frozenset({"multilabel"})
    reads_labels = False
    search = {**Loss.search, "temperature": "1..20 log"}

    def __init__(
        self, *, weight: ScheduleLike = 1.0, temperature: ScheduleLike = 2.0, squared: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(weight=weight, **kwargs)
        self.temperature = self._schedule("temperature", temperature, positive=True)
        self.squared = self._switch("squared", squared)

    def call(self, student, teacher, labels):
        temperature = self.now(self.temperature)
        log_p_s, log_p_t = (_log_bernoulli(taps["logits"] / temperature) for taps in (student, teacher))
        return (temperature**2 if self.squared else 1.0) * ops.mean(divergence(log_p_t, log_p_s), axis=-1)

    def get_config(self):
        return {**super().get_config(), "squared": self.squared}


def _log_bernoulli(z):
    """log(1 − σ(z)) and log σ(z), (B, K, 2)."""
    return -ops.softplus(ops.stack([z, -z], axis=-1))
