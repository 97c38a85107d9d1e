import warnings

import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.export import calibration, tflite

PIXELS = np.random.default_rng(0).uniform(0, 255, (20, 6, 6, 1)).astype("float32")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (PIXELS / 255, "reach from .* to 1,.*pixels 0 to 255"),
        pytest.param(PIXELS / 127.5 - 1, "reach from -", marks=pytest.mark.slow),
        pytest.param(PIXELS * 257, "reach from", marks=pytest.mark.slow),
        (np.repeat(PIXELS[:1], 20, axis=0), "all the same"),
        pytest.param(PIXELS * 0, "all the same", marks=pytest.mark.slow),
        (PIXELS[:4], "only 4 calibration images"),
    ],
)
def test_images_that_say_little_are_warned_of(images, says):
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.warns(UserWarning, match=says):
        tflite.convert(model, "int8", images)


def test_images_as_the_model_was_trained_on_are_not():
    assert calibration.doubts(PIXELS) == [] and calibration.doubts(PIXELS.round()) == []
    # Dark photographs, and drawings in black and white.
    assert calibration.doubts(PIXELS / 10) == [] and calibration.doubts((PIXELS > 128) * 255.0) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        tflite.convert(model, "float32", PIXELS / 255)


def test_pixels_that_are_no_numbers_are_refused():
    images = PIXELS.copy()
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="no finite numbers"):
        calibration.doubts(images)
