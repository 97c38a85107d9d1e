"""Private names of Keras: each is used by one function, whose test here says what an upgrade has changed."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras._compat import keras as compat
from kd_keras.models import resnet


def test_shapes_only_builds_without_variables_and_leaves_no_trace():
    state = keras.src.backend.common.global_state
    random.seed(3)
    expected = random.Random(3).random()
    with compat.shapes_only():
        assert compat.builds_shapes_only()
        model = resnet.ResNet(10, (32, 32, 3), depth=20)
        kernel = model.get_layer("logits").kernel
        with compat.shapes_only():
            resnet.ResNet(10, (32, 32, 3), depth=20)
    assert not compat.builds_shapes_only() and random.random() == expected
    assert (tuple(model.get_layer("stage3").output.shape), tuple(kernel.shape)) == ((None, 8, 8, 64), (64, 10))
    # A later scope of Keras' makes whatever is still waiting.
    with keras.StatelessScope():
        made = keras.layers.Dense(2)
        made.build((None, 3))
    assert kernel._value is None, "keras now makes a variable when a StatelessScope ends: see shapes_only()"
    assert made.kernel._value is not None and not state.get_global_attribute("uninitialized_variables")


def test_shapes_only_leaves_out_published_weights():
    with compat.shapes_only():
        model = resnet.ResNet(10, (64, 64, 3), depth=50, pretrained="imagenet")
    assert model.count_params() > 23e6


def test_shapes_only_ends_with_an_error_inside_it():
    with pytest.raises(KeyError), compat.shapes_only():
        keras.layers.Dense(2).build((None, 3))
        raise KeyError
    assert not compat.builds_shapes_only()


def net():
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Conv2D(2, 3, name="conv")(image)
    x = keras.layers.Flatten(name="flat")(x)
    return keras.Model(image, keras.ops.softmax(keras.layers.Dense(3, name="dense")(x)) * 2.0)


def test_made_by_and_uses():
    model = net()
    operation, node = compat.made_by(model.get_layer("flat").output)
    assert operation is model.get_layer("flat"), "KerasTensor._keras_history no longer starts with the operation"
    assert node.input_tensors[0] is model.get_layer("conv").output, "operation._inbound_nodes has changed"
    assert node.output_tensors[0] is model.get_layer("flat").output
    backwards = [operation.name for operation, _ in compat.uses(model.outputs)]
    forwards = [operation.name for operation, _ in compat.in_order(model.outputs)]
    assert backwards[2:] == ["dense", "flat", "conv", "image"] and forwards == backwards[::-1]


def test_arguments_of_a_node():
    _, node = compat.made_by(net().outputs[0])
    tensor, factor = node.arguments.args
    assert isinstance(tensor, keras.KerasTensor) and factor == 2.0 and dict(node.arguments.kwargs) == {}


def test_is_graph():
    class Subclassed(keras.Model):
        pass

    assert compat.is_graph(net()) and compat.is_graph(keras.Sequential()) and not compat.is_graph(Subclassed())


def test_is_softmax():
    operations = [operation for operation, _ in compat.uses(net().outputs)]
    assert [compat.is_softmax(operation) for operation in operations].index(True) == 1, "keras.ops.softmax has changed"
    assert compat.is_softmax(keras.layers.Softmax()) and not compat.is_softmax(keras.layers.ReLU())


def test_all_layers():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="inside")])
    names = [layer.name for layer in compat.all_layers(keras.Sequential([keras.Input((3,)), inner]))]
    assert "inside" in names and inner.name in names, "Layer._flatten_layers has changed"


def test_in_float32():
    image = keras.Input((3,))
    layer = keras.layers.Dense(2, dtype=keras.DTypePolicy("mixed_bfloat16"))
    mixed = keras.Model(image, layer(image))
    copy = compat.in_float32(mixed)
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}, "a saved DTypePolicy has another form now"
    assert compat.in_float32(copy) is copy
    for a, b in zip(copy.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_share_variable():
    layer = keras.layers.Layer()
    weight, variable = layer.add_weight(shape=(2,), initializer="zeros", name="w"), tf.Variable([1.0, 2.0])
    compat.share_variable(weight, variable)
    weight.assign([3.0, 4.0])
    assert variable.numpy().tolist() == [3.0, 4.0], "a Keras variable no longer keeps TensorFlow's in _value"


def test_set_higher_is_better(tmp_path):
    metric = keras.metrics.MeanSquaredError(name="share")
    compat.set_higher_is_better(metric)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[metric])
    model.evaluate(np.zeros((2, 2)), np.zeros(2), verbose=0)
    stopping = keras.callbacks.EarlyStopping(monitor="val_share")
    stopping.set_model(model)
    stopping._set_monitor_op()
    assert stopping.monitor_op(2.0, 1.0), "Keras' callbacks no longer read Metric._direction"


def test_loss_tracker():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert compat.loss_tracker(model).name == "loss" and compat.loss_tracker(model) is model.metrics[0]


class OneLayer(compat.Trainer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)


def test_trainer_reports_what_epoch_logs_returns():
    class Model(OneLayer):
        def epoch_logs(self, logs):
            return {**super().epoch_logs(logs), "mine": 5.0}

    model = Model()
    model.compile("sgd", "mse")
    history = model.fit(np.zeros((4, 2)), np.zeros(4), verbose=0).history
    assert history["mine"] == [5.0], "Keras reports epochs by another method than _get_metrics_result_or_logs"
    assert model.evaluate(np.zeros((4, 2)), np.zeros(4), verbose=0, return_dict=True)["mine"] == 5.0


def test_trainer_builds_from_the_description_of_divided_data():
    built = []

    class Model(OneLayer):
        def _symbolic_build(self, iterator=None, data_batch=None):
            built.append(data_batch)
            super()._symbolic_build(iterator, data_batch)

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = Model()
        model.compile("sgd", "mse")
    model.fit(tf.data.Dataset.from_tensor_slices((np.zeros((4, 2)), np.zeros(4))).batch(2), verbose=0)
    assert isinstance(built[0][0], tf.TensorSpec), "Keras builds a model by another method than _maybe_symbolic_build"


def test_layers_that_can_be_rebuilt():
    class Unconfigured(keras.layers.Layer):
        def __init__(self, units):
            super().__init__()

    assert compat.can_be_rebuilt(keras.layers.Dense(2)) and not compat.can_be_rebuilt(Unconfigured(2))


def test_call_number_and_operation_of_a_node():
    image, layer = keras.Input((4,)), keras.layers.Dense(4, name="twice")
    first = layer(image)
    second = layer(first)
    for number, tensor in enumerate((first, second)):
        operation, node = compat.made_by(tensor)
        assert compat.call_number(operation, node) == number, "operation._inbound_nodes has changed"
        assert node.operation is layer, "a node no longer has its operation"


def test_with_training_passes_training_to_those_that_take_it():
    for training in (False, True):
        assert compat.with_training(keras.layers.Dense(2), training)(np.ones((1, 3))).shape == (1, 2)
        dropped = compat.with_training(keras.layers.Dropout(0.5, seed=1), training)(np.ones((1, 99)))
        assert bool((np.asarray(dropped) == 0).any()) == training, "keras' operation_fn has changed"


@pytest.mark.parametrize("first", [False, True])
def test_is_channels_first(first):
    where = "channels_first" if first else "channels_last"
    image = keras.Input((4, 4, 4))
    conv = keras.layers.Conv2D(4, 3, padding="same", data_format=where)(image)
    inner = keras.Model(image, keras.layers.ReLU()(conv))
    norm = keras.layers.BatchNormalization(axis=1 if first else -1)(image)
    for tensor in (conv, keras.layers.ReLU()(conv), keras.layers.Add()([conv, conv]), norm, inner(image)):
        assert compat.is_channels_first(tensor) == first
    assert not compat.is_channels_first(image)
    assert not compat.is_channels_first(keras.layers.Permute((2, 3, 1))(conv))
    assert not compat.is_channels_first(keras.layers.Flatten()(conv))


def test_rebuilt_takes_python_functions_of_a_layer_in_memory():
    layer = keras.layers.Lambda(lambda x: x * 2, name="double")
    again = compat.rebuilt(layer, layer.get_config())
    assert again is not layer and again.name == "double"
    assert float(again(np.float32(3))) == 6
    with pytest.raises(ValueError, match="arbitrary code"):
        keras.layers.Lambda.from_config(layer.get_config())


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer])
def test_averages_of_an_optimizer(wrap):
    variable = keras.Variable([1.0])
    optimizer = wrap(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5))
    optimizer.build([variable])
    ((weight, average),) = compat.averages(optimizer)
    assert weight is variable and average is not variable and tuple(average.shape) == (1,)
    assert compat.averages(wrap(keras.optimizers.SGD())) == []
