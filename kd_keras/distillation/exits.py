"""Early exits: a model with a classifier on each of its stages, and the smaller models that are cut out of it."""

from collections.abc import Callable

import keras

from kd_keras._compat import keras as graph
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.losses.features import stages_in
from kd_keras.models import layers


@keras.saving.register_keras_serializable(package="kd_keras", name="Exits")
class Exits(keras.layers.Layer):
    """Returns the first of several logits. The others become part of the model, so that they can be read as taps."""

    def call(self, logits):
        return logits[0]


def with_exits(student: keras.Model) -> keras.Model:
    """Adds a classifier to each stage of a student but the last; layers and output of the student are shared.

    Taps ``exitN.map`` (B, H, W, C) of the last stage's shape, ``exitN.pooled`` (B, C), ``exitN.logits`` (B, K), with N
    the stage from 1.

    Raises:
        InputError: the student is a subclassed model, or lacks two stages that are feature maps, none larger than the
            one before.

    Reference:
        arXiv:1905.08094, figure 2; the bottlenecks are its code's, depthwise separable convolutions.
    """
    taps = Taps(student, "student")
    stages = stages_of(student)
    maps = [student.get_layer(name).output for name in stages]
    if len(maps) < 2 or any(len(tensor.shape) != 4 or None in tensor.shape[1:] for tensor in maps):
        raise InputError(
            f"--scheme=self_distillation() needs a functional student with two or more stages that are feature maps "
            f"of known size; this one has {', '.join(stages) or 'none'}"
        )
    if any(map(graph.is_channels_first, maps)):
        raise InputError("--scheme=self_distillation() needs maps (B, H, W, C): the student has channels_first")
    whole = taps.logits_model()
    logits = [whole.outputs[0]]
    for number, tensor in enumerate(maps[:-1], start=1):
        logits.append(_exit(f"exit{number}", tensor, maps[number:], taps.num_classes))
    return keras.Model(whole.inputs[0], Exits(name="exits", dtype="float32")(logits), name=student.name)


def stages_of(model: keras.Model) -> list[str]:
    """Names of a model's stages (``stage1`` …), from the first to the last."""
    return stages_in(layer.name for layer in model.layers)


def cut_at(tap: str) -> Callable[[keras.Model], keras.Model]:
    """A function that cuts one classifier out of a model that `with_exits` made; the two share their weights.

    Args:
        tap: ``'logits'`` for the deepest classifier, ``'exit1'`` … for that of an exit.
    """

    def cut(whole: keras.Model) -> keras.Model:
        logits = whole.get_layer("exits").input[0] if tap == "logits" else whole.get_layer(f"{tap}.logits").output
        return keras.Model(whole.inputs[0], logits, name=whole.name)

    return cut


def _exit(name, x, later_stages, num_classes):
    for i, target in enumerate(later_stages, start=1):
        sides = zip(x.shape[1:3], target.shape[1:3], strict=True)
        strides = [max(1, -(-size // target_size)) for size, target_size in sides]
        x = _separable(x, target.shape[-1], strides, f"{name}.{i}")
    if tuple(x.shape[1:3]) != tuple(later_stages[-1].shape[1:3]):
        raise InputError(
            f"--scheme=self_distillation(): no strides lead from {name} on {tuple(later_stages[0].shape[1:])} to the "
            f"last stage's {tuple(later_stages[-1].shape[1:])}: take a student whose stages halve the grid, or keep it"
        )
    x = keras.layers.Identity(name=f"{name}.map")(x)
    pooled = keras.layers.GlobalAveragePooling2D(name=f"{name}.pooled")(x)
    return keras.layers.Dense(num_classes, dtype="float32", name=f"{name}.logits")(pooled)


def _separable(x, channels, strides, name):
    # DepthwiseConv2D takes one stride for both sides; a stage's grid is square or is halved on both sides.
    for part, stride in (("a", max(strides)), ("b", 1)):
        x = keras.layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}{part}_depth")(x)
        filters = x.shape[-1] if part == "a" else channels
        x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}{part}_point")(x)
        x = layers.relu(layers.batch_norm(x, name=f"{name}{part}_bn"), name=f"{name}{part}_relu")
    return x
