"""Ways of compression on two replicas: what they train is what one device trains."""

import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from kd_keras import spec

ROOT = pathlib.Path(__file__).parents[2]
#: Arguments of those whose own do not fit six steps and kernels of so few weights.
FITTING = {"prune": "prune(sparsity=0.5, frequency=1)", "cluster": "cluster(clusters=4)"}
WAYS = [FITTING.get(name, f"{name}()") for name in spec.names("kd_keras.compress")]


@pytest.mark.parametrize("name", spec.names("kd_keras.compress"))
def test_its_source_is_named(name):
    assert "Reference:" in spec.builder("kd_keras.compress", name).__doc__


def train(strategy, text):
    """The compressed weights by layer after two epochs, and the training's losses."""
    import keras

    from kd_keras import Distiller, compress, data, losses
    from kd_keras.models import cnn

    rng = np.random.default_rng(0)
    source = data.ArraySource(rng.integers(0, 256, (24, 8, 8, 1), "uint8"), rng.integers(0, 4, 24))
    keras.utils.set_random_seed(1)
    # Without batch norm, whose statistics are each replica's own in tf_keras.
    with strategy.scope():
        student = cnn.CNN(4, (8, 8, 1), filters=(4, 6), dense=(), batch_norm=False)
        teacher = cnn.CNN(4, (8, 8, 1), filters=(4,), dense=())
        made = compress.prepare(student, spec.build("kd_keras.compress", spec.parse(text)), steps=6)
        distiller = Distiller(student=made.model, teacher=teacher, losses=[losses.CE(), losses.KD()])
        distiller.compile(keras.optimizers.SGD(1e-2))
    batches = data.batches(source, 8, training=True, epochs=2)
    history = distiller.fit(batches, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0).history
    return history["loss"], [np.array(value) for value in made.finish().get_weights()]


def main(path):
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {text: [train(one, text) for one in (tf.distribute.get_strategy(), mirrored)] for text in WAYS}
    pathlib.Path(path).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("replicas") / "found"
    line = [sys.executable, "-c", f"from tests.compress.test_replicas import main; main({str(path)!r})"]
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("text", WAYS)
def test_two_replicas_do_as_one(found, text):
    (one_loss, one), (two_loss, two) = found[text]
    # The ranges of quantisation are each replica's own share of the batch, averaged.
    tolerance = 0.05 if text == "qat()" else 1e-4
    np.testing.assert_allclose(two_loss, one_loss, rtol=tolerance)
    for ours, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
