"""Private and undocumented names of Keras, each used in one function here; `tests/_compat` checks them by name.

A `node` is one use of an operation in a model: `input_tensors`, `output_tensors`, and `arguments.args` and `.kwargs`.
"""

import contextlib
import random
from collections.abc import Iterable, Iterator

import keras

from kd_keras._compat import tensorflow

_UNINITIALIZED = "uninitialized_variables"


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """A context in which models are built without variables, to ask for their shapes, layers and sizes.

    SE-ResNet101 takes 0.7 s instead of 4.7 s. Such a model can't be called on images. Builders that read weights from
    a file or the network ask `builds_shapes_only` and leave them out. Python's random stream, from which Keras draws
    the seeds of new layers, is put back.
    """
    # Keras keeps a list of the variables that are still to be made, and makes them where the next scope ends.
    state = keras.src.backend.common.global_state
    before, stream = state.get_global_attribute(_UNINITIALIZED) or [], random.getstate()
    state.set_global_attribute(_UNINITIALIZED, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        state.set_global_attribute(_UNINITIALIZED, before)
        random.setstate(stream)


def builds_shapes_only() -> bool:
    """Whether models are being built inside `shapes_only`."""
    return keras.src.backend.common.stateless_scope.in_stateless_scope()


def is_graph(model: keras.Model) -> bool:
    """Whether a model is functional or Sequential: a graph of operations that can be read and cut."""
    return bool(getattr(model, "operations", None)) or isinstance(model, keras.Sequential)


def is_stock_graph(model: keras.Model) -> bool:
    """Whether a model computes its graph and nothing else: a subclass may have a ``call`` of its own."""
    return is_graph(model) and type(model).call in (keras.Sequential.call, keras.src.models.Functional.call)


def rebuilt(layer: keras.layers.Layer, config: dict) -> keras.layers.Layer:
    """A layer of the same class from a config, also one with a Python function: the layer is in memory already."""
    with keras.src.saving.serialization_lib.SafeModeScope(False):
        return type(layer).from_config(config)


def can_be_rebuilt(layer: keras.layers.Layer) -> bool:
    """Whether a layer can be made from its config; not every layer of other packages can."""
    if type(layer).__module__.startswith("keras."):
        # A SavedModel computes in the dtype that it was saved with.
        return not isinstance(layer, keras.layers.TFSMLayer)
    try:
        type(layer).from_config(layer.get_config())
    # TypeError for a config that does not fit, NotImplementedError for none; the layer's own code may raise anything.
    except Exception:
        return False
    return True


def made_by(tensor: keras.KerasTensor) -> tuple:
    """The operation that made a symbolic tensor, and the node."""
    operation, index, _ = tensor._keras_history
    return operation, operation._inbound_nodes[index]


def uses(outputs: Iterable[keras.KerasTensor]) -> list[tuple]:
    """Every (operation, node) that leads to some symbolic tensors, from the last to the first.

    The nodes of a layer itself include its uses in other models: a Sequential model that is loaded from a file is built
    again with each layer.
    """
    visited, seen, waiting = [], set(), list(outputs)
    while waiting:
        operation, node = made_by(waiting.pop())
        if id(node) not in seen:
            seen.add(id(node))
            visited.append((operation, node))
            waiting.extend(node.input_tensors)
    return visited


def in_order(outputs: Iterable[keras.KerasTensor]) -> list[tuple]:
    """Every (operation, node) that leads to some symbolic tensors, each after those that it reads."""
    ordered, seen = [], set()
    waiting = [(made_by(tensor), False) for tensor in outputs]
    while waiting:
        (operation, node), inputs_are_listed = waiting.pop()
        if inputs_are_listed:
            ordered.append((operation, node))
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append(((operation, node), True))
            waiting.extend((made_by(tensor), False) for tensor in node.input_tensors)
    return ordered


def call_number(operation, node) -> int:
    """The place of a node among all calls of its operation, in the order in which they were made."""
    return operation._inbound_nodes.index(node)


def is_channels_first(tensor: keras.KerasTensor) -> bool:
    """Whether a map is (B, C, H, W): as the nearest layer before it that has a layout says."""
    while len(tensor.shape) == 4:
        operation, node = made_by(tensor)
        if isinstance(operation, keras.Model) and is_stock_graph(operation):
            tensor = operation.outputs[node.output_tensors.index(tensor) if len(node.output_tensors) > 1 else 0]
            continue
        if layout := getattr(operation, "data_format", None):
            return layout == "channels_first"
        if isinstance(operation, keras.layers.BatchNormalization):
            return operation.axis == 1
        # What rearranges axes starts a layout of its own, which nothing says.
        if not node.input_tensors or isinstance(operation, (keras.layers.Permute, keras.layers.Reshape)):
            break
        tensor = node.input_tensors[0]
    return False


def with_training(operation, training: bool):
    """An operation as a model calls it: ``training`` is passed on to those that take it."""
    return keras.src.models.functional.operation_fn(operation, training=training)


def is_softmax(operation) -> bool:
    """Whether an operation is a softmax and nothing else."""
    # `keras.ops.softmax` in a graph is an operation of the same name, in a private module.
    return isinstance(operation, keras.layers.Softmax) or type(operation).__name__ == "Softmax"


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A model or layer, its layers, and the layers inside them."""
    return list(model._flatten_layers())


def averages(optimizer: keras.optimizers.Optimizer) -> list[tuple]:
    """(variable, its moving average) of an optimizer with ``use_ema``, which has been built; of another, none."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss scale
    if not optimizer.use_ema:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))


def share_variable(weight: keras.Variable, variable) -> None:
    """Makes a Keras weight read and write another variable of the backend."""
    weight._value = variable


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """The metric that Keras reports as ``loss``."""
    return model._loss_tracker


def compiled_metrics_are_empty(model: keras.Model) -> bool:
    """Whether metrics were compiled and have seen no label, so that they have no results."""
    return model._compile_metrics is not None and not model._compile_metrics.built


def metrics_of_its_own(model: keras.Model) -> list[keras.metrics.Metric]:
    """A model's metrics without those that were compiled."""
    return [metric for metric in model.metrics if metric is not model._compile_metrics]


def set_higher_is_better(metric: keras.metrics.Metric) -> None:
    """Tells Keras' callbacks, such as ModelCheckpoint, that a metric is to be maximised."""
    metric._direction = "up"


class Trainer(keras.Model):
    """`keras.Model` with two corrections for models that define their own training steps.

    The shapes of a batch are read from the description of its data set. Keras draws a batch instead and reduces it over
    the replicas, which fails across machines (Keras issue 20585) and where the first batch is divided unevenly. And
    `epoch_logs` decides what is reported of an epoch.
    """

    def epoch_logs(self, logs: dict) -> dict:
        """What to report of an epoch, given the logs of its last step."""
        return super()._get_metrics_result_or_logs(logs)

    def _get_metrics_result_or_logs(self, logs):
        return self.epoch_logs(logs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None and self._distribute_strategy is not None:
            iterator, data_batch = None, tensorflow.replica_spec(iterator)
        super()._maybe_symbolic_build(iterator, data_batch)


def in_float32(model: keras.Model) -> keras.Model:
    """The model itself if it computes in float32, else a float32 copy with the same weights."""
    if all(layer.dtype_policy.name == "float32" for layer in all_layers(model)):
        return model
    config = _without_policies(keras.saving.serialize_keras_object(model))
    # safe_mode protects from files of unknown origin; this config is of a model in memory.
    copy = keras.saving.deserialize_keras_object(config, safe_mode=False)
    copy.set_weights(model.get_weights())
    return copy


_LOW_PRECISION = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")


def _without_policies(config):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float32"}}
        return {
            key: "float32" if key == "dtype" and value in _LOW_PRECISION else _without_policies(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_without_policies(value) for value in config)
    return config
