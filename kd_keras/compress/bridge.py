"""From Keras 3 to tf_keras, which tensorflow-model-optimization needs, and back.

`to_tf_keras` copies a Keras 3 model, `trainable` lets Keras 3 train the copy, and `set_weights` copies the trained
weights back. tf_keras and tfmot are imported late, because tfmot sets ``TF_USE_LEGACY_KERAS``.
"""

import contextlib

import keras
import numpy as np
from absl import logging

from kd_keras._compat import keras as graph
from kd_keras._compat import tfmot
from kd_keras.compress.copied_layers import FOLLOWING, copy_arithmetic, copy_layer, explain_errors
from kd_keras.errors import InputError

# Largest difference of the copy's logits, relative to the largest logit.
_TOLERANCE = 1e-3


def to_tf_keras(model: keras.Model):
    """Copies a Keras 3 model to a tf_keras model that computes the same logits, in float32.

    Layers of nested models are named ``outer_inner``. A final softmax or sigmoid is left out, and so are initialisers,
    constraints and regularisers: a regulariser has no effect while the copy is trained. A layer or operation that
    scales and shifts becomes two layers, since an integer file needs the range between them.

    Args:
        model: functional or Sequential, one input of known size, one output, stock layers.

    Returns:
        tf_keras.Model, its layers named as the model's.

    Raises:
        InputError: the model is subclassed, or has a layer that tf_keras lacks or computes differently.
    """
    import tf_keras

    if not graph.is_graph(model):
        raise InputError(f"--compress needs a functional or Sequential student, and {model.name} is subclassed")
    shape = tuple(model.inputs[0].shape[1:])
    if None in shape:
        raise InputError(f"--compress needs a student with an input of known size: that of {model.name} is {shape}")
    if model.losses:
        logging.warning("the regularisation losses of %s have no effect while it is compressed", model.name)
    layers = {}
    image = tf_keras.Input(shape, name=model.inputs[0].name)
    with stateful_generators(), explain_errors(f"--compress can't take {model.name}"):
        (output,) = _replay(model, [image], layers, "", _last_activation(model)[0])
        copied = tf_keras.Model(image, output, name=model.name)
        for name, layer in named_layers(model):
            if layer.weights and layers[name].weights:
                layers[name].set_weights(layer.get_weights())
    _check_equal(model, copied)
    return copied


@contextlib.contextmanager
def stateful_generators():
    """Makes tf_keras' dropout draw from generators with a state that can be saved, not from the global one."""
    import tf_keras

    backend = tf_keras.backend.experimental
    was_enabled = backend.is_tf_random_generator_enabled()
    backend.enable_tf_random_generator()
    try:
        yield
    finally:
        if not was_enabled:
            backend.disable_tf_random_generator()


def _last_activation(model) -> tuple:
    """The last operation of a graph and its function, if that makes probabilities of logits; else None and None."""
    last, _ = graph.made_by(model.outputs[0])
    function = keras.activations.softmax if graph.is_softmax(last) else getattr(last, "activation", None)
    makes_probabilities = function in (keras.activations.softmax, keras.activations.sigmoid)
    return (last, function) if makes_probabilities else (None, None)


def _replay(model, inputs, layers, prefix, left_out=None):
    """The symbolic tf_keras outputs of a Keras 3 graph on symbolic inputs.

    Args:
        layers: collects the layers by name.
        left_out: the operation whose activation is left out.
    """
    values = dict(zip(map(id, model.inputs), inputs, strict=True))
    copies = {}

    def value(tensor):
        return values[id(tensor)] if isinstance(tensor, keras.KerasTensor) else tensor

    for operation, node in graph.in_order(model.outputs):
        if isinstance(operation, keras.layers.InputLayer):
            continue
        args, kwargs = keras.tree.map_structure(value, [list(node.arguments.args), dict(node.arguments.kwargs)])
        if isinstance(operation, keras.Model):
            results = _replay(operation, keras.tree.flatten(args), layers, f"{prefix}{operation.name}_")
        elif operation is left_out and not operation.weights:
            results = keras.tree.flatten(args)
        else:
            if id(operation) not in copies:
                name = prefix + operation.name
                if name in layers:
                    raise InputError(f"--compress can't take {model.name}: two of its layers are called {name!r}")
                copy = copy_layer if isinstance(operation, keras.layers.Layer) else copy_arithmetic
                layers[name], following = copy(operation, node, name, operation is left_out)
                layers[name].trainable = getattr(operation, "trainable", True)
                copies[id(operation)] = (layers[name], following)
            layer, following = copies[id(operation)]
            if isinstance(operation, keras.layers.Layer):
                # As in Keras 3, a model's own mode stands for that of its layers.
                arguments = {k: v for k, v in kwargs.items() if v is not None and k != "training"}
            else:
                tensors = [value(tensor) for tensor in node.input_tensors]
                args, arguments = [tensors if len(tensors) > 1 else tensors[0]], {}
            results = keras.tree.flatten(layer(*args, **arguments))
            for layer in following:
                results = [layer(result) for result in results]
        values.update(zip(map(id, node.output_tensors), results, strict=True))
    return [values[id(tensor)] for tensor in model.outputs]


def _check_equal(model, copied):
    image = np.random.default_rng(0).uniform(0, 255, (4, *model.inputs[0].shape[1:])).astype(np.float32)
    logits = copied(image, training=False).numpy()
    _, function = _last_activation(model)
    outputs = logits if function is None else function(keras.ops.convert_to_tensor(logits))
    expected = keras.ops.convert_to_numpy(graph.in_float32(model)(image, training=False)).astype(np.float64)
    difference = np.abs(expected - keras.ops.convert_to_numpy(outputs)).max() / max(np.abs(expected).max(), 1)
    if not difference <= _TOLERANCE:
        raise InputError(
            f"--compress can't take {model.name}: its tf_keras copy gives other logits (by {difference:.1g} of the "
            "largest), as an activation or a layer means something else there; leave --compress out"
        )


class Trainable(keras.Model):
    """A tf_keras model that a Keras 3 `Distiller` can train: its variables are this model's weights.

    Args:
        model: a functional tf_keras model (B, H, W, C) -> (B, K), wrapped by tensorflow-model-optimization or not.
        taps: name → symbolic tensor of the model.
    """

    def __init__(self, model, taps):
        import tf_keras

        super().__init__(name=model.name, dtype="float32")
        # Keras looks for layers to track in attributes, not in closures.
        models = (model, tf_keras.Model(model.input, {**taps, "logits": model.output}))
        self.wrapped = lambda: models[0]
        self._tapped = lambda: models[1]
        # tfmot moves the variables of a layer into its wrapper, which forgets that the layer is frozen.
        frozen = {id(v) for layer in model.layers if not layer.trainable for v in layer.variables}
        trained = _reached(model) - frozen
        for variable in (*model.variables, *tfmot.generator_states(model)):
            weight = self.add_weight(
                shape=tuple(variable.shape),
                dtype=variable.dtype.name,
                initializer="zeros",
                trainable=id(variable) in trained,
                name=variable.name.replace("/", "_").partition(":")[0],
            )
            # A variable of Keras 3 holds one of TensorFlow, here that of the tf_keras model.
            graph.share_variable(weight, variable)
        self._shape = tuple(model.input.shape[1:])
        self.built = True

    def get_build_config(self):
        """The input's shape, by which Keras knows that the model is built."""
        return {"input_shape": (None, *self._shape)}

    def taps(self, x, training=False):
        """Every tap by name; `Taps` reads a model that is not functional by this method."""
        with self._scope():
            return self._tapped()(x, training=training)

    def call(self, x, training=False):
        """Logits (B, K)."""
        with self._scope():
            return self.wrapped()(x, training=training)

    def _scope(self):
        """That of the strategy, in a call outside of a step: by it tfmot tells whether it runs on one replica."""
        import tensorflow as tf

        is_inside = tf.distribute.has_strategy() or not tf.executing_eagerly()
        return contextlib.nullcontext() if is_inside else self.distribute_strategy.scope()


def _reached(model) -> set[int]:
    """Ids of the trainable variables that a step's gradients reach; tfmot keeps variables that others replace."""
    import tensorflow as tf

    # Not the model's trainable_variables, which lack what became trainable since they were made.
    variables, reached = [variable for variable in model.variables if variable.trainable], set()

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

    # Traced and not run, because running would move batch norm statistics.
    traced.get_concrete_function()
    return reached


def trainable(wrapped, model: keras.Model) -> Trainable:
    """A wrapped tf_keras copy of a Keras 3 model, with a tap for each layer of the model that it still has.

    Layers that are not trainable in the model are not trainable here.
    """
    names = {name for name, _ in named_layers(model)}
    frozen = {name for name, layer in named_layers(model) if not layer.trainable}
    for layer in wrapped.layers:
        if getattr(layer, "layer", layer).name in frozen:
            layer.trainable = False
    taps = {}
    for layer in wrapped.layers:
        # tfmot's wrappers prefix a layer's name.
        name = layer.name if layer.name in names else getattr(layer, "layer", layer).name
        # In the order of the graph: the activation of a layer replaces the layer's own output.
        name = name.removesuffix(FOLLOWING)
        if name in names and len(layer.inbound_nodes) == 1:
            taps[name] = layer.output
    return Trainable(wrapped, taps)


def set_weights(model: keras.Model, weights: dict[str, list]) -> None:
    """Sets a Keras 3 model's weights, given by the name of the layer as `Step.strip` returns them."""
    for name, layer in named_layers(model):
        # What the copy computes with numbers, such as a Normalization, has weights in Keras 3 alone.
        if layer.weights and weights[name]:
            layer.set_weights(weights[name])


def named_layers(model: keras.Model, prefix: str = "") -> list[tuple[str, keras.layers.Layer]]:
    """(name, layer) of all layers but inputs; those of a nested model are named ``model_layer``."""
    named = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            named += named_layers(layer, f"{prefix}{layer.name}_")
        elif not isinstance(layer, keras.layers.InputLayer):
            named.append((prefix + layer.name, layer))
    return named
