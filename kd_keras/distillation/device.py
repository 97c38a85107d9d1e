"""The dtype in which the machine at hand runs a model fastest; docs/performance.md has measurements."""

import pathlib

import keras

from kd_keras._compat import tensorflow

# Instruction sets that multiply bfloat16, as Linux names them (x86; ARM).
_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16", "svebf16"}


def cpu_features(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> set[str]:
    """The CPU's instruction sets, as Linux names them; an empty set where there is no such list."""
    if not cpuinfo.exists():
        return set()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = [
        line.partition(":")[2] for line in lines if line.partition(":")[0].strip().lower() in ("flags", "features")
    ]
    return set(flags[0].split()) if flags else set()


def teacher_dtype() -> str:
    """The dtype in which this machine runs a fast copy fastest: ``float32``, ``bfloat16`` or ``float16``.

    GPUs multiply bfloat16 from compute capability 8.0 on, float16 from 7.0 on. CPUs with instructions for bfloat16
    take half the time of float32 once batch norm is folded.
    """
    capability = tensorflow.gpu_capability() if keras.backend.backend() == "tensorflow" else None
    if capability is not None:
        return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"
    return "bfloat16" if _BFLOAT16 & cpu_features() else "float32"
