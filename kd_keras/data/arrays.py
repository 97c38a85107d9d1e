"""Large arrays that TensorFlow reads without a copy, in memory or mapped from a file of the cache."""

import concurrent.futures
import io
import mmap
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras import files
from kd_keras._compat import tensorflow
from kd_keras.data.downloads import cache_folder
from kd_keras.errors import InputError

# TensorFlow's tensors start at a multiple of this many bytes.
_ALIGNMENT = 64


class Rows:
    """Rows of a NumPy array, read by TensorFlow without a copy of the array.

    TensorFlow holds two copies of a constant and makes a third for each iterator. Python code that reads the array
    makes a program hang that ends meanwhile. A variable is passed by its handle and uses the array's memory directly.

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
            # Not gathered from the variable itself, which would copy its memory.
            return tf.gather(self._variable.read_value(), indices)

    def numpy(self) -> np.ndarray:
        """The whole array."""
        return self._variable.numpy()


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of zeros that is aligned so that TensorFlow reads it in place."""
    return np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)


def mapped(path: str | os.PathLike, dtype: Any, shape: tuple[int, ...], offset: int) -> np.ndarray:
    """A file's array, mapped into memory; writing to it may change the file.

    Args:
        path: the file.
        dtype: of the array.
        shape: of the array.
        offset: bytes before it; a multiple of 64, as in ``.npy`` files.
    """
    # TensorFlow needs writable memory. Some systems count a private map of a read-only file as used memory, so that is
    # the second choice.
    mode = "r+" if os.access(path, os.W_OK) else "c"
    return np.memmap(path, dtype, mode, offset, shape)


def mapped_images(
    name: str, digest: bytes, shape: tuple[int, ...], images: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """Images in one file of the cache, mapped into memory; the file is written if it does not exist.

    Args:
        name: the file's name in the cache, without ending; images of another digest under it are replaced.
        digest: 32 bytes that change whenever the images do.
        shape: (N, H, W, C).
        images: returns the images in batches, uint8 (B, H, W, C); called only if they have to be written.

    Returns:
        uint8 (N, H, W, C), for `NumpySource`; writing to it would change the cache.

    Raises:
        InputError: the disk has no room, or the file cannot be written.
    """
    path = cache_folder("kd_keras") / "images" / f"{name}.npy"
    existing = _mapped(path, digest, shape)
    if existing is not None:
        return existing
    header, size = _header(shape), int(np.prod(shape))
    what = f"{shape[0]} decoded images of {'×'.join(map(str, shape[1:]))} take {size / 1e9:.3f} GB as {path}"
    advice = "make room, set KERAS_HOME to a folder on another disk, or lower image_size"
    # A warning, because it fills the user's disk and information is not shown by default.
    logging.warning("%s: they are written once", what)

    def write(file):
        # An older file remains until the new one is complete.
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise InputError(f"{what}, and {free / 1e9:.3f} GB are free: {advice}")
        file.write(header)
        for batch in images():
            file.write(np.ascontiguousarray(batch))
        if file.tell() != len(header) + size:
            raise ValueError(f"{file.tell() - len(header)} bytes of images were given for {shape}")
        # After the array, where NumPy does not read, so that images and digest are replaced together.
        file.write(digest)

    try:
        files.write(path, write)
    except OSError as error:
        raise InputError(f"{what}, which cannot be written ({error.strerror}): {advice}") from error
    return mapped(path, np.uint8, shape, len(header))


def _header(shape: tuple[int, ...]) -> bytes:
    """The head of a ``.npy`` file of uint8."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _mapped(path: pathlib.Path, digest: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images of a file of the cache; None where it is missing, damaged or holds other images."""
    if not path.exists():
        return None
    header = _header(shape)
    if path.stat().st_size == len(header) + int(np.prod(shape)) + len(digest):
        with path.open("rb") as file:
            head = file.read(len(header))
            file.seek(-len(digest), os.SEEK_END)
            if head == header and file.read() == digest:
                return mapped(path, np.uint8, shape, len(header))
    logging.warning("%s is damaged or holds other images: it is written again", path)
    return None
