"""Every loss gives on several replicas what it gives on one; each of its trained parts moves."""

import functools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from kd_keras import spec

ROOT = pathlib.Path(__file__).parents[2]
NAMES = spec.names("kd_keras.losses")
COUNT, BATCH, CLASSES = 13, 8, 4


def terms(names):
    from kd_keras import spec

    needed = {"crd": {"samples": COUNT, "negatives": 6, "size": 8}}
    return [spec.build("kd_keras.losses", spec.Spec(name, needed.get(name, {}))) for name in names]


def train(strategy, names):
    """Two epochs of a last batch of 5 of 8.

    Returns:
        (the terms' values by epoch, all variables by path, names of trained parts that did not move).
    """
    import keras

    from kd_keras import Distiller, data
    from kd_keras.models import resnet

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (COUNT, 8, 8, 1), "uint8"), rng.integers(0, CLASSES, COUNT)
    if all("softmax" not in term.heads for term in terms(names)):
        labels = rng.integers(0, 2, (COUNT, CLASSES))
    source = data.ArraySource(images, labels)
    with strategy.scope():
        keras.utils.set_random_seed(1)
        shape = {"num_classes": CLASSES, "input_shape": (8, 8, 1), "width": 0.25}
        teacher, student = resnet.ResNet(depth=14, **shape), resnet.ResNet(depth=8, **shape)
        for layer in student._flatten_layers():  # statistics of each replica's own share would differ
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = strategy.num_replicas_in_sync > 1
        distiller = Distiller(student=student, teacher=teacher, losses=terms(names))
        distiller.compile(keras.optimizers.SGD(1e-3), metrics=["accuracy"])
    if distiller.pretrains:
        ahead = data.batches(source, BATCH, training=True, with_index=True)
        distiller.pretrain(ahead, steps_per_epoch=2, shuffle=False, verbose=0)
    before = {v.path: keras.ops.convert_to_numpy(v) for v in distiller.trainable_variables}
    batches = data.batches(source, BATCH, training=True, epochs=2, with_index=True)
    history = distiller.fit(batches, epochs=2, steps_per_epoch=2, shuffle=False, verbose=0).history
    after = [(v.path, keras.ops.convert_to_numpy(v)) for v in distiller.variables]
    still = [path for path, value in after if path in before and np.array_equal(value, before[path])]
    return history, after, still


#: Losses that bring the samples of all replicas together, at factors that make their gradients of one size.
GATHERING = {"rkd": 1.0, "sp": 10.0, "pkt": 1e3, "cc": 1.0, "dist": 1.0, "mlkd": 1.0}


def shares(strategy):
    """The gradients by each sample's student features, (8, 5), of every gathering loss: replicas hold 5 and 3 samples.

    What a replica brings is its share of the mean over the global batch; an optimizer sums over the replicas.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    features = [rng.normal(size=(BATCH, 5)).astype("float32") for _ in range(2)]
    cuts = [(0, 5), (5, 8)] if strategy.num_replicas_in_sync == 2 else [(0, 8)]

    def held(whole):
        parts = [tf.constant(whole[first:last]) for first, last in cuts]
        return strategy.experimental_distribute_values_from_function(lambda c: parts[c.replica_id_in_sync_group])

    found = {}
    for name, factor in GATHERING.items():
        keys = {} if name in ("dist", "mlkd") else {"pairs": "logits:logits"}
        (term,) = [spec.build("kd_keras.losses", spec.Spec(name, keys))]

        def step(student, teacher, term=term, factor=factor):
            count = tf.cast(tf.shape(student)[0], tf.float32)
            with tf.GradientTape() as tape:
                tape.watch(student)
                value = term({"logits": student}, {"logits": teacher}, tf.zeros(tf.shape(student)[0], tf.int32))
                share = tf.reduce_sum(value) / BATCH if len(value.shape) else value * count / BATCH
            return factor * tape.gradient(share, student)

        run = tf.function(lambda s, t, step=step: strategy.run(step, args=(s, t)))
        found[name] = np.concatenate(strategy.experimental_local_results(run(*map(held, features))))
    return found


if __name__ == "__main__":
    import tensorflow as tf

    path, what, replicas = sys.argv[1:]
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 4)
    cpus = [f"CPU:{n}" for n in range(int(replicas))]
    strategy = tf.distribute.MirroredStrategy(cpus) if len(cpus) > 1 else tf.distribute.get_strategy()
    if what == "shares":
        found = [shares(each) for each in (tf.distribute.get_strategy(), strategy)]
    else:
        # These two take other teachers, or other students, than all the others.
        of_labels = [term.name for term in terms(NAMES) if "softmax" not in term.heads]
        apart = ["sim_kd", "teacher_free"]
        together = [name for name in NAMES if name not in (*apart, *of_labels)]
        groups = [together, of_labels, *([name] for name in apart)]
        found = [train(strategy, names) for names in groups]
    pathlib.Path(path).write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process of so many replicas has found: TensorFlow divides its processor once a process."""

    @functools.cache
    def on(what, replicas):
        path = tmp_path_factory.mktemp("replicas") / "found.pickle"
        command = [sys.executable, "-m", "tests.losses.test_replicas", str(path), what, str(replicas)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return pickle.loads(path.read_bytes())

    return on


@pytest.mark.slow
@pytest.mark.parametrize("name", GATHERING)
def test_every_replicas_share_of_the_gradient_is_that_of_one(found, name):
    one, two = (each[name] for each in found("shares", 2))
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("replicas", [2, 4])
def test_losses_and_what_is_learnt_do_not_depend_on_the_replicas(found, replicas):
    for (history, variables, _), (ours, same, _) in zip(found("train", 1), found("train", replicas), strict=True):
        for name, values in history.items():
            np.testing.assert_allclose(ours[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
        for (path, value), (_, mine) in zip(variables, same, strict=True):
            np.testing.assert_allclose(mine, value, rtol=1e-3, atol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_trained_part_moves(found, replicas):
    assert [still for *_, still in found("train", replicas)] == [[], [], [], []]
