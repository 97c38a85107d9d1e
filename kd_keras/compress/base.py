"""The base of compression steps, and what they share."""

from collections.abc import Iterable
from typing import Any

from kd_keras import schedules
from kd_keras.errors import InputError, is_count


class Step:
    """A compression step: trains a student in wrappers of tensorflow-model-optimization.

    Several steps form a pipeline; each keeps the zeros and clusters that earlier steps left in the weights.

    Attributes:
        rank: in a pipeline, steps follow in the order of their ranks.
        quantises: whether the trained model is an integer model, with ranges of its own.
        skip: names of layers that the step leaves unchanged.
        leaves: what later steps have to keep in the weights: ``zeros``, ``clusters``.
        epochs, learning_rate: of its training, where they are not those of all steps; see `trained`.
    """

    skip: tuple[str, ...] = ()
    rank = 0
    quantises = False
    leaves: frozenset[str] = frozenset()
    epochs: int | None = None
    learning_rate: schedules.Schedule | None = None

    def trained(self, epochs: int | None, learning_rate: schedules.ScheduleLike | None) -> None:
        """Sets how the step is trained; None for as all steps are.

        Raises:
            InputError: a value is out of range.
        """
        name = type(self).__name__.lower()
        if epochs is not None and not is_count(epochs):
            raise InputError(f"{name}'s epochs={epochs!r}: give a whole number of at least 1")
        self.epochs = epochs
        if learning_rate is not None:
            self.learning_rate = schedules.get(learning_rate)
            schedules.check(self.learning_rate, f"{name}'s learning_rate", total=1)

    def wrap(self, model: Any, kept: frozenset[str], steps: int) -> Any:
        """Returns a tf_keras model in its wrappers.

        Args:
            model: a functional tf_keras model, which may be changed.
            kept: what earlier steps left, to be kept.
            steps: optimizer steps of the training.
        """
        raise NotImplementedError

    def calibrate(self, wrapped: Any, images: Any) -> None:
        """Sets what a wrapped model knows of its activations before its first training step, from images.

        Args:
            wrapped: what `wrap` has returned.
            images: (n, H, W, C), as in training.
        """

    def imitate(self, kernel: Any) -> Any:
        """Returns a kernel (array) with roughly the zeros or clusters that the step would leave in it."""
        return kernel

    def settled(self, steps: int) -> int:
        """Number of training steps after which the model is fully compressed."""
        del steps
        return 0

    def strip(self, wrapped: Any) -> dict[str, list]:
        """Returns the compressed weights, arrays in Keras' order, by the name of the unwrapped layer."""
        raise NotImplementedError

    def shortfall(self, wrapped: Any, weights: dict[str, list]) -> str | None:
        """What the training has not reached, in a sentence; None where all is as asked for.

        Args:
            wrapped: the trained model in its wrappers.
            weights: what `strip` has returned.
        """
        del wrapped, weights
        return None

    def left_out(self, wrapped: Any) -> list[str]:
        """Names of the layers with weights, batch norm aside, that the step does not compress."""
        import tf_keras

        return [
            layer.name
            for layer in wrapped.layers
            if layer.weights
            and not hasattr(layer, "layer")
            and not isinstance(layer, tf_keras.layers.BatchNormalization)
        ]


def takes(layer, skip: tuple[str, ...]) -> bool:
    """Whether a step changes a tf_keras layer's kernel: of a convolution or dense layer, neither skipped nor frozen."""
    import tf_keras

    kinds = (tf_keras.layers.Conv2D, tf_keras.layers.Dense)
    return type(layer) in kinds and layer.trainable and layer.name not in skip


def replace_layers(model, wrap):
    """A copy of a tf_keras model with ``wrap(layer)`` in place of each layer; None copies the layer."""
    import tf_keras

    def copy(layer):
        return wrap(layer) or type(layer).from_config(layer.get_config())

    copied = tf_keras.models.clone_model(model, clone_function=copy)
    originals = {layer.name: layer for layer in model.layers}
    for layer in copied.layers:
        # A wrapper holds the original layer itself, with its weights.
        if layer.name in originals and layer.weights:
            layer.set_weights(originals[layer.name].get_weights())
    return copied


def layer_names(key: str, value: Any) -> tuple[str, ...]:
    """Splits names of layers that are joined by commas.

    Raises:
        InputError: the value is not text.
    """
    if not isinstance(value, str):
        raise InputError(f"{key}={value!r} is not text: give names of layers joined by commas")
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_layers(names: Iterable[str], known: list[str], key: str) -> None:
    """Raises InputError where a name that a flag or argument ``key`` gives is not a layer of the student."""
    if missing := [name for name in names if name not in known]:
        listed = ", ".join(map(repr, missing))
        raise InputError(f"{key} names {listed}, which the student does not have: its layers are {', '.join(known)}")


def weights_by_layer(model) -> dict[str, list]:
    """The weights of each layer, by its name."""
    return {layer.name: layer.get_weights() for layer in model.layers}
