import json
import zipfile

import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.evaluate import cost
from kd_keras.export import metadata, tflite
from kd_keras.models import cnn

NAMES = ["Käfer", "dog, small", "cat"]


@pytest.fixture(scope="module")
def plain():
    keras.utils.set_random_seed(0)
    return tflite.convert(cnn.CNN(3, (8, 8, 1), filters=(4,), dense=()), "int8_io", np.full((4, 8, 8, 1), 9.0))


def test_any_zip_reader_finds_it_and_litert_does_not_mind(plain, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(metadata.attach(plain, NAMES, variant="int8_io"))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("labels.txt").decode().splitlines() == NAMES
        record = json.loads(archive.read("metadata.json"))
    assert record == metadata.read(path)
    assert record["class_names"] == NAMES and record["variant"] == "int8_io"
    given = record["input"]
    assert (given["name"], given["shape"], given["dtype"]) == ("image", [1, 8, 8, 1], "int8")
    assert given["range"] == [0, 255] and given["layout"] == "NHWC"
    assert record["output"]["name"] == "logits" and record["output"]["scale"] > 0
    assert "CONV_2D" in record["operators"] and "FULLY_CONNECTED" in record["operators"]
    images = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1))
    np.testing.assert_array_equal(tflite.load(path).predict(images), tflite.load(plain).predict(images))
    assert metadata.attach(plain, NAMES, variant="int8_io") == path.read_bytes()


def test_a_file_without_is_refused(plain, tmp_path):
    path = tmp_path / "a.tflite"
    with pytest.raises(InputError, match="has no metadata"):
        metadata.read(path)
    path.write_bytes(plain)
    with pytest.raises(InputError, match="has no metadata"):
        metadata.read(path)


@pytest.mark.slow
def test_peak_memory_grows_with_the_model(tmp_path):
    keras.utils.set_random_seed(0)
    peaks = []
    for units in (8, 4096):
        path = tmp_path / f"{units}.tflite"
        path.write_bytes(tflite.convert(cnn.CNN(3, (32, 32, 1), filters=(8,), dense=(units,)), "float32"))
        peaks.append((cost.peak_memory(path), path.stat().st_size))
    # 8 · 16 · 16 · 4096 weights of 4 bytes are 33.6 MB, and they are in memory.
    assert peaks[1][0] - peaks[0][0] > 0.9 * (peaks[1][1] - peaks[0][1])
