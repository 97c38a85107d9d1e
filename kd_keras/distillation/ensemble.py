"""Several trained classifiers as one: an ensemble that teaches, or is measured, like any other model."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.distillation import distiller
from kd_keras.errors import InputError, is_number

COMBINE = ("logits", "probabilities")


def shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights as shares of 1, equal ones where there are none.

    Raises:
        InputError: not one positive number a model.
    """
    if weights is None:
        return (1 / count,) * count
    numbers = isinstance(weights, (tuple, list)) and all(is_number(w) and w > 0 for w in weights)
    if not numbers or len(weights) != count:
        raise InputError(f"weights={weights!r}: give {count} positive numbers, one a model, in their order")
    return tuple(w / sum(weights) for w in weights)


def mean_logits(logits: Sequence, weights: Sequence[float]):
    """Σ_m w_m z_m of M models' logits, each (B, K)."""
    return sum(w * z for w, z in zip(weights, logits, strict=True))


def mean_probabilities(logits: Sequence, weights: Sequence[float], temperature=1.0):
    """Logits (B, K) whose softmax at a temperature is the weighted mean of the models' softmax at that temperature.

    T · log Σ_m w_m softmax(z_m / T), computed from log-probabilities. At another temperature than T they stand for no
    such mean: softmax(log p̄ / T) is p̄^(1/T), normalised.
    """
    parts = [math.log(w) + ops.log_softmax(z / temperature) for w, z in zip(weights, logits, strict=True)]
    return temperature * ops.logsumexp(ops.stack(parts), axis=0)


@keras.saving.register_keras_serializable(package="kd_keras", name="Join")
class Join(keras.layers.Layer):
    """The models' logits (each (B, K)) as one, float32.

    Args:
        combine: ``'logits'`` or ``'probabilities'``, what is averaged.
        shares: the models' weights, which sum to 1.
    """

    def __init__(self, combine, shares, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.combine, self.shares = combine, tuple(shares)

    def call(self, logits):
        mean = mean_logits if self.combine == "logits" else mean_probabilities
        return mean(logits, self.shares)

    def get_config(self):
        return {**super().get_config(), "combine": self.combine, "shares": self.shares}


def joined(
    models: Sequence[keras.Model], combine: str = "logits", weights: Sequence[float] | None = None, prefix="teacher"
) -> keras.Model:
    """One functional model of several classifiers, which sees an image once and gives their joint logits.

    Every layer of the m-th model (from 1) keeps its name behind ``teacherM.``, so that its taps can still be read:
    ``teacher2.stage3``. ``teacherM.logits`` are its own logits.

    Args:
        models: functional or Sequential classifiers of the same input and classes; they are left as they were.
        combine: ``'logits'``, the mean of their logits; or ``'probabilities'``, the logarithm of the mean of their
            class probabilities at temperature 1.
        weights: one positive number a model; None weighs them equally. They are made to sum to 1.
        prefix: what stands before the number.

    Returns:
        A model (B, H, W, C) -> float32 logits (B, K), with weights of its own.

    Raises:
        InputError: an unknown ``combine``, weights that don't fit, a subclassed model, or models whose input or
            classes differ.
    """
    if combine not in COMBINE:
        raise InputError(f"combine={combine!r}: known are {', '.join(COMBINE)}")
    weights, taps = shares(weights, len(models)), []
    for number, model in enumerate(models, start=1):
        if not graph.is_graph(model):
            raise InputError(
                f"{prefix} {number} is a subclassed model: only functional and Sequential ones can be joined"
            )
        taps.append(distiller.Taps(model, f"{prefix} {number}"))
    # A side that is left open (None) takes any.
    sides = [set(sizes) - {None} for sizes in zip(*(one.input_shape for one in taps), strict=True)]
    if len({one.num_classes for one in taps}) > 1 or any(len(sizes) > 1 for sizes in sides):
        told = "; ".join(f"{one.input_shape} to {one.num_classes} classes" for one in taps)
        raise InputError(f"the {prefix}s differ in input or classes ({told}): they have to be the same")
    image = keras.Input([sizes.pop() if sizes else None for sizes in sides], name="image")
    logits = [_logits(model, image, f"{prefix}{number}") for number, model in enumerate(models, start=1)]
    return keras.Model(image, Join(combine, weights, name="joint_logits")(logits), name="ensemble")


def part(model: keras.Model, prefix: str) -> keras.Model:
    """One member of a joined model as a model of its own, with weights of its own.

    Args:
        model: of `joined`.
        prefix: the member's, such as ``'teacher2'``; its layers lose it again.
    """
    inner = keras.Model(model.inputs[0], model.get_layer(f"{prefix}.logits").output, name=prefix)

    def copy(layer):
        return type(layer).from_config({**layer.get_config(), "name": layer.name.removeprefix(f"{prefix}.")})

    clone = keras.models.clone_model(inner, clone_function=copy)
    clone.set_weights(inner.get_weights())
    return clone


def _logits(model, image, prefix):
    """A copy of a model that reads ``image``, as its logits."""
    last, _ = graph.made_by(model.outputs[0])

    def copy(layer):
        # Not with "/", which no name in Keras may have.
        config = {**layer.get_config(), "name": f"{prefix}.{layer.name}"}
        if layer is last and config.get("activation") == "softmax" and isinstance(layer, keras.layers.Dense):
            config["activation"] = "linear"
        return type(layer).from_config(config)

    whole = keras.Model(model.inputs[0], model.outputs[0])
    clone = keras.models.clone_model(whole, input_tensors=image, clone_function=copy)
    clone.set_weights(whole.get_weights())
    logits = distiller.Taps(clone, prefix).logits_model().outputs[0]
    name = f"{prefix}.logits"
    if graph.made_by(logits)[0].name == name:
        return logits
    return keras.layers.Identity(name=name, dtype="float32")(logits)
