"""Settings in which the machine at hand trains fastest. Each has a flag; docs/performance.md has measurements."""

import tensorflow as tf

from kd_keras._compat import tensorflow
from kd_keras.distillation import device
from kd_keras.errors import InputError


def precision() -> str:
    """Keras' dtype policy in which this machine trains fastest."""
    dtype = device.teacher_dtype()
    return dtype if dtype == "float32" else f"mixed_{dtype}"


def jit_compile(strategy: tf.distribute.Strategy) -> bool:
    """Whether to compile the step with XLA: it is faster on a GPU, a quarter slower on a CPU, and for one replica."""
    return tensorflow.gpu_capability() is not None and strategy.num_replicas_in_sync == 1


def steps_per_execution(strategy: tf.distribute.Strategy, steps_per_epoch: int) -> int:
    """Training steps in one call: a GPU waits for each call, a CPU hardly does.

    The number divides the steps of an epoch: otherwise Keras continues into the next epoch's batches.
    """
    if tensorflow.gpu_capability() is None or strategy.num_replicas_in_sync > 1:
        return 1
    return next(steps for steps in range(8, 0, -1) if steps_per_epoch % steps == 0)


def limit_threads(threads: int) -> None:
    """Sets how many threads an operation uses, and how many operations run in parallel.

    Raises:
        InputError: TensorFlow has already started to compute with another number.
    """
    config = tf.config.threading
    if (config.get_intra_op_parallelism_threads(), config.get_inter_op_parallelism_threads()) == (threads, threads):
        return
    try:
        config.set_intra_op_parallelism_threads(threads)
        config.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise InputError(
            f"--threads={threads} comes too late: TensorFlow has already started; use a new process"
        ) from error
