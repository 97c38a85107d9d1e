"""The images that calibrate an integer file: whether they can be what the model will see."""

import numpy as np

from kd_keras.errors import InputError

# Fewer images say little of the ranges that a model's activations have.
_FEW = 10
# Images that differ by less than this, in grey levels, are one image.
_SAME = 1.0


def doubts(images: np.ndarray) -> list[str]:
    """What is wrong with images that calibrate the ranges of a file for pixels 0..255, a sentence each.

    Ranges that are too narrow cut off what the model sees later, and the file then answers at random.

    Args:
        images: (n, H, W, C), n > 0.

    Raises:
        InputError: a pixel is no finite number.
    """
    low, high = float(np.min(images)), float(np.max(images))
    if not np.isfinite([low, high]).all():
        raise InputError("the calibration images have pixels that are no finite numbers (NaN or infinity)")
    sentences = []
    if low < 0 or high > 255 or 0 < high <= 1:
        sentences.append(
            f"the calibration images reach from {low:.3g} to {high:.3g}, and the file is for pixels 0 to 255: give "
            "images as the model was trained on, before any scaling that it does itself"
        )
    elif float(np.abs(images - images[:1]).max()) < _SAME:
        sentences.append("the calibration images are all the same: give images of every kind that the model will see")
    if len(images) < _FEW:
        sentences.append(f"there are only {len(images)} calibration images: a hundred are enough")
    return sentences
