"""Two of scikit-learn's handwritten digits in one image, with a label for each digit; needs no download."""

import numpy as np

from kd_keras.data.digits import Digits
from kd_keras.data.sources import ArraySource, Splits
from kd_keras.errors import InputError, is_count

_SIDE = 16


def DigitPairs(val_fraction: float = 0.15, test_fraction: float = 0.2, repeats: int = 1, seed: int = 0) -> Splits:
    """Images 16×16×1 of two digits side by side, each 8×8 at a random height, and which of the digits 0 to 9 they show.

    The labels are independent (multi-label): (N, 10) of 0 and 1, with one 1 where both digits are the same. No digit is
    in two splits, and within a split each digit is used twice as often as there are repeats.

    Args:
        val_fraction: part of all digits for validation.
        test_fraction: part of all digits for testing.
        repeats: images for each digit of a split.
        seed: of the splits and of the pairs.

    Raises:
        InputError: a value is out of range.

    Reference: see `Digits`.
    """
    if not is_count(repeats):
        raise InputError(f"repeats={repeats!r}: give a whole number of at least 1")
    digits = Digits(val_fraction, test_fraction, seed)
    named = {name: getattr(digits, name) for name in ("train", "val", "test")}
    sources = {
        name: _pairs(source, repeats, np.random.default_rng((seed, number)))
        for number, (name, source) in enumerate(named.items())
    }
    return Splits(**sources, class_names=digits.class_names, image_shape=(_SIDE, _SIDE, 1))


def _pairs(source, repeats, draw) -> ArraySource:
    count = len(source)
    digits = source.read(np.arange(count))[0].numpy()
    chosen = np.concatenate([np.stack([draw.permutation(count), draw.permutation(count)]) for _ in range(repeats)], 1)
    images = np.zeros((chosen.shape[1], _SIDE, _SIDE, 1), np.uint8)
    labels = np.zeros((chosen.shape[1], 10), np.int32)
    tops = draw.integers(0, _SIDE - 8 + 1, chosen.shape)
    for image, label, pair, heights in zip(images, labels, chosen.T, tops.T, strict=True):
        for left, digit, top in zip((0, 8), pair, heights, strict=True):
            image[top : top + 8, left : left + 8] = digits[digit]
            label[source.labels[digit]] = 1
    return ArraySource(images, labels)
