"""The activations of a file that are alive at once, counted by hand."""

import keras
import numpy as np
import pytest

from kd_keras.export import arena, tflite

IMAGES = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3)).astype("float32")


def chain():
    """8×8×3 = 192 values, 8×8×4 = 256, 4×4×4 = 64, then 5."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = keras.layers.MaxPooling2D()(x)
    return keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(x)))


def with_shortcut():
    """The first map, of 256 values, waits while two others of that size are written and read."""
    image = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, padding="same")(image)
    x = keras.layers.Conv2D(4, 3, padding="same")(first)
    x = keras.layers.Conv2D(4, 3, padding="same")(x)
    x = keras.layers.Add()([x, first])
    return keras.Model(image, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize(
    ("make", "values"), [pytest.param(chain, 192 + 256, marks=pytest.mark.slow), (with_shortcut, 3 * 256)]
)
@pytest.mark.parametrize(("variant", "size"), [("float32", 4), ("int8_io", 1)])
def test_the_largest_sum_of_what_is_alive(make, values, variant, size):
    content = tflite.convert(make(), variant, IMAGES)
    assert arena.activation_bytes(content) == size * values
