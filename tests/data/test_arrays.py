"""Arrays that TensorFlow reads in place."""

import os

import numpy as np
import pytest
import tensorflow as tf

from kd_keras.data import arrays


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int16", "int32"])
@pytest.mark.parametrize("writable", [True, False])
def test_rows_of_a_mapped_file(tmp_path, dtype, writable, monkeypatch):
    values = np.random.default_rng(0).integers(0, 100, (20, 3)).astype(dtype)
    path = tmp_path / "a.npy"
    np.save(path, values)
    if not writable:
        path.chmod(0o400)
        # Whoever is root may write all the same.
        monkeypatch.setattr(os, "access", lambda *_: False)
    offset = np.load(path, mmap_mode="r").offset
    rows = arrays.Rows(arrays.mapped(path, dtype, values.shape, offset))
    np.testing.assert_array_equal(rows([3, 0, 19]), values[[3, 0, 19]])
    (read,) = tf.data.Dataset.from_tensors([7, 7]).map(rows)
    np.testing.assert_array_equal(read, values[[7, 7]])
    np.testing.assert_array_equal(rows.numpy(), values)


def test_an_array_is_not_mirrored():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        rows = arrays.Rows(arrays.aligned((4, 2)))
    assert type(rows._variable).__name__ == "ResourceVariable"
