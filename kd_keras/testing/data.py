"""The contract of `kd_keras.data.Splits`."""

import numpy as np
import tensorflow as tf

from kd_keras.data.sources import Source, Splits
from kd_keras.testing import shared


def check_data(splits: Splits) -> None:
    """Checks that a data set's splits can be trained on and evaluated.

    Args:
        splits: what a data set's builder returns.

    Raises:
        AssertionError: the splits break the contract.
    """
    assert isinstance(splits, Splits), f"a data set's builder returns kd_keras.data.Splits, not {type(splits).__name__}"
    for check in DATA_CHECKS:
        check(splits)


def _sources(splits: Splits) -> list[tuple[str, Source]]:
    names = ("train", "val", "test", "unlabelled")
    return [(name, getattr(splits, name)) for name in names if name != "unlabelled" or splits.unlabelled is not None]


def has_three_sources(splits: Splits) -> None:
    """``train``, ``val`` and ``test``, and ``unlabelled`` if there is one, are sources of samples of one shape."""
    for name, source in _sources(splits):
        assert isinstance(source, Source), f"{name} is {type(source).__name__}: a split is a kd_keras.data.Source"
        assert len(source) > 0, f"{name} holds no sample"
        assert tuple(source.image_shape) == tuple(splits.image_shape), (
            f"{name} has images {source.image_shape}, and the splits say {splits.image_shape}"
        )


def labels_are_classes(splits: Splits) -> None:
    """Labels are int32: (N,), each the position of a class name, or (N, K) of 0, 1 and −1, one for each name.

    −1 says that there is no label: of classes only in ``train`` and ``unlabelled``.
    """
    for name, source in _sources(splits):
        labels = source.labels
        if splits.multi_label:
            shape = (len(source), len(splits.class_names))
            assert labels.dtype == np.int32 and labels.shape == shape, (
                f"{name}'s labels are {labels.dtype} {labels.shape}: of several for an image they are int32 {shape}"
            )
            assert np.isin(labels, (-1, 0, 1)).all(), f"{name} has labels other than 0, 1 and -1"
            assert name == "unlabelled" or (labels == 1).any(axis=0).all(), (
                f"{name} has no image with some of the labels"
            )
            continue
        assert labels.dtype == np.int32 and labels.shape == (len(source),), (
            f"{name}'s labels are {labels.dtype} {labels.shape}: they are int32 ({len(source)},), in memory"
        )
        least = 0 if name in ("val", "test") else -1
        most = -1 if name == "unlabelled" else len(splits.class_names) - 1
        assert labels.min() >= least and labels.max() <= most, (
            f"{name} has labels from {labels.min()} to {labels.max()}: they are {least} to {most}"
        )


def reads_what_is_asked_for(splits: Splits) -> None:
    """`read` returns uint8 images and the int32 labels of any indices, eagerly and inside ``Dataset.map``."""
    for name, source in _sources(splits):
        indices = np.array([len(source) - 1, 0, len(source) // 2, 0])
        images, labels = source.read(indices)
        shape = (4, *source.image_shape)
        assert images.dtype == tf.uint8 and images.shape == shape, (
            f"{name}.read returns images {images.dtype.name} {images.shape}: they are uint8 {shape}"
        )
        assert labels.dtype == tf.int32, f"{name}.read returns {labels.dtype.name} labels: they are int32"
        shared.assert_equal(labels, source.labels[indices], f"{name}.read returns other labels than {name}.labels")
        shared.assert_equal(images[1], images[3], f"{name}.read returns different images for one index")
        with shared.explained(
            f"{name}.read does not work inside Dataset.map: it has to be written in TensorFlow operations"
        ):
            mapped, _ = next(iter(tf.data.Dataset.from_tensors(tf.constant(indices)).map(source.read)))
        shared.assert_equal(mapped, images, f"{name}.read returns other images inside Dataset.map")
        single, _ = source.read(indices[2:3])
        shared.assert_equal(
            single[0], images[2], f"{name}.read returns another image for an index when it is read alone"
        )


def has_fingerprints(splits: Splits) -> None:
    """A fingerprint repeats, and differs between sources with different samples."""
    fingerprints = {name: source.fingerprint for name, source in _sources(splits)}
    assert len(set(fingerprints.values())) == len(fingerprints), (
        f"different splits have one fingerprint: {fingerprints}"
    )
    for name, source in _sources(splits):
        every = source.subset(np.arange(len(source)))
        assert every.fingerprint == source.subset(np.arange(len(source))).fingerprint, f"{name}'s fingerprint changes"


#: What `check_data` checks, each a function of `Splits`.
DATA_CHECKS = (has_three_sources, labels_are_classes, reads_what_is_asked_for, has_fingerprints)
