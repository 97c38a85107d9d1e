"""Images in two splits, and equal images with different labels."""

import numpy as np
import pytest

from kd_keras.data import overlaps
from kd_keras.data.sources import ArraySource, Splits


def splits(unlabelled=None, **labels):
    """Splits of different images, by default with labels 0, 1, 0, 1 …"""
    draw = np.random.default_rng(0)
    made = {}
    for name, count in (("train", 6), ("val", 4), ("test", 4)):
        given = np.asarray(labels.get(name, np.arange(count) % 2))
        made[name] = draw.integers(256, size=(count, 2, 2, 1)).astype("uint8"), given
    return made


def found(made, unlabelled=None):
    sources = {name: ArraySource(*given) for name, given in made.items()}
    extra = None if unlabelled is None else ArraySource(unlabelled, np.full(len(unlabelled), -1))
    return overlaps.doubts(Splits(**sources, class_names=("a", "b"), image_shape=(2, 2, 1), unlabelled=extra))


def test_splits_without_a_common_image_are_passed_over():
    made = splits()
    made["train"][0][3] = made["train"][0][1]  # twice in train, with one label
    assert found(made) == []


@pytest.mark.parametrize(("held_out", "other"), [("test", "train"), ("test", "val"), ("val", "train")])
def test_images_in_two_splits_are_counted_and_named(held_out, other):
    made = splits()
    made[held_out][0][[1, 3]] = made[other][0][[1, 3]]
    (sentence,) = found(made)
    assert sentence.startswith(f"2 of the 4 {held_out} images are in {other} too (number 1, number 3): figures of the")


def test_images_without_labels_count_too():
    made = splits()
    (sentence,) = found(made, unlabelled=made["test"][0][:1])
    assert sentence.startswith("1 of the 4 test images are in unlabelled too (number 0)")


def test_equal_images_with_different_labels_are_named():
    made = splits()
    made["train"][0][4] = made["train"][0][1]
    (sentence,) = found(made)
    told = "1 pairs of equal images have different labels (number 1 in train and number 4 in train)"
    assert sentence.startswith(told)


def test_equal_images_with_different_labels_are_named_in_whichever_split():
    made = splits()
    made["val"][0][0] = made["train"][0][1]
    assert "(number 1 in train and number 0 in val)" in found(made)[1]


def test_a_label_that_is_not_known_contradicts_none():
    made = splits(train=[[0, 1], [1, -1], [0, 0], [1, 1], [-1, 1], [0, 1]], val=np.ones((4, 2)), test=np.ones((4, 2)))
    made["train"][0][4] = made["train"][0][1]
    assert found(made) == []
    made["train"][1][4, 0] = 0
    assert len(found(made)) == 1


def test_names_that_a_reader_takes_for_one_are_told():
    made = {name: ArraySource(*given) for name, given in splits().items()}
    for pair in (("Cat", "cat"), ("cat", "cat "), ("caf\u00e9", "cafe\u0301")):
        (sentence,) = overlaps.doubts(Splits(**made, class_names=pair, image_shape=(2, 2, 1)))
        assert sentence.startswith(f"the classes {pair[0]!r} and {pair[1]!r} differ in case")


def test_many_are_counted():
    made = splits()
    made["test"][0][:] = made["train"][0][:4]
    assert "(number 0, number 1, number 2 and 1 more)" in found(made)[0]
