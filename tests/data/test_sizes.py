"""The same images in several sizes, and the same views of them."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kd_keras.data import ArraySource, Views, batches, folder, join, keep_labels
from kd_keras.data import augment as _augment
from kd_keras.errors import InputError

N, SMALL, LARGE = 24, (12, 12, 1), (24, 24, 3)
# Smooth, so that sizes are comparable.
COARSE = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 1)).astype(np.float32)
IMAGES = tf.image.resize(COARSE, (12, 12), method="bicubic").numpy().clip(0, 255).astype(np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(N) % 4)


def both(*operations, epochs=2, **options):
    stream = batches(
        SOURCE, 8, training=True, epochs=epochs, augment=operations, num_classes=4, teacher_shape=LARGE, **options
    )
    seen = list(stream.as_numpy_iterator())
    return (np.concatenate([batch[field] for batch in seen]) for field in ("image", "teacher_image"))


@pytest.mark.parametrize(
    ("operation", "tolerance"),
    [
        (_augment.flip(), 3),
        (_augment.pad_crop(pixels=3), 4),
        (_augment.pad_crop(pixels=3, mode="zero"), 4),
        (_augment.resized_crop(area=0.3), 4),
        (_augment.cutout(size=4), 3),
        (_augment.colour(), 3),
        (_augment.mixup(alpha=0.5), 3),
        (_augment.cutmix(alpha=1.0), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_teacher_sees_the_same_view_in_its_size(operation, tolerance):
    small, large = both(operation)
    assert small.shape[1:] == SMALL and large.shape[1:] == LARGE
    # Each small pixel is four large ones; at edges of boxes and of the image interpolation differs.
    again = large.reshape(len(large), 12, 2, 12, 2, 3).mean(axis=(2, 4, 5))
    assert np.median(np.abs(again - small[..., 0])) < tolerance
    # Another view is far from it.
    assert np.median(np.abs(np.roll(again, 1, axis=0) - small[..., 0])) > 5 * tolerance


def test_what_cannot_be_drawn_in_another_size_is_enlarged():
    class Own(_augment.SampleOp):
        columns = 1

        def on(self, grid):
            return None

        def __call__(self, images, noise):
            return tf.cast(images, tf.float32) * noise[:, :, None, None]

    small, large = both(Own())
    np.testing.assert_allclose(large[..., 0], tf.image.resize(small, (24, 24))[..., 0], atol=1e-3)


def test_views_of_a_cache_are_those_of_the_batches():
    operations = (_augment.pad_crop(pixels=3), _augment.flip())
    views = Views(SOURCE, 2, operations, seed=5, image_shape=LARGE)
    cached = np.concatenate(list(views.batches(1, 8).as_numpy_iterator()))
    seen = batches(SOURCE, 8, training=True, seed=5, epochs=2, initial_epoch=1, augment=operations, with_index=True,
                   teacher_shape=LARGE)  # fmt: skip
    for batch in seen.as_numpy_iterator():
        np.testing.assert_array_equal(batch["teacher_image"], cached[batch["index"]])
    assert views.identity() != Views(SOURCE, 2, operations, seed=5).identity()


def test_files_are_decoded_in_the_size_that_is_asked_for(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for n in range(8):
            Image.fromarray(pixels).save(tmp_path / label / f"{n}.png")
    for cache in ("none", "memory"):
        splits = folder.Folder(
            str(tmp_path), image_size=8, channels=1, val_fraction=0.25, test_fraction=0.25, cache=cache
        )
        assert splits.train.image_shape == (8, 8, 1)
        full = keep_labels(splits.train, 4, seed=0).at((32, 32, 3))
        images, labels = full.read([3, 0])
        # Details that the small image has lost.
        np.testing.assert_array_equal(images[0], pixels)
        assert (full.labels >= 0).sum() == 4 and full.labels[3] == labels[0]


def test_other_sources_are_resized():
    both_ = join(SOURCE, SOURCE).at((6, 6, 3))
    images, labels = both_.read([0, N])
    np.testing.assert_array_equal(images[0], images[1])
    expected = tf.round(tf.image.resize(tf.cast(IMAGES[:1], tf.float32), (6, 6), antialias=True))
    np.testing.assert_array_equal(images[0, ..., 1], expected[0, ..., 0])
    assert labels[0] == labels[1] and SOURCE.at(SMALL) is SOURCE
    with pytest.raises(InputError, match="channels"):
        SOURCE.at((6, 6, 4))
