"""Early exits: a model with a classifier on each of its stages, and the models that are cut out of it."""

import keras

from kd_keras._compat import keras as graph
from kd_keras.distillation.distiller import Taps
from kd_keras.errors import InputError
from kd_keras.models import layers as _layers


@keras.saving.register_keras_serializable(package="kd_keras", name="Exits")
class Exits(keras.layers.Layer):
    """The first of several logits; the others are what a model carries along, to be read as taps."""

    def call(self, logits):
        return logits[0]


def with_exits(student: keras.Model) -> keras.Model:
    """The student with a classifier on each stage but the last; its output and its layers are the student's own.

    Taps ``exitN.map`` (B, H, W, C) of the last stage's shape, ``exitN.pooled`` (B, C), ``exitN.logits`` (B, K), N the
    stage from 1. Source: arXiv:1905.08094, figure 2; the bottlenecks are its code's, depthwise separable ones.

    Raises:
        InputError: the student is no graph, or has no two stages that are maps, each as large as the next or larger.
    """
    taps = Taps(student, "student")
    stages = stages_of(student)
    maps = [student.get_layer(name).output for name in stages]
    if len(maps) < 2 or any(len(one.shape) != 4 or None in one.shape[1:] for one in maps):
        raise InputError(
            f"--scheme=self_distillation() takes a functional student of two stages or more, maps of known size; this "
            f"has {', '.join(stages) or 'none'}"
        )
    whole = taps.logits_model()
    logits = [whole.outputs[0]]
    for number, one in enumerate(maps[:-1], start=1):
        logits.append(_exit(f"exit{number}", one, maps[number:], taps.num_classes))
    return keras.Model(whole.inputs[0], Exits(name="exits", dtype="float32")(logits), name=student.name)


def _exit(name, x, later, num_classes):
    for i, target in enumerate(later, start=1):
        strides = [max(1, -(-have // want)) for have, want in zip(x.shape[1:3], target.shape[1:3], strict=True)]
        x = _separable(x, target.shape[-1], strides, f"{name}.{i}")
    if tuple(x.shape[1:3]) != tuple(later[-1].shape[1:3]):
        raise InputError(
            f"--scheme=self_distillation(): from {name} on {tuple(later[0].shape[1:])} no strides lead to the last "
            f"stage's {tuple(later[-1].shape[1:])}: take a student whose stages halve the grid, or keep it"
        )
    x = keras.layers.Identity(name=f"{name}.map")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name=f"{name}.pooled")(x)
    return keras.layers.Dense(num_classes, dtype="float32", name=f"{name}.logits")(pooled)


def _separable(x, channels, strides, name):
    # Keras takes one stride for both sides; a stage's grid is square or halves on both.
    for part, stride in (("a", max(strides)), ("b", 1)):
        x = keras.layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}{part}_depth")(x)
        filters = x.shape[-1] if part == "a" else channels
        x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}{part}_point")(x)
        x = _layers.relu(_layers.batch_norm(x, name=f"{name}{part}_bn"), name=f"{name}{part}_relu")
    return x


def stages_of(model: keras.Model) -> list[str]:
    """Names of a model's stages (``stage1`` …), the first to the last."""
    return graph.stages(layer.name for layer in model.layers)


def cut_at(tap: str):
    """A function that cuts one classifier out of a model that `with_exits` made; the two share their weights.

    Args:
        tap: ``'logits'`` for the deepest classifier, ``'exit1'`` … for that of an exit.
    """

    def make(whole: keras.Model) -> keras.Model:
        made = whole.get_layer("exits").input[0] if tap == "logits" else whole.get_layer(f"{tap}.logits").output
        return keras.Model(whole.inputs[0], made, name=whole.name)

    return make
