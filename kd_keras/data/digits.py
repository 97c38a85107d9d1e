"""scikit-learn's handwritten digits: 1 797 grey images of 8×8, which need no download."""

import numpy as np
from sklearn.datasets import load_digits

from kd_keras.data.carving import carve_three
from kd_keras.data.sources import ArraySource, Splits


def Digits(val_fraction: float = 0.15, test_fraction: float = 0.2, seed: int = 0) -> Splits:
    """The digits 0 to 9, 8×8×1, their values 0…16 scaled to 0…255.

    Args:
        val_fraction: part of all samples for validation.
        test_fraction: part of all samples for testing.
        seed: of the stratified splits.

    Raises:
        InputError: the fractions are out of range.

    Reference: UCI Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998), its test set.
    """
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    source = ArraySource(images, bunch.target)
    train, val, test = (source.subset(rows) for rows in carve_three(bunch.target, val_fraction, test_fraction, seed))
    return Splits(train, val, test, tuple(str(name) for name in bunch.target_names), source.image_shape)
