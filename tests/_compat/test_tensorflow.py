"""Private and experimental names of TensorFlow: an upgrade that changes one fails here, and says which."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras._compat import distribute, tensorflow
from kd_keras.data import arrays


@pytest.fixture
def mirrored():
    # Two replicas on one device: a process that has already used its CPU can't divide it.
    return tf.distribute.MirroredStrategy(["CPU:0"])


def test_replica_spec(mirrored):
    data = tf.data.Dataset.from_tensor_slices({"image": np.zeros((6, 2), "float32")}).batch(3)
    shared = mirrored.distribute_datasets_from_function(lambda context: data)
    with mirrored.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    seen = []

    class Spy(keras.Model):
        def call(self, x):
            return model(x["image"])

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            seen.append(tensorflow.replica_spec(iterator))

    with mirrored.scope():
        spy = Spy()
        spy.compile("sgd", "mse")
    with pytest.raises(Exception):  # noqa: B017 - what the model can't compute comes after the call that is watched
        spy.fit(shared, steps_per_epoch=1, verbose=0)
    assert [tuple(spec["image"].shape) for spec in seen] == [(None, 2)], "Keras or TensorFlow has changed: replica_spec"


def test_set_batch_count(mirrored):
    data = tf.data.Dataset.range(7).batch(2)
    shared = mirrored.distribute_datasets_from_function(lambda context: data)
    assert hasattr(shared, "_cardinality"), "TensorFlow no longer keeps a distributed data set's size in _cardinality"
    tensorflow.set_batch_count(shared, 4)
    assert int(shared.cardinality) == 4, "the size is read from elsewhere than _cardinality"
    assert distribute.feed(tf.distribute.get_strategy(), data) is data


def test_gpu_capability(monkeypatch):
    assert tensorflow.gpu_capability() == (
        None if not tf.config.list_physical_devices("GPU") else pytest.approx((9, 9), abs=9)
    )
    details = {"a": {"compute_capability": (8, 0)}, "b": {}}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(details))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    assert tensorflow.gpu_capability() == (0, 0)


def test_variable_in_place():
    array = arrays.aligned((3, 64))
    variable = tensorflow.variable_in_place(array)
    array[1, 0] = 7
    assert variable.numpy()[1, 0] == 7, "TensorFlow copies an array that it took in place: see variable_in_place()"
