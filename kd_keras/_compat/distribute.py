"""Training on one device, on several local ones with a replica each, or on several machines.

Machines are called workers; worker 0 is the chief, the only one that writes. docs/machines.md shows how to start them.
"""

import contextlib
import json
import os
import pathlib
import socket
import time

import tensorflow as tf

from kd_keras._compat import tensorflow
from kd_keras.errors import InputError, WorkerError

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
# What TensorFlow raises in the other workers when one stops, and in one that restarts while the others still wait.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
# A shared file system may show a new file to other machines only when its cache expires (NFS: up to a minute).
_FILE_SECONDS = 120


def strategy(name: str, timeout: float = 600) -> tf.distribute.Strategy:
    """The strategy in whose scope models are built and trained.

    Args:
        name: ``'one'``; ``'mirrored'``, a replica on every local GPU, or on every logical CPU where there is no GPU;
            ``'auto'``, mirrored where there are several GPUs; or ``'multi_worker'``, the machines of ``TF_CONFIG``, for
            which this has to be called before TensorFlow has computed anything.
        timeout: seconds to wait for the other machines.

    Raises:
        InputError: ``TF_CONFIG`` is missing or wrong.
        WorkerError: another machine did not start in time.
    """
    if name == "multi_worker":
        return _multi_worker(timeout)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _multi_worker(timeout):
    addresses, index = _cluster(os.environ.get("TF_CONFIG"))
    _meet(addresses, index, timeout)
    with _watched():
        return tf.distribute.MultiWorkerMirroredStrategy()


def _cluster(text: str | None) -> tuple[list[str], int]:
    """The workers' addresses, the chief's first, and the number of this worker."""
    if not text:
        raise InputError(
            f"--strategy=multi_worker reads the environment's TF_CONFIG, which is not set: give {_EXAMPLE}"
        )
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        addresses = [*cluster.get("chief", []), *cluster["worker"]]
        index = int(task["index"]) + (len(cluster.get("chief", [])) if task["type"] == "worker" else 0)
        is_valid = task["type"] in ("chief", "worker") and 0 <= index < len(addresses)
        parts = [address.rpartition(":") for address in addresses]
        is_valid = is_valid and all(host and port.isdigit() for host, _, port in parts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"TF_CONFIG={text!r} can't be read: give {_EXAMPLE}") from error
    if not is_valid or len(set(addresses)) < len(addresses):
        raise InputError(
            f"TF_CONFIG={text!r}: the task is none of the cluster's, or an address is wrong: see {_EXAMPLE}"
        )
    return addresses, index


def _meet(addresses, index, timeout):
    """Waits until every machine has started; TensorFlow would wait for an hour and then abort.

    All but the chief listen at the address that TensorFlow will use. The chief continues once it has reached each of
    them. TensorFlow then opens the chief's address, and by that the others continue.
    """
    if len(addresses) == 1:
        return
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        if index:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(addresses[index].rpartition(":")[2])))
            except OSError as error:
                raise InputError(f"worker {index} can't listen at {addresses[index]} ({error.strerror})") from error
            listener.listen()
        missing = [0] if index else list(range(1, len(addresses)))
        while missing := [number for number in missing if not _answers(addresses[number])]:
            if time.monotonic() > deadline:
                names = ", ".join(f"{number} ({addresses[number]})" for number in missing)
                # The chief opens its address last, so only the chief knows which of several others is missing.
                waits = ", or still waits for another" if index and len(addresses) > 2 else ""
                raise WorkerError(
                    f"worker {names} did not start within {timeout:g} s{waits}: see its log, then start all again"
                )
            time.sleep(0.2)


def _answers(address) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(number of this worker, 0 for the chief; number of workers); (0, 1) on one machine."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    chiefs = len(cluster.get("chief", ()))
    count = chiefs + len(cluster.get("worker", ()))
    return (0, 1) if count <= 1 else (resolver.task_id + (chiefs if resolver.task_type == "worker" else 0), count)


def joined(strategy: tf.distribute.Strategy, part):
    """A part of a batch of all replicas, of all workers, as each of them gets it; of text, this replica's alone."""
    values = strategy.experimental_local_results(part)
    if strategy.num_replicas_in_sync == 1 or not tf.is_tensor(values[0]) or values[0].dtype == tf.string:
        return values[0]
    return strategy.gather(part, axis=0)


def feed(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset):
    """Divides batches among the replicas as evenly as possible.

    `Strategy.experimental_distribute_dataset` fills one replica after the other, so that some get nothing of a smaller
    last batch. With one replica, or with several workers whose data set TensorFlow is to shard, the data set is
    returned as it is. One that is already sharded (`data.batches` with a ``shard``) has TensorFlow's policy OFF.

    Args:
        strategy: the strategy of the training.
        dataset: global batches, or this worker's parts of them.
    """
    workers = worker(strategy)[1]
    policy = dataset.options().experimental_distribute.auto_shard_policy
    is_sharded = policy == tf.data.experimental.AutoShardPolicy.OFF
    if strategy.num_replicas_in_sync == 1 or (workers > 1 and not is_sharded):
        return dataset
    local, batches = strategy.num_replicas_in_sync // workers, dataset.cardinality().numpy()
    if local > 1:
        dataset = dataset.flat_map(lambda *batch: _parts(batch if len(batch) > 1 else batch[0], local))
    divided = strategy.distribute_datasets_from_function(lambda context: dataset)
    # Where Keras does not know the number of global batches, it runs one step too many: the step fails for lack of a
    # batch, but only after the optimizer has counted it.
    tensorflow.set_batch_count(divided, batches)
    return divided


def _parts(batch, count) -> tf.data.Dataset:
    def part(number):
        def rows(tensor):
            size = tf.shape(tensor, tf.int64)[0]
            return tensor[number * size // count : (number + 1) * size // count]

        return tf.nest.map_structure(rows, batch)

    return tf.data.Dataset.range(count).map(part)


def gather(strategy: tf.distribute.Strategy, number: int) -> list[int]:
    """The numbers of all workers; each waits here for the others."""
    index, count = worker(strategy)
    if count == 1:
        return [number]
    # A sum of vectors, as `Strategy.gather` traces a new function each time and warns of it.
    vector = number * tf.one_hot(index, count, dtype=tf.int32)
    with _watched():
        return strategy.reduce(tf.distribute.ReduceOp.SUM, vector, axis=None).numpy().tolist()


def wait_for(path: str | os.PathLike, seconds: float = _FILE_SECONDS) -> None:
    """Waits until this worker sees a file that the chief has written.

    Raises:
        InputError: the time is over.
    """
    path, deadline = pathlib.Path(path), time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise InputError(
                f"{path}, written by worker 0, is not seen here: put --workdir where all machines share it"
            )
        time.sleep(0.1)


def watch(strategy: tf.distribute.Strategy):
    """A context that raises a `WorkerError` where TensorFlow finds that another worker has died."""
    return _watched() if worker(strategy)[1] > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def _watched():
    try:
        yield
    except _LOST as error:
        raise WorkerError(
            "another worker has stopped or can't be reached: see its log for why; start all workers again with the "
            "same command, and they continue from the last checkpoint"
        ) from error
