"""Multi-level logit distillation: samples, pairs of samples and pairs of classes, at several temperatures."""

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from kd_keras import schedules
from kd_keras._compat import replicas
from kd_keras.errors import InputError
from kd_keras.losses.base import LogitLoss, divergence
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="MLKD")
class MLKD(LogitLoss):
    """Σ_T [i·T²·KL(p_t ‖ p_s) + b·‖p_t p_tᵀ − p_s p_sᵀ‖² / B + c·‖p_tᵀ p_t − p_sᵀ p_s‖² / K], p = softmax(z / T).

    Args:
        weight: factor in the total, applied by the Distiller.
        temperatures: the T that are summed over, numbers or schedules.
        instance: i, factor of the KL; 1.35 in the authors' runs, beside ``ce(weight=0.2)``.
        batch: b, factor of the pairs of samples; 0.45 there.
        classes: c, factor of the pairs of classes; 0.45 there.
        standardize: standardise the logits first (arXiv:2403.01427): True in all three, ``'instance'`` in the KL alone,
            as in the code behind that paper's figures for this loss.
        squared: whether to multiply the KL by T².
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where student and teacher are equal: a sample's own KL plus the other two terms, which are
        statistics of the (global) batch.

    Raises:
        InputError: the temperatures are not positive numbers.

    Reference: Jin et al., "Multi-Level Logit Distillation", CVPR 2023, equations 3 to 8. There each image is seen in
    two augmentations, one of them weak; here in the one of the pipeline. T² is that of the authors' code.
    """

    reads_labels = False
    compares_samples = True
    one_temperature = False

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        temperatures: Sequence[ScheduleLike] = (2.0, 3.0, 4.0, 5.0, 6.0),
        instance: float = 1.0,
        batch: float = 1.0,
        classes: float = 1.0,
        standardize: bool | Literal["instance"] = False,
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, standardize=standardize == "instance" or standardize, squared=squared, **kwargs)
        self.standardize = standardize
        self.instance, self.batch = self._factor("instance", instance), self._factor("batch", batch)
        self.classes = self._factor("classes", classes)
        temperatures = temperatures.tolist() if hasattr(temperatures, "tolist") else temperatures
        if not isinstance(temperatures, (tuple, list)) or not temperatures:
            raise InputError(f"{self.name}(temperatures={temperatures!r}): give positive numbers, such as (2, 3, 4)")
        self.temperatures = tuple(
            self._schedule(f"temperature{n}", value, positive=True) for n, value in enumerate(temperatures, start=1)
        )

    def call(self, student, teacher, labels):
        z_s, z_t = self.prepared(student, teacher)
        if self.standardize == "instance":
            all_s, all_t = replicas.gather(student["logits"]), replicas.gather(teacher["logits"])
        else:
            all_s, all_t = replicas.gather(z_s), replicas.gather(z_t)
        batch = ops.cast(ops.shape(all_s)[0], "float32")
        total = 0.0
        for temperature in map(self.now, self.temperatures):
            log_p_s, log_p_t = ops.log_softmax(z_s / temperature), ops.log_softmax(z_t / temperature)
            factor = temperature**2 if self.squared else 1.0
            total += self.instance * factor * divergence(log_p_t, log_p_s)
            p_s, p_t = ops.softmax(all_s / temperature), ops.softmax(all_t / temperature)
            samples = p_t @ ops.transpose(p_t) - p_s @ ops.transpose(p_s)
            classes = ops.transpose(p_t) @ p_t - ops.transpose(p_s) @ p_s
            total += self.batch * ops.sum(ops.square(samples)) / batch
            total += self.classes * ops.sum(ops.square(classes)) / z_s.shape[-1]
        return total

    def get_config(self):
        config = {key: value for key, value in super().get_config().items() if not key.startswith("temperature")}
        config |= {"instance": self.instance, "batch": self.batch, "classes": self.classes}
        return {**config, "temperatures": [schedules.to_config(temperature) for temperature in self.temperatures]}
