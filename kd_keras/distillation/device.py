"""What the machine at hand is fastest in. Each choice has a flag that overrides it; docs/performance.md has figures."""

import pathlib

import tensorflow as tf

from kd_keras.errors import InputError

# Instruction sets that multiply bfloat16, as Linux names them (x86; ARM).
_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}


def _gpus() -> list:
    return tf.config.list_physical_devices("GPU")


def _compute_capability() -> tuple[int, int]:
    """The least of the GPUs'; (0, 0) for one that does not say."""
    details = (tf.config.experimental.get_device_details(gpu) for gpu in _gpus())
    return min(detail.get("compute_capability", (0, 0)) for detail in details)


def cpu_features(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> set[str]:
    """The instruction sets that the CPU offers, as Linux names them; none where there is no such list."""
    if not cpuinfo.exists():
        return set()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = [
        line.partition(":")[2] for line in lines if line.partition(":")[0].strip().lower() in ("flags", "features")
    ]
    return set(flags[0].split()) if flags else set()


def teacher_dtype() -> str:
    """The dtype in which this machine runs a frozen model fastest: ``float32``, ``bfloat16`` or ``float16``.

    GPUs multiply bfloat16 from compute capability 8.0 on, float16 from 7.0 on; CPUs that have instructions for bfloat16
    take half the time of float32 with batch norm folded.
    """
    if _gpus():
        capability = _compute_capability()
        return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"
    return "bfloat16" if _BFLOAT16 & cpu_features() else "float32"


def precision() -> str:
    """Keras' dtype policy in which this machine trains fastest."""
    dtype = teacher_dtype()
    return dtype if dtype == "float32" else f"mixed_{dtype}"


def jit_compile(strategy: tf.distribute.Strategy) -> bool:
    """Whether to compile the step by XLA: it gains on a GPU, loses a quarter on a CPU, and replicas do without."""
    return bool(_gpus()) and strategy.num_replicas_in_sync == 1


def steps_per_execution(strategy: tf.distribute.Strategy, steps_per_epoch: int) -> int:
    """Steps in one call: a call costs a CPU nothing that can be seen; a GPU waits for each.

    Whole calls make an epoch: where they don't, Keras goes on into the next epoch's batches.
    """
    if not _gpus() or strategy.num_replicas_in_sync > 1:
        return 1
    return next(steps for steps in range(8, 0, -1) if steps_per_epoch % steps == 0)


def limit_threads(threads: int) -> None:
    """Lets one operation use so many threads, and so many operations run side by side.

    Raises:
        InputError: TensorFlow has already begun to compute with another number.
    """
    config = tf.config.threading
    if (config.get_intra_op_parallelism_threads(), config.get_inter_op_parallelism_threads()) == (threads, threads):
        return
    try:
        config.set_intra_op_parallelism_threads(threads)
        config.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise InputError(f"--threads={threads}: TensorFlow is at work already; start a process of its own") from error
