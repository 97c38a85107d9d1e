"""Magnitude pruning: the smallest weights become zero, more and more of them while the student learns on."""

import numpy as np

from kd_keras.compress import base as _base
from kd_keras.errors import InputError, is_count, is_number


class Prune(_base.Step):
    """Prunes the kernels of convolutions and dense layers, each to the same sparsity, by a polynomial schedule.

    Depthwise kernels and biases stay dense. Zeros make the file smaller once it is compressed (gzip, an app's
    package), and faster only on kernels for sparse weights.

    Args:
        sparsity: share of each kernel's weights that are zero in the end.
        start: share of the steps before the first weight falls.
        end: share of the steps after which the sparsity is reached; what is left is for the others to recover.
        frequency: steps between prunings.
        skip: names of layers to leave dense, joined by commas.

    Raises:
        InputError: a value is out of range.

    Source: Zhu and Gupta, "To prune, or not to prune", arXiv:1710.01878, equation 1 (its exponent, 3).
    """

    rank = 1
    leaves = frozenset({"zeros"})

    def __init__(
        self, sparsity: float = 0.8, start: float = 0.0, end: float = 0.6, frequency: int = 10, skip: str = ""
    ) -> None:
        if not is_number(sparsity) or not 0 < sparsity < 1:
            raise InputError(f"prune's sparsity={sparsity!r} is not in 0 < sparsity < 1: give the share of zeros, 0.8")
        if not (is_number(start) and is_number(end) and 0 <= start < end <= 1):
            raise InputError(f"prune's start={start!r} and end={end!r} are not 0 <= start < end <= 1: give shares")
        if not is_count(frequency):
            raise InputError(f"prune's frequency={frequency!r} is not a positive whole number: give steps")
        self.sparsity, self.start, self.end, self.frequency = sparsity, start, end, frequency
        self.skip = _base.names("prune's skip", skip)

    def wrap(self, model, kept, steps):
        import tensorflow_model_optimization as tfmot
        import tf_keras

        del kept
        _base.check_layers(self.skip, [layer.name for layer in model.layers], "prune's skip")
        sparsity = tfmot.sparsity.keras
        first, last, every = self._schedule(steps)

        def wrap(layer):
            if type(layer) not in (tf_keras.layers.Conv2D, tf_keras.layers.Dense) or layer.name in self.skip:
                return None
            schedule = sparsity.PolynomialDecay(
                0.0, self.sparsity, begin_step=first, end_step=last, power=3, frequency=every
            )
            return sparsity.prune_low_magnitude(layer, pruning_schedule=schedule)

        made = _base.rewrapped(model, wrap)
        for layer in _pruned(made):
            # From here on the layers count the steps themselves; tfmot leaves the first to a callback of tf_keras'.
            layer.pruning_step.assign(0)
        return made

    def _schedule(self, steps):
        """First and last step that prune, and the steps between: the last is one of them, or it would be left out."""
        first, last = round(self.start * steps), round(self.end * steps)
        every = max(1, min(self.frequency, last - first))
        return first, first + every * max(1, (last - first) // every), every

    def imitate(self, kernel):
        """See `Step`."""
        return np.where(np.abs(kernel) > np.quantile(np.abs(kernel), self.sparsity), kernel, 0.0)

    def settled(self, steps):
        """See `Step`."""
        return self._schedule(steps)[1]

    def strip(self, wrapped):
        import tensorflow_model_optimization as tfmot

        for layer in _pruned(wrapped):
            # The last step has moved weights that the mask has at zero.
            layer.pruning_obj.weight_mask_op()
        return _base.weights(tfmot.sparsity.keras.strip_pruning(wrapped))


def _pruned(wrapped):
    return [layer for layer in wrapped.layers if hasattr(layer, "pruning_step")]
