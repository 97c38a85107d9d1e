"""What the ways of compression share."""

from collections.abc import Iterable

from kd_keras.errors import InputError


class Step:
    """One way, trained by itself; several in a row each keep what those before have made.

    Attributes:
        rank: a way comes behind those of a lower rank.
        quantises: whether what was trained is an integer model, with ranges of its own.
        skip: names of layers that it leaves as they are.
        leaves: what there is in the weights behind it that later ways are to keep: ``zeros``, ``clusters``.
    """

    skip: tuple[str, ...] = ()
    rank = 0
    quantises = False
    leaves: frozenset[str] = frozenset()

    def wrap(self, model, kept: frozenset[str], steps: int):
        """The tf_keras model in its wrappers.

        Args:
            model: tf_keras, functional; it may be changed.
            kept: what the ways before have left.
            steps: of the training to come.
        """
        raise NotImplementedError

    def imitate(self, kernel):
        """A kernel (array) with roughly what the way would leave in it."""
        return kernel

    def settled(self, steps: int) -> int:
        """Steps, of those of the training, after which the model is as compressed as it will be."""
        del steps
        return 0

    def strip(self, wrapped) -> dict[str, list]:
        """The compressed weights, arrays in Keras' order, by the name of the layer in the model before."""
        raise NotImplementedError

    def left_out(self, wrapped) -> list[str]:
        """Names of layers with weights that the way does nothing to, batch norm aside."""
        import tf_keras

        return [
            layer.name
            for layer in wrapped.layers
            if layer.weights
            and not hasattr(layer, "layer")
            and not isinstance(layer, tf_keras.layers.BatchNormalization)
        ]


def rewrapped(model, wrap):
    """A copy of a tf_keras model with ``wrap(layer)`` in each layer's place, None for the layer as it is."""
    import tf_keras

    def copy(layer):
        return wrap(layer) or type(layer).from_config(layer.get_config())

    made = tf_keras.models.clone_model(model, clone_function=copy)
    given = {layer.name: layer for layer in model.layers}
    for layer in made.layers:
        # What is wrapped is the model's own layer, with its weights.
        if layer.name in given and layer.weights:
            layer.set_weights(given[layer.name].get_weights())
    return made


def names(key: str, value) -> tuple[str, ...]:
    """Names of layers, from text that joins them by commas.

    Raises:
        InputError: it is no text.
    """
    if not isinstance(value, str):
        raise InputError(f"{key}={value!r} is not text: give names of layers joined by commas")
    return tuple(part.strip() for part in value.split(",") if part.strip())


def check_layers(names: Iterable[str], known: list[str], key: str) -> None:
    """Raises InputError where a name that a flag or argument ``key`` gives is none of the student's layers."""
    if missing := [name for name in names if name not in known]:
        listed = ", ".join(map(repr, missing))
        raise InputError(f"{key} names {listed}, which the student does not have: its layers are {', '.join(known)}")


def weights(model) -> dict[str, list]:
    """Each layer's weights by its name."""
    return {layer.name: layer.get_weights() for layer in model.layers}
