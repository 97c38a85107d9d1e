"""Training on several devices and machines gives what one gives; machines that fail, and that start again."""

import contextlib
import json
import os
import pathlib
import pickle
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from kd_keras._compat import distribute
from kd_keras.errors import InputError, WorkerError

ROOT = pathlib.Path(__file__).parents[2]
WEIGHTS, LOGS = {"rtol": 1e-5, "atol": 1e-5}, {"rtol": 1e-5, "atol": 1e-6}

# ---- what every process below trains ----


def train(strategy, count, batch_norm, epochs=2):
    """Trains a small pair on ``count`` samples in batches of 8.

    Returns:
        (history with the figures of `evaluate`, variables, indices that the source was asked for).
    """
    import keras
    import tensorflow as tf

    from kd_keras import Distiller, data, losses
    from kd_keras.models import cnn

    asked = []

    class Counted(data.ArraySource):
        def read(self, indices):
            def note(indices):
                asked.extend(indices.tolist())
                return np.int64(0)

            nothing = tf.ensure_shape(tf.numpy_function(note, [indices], tf.int64), ())
            return super().read(indices + nothing)

    rng = np.random.default_rng(0)
    source = Counted(rng.integers(0, 256, (count, 8, 8, 1), "uint8"), rng.integers(0, 4, count))
    with strategy.scope():
        keras.utils.set_random_seed(1)
        shape = {"num_classes": 4, "input_shape": (8, 8, 1), "dense": ()}
        teacher = cnn.CNN(filters=(8,), **shape)
        student = cnn.CNN(filters=(4,), batch_norm=batch_norm, **shape)
        terms = [losses.CE(weight=0.3), losses.KD(weight=0.7), losses.Hint(weight=0.1, batch_norm=batch_norm)]
        distiller = Distiller(student=student, teacher=teacher, losses=terms)
        distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    shard = distribute.worker(strategy)
    batches = data.batches(source, 8, training=True, epochs=epochs, shard=shard)
    val = data.batches(source, 8, shard=shard)
    steps = data.steps_per_epoch(count, 8)
    # Keras weighs classes on one device; on several it leaves that to the Distiller.
    options = {} if batch_norm else {"class_weight": {0: 0.5, 1: 2.0, 2: 1.0, 3: 1.0}}
    options |= {"epochs": epochs, "steps_per_epoch": steps, "shuffle": False, "verbose": 0}
    history = distiller.fit(batches, validation_data=val, **options).history
    seen = distiller.evaluate(val, return_dict=True, verbose=0)
    history |= {f"evaluate_{name}": [value] for name, value in seen.items()}
    return history, [keras.ops.convert_to_numpy(v) for v in distiller.variables], asked


# 13 leave a last batch of 5 (for four replicas 1, 1, 1 and 2); 9 one of 1: then some replicas have no sample.
CASES = [(13, True), (9, False)]


def evaluate_independent_labels(strategy):
    """Evaluates on 8 samples, of which only the last 4, which the first replica has not got, have several labels."""
    import keras
    import tensorflow as tf

    from kd_keras import Distiller, losses
    from kd_keras.models import cnn

    label = np.zeros((8, 4), "int32")
    label[range(8), np.arange(8) % 4] = 1
    label[4:, 0] = 1
    batch = {"image": np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 1)).astype("float32"), "label": label}
    with strategy.scope():
        keras.utils.set_random_seed(1)
        models = [cnn.CNN(filters=(4,), num_classes=4, input_shape=(8, 8, 1), dense=()) for _ in range(2)]
        distiller = Distiller(student=models[0], teacher=models[1], losses=[losses.Hint()])
        distiller.compile(keras.optimizers.SGD(0.05), metrics=["accuracy"])
    index, count = distribute.worker(strategy)
    part = tf.data.Dataset.from_tensor_slices(
        {name: values[index * 8 // count :][: 8 // count] for name, values in batch.items()}
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    seen = distiller.evaluate(part.batch(8).with_options(options), return_dict=True, verbose=0)
    return {name: [value] for name, value in seen.items()}, [], []


def train_all(strategy, path):
    with open(path, "wb") as file:
        pickle.dump([*(train(strategy, *case) for case in CASES), evaluate_independent_labels(strategy)], file)


def assert_equal(actual, expected):
    assert set(actual[0]) == set(expected[0]), (actual[0], expected[0])
    for name in actual[0]:
        np.testing.assert_allclose(actual[0][name], expected[0][name], **LOGS, err_msg=name)
    for a, b in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, **WEIGHTS)


# ---- the processes ----

ONE = """
import sys
import tensorflow as tf
from tests._compat import test_distribute as t
t.train_all(tf.distribute.get_strategy(), sys.argv[1] + "/one")
t.train_all(tf.distribute.MirroredStrategy(["CPU:0"]), sys.argv[1] + "/mirrored1")
"""
# Mirrored strategies of several sizes do not go together in one process.
MIRRORED = """
import sys
import tensorflow as tf
count = int(sys.argv[2])
devices = [tf.config.LogicalDeviceConfiguration()] * count
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
from kd_keras._compat import distribute
from tests._compat import test_distribute as t
t.train_all(distribute.strategy("mirrored"), f"{sys.argv[1]}/mirrored{count}")
# Of 33 images in batches of 32 one is left over.
flags = ["--train_examples=33", "--batch_size=32", "--teacher=none", "--loss=ce()", "--nobaseline"]
flags += ["--strategy=mirrored", f"--workdir={sys.argv[1]}/refused", *sys.argv[3:]]
from kd_keras.run import __main__ as run
assert run.main(["kd_keras", *flags]) == 2
"""
REFUSED = {
    2: (
        ["--student=cnn(filters=(4,))", "--teacher=cnn(filters=(4,))", "--loss=kd() + hint(batch_norm=True)"],
        "batch_size, such as 31",
    ),
    4: (["--batch_size=3"], "--batch_size=3 is less than the 4"),
}
WORKER = """
import sys
from kd_keras._compat import distribute
strategy = distribute.strategy("multi_worker", timeout=120)
from tests._compat import test_distribute as t
t.train_all(strategy, f"{sys.argv[1]}/worker{distribute.worker(strategy)[0]}")
"""


def start(*arguments, **env):
    line = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    # As a user has it: the command line sets it, unless it finds it set as the other tests do.
    env = {name: value for name, value in {**os.environ, **env}.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=env)


def end(process, timeout=300):
    """(exit code, stdout, stderr without TensorFlow's greeting)."""
    out, err = process.communicate(timeout=timeout)
    # What TensorFlow's libraries say as they are loaded, whatever the level.
    noise = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} |To enable the following instructions")
    return process.returncode, out, "\n".join(line for line in err.splitlines() if not noise.match(line))


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def tf_configs(count=2):
    """TF_CONFIG of each worker on this machine."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]


def mirrored(folder, count):
    return start("-c", MIRRORED, folder, count, *REFUSED[count][0])


def ended(folder, *processes):
    """What each way of training gave, by name: a list of what `train` returns, a `CASES` each."""
    for process in processes:
        code, _, err = end(process)
        assert code == 0, err[-3000:]
        if process.args[2] == MIRRORED:
            assert REFUSED[int(process.args[4])][1] in err
    assert not (folder / "refused").exists()
    return {path.name: pickle.loads(path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return ended(folder, start("-c", ONE, folder), mirrored(folder, 2))


# ---- several devices ----


def test_a_strategy_of_one_replica_does_as_none():
    """The variables of a strategy are of another class; the slow tests below have several replicas."""
    import tensorflow as tf

    assert_equal(
        train(tf.distribute.MirroredStrategy(["CPU:0"]), 13, True, 1), train(tf.distribute.get_strategy(), 13, True, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("case", range(len(CASES) + 1))
def test_replicas_do_as_one_device(trained, replicas, case):
    assert_equal(trained["one"][case], trained[f"mirrored{replicas}"][case])


@pytest.mark.slow
def test_four_replicas_do_as_one_device(trained, tmp_path):
    four = ended(tmp_path, mirrored(tmp_path, 4))["mirrored4"]
    for case in range(len(CASES) + 1):
        assert_equal(trained["one"][case], four[case])


# ---- several machines ----


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    both = ended(folder, *(start("-c", WORKER, folder, TF_CONFIG=config) for config in tf_configs()))
    return [both[f"worker{index}"] for index in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("case", range(len(CASES) + 1))
def test_two_processes_do_as_one(trained, workers, worker, case):
    assert_equal(trained["one"][case], workers[worker][case])


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)))
def test_each_worker_reads_its_own_part(trained, workers, case):
    whole, *parts = (each[case][2] for each in (trained["one"], *workers))
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    # Two epochs of training, each with validation, and an evaluation.
    count = CASES[case][0]
    assert len(whole) == 5 * count and abs(len(parts[0]) - len(parts[1])) <= 5 * 2


FLAGS = [
    *("--data=digits()", "--teacher=cnn(filters=(8,), dense=())", "--student=cnn(filters=(4,), dense=())"),
    *("--batch_size=100", "--train_examples=230", "--augment=pad_crop(pixels=1)", "--nobaseline", "--export=none"),
]


def launch(workdir, *flags):
    """Both workers of a run of the command line."""
    line = ["-m", "kd_keras.run", *FLAGS, "--strategy=multi_worker", "--worker_timeout=100", f"--workdir={workdir}"]
    return [start(*line, *flags, TF_CONFIG=config) for config in tf_configs()]


def series(workdir):
    records = [json.loads(path.read_text()) for path in (workdir / "store" / "train").glob("*/record.json")]
    return {f"{record['stage']} {name}": values for record in records for name, values in record["series"].items()}


def weights(workdir):
    import keras

    return keras.models.load_model(workdir / "student.keras", compile=False).get_weights()


@pytest.mark.slow
def test_the_command_line_on_two_machines_does_as_on_one(tmp_path):
    from kd_keras.run import __main__ as run

    # The chief alone fills the teacher cache, and each worker reads its part of the batch from it.
    flags = ["--epochs=2", "--cache_views=2"]
    chief, other = launch(tmp_path / "two", *flags)
    assert run.main(["kd_keras", *FLAGS, *flags, "--tracking=none", f"--workdir={tmp_path / 'one'}"]) == 0
    code, out, err = end(other)
    assert (code, out, err) == (0, "", "")
    code, out, err = end(chief)
    assert code == 0, err[-3000:]
    assert "student distilled" in out and "the teacher ran on 460 images" in out
    # The cache is named for the teacher's weights, which are equal but for rounding.
    names = {path.name for path in (tmp_path / "one").rglob("*") if path.parent.name != "teacher_cache"}
    names |= {"mlflow.db", "mlartifacts"}
    assert names <= {path.name for path in (tmp_path / "two").rglob("*")}
    single, two = series(tmp_path / "one"), series(tmp_path / "two")
    assert set(single) == set(two)
    for name in single:
        np.testing.assert_allclose(single[name], two[name], **LOGS, err_msg=name)
    for a, b in zip(weights(tmp_path / "one"), weights(tmp_path / "two"), strict=True):
        np.testing.assert_allclose(a, b, **WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_when_a_worker_dies_the_other_ends_and_all_go_on(tmp_path, dies):
    # In float32, so that nothing is said of another dtype's agreement.
    flags = ["--epochs=30", "--tracking=none", "--teacher_dtype=float32"]
    for process in launch(tmp_path / "undisturbed", *flags):
        assert end(process)[0] == 0
    workers = launch(tmp_path / "killed", *flags)
    store = tmp_path / "killed" / "store"
    # The teacher is trained, and the student has a checkpoint.
    while not (list(store.glob("train/*/record.json")) and list(store.glob("checkpoints/*.npz"))):
        assert workers[dies].poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    workers[dies].send_signal(signal.SIGKILL)
    since = time.monotonic()
    code, _, err = end(workers[1 - dies], timeout=60)
    assert time.monotonic() - since < 40
    assert code == 3 and err.startswith("kd_keras: another worker has stopped") and "\n" not in err
    assert not (tmp_path / "killed" / "student.keras").exists()
    for process in launch(tmp_path / "killed", *flags):
        assert end(process)[0] == 0
    assert series(tmp_path / "killed") == series(tmp_path / "undisturbed")
    for a, b in zip(weights(tmp_path / "killed"), weights(tmp_path / "undisturbed"), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "is not set"),
        ("{", "can't be read"),
        ("[]", "can't be read"),
        ({"cluster": {"worker": ["a:1"]}}, "can't be read"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}, "none of the cluster's"),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}, "none of the cluster's"),
        ({"cluster": {"worker": ["a:1", "b"]}, "task": {"type": "worker", "index": 0}}, "an address is wrong"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}, "an address is wrong"),
    ],
)
def test_a_wrong_tf_config_is_refused(monkeypatch, config, message):
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        distribute.strategy("multi_worker")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_does_not_start_is_named(monkeypatch, index):
    monkeypatch.setenv("TF_CONFIG", tf_configs()[index])
    with pytest.raises(WorkerError, match=rf"worker {1 - index} \(127.0.0.1:\d+\) did not start within 0.5 s"):
        distribute.strategy("multi_worker", timeout=0.5)


def test_a_taken_address_is_refused(monkeypatch):
    config = tf_configs()[1]
    with socket.socket() as taken:
        taken.bind(("", int(json.loads(config)["cluster"]["worker"][1].rpartition(":")[2])))
        taken.listen()
        monkeypatch.setenv("TF_CONFIG", config)
        with pytest.raises(InputError, match="worker 1 can't listen at"):
            distribute.strategy("multi_worker", timeout=1)


def test_a_folder_that_is_not_shared_is_told(tmp_path):
    with pytest.raises(InputError, match="put --workdir where all machines share it"):
        distribute.wait_for(tmp_path / "student.keras", seconds=0)


def test_one_machine_is_its_own_chief():
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    assert distribute.worker(strategy) == (0, 1)
    assert distribute.gather(strategy, 7) == [7]
    batches = tf.data.Dataset.range(4).batch(2)
    assert distribute.feed(strategy, batches) is batches
