"""Large arrays that TensorFlow reads where they lie, in memory or mapped from a file."""

import concurrent.futures
import mmap
import os
from typing import Any

import numpy as np
import tensorflow as tf

from kd_keras._compat import tensorflow

# TensorFlow's tensors begin at a multiple of so many bytes.
_ALIGNMENT = 64


class Rows:
    """Rows of a NumPy array, read by TensorFlow without a copy of the array.

    Of a constant TensorFlow holds two copies and makes a third for each iterator; Python code that reads the array
    would do, but a program that ends meanwhile hangs. A variable is handed on by its handle, and takes the array's
    memory as it is.

    Args:
        array: (N, …), writable (nothing is written), from `aligned` or `mapped`.
    """

    def __init__(self, array: np.ndarray):
        if array.ctypes.data % _ALIGNMENT:
            raise ValueError(f"the array must begin at a multiple of {_ALIGNMENT} bytes: make it by aligned()")
        # A strategy's scope, in which the variable would be copied to every replica, does not reach other threads.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            self._variable = pool.submit(self._shared, array).result()

    @staticmethod
    def _shared(array):
        with tf.device("CPU:0"):
            return tensorflow.variable_in_place(array)

    def __call__(self, indices: Any) -> tf.Tensor:
        """The rows (B, …) at ``indices`` (B,), eagerly or inside ``Dataset.map``."""
        with tf.device("CPU:0"):
            # Not gathered from the variable itself, which makes it copy its memory.
            return tf.gather(self._variable.read_value(), indices)

    def numpy(self) -> np.ndarray:
        """The whole array."""
        return self._variable.numpy()


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An array uint8 of zeros that begins where TensorFlow can read it in place."""
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)


def mapped(path: str | os.PathLike, dtype: Any, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """A file's array, mapped into memory; writing to it may change the file.

    Args:
        path: the file.
        dtype: of the array.
        shape: of the array.
        offset: bytes before it; a multiple of 64, as in ``.npy`` files.
    """
    # TensorFlow takes only what could be written to. A private map of a file that we may only read is counted as
    # memory by some systems, so it comes second.
    mode = "r+" if os.access(path, os.W_OK) else "c"
    return np.memmap(path, dtype, mode, offset, shape)
