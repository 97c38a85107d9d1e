"""Between Keras 3 and tf_keras, which is all that tensorflow-model-optimization takes.

`twin` makes a tf_keras model of a Keras 3 one, `Trainable` lets Keras 3 train it, and `weights_back` brings home what
was learnt. tf_keras and tfmot are imported late: tfmot sets ``TF_USE_LEGACY_KERAS``.
"""

import inspect

import keras
import numpy as np

from kd_keras import graph
from kd_keras.errors import InputError

# What a twin's outputs may differ by, relative to the largest.
_TOLERANCE = 1e-3


def twin(model: keras.Model):
    """A tf_keras model that computes what a Keras 3 model does, with weights of its own that are equal.

    Models inside the model are taken apart; their layers are called ``outer_inner``. Initialisers, constraints and
    regularisers stay behind: a regulariser does not act while the twin is trained.

    Args:
        model: functional or Sequential, one input, one output, stock layers.

    Returns:
        tf_keras.Model, its layers named as the model's.

    Raises:
        InputError: a subclassed model, a layer that tf_keras lacks, or one that computes something else there.
    """
    import tf_keras

    if not graph.is_graph(model):
        raise InputError(f"--compress needs a functional or Sequential student, and {model.name} is subclassed")
    made, layers = {}, {}
    image = tf_keras.Input(model.inputs[0].shape[1:], name=model.inputs[0].name)
    (output,) = _replay(model, [image], made, layers, "")
    copied = tf_keras.Model(image, output, name=model.name)
    for name, layer in named_layers(model):
        if layer.weights:
            layers[name].set_weights(layer.get_weights())
    _check_equal(model, copied)
    return copied


def _replay(model, inputs, made, layers, prefix):
    """The symbolic tf_keras outputs of a Keras 3 graph on symbolic inputs."""
    values = dict(zip(map(id, model.inputs), inputs, strict=True))

    def value(tensor):
        return values[id(tensor)] if isinstance(tensor, keras.KerasTensor) else tensor

    for operation, node in graph.in_order(model.outputs):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        args, kwargs = keras.tree.map_structure(value, [list(node.arguments.args), dict(node.arguments.kwargs)])
        if isinstance(operation, keras.Model):
            results = _replay(operation, keras.tree.flatten(args), made, layers, f"{prefix}{operation.name}_")
        else:
            if id(operation) not in made:
                made[id(operation)] = layers[prefix + operation.name] = _layer(operation, prefix)
            given = {key: one for key, one in kwargs.items() if one is not None}
            results = keras.tree.flatten(made[id(operation)](*args, **given))
        values.update(zip(map(id, node.output_tensors), results, strict=True))
    return [values[id(tensor)] for tensor in model.outputs]


def _layer(operation, prefix):
    import tf_keras

    kind = type(operation).__name__
    made = getattr(tf_keras.layers, kind, None)
    stock = isinstance(operation, keras.layers.Layer) and type(operation).__module__.startswith("keras.")
    if made is None or not stock:
        raise InputError(
            f"--compress can't take the operation {operation.name!r}: tf_keras, which tensorflow-model-optimization "
            f"works on, has no layer {kind} like it; leave --compress out, and quantise after training: --export=int8"
        )
    known = {
        name
        for part in made.__mro__
        if "__init__" in vars(part)
        for name in inspect.signature(part.__init__).parameters
    }
    left = ("self", "args", "kwargs", "dtype", "name", "activity_regularizer")
    config = {
        key: value
        for key, value in operation.get_config().items()
        if key in known and key not in left and not key.endswith(("initializer", "regularizer", "constraint"))
    }
    try:
        return made(name=prefix + operation.name, **config)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"--compress can't take the layer {operation.name!r} ({kind}): tf_keras refuses its settings, {error}"
        ) from error


def named_layers(model: keras.Model, prefix: str = "") -> list:
    """(name in the twin, layer) of every layer of a Keras 3 model but the inputs."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += named_layers(layer, f"{prefix}{layer.name}_")
        elif not isinstance(layer, keras.layers.InputLayer):
            found.append((prefix + layer.name, layer))
    return found


def _check_equal(model, copied):
    image = np.random.default_rng(0).uniform(0, 255, (4, *model.inputs[0].shape[1:])).astype(np.float32)
    wanted = keras.ops.convert_to_numpy(model(image, training=False)).astype(np.float64)
    apart = np.abs(wanted - np.asarray(copied(image, training=False), np.float64)).max() / max(np.abs(wanted).max(), 1)
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
        # In a list of lists Keras would look for layers to track; a closure it leaves alone.
        both = (model, tf_keras.Model(model.input, {**taps, "logits": model.output}))
        self.wrapped = lambda: both[0]
        self._tapped = lambda: both[1]
        trainable = _reached(model)
        for variable in model.variables:
            weight = self.add_weight(
                shape=tuple(variable.shape),
                dtype=variable.dtype.name,
                initializer="zeros",
                trainable=id(variable) in trainable,
                name=variable.name.replace("/", "_").partition(":")[0],
            )
            # Keras' variable is a shell around TensorFlow's; this one's is shared with the tf_keras model.
            weight._value = variable
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

    # Traced only: running it would move statistics.
    tf.function(step).get_concrete_function(tf.TensorSpec((2, *model.input.shape[1:]), tf.float32))
    return reached


def trainable(wrapped, model: keras.Model) -> Trainable:
    """The wrapped twin of a Keras 3 model, with a tap for each of the model's layers that still stands."""
    names = {name for name, _ in named_layers(model)}
    taps = {}
    for layer in wrapped.layers:
        # tfmot's wrappers put their own word before a layer's name.
        name = layer.name if layer.name in names else own_name(layer)
        if name in names and len(layer.inbound_nodes) == 1:
            taps[name] = layer.output
    return Trainable(wrapped, taps)


def own_name(layer) -> str:
    """The name of the layer inside a tfmot wrapper, or the layer's own."""
    inner = getattr(layer, "layer", None)
    return layer.name if inner is None else inner.name


def weights_back(weights: dict[str, list], model: keras.Model) -> None:
    """Gives a Keras 3 model its twin's weights, by the name of the layer; see `Step.strip`."""
    for name, layer in named_layers(model):
        if layer.weights:
            layer.set_weights(weights[name])
