"""The layers of tf_keras that equal a layer or operation of Keras 3."""

import contextlib
import functools
import inspect

import keras
import numpy as np

from kd_keras.errors import InputError

#: Ending of the name of a layer of the copy that follows the one of that name: its activation, or the shift of a scale.
FOLLOWING = "__activation"


@contextlib.contextmanager
def explain_errors(what: str):
    """Turns the errors of tf_keras and tfmot, of several types and many lines, into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise InputError(f"{what}: {' '.join(str(error).split())[:300]}") from error


def copy_arithmetic(operation, node, name, linear):
    """The layers of tf_keras that equal an operation of keras.ops: arithmetic of a tensor with numbers, or of two."""
    import tf_keras

    del linear
    kind, operands = type(operation).__name__, list(node.arguments.args)
    is_tensor = [isinstance(operand, keras.KerasTensor) for operand in operands]
    if is_tensor == [True, True] and kind in ("Add", "Subtract", "Multiply"):
        return getattr(tf_keras.layers, kind)(name=name), []
    if sorted(is_tensor) == [False, True] and kind in ("Add", "Subtract", "Multiply", "TrueDivide", "Divide"):
        number = np.asarray(keras.ops.convert_to_numpy(operands[is_tensor.index(False)]), np.float64)
        with np.errstate(divide="ignore"):
            scales = {
                "Add": (1.0, number),
                "Subtract": (1.0, -number) if is_tensor[0] else (-1.0, number),
                "Multiply": (number, 0.0),
                "TrueDivide": (1 / number, 0.0) if is_tensor[0] else None,
                "Divide": (1 / number, 0.0) if is_tensor[0] else None,
            }
        if scales[kind]:
            return _scale_and_shift(*scales[kind], name)
    instead = f", such as keras.layers.{kind}" if hasattr(keras.layers, kind) else ""
    raise InputError(
        f"--compress can't take the operation {operation.name!r} ({kind}): build the student of layers{instead}, or "
        "leave --compress out, and quantise after training: --export=int8"
    )


def _scale_and_shift(scale, offset, name):
    """Layers that compute scale · x + offset, of numbers or of arrays that fit the last axes."""
    import tf_keras

    first = tf_keras.layers.Rescaling(np.asarray(scale, np.float32).tolist(), name=name)
    if not np.any(offset):
        return first, []
    return first, [_shift_layer()(np.asarray(offset, np.float32).tolist(), name=name + FOLLOWING)]


@functools.cache
def _shift_layer() -> type:
    """A layer that adds numbers; `Rescaling` would multiply too, and leave the product without a range."""
    import tensorflow as tf
    import tf_keras

    @tf_keras.utils.register_keras_serializable("kd_keras")
    class Shift(tf_keras.layers.Layer):
        def __init__(self, offset, **kwargs):
            super().__init__(**kwargs)
            self.offset = offset

        def call(self, inputs):
            return inputs + tf.constant(self.offset, inputs.dtype)

        def get_config(self):
            return {**super().get_config(), "offset": self.offset}

    return Shift


def copy_layer(operation, node, name, linear):
    """The layer of tf_keras that equals a layer, and those that follow it: its activation, or the shift of a scale."""
    import tf_keras

    del node
    kind = type(operation).__name__
    if type(operation) is keras.layers.Rescaling:
        return _scale_and_shift(operation.scale, operation.offset, name)
    if type(operation) is keras.layers.Normalization and not operation.invert:
        mean, deviation = (
            np.asarray(keras.ops.convert_to_numpy(value), np.float64)
            for value in (operation.mean, keras.ops.sqrt(operation.variance))
        )
        deviation = np.maximum(deviation, keras.config.epsilon())
        return _scale_and_shift(1 / deviation, -mean / deviation, name)
    layer_class = getattr(tf_keras.layers, kind, None)
    if layer_class is None or not type(operation).__module__.startswith("keras."):
        raise InputError(
            f"--compress can't take the layer {operation.name!r}: tf_keras, which tensorflow-model-optimization works "
            f"on, has no {kind}; leave --compress out, and quantise after training: --export=int8"
        )
    known = {
        key
        for base in layer_class.__mro__
        if "__init__" in vars(base)
        for key in inspect.signature(base.__init__).parameters
    }
    omitted = ("self", "args", "kwargs", "dtype", "name", "activity_regularizer")
    config = {
        key: value
        for key, value in operation.get_config().items()
        if key in known and key not in omitted and not key.endswith(("initializer", "regularizer", "constraint"))
    }
    activations = []
    if linear:
        config["activation"] = "linear"
    elif function := _activations().get(str(config.get("activation"))):
        config["activation"] = function
        if isinstance(operation, (keras.layers.Dense, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            # As a layer, because the numbers between the two have a range of their own.
            config["activation"] = "linear"
            activations = [tf_keras.layers.Activation(function, name=name + FOLLOWING)]
    with explain_errors(f"--compress can't take the layer {operation.name!r} ({kind}): tf_keras refuses its settings"):
        return layer_class(name=name, **config), activations


@functools.cache
def _activations() -> dict:
    """Keras 3's activations that tf_keras lacks or computes differently, by name, registered as ``kd_keras>name``."""
    import tensorflow as tf
    import tf_keras

    def hard_sigmoid(x):
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_silu(x):
        return x * hard_sigmoid(x)

    register = tf_keras.utils.register_keras_serializable("kd_keras")
    return {function.__name__: register(function) for function in (hard_sigmoid, hard_silu)}
