"""Several classifiers joined into one model: an ensemble that teaches and is measured like any other model."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError, is_number

COMBINE = ("logits", "probabilities")


def shares(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Weights divided by their sum, or equal shares where there are none.

    Raises:
        InputError: not one positive number for each model.
    """
    if weights is None:
        return (1 / count,) * count
    are_positive = isinstance(weights, (tuple, list)) and all(is_number(w) and w > 0 for w in weights)
    if not are_positive or len(weights) != count:
        raise InputError(f"weights={weights!r}: give {count} positive numbers, one for each model, in their order")
    return tuple(w / sum(weights) for w in weights)


def mean_logits(logits: Sequence, weights: Sequence[float]):
    """Σ_m w_m z_m of M models' logits, each (B, K)."""
    return sum(w * z for w, z in zip(weights, logits, strict=True))


def mean_probabilities(logits: Sequence, weights: Sequence[float], temperature=1.0, is_multilabel: bool = False):
    """Logits (B, K) whose softmax at a temperature is the weighted mean of the models' softmax at that temperature.

    T · log Σ_m w_m softmax(z_m / T), computed from log-probabilities. It holds at the temperature T only: at others the
    softmax of these logits is not the mean of the models' softmax. Of independent labels it is the mean of sigmoids.
    """

    def log_mean(log_p, sign=1.0):
        parts = [math.log(w) + log_p(sign * z / temperature) for w, z in zip(weights, logits, strict=True)]
        return ops.logsumexp(ops.stack(parts), axis=0)

    if is_multilabel:
        return temperature * (log_mean(ops.log_sigmoid) - log_mean(ops.log_sigmoid, -1.0))
    return temperature * log_mean(ops.log_softmax)


@keras.saving.register_keras_serializable(package="kd_keras", name="Join")
class Join(keras.layers.Layer):
    """The mean of several models' logits (each (B, K)), float32.

    Args:
        combine: ``'logits'`` or ``'probabilities'``: what is averaged.
        shares: the models' weights, which sum to 1.
        is_multilabel: whether the labels are independent.
    """

    def __init__(self, combine, shares, is_multilabel=False, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.combine, self.shares, self.is_multilabel = combine, tuple(shares), is_multilabel

    def call(self, logits):
        if self.combine == "logits":
            return mean_logits(logits, self.shares)
        return mean_probabilities(logits, self.shares, is_multilabel=self.is_multilabel)

    def get_config(self):
        options = {"combine": self.combine, "shares": self.shares, "is_multilabel": self.is_multilabel}
        return {**super().get_config(), **options}


def join(
    models: Sequence[keras.Model],
    combine: str = "logits",
    weights: Sequence[float] | None = None,
    prefix: str = "teacher",
    is_multilabel: bool = False,
) -> keras.Model:
    """Joins several classifiers into one functional model that computes their mean logits.

    The layers of the M-th model (from 1) are named ``teacherM.<name>``, so that taps such as ``teacher2.stage3`` can
    be read; ``teacherM.logits`` are the model's logits.

    Args:
        models: functional or Sequential classifiers of the same input and classes; they are not changed.
        combine: ``'logits'``, the mean of their logits; or ``'probabilities'``, the logarithm of the mean of their
            class probabilities at temperature 1.
        weights: one positive number for each model, divided by their sum; None weighs them equally.
        prefix: what the names of layers start with, before the number.
        is_multilabel: whether the labels are independent, so that probabilities are those of sigmoids.

    Returns:
        A model (B, H, W, C) -> float32 logits (B, K), with its own weights.

    Raises:
        InputError: an unknown ``combine``, weights that don't fit, a subclassed model, or models whose inputs or
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
        taps.append(Taps(model, f"{prefix} {number}"))
    # A side of unknown size (None) fits any other.
    sides = [set(sizes) - {None} for sizes in zip(*(tap.input_shape for tap in taps), strict=True)]
    if len({tap.num_classes for tap in taps}) > 1 or any(len(sizes) > 1 for sizes in sides):
        listed = "; ".join(f"{tap.input_shape} to {tap.num_classes} classes" for tap in taps)
        raise InputError(f"the {prefix}s differ in input or classes ({listed}): they have to be the same")
    image = keras.Input([sizes.pop() if sizes else None for sizes in sides], name="image")
    logits = [_logits(model, image, f"{prefix}{number}") for number, model in enumerate(models, start=1)]
    return keras.Model(image, Join(combine, weights, is_multilabel, name="joint_logits")(logits), name="ensemble")


def member(model: keras.Model, prefix: str) -> keras.Model:
    """Copies one classifier out of a model that `join` made.

    Args:
        model: from `join`.
        prefix: the classifier's, such as ``'teacher2'``; the copy's layers have their names without it.
    """
    inner = keras.Model(model.inputs[0], model.get_layer(f"{prefix}.logits").output, name=prefix)

    def copy(layer):
        return graph.rebuilt(layer, {**layer.get_config(), "name": layer.name.removeprefix(f"{prefix}.")})

    clone = keras.models.clone_model(inner, clone_function=copy)
    clone.set_weights(inner.get_weights())
    return clone


def _logits(model, image, prefix):
    """The logits of a copy of a model that reads ``image``."""
    last, _ = graph.made_by(model.outputs[0])

    def copy(layer):
        # With ".", as Keras allows no "/" in a name.
        config = {**layer.get_config(), "name": f"{prefix}.{layer.name}"}
        if layer is last and config.get("activation") == "softmax" and isinstance(layer, keras.layers.Dense):
            config["activation"] = "linear"
        return graph.rebuilt(layer, config)

    whole = keras.Model(model.inputs[0], model.outputs[0])
    clone = keras.models.clone_model(whole, input_tensors=image, clone_function=copy)
    clone.set_weights(whole.get_weights())
    logits = Taps(clone, prefix).logits_model().outputs[0]
    name = f"{prefix}.logits"
    if graph.made_by(logits)[0].name == name:
        return logits
    return keras.layers.Identity(name=name, dtype="float32")(logits)
