"""Magnitude pruning: a growing share of the smallest weights is set to zero during training."""

import numpy as np

from kd_keras.compress.base import Step, check_layers, layer_names, replace_layers, takes, weights_by_layer
from kd_keras.errors import InputError, is_count, is_number
from kd_keras.schedules import ScheduleLike


class Prune(Step):
    """Prunes the kernels of convolutions and dense layers, each to the same sparsity, by a polynomial schedule.

    Depthwise kernels, biases and layers that are not trainable stay dense. Zeros make a file smaller once it is
    compressed (gzip, an app's package); they make inference faster only with kernels for sparse weights.

    Args:
        sparsity: final share of zeros in each kernel.
        start: share of the training before pruning starts.
        end: share of the training after which the sparsity is reached; in the rest the other weights recover.
        frequency: steps between prunings.
        skip: names of layers to leave dense, joined by commas.
        epochs: of its training; by default ``--compress_epochs``.
        learning_rate: a number or a schedule; by default ``--compress_learning_rate``.

    Raises:
        InputError: a value is out of range.

    Reference: Zhu and Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1 (its exponent, 3).
    """

    rank = 1
    leaves = frozenset({"zeros"})

    def __init__(
        self,
        sparsity: float = 0.8,
        start: float = 0.0,
        end: float = 0.6,
        frequency: int = 10,
        skip: str = "",
        epochs: int | None = None,
        learning_rate: ScheduleLike | None = None,
    ) -> None:
        self.trained(epochs, learning_rate)
        if not is_number(sparsity) or not 0 < sparsity < 1:
            raise InputError(f"prune's sparsity={sparsity!r} is not in 0 < sparsity < 1: give the share of zeros, 0.8")
        if not (is_number(start) and is_number(end) and 0 <= start < end <= 1):
            raise InputError(f"prune's start={start!r} and end={end!r} are not 0 <= start < end <= 1: give shares")
        if not is_count(frequency):
            raise InputError(f"prune's frequency={frequency!r} is not a positive whole number: give steps")
        self.sparsity, self.start, self.end, self.frequency = sparsity, start, end, frequency
        self.skip = layer_names("prune's skip", skip)

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot

        del kept
        check_layers(self.skip, [layer.name for layer in model.layers], "prune's skip")
        sparsity = tfmot.sparsity.keras
        first, last, frequency = self._schedule(steps)

        def wrap(layer):
            if not takes(layer, self.skip):
                return None
            schedule = sparsity.PolynomialDecay(
                0.0, self.sparsity, begin_step=first, end_step=last, power=3, frequency=frequency
            )
            return sparsity.prune_low_magnitude(layer, pruning_schedule=schedule)

        wrapped = replace_layers(model, wrap)
        for layer in _pruned_layers(wrapped):
            # The layers count steps from here on; tfmot leaves the first one to a callback of tf_keras.
            layer.pruning_step.assign(0)
        return wrapped

    def _schedule(self, steps):
        """First and last step that prune, and the steps between prunings, which divide the distance of the two."""
        first, last = round(self.start * steps), round(self.end * steps)
        frequency = max(1, min(self.frequency, last - first))
        return first, first + frequency * max(1, (last - first) // frequency), frequency

    def imitate(self, kernel):
        return np.where(np.abs(kernel) > np.quantile(np.abs(kernel), self.sparsity), kernel, 0.0)

    def settled(self, steps):
        return self._schedule(steps)[1]

    def strip(self, wrapped):
        import tensorflow_model_optimization as tfmot

        for layer in _pruned_layers(wrapped):
            # The last training step moved weights that the mask sets to zero.
            layer.pruning_obj.weight_mask_op()
        return weights_by_layer(tfmot.sparsity.keras.strip_pruning(wrapped))

    def shortfall(self, wrapped, weights):
        shares = {layer.layer.name: weights[layer.layer.name][0] for layer in _pruned_layers(wrapped)}
        shares = {name: (np.mean(kernel == 0), 1 / kernel.size) for name, kernel in shares.items()}
        short = {name: share for name, (share, one) in shares.items() if share < self.sparsity - one}
        if not short:
            return None
        steps = max(int(layer.pruning_step) for layer in _pruned_layers(wrapped))
        listed = ", ".join(f"{name} {share:.0%}" for name, share in short.items())
        return (
            f"prune(sparsity={self.sparsity:g}) is not reached: zeros are {listed}. {steps} steps were trained; tell "
            "prepare() how many steps there will be"
        )


def _pruned_layers(wrapped):
    return [layer for layer in wrapped.layers if hasattr(layer, "pruning_step")]
