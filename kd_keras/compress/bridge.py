"""Between Keras 3 and tf_keras, which is all that tensorflow-model-optimization takes.

`twin` makes a tf_keras model of a Keras 3 one, `trainable` lets Keras 3 train it, and `weights_back` brings home what
was learnt. tf_keras and tfmot are imported late: tfmot sets ``TF_USE_LEGACY_KERAS``.
"""

import contextlib
import functools
import inspect

import keras
import numpy as np
from absl import logging

from kd_keras._compat import keras as graph
from kd_keras._compat import tfmot
from kd_keras.errors import InputError

# What a twin's outputs may differ by, relative to the largest.
_TOLERANCE = 1e-3

# How the name ends of a layer of the twin that is a part of the layer of the student before it.
_BEHIND = "__activation"


def twin(model: keras.Model):
    """A tf_keras model that computes the logits of a Keras 3 model, in float32, with weights of its own.

    Models inside the model are taken apart; their layers are called ``outer_inner``. A final softmax stays behind, and
    so do initialisers, constraints and regularisers: a regulariser does not act while the twin is trained.

    Args:
        model: functional or Sequential, one input of known size, one output, stock layers.

    Returns:
        tf_keras.Model, its layers named as the model's.

    Raises:
        InputError: a subclassed model, a layer that tf_keras lacks, or one that computes something else there.
    """
    import tf_keras

    if not graph.is_graph(model):
        raise InputError(f"--compress needs a functional or Sequential student, and {model.name} is subclassed")
    shape = tuple(model.inputs[0].shape[1:])
    if None in shape:
        raise InputError(f"--compress needs a student with an input of known size: that of {model.name} is {shape}")
    if model.losses:
        logging.warning("the regularisation losses of %s do not act while it is compressed", model.name)
    layers = {}
    image = tf_keras.Input(shape, name=model.inputs[0].name)
    with generators(), told(f"--compress can't take {model.name}"):
        (output,) = _replay(model, [image], layers, "", _softmax(model))
        copied = tf_keras.Model(image, output, name=model.name)
        for name, layer in named_layers(model):
            if layer.weights:
                layers[name].set_weights(layer.get_weights())
    _check_equal(model, copied)
    return copied


@contextlib.contextmanager
def told(what: str):
    """Tells in one line of what tf_keras and tfmot refuse by errors of several kinds, and many lines."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise InputError(f"{what}: {' '.join(str(error).split())[:300]}") from error


@contextlib.contextmanager
def generators():
    """tf_keras' dropout draws from generators, whose state can be kept; by itself it draws from the process'."""
    import tf_keras

    backend = tf_keras.backend.experimental
    before = backend.is_tf_random_generator_enabled()
    backend.enable_tf_random_generator()
    try:
        yield
    finally:
        if not before:
            backend.disable_tf_random_generator()


def _softmax(model):
    """The last operation of a graph, if it is a softmax or has one."""
    last, _ = graph.made_by(model.outputs[0])
    has = getattr(last, "activation", None) is keras.activations.softmax
    return last if has or graph.is_softmax(last) else None


def _replay(model, inputs, layers, prefix, softmax=None):
    """The symbolic tf_keras outputs of a Keras 3 graph on symbolic inputs; ``layers`` gathers what is made, by name."""
    values = dict(zip(map(id, model.inputs), inputs, strict=True))
    made = {}

    def value(tensor):
        return values[id(tensor)] if isinstance(tensor, keras.KerasTensor) else tensor

    for operation, node in graph.in_order(model.outputs):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        args, kwargs = keras.tree.map_structure(value, [list(node.arguments.args), dict(node.arguments.kwargs)])
        if isinstance(operation, keras.Model):
            results = _replay(operation, keras.tree.flatten(args), layers, f"{prefix}{operation.name}_")
        elif operation is softmax and not operation.weights:
            results = keras.tree.flatten(args)
        else:
            if id(operation) not in made:
                name = prefix + operation.name
                if name in layers:
                    raise InputError(f"--compress can't take {model.name}: two of its layers are called {name!r}")
                layers[name], behind = _layer(operation, name, linear=operation is softmax)
                made[id(operation)] = (layers[name], *behind)
            given = {key: one for key, one in kwargs.items() if one is not None}
            first, *behind = made[id(operation)]
            results = keras.tree.flatten(first(*args, **given))
            for layer in behind:
                results = [layer(one) for one in results]
        values.update(zip(map(id, node.output_tensors), results, strict=True))
    return [values[id(tensor)] for tensor in model.outputs]


def _layer(operation, name, linear):
    """The layer's like in tf_keras, and the layers behind it that compute what it can't."""
    import tf_keras

    kind = type(operation).__name__
    if not isinstance(operation, keras.layers.Layer):
        raise InputError(
            f"--compress can't take the operation {operation.name!r} ({kind}): build the student of layers, such as "
            f"keras.layers.{kind}, or leave --compress out, and quantise after training: --export=int8"
        )
    made = getattr(tf_keras.layers, kind, None)
    if made is None or not type(operation).__module__.startswith("keras."):
        raise InputError(
            f"--compress can't take the layer {operation.name!r}: tf_keras, which tensorflow-model-optimization works "
            f"on, has no {kind}; leave --compress out, and quantise after training: --export=int8"
        )
    known = {
        key for part in made.__mro__ if "__init__" in vars(part) for key in inspect.signature(part.__init__).parameters
    }
    left = ("self", "args", "kwargs", "dtype", "name", "activity_regularizer")
    config = {
        key: value
        for key, value in operation.get_config().items()
        if key in known and key not in left and not key.endswith(("initializer", "regularizer", "constraint"))
    }
    behind = []
    if linear:
        config["activation"] = "linear"
    elif ours := _functions().get(str(config.get("activation"))):
        config["activation"] = ours
        if isinstance(operation, (keras.layers.Dense, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            # By itself, for the numbers between the two have a range of their own.
            config["activation"] = "linear"
            behind = [tf_keras.layers.Activation(ours, name=name + _BEHIND)]
    with told(f"--compress can't take the layer {operation.name!r} ({kind}), whose settings tf_keras refuses"):
        return made(name=name, **config), behind


@functools.cache
def _functions() -> dict:
    """Keras 3's activations that tf_keras lacks, or computes otherwise, by name; there they are ``kd_keras>name``."""
    import tensorflow as tf
    import tf_keras

    def hard_sigmoid(x):
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)

    def hard_silu(x):
        return x * hard_sigmoid(x)

    register = tf_keras.utils.register_keras_serializable("kd_keras")
    return {one.__name__: register(one) for one in (hard_sigmoid, hard_silu)}


def _check_equal(model, copied):
    image = np.random.default_rng(0).uniform(0, 255, (4, *model.inputs[0].shape[1:])).astype(np.float32)
    logits = copied(image, training=False).numpy()
    ours = keras.ops.softmax(logits) if _softmax(model) is not None else logits
    wanted = keras.ops.convert_to_numpy(graph.in_float32(model)(image, training=False)).astype(np.float64)
    apart = np.abs(wanted - keras.ops.convert_to_numpy(ours)).max() / max(np.abs(wanted).max(), 1)
    if not apart <= _TOLERANCE:
        raise InputError(
            f"--compress can't take {model.name}: its tf_keras copy gives other logits (by {apart:.1g} of the "
            "largest), as an activation or a layer means something else there; leave --compress out"
        )


class Trainable(keras.Model):
    """A tf_keras model as a Keras 3 `Distiller` trains it: its variables are this model's weights.

    Args:
        model: tf_keras, wrapped by tensorflow-model-optimization or not; functional, (B, H, W, C) -> (B, K).
        taps: name → the model's own symbolic tensor.
    """

    def __init__(self, model, taps):
        import tf_keras

        super().__init__(name=model.name, dtype="float32")
        # In an attribute Keras would look for layers to track; a closure it leaves alone.
        both = (model, tf_keras.Model(model.input, {**taps, "logits": model.output}))
        self.wrapped = lambda: both[0]
        self._tapped = lambda: both[1]
        trained = _reached(model)
        for variable in (*model.variables, *tfmot.generator_states(model)):
            weight = self.add_weight(
                shape=tuple(variable.shape),
                dtype=variable.dtype.name,
                initializer="zeros",
                trainable=id(variable) in trained,
                name=variable.name.replace("/", "_").partition(":")[0],
            )
            # Keras' variable is a shell around TensorFlow's; this one's is shared with the tf_keras model.
            graph.share_variable(weight, variable)
        self._shape = tuple(model.input.shape[1:])
        self.built = True

    def get_build_config(self):
        """The input's shape, which says that the model is built."""
        return {"input_shape": (None, *self._shape)}

    def taps(self, x, training=False):
        """Every tap by name, `Taps`' way to read a model that is no graph."""
        return self._tapped()(x, training=training)

    def call(self, x, training=False):
        """Logits (B, K)."""
        return self.wrapped()(x, training=training)


def _reached(model) -> set[int]:
    """Ids of the trainable variables that a step's gradients reach; tfmot keeps some that stand for others."""
    import tensorflow as tf

    variables, reached = model.trainable_variables, set()

    def step(image):
        with tf.GradientTape() as tape:
            logits = model(image, training=True)
        for variable, gradient in zip(variables, tape.gradient(logits, variables), strict=True):
            if gradient is not None:
                reached.add(id(variable))

    strategy = tf.distribute.get_strategy()

    @tf.function
    def traced():
        strategy.run(step, args=(tf.zeros((2, *model.input.shape[1:])),))

    # Traced only: running it would move statistics.
    traced.get_concrete_function()
    return reached


def trainable(wrapped, model: keras.Model) -> Trainable:
    """The wrapped twin of a Keras 3 model, with a tap for each of the model's layers that still stands."""
    names = {name for name, _ in named_layers(model)}
    taps = {}
    for layer in wrapped.layers:
        # tfmot's wrappers put a word of theirs before a layer's name.
        name = layer.name if layer.name in names else getattr(layer, "layer", layer).name
        # They are in order: what is behind a layer, as a part of it, has the last word.
        name = name.removesuffix(_BEHIND)
        if name in names and len(layer.inbound_nodes) == 1:
            taps[name] = layer.output
    return Trainable(wrapped, taps)


def weights_back(weights: dict[str, list], model: keras.Model) -> None:
    """Gives a Keras 3 model its twin's weights, by the name of the layer; see `Step.strip`."""
    for name, layer in named_layers(model):
        if layer.weights:
            layer.set_weights(weights[name])


def named_layers(model: keras.Model, prefix: str = "") -> list[tuple[str, keras.layers.Layer]]:
    """(name, layer) of all layers but inputs; those of a model inside the model are named ``model_layer``."""
    named = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            named += named_layers(layer, f"{prefix}{layer.name}_")
        elif not isinstance(layer, keras.layers.InputLayer):
            named.append((prefix + layer.name, layer))
    return named
