"""Near duplicates over splits."""

import numpy as np
import tensorflow as tf

from kd_keras.data.likeness import lookalikes
from kd_keras.data.sources import ArraySource, Splits


def drawn(count, seed):
    """Images of soft blobs, no two alike."""
    noise = np.random.default_rng(seed).uniform(0, 255, (count, 6, 6, 3)).astype(np.float32)
    return np.clip(tf.image.resize(noise, (48, 48), method="bicubic").numpy(), 0, 255).astype(np.uint8)


def splits(train, val, test):
    sources = (ArraySource(images, np.arange(len(images)) % 2) for images in (train, val, test))
    return Splits(*sources, ("a", "b"), train.shape[1:])


def test_copies_that_were_changed_a_little_are_found_and_equal_ones_left_to_others():
    train, val, test = drawn(200, 0), drawn(40, 1), drawn(40, 2)
    assert lookalikes(splits(train, val, test)) == []
    smaller = tf.image.resize(train[7:8].astype(np.float32), (30, 30), method="area")
    test[3] = np.asarray(tf.image.resize(smaller, (48, 48)))[0]  # in another size and back
    test[5] = np.clip(train[9].astype(float) * 0.8 + 10, 0, 255)  # darker
    test[8] = train[11]  # equal, which `doubts` tells of
    noise = np.random.default_rng(3).normal(0, 4, val[0].shape)
    val[1] = np.clip(train[150] + noise, 0, 255)  # as if compressed
    found = lookalikes(splits(train, val, test))
    assert len(found) == 2
    assert "2 of the 40 test images look like images in train" in found[0] and "the first like" in found[0]
    assert "1 of the 40 val images" in found[1]


def test_images_without_structure_are_like_no_others():
    flat = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 1), np.uint8)
    assert lookalikes(splits(flat[:40], flat[40:50], flat[50:])) == []
