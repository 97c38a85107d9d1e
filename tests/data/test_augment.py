"""Each operation against NumPy, eagerly and inside Dataset.map."""

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from kd_keras import spec
from kd_keras.data import augment as _augment
from kd_keras.data import augmentations
from kd_keras.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)
LABELS = np.eye(6, dtype=np.float32)


@pytest.fixture(params=["eager", "map"])
def run(request):
    """Applies an operation to a batch, in both ways in which operations are used."""

    def apply(op, *arguments):
        arguments = tuple(tf.convert_to_tensor(argument) for argument in arguments)
        if request.param == "eager":
            out = op(*arguments)
        else:
            out = next(iter(tf.data.Dataset.from_tensors(arguments).map(op)))
        return tuple(part.numpy() for part in out) if isinstance(out, tuple) else out.numpy()

    return apply


def noise(*rows):
    return np.array(rows, np.float32)


def test_names_are_what_the_flag_takes():
    assert spec.names("kd_keras.data.augment") == sorted(_augment.__all__)
    text = "pad_crop(pixels=2) + flip() + colour() + cutout(size=3) + mixup(alpha=0.2) + cutmix()"
    ops = [spec.build("kd_keras.data.augment", one) for one in spec.parse_many(text)]
    assert [op.columns for op in ops] == [2, 1, 3, 2, 0, 0]
    assert [op.mixes_labels for op in ops] == [False] * 4 + [True] * 2
    assert all(op.stateless for op in ops)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_pad_crop_equals_padding_and_slicing(run, mode, dtype):
    pixels, shifts = 3, [(0, 0), (6, 6), (3, 3), (0, 5), (2, 1), (6, 0)]
    images = IMAGES.astype(dtype)
    drawn = noise(*[((y + 0.5) / 7, (x + 0.5) / 7) for y, x in shifts])
    got = run(_augment.pad_crop(pixels=pixels, mode=mode), images, drawn)
    how = {"reflect": {"mode": "reflect"}, "zero": {"mode": "constant"}}[mode]
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), **how)
    want = np.stack([padded[n, y : y + 9, x : x + 11] for n, (y, x) in enumerate(shifts)])
    np.testing.assert_array_equal(got, want)
    assert got.dtype == dtype


def test_pad_crop_uses_every_shift_and_refuses_too_many_pixels():
    drawn = np.random.default_rng(1).random((6, 2)).astype(np.float32)
    drawn[0] = 0.9999999
    _augment.pad_crop(pixels=8)(tf.constant(IMAGES), tf.constant(drawn))
    with pytest.raises(InputError, match="from 0 to 8"):
        _augment.pad_crop(pixels=9)(tf.constant(IMAGES), tf.constant(drawn))


def bilinear(image, top, left, height, width):
    """A rectangle, in shares of the image, in the image's size: pixel centres, edges repeated."""
    image, sizes = np.asarray(image, float), np.array(image.shape[:2])
    for axis, (first, side) in enumerate([(top, height), (left, width)]):
        n = sizes[axis]
        at = np.clip((first + side * (np.arange(n) + 0.5) / n) * n - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        shape = [-1 if a == axis else 1 for a in range(3)]
        right = (at - low).reshape(shape)
        image = image.take(low, axis) * (1 - right) + image.take(low + 1, axis) * right
    return image


def test_resized_crop_is_a_rectangle_in_the_images_size(run):
    """Half of the area, once square in shares, once twice as wide as high."""
    images = IMAGES.astype(np.float32)
    # share = 0.25 + 0.75 n, ratio = 4 ** (2 n - 1), the place of the upper left corner as a share of what is free.
    drawn = noise(*[(1 / 3, 0.5, 0.5, 0.5), (1 / 3, 0.75, 0.5, 0.5), (1 / 3, 0.75, 0.3, 0.9), (0.9999, 0.5, 0, 0)])
    got = run(_augment.resized_crop(area=0.25, ratio=4.0), images[:4], drawn)
    half = 0.5**0.5
    wide = (0.5 / 2) ** 0.5, 1.0
    boxes = [
        ((1 - half) / 2, (1 - half) / 2, half, half),
        ((1 - wide[0]) / 2, 0, *wide),
        (0.3 * (1 - wide[0]), 0, *wide),
    ]
    for image, box, cut in zip(images, boxes, got, strict=False):
        np.testing.assert_allclose(cut, bilinear(image, *box), atol=0.05)
    np.testing.assert_allclose(got[3], images[3], atol=0.2)
    assert run(_augment.resized_crop(), IMAGES, np.zeros((6, 4), np.float32)).dtype == np.uint8
    # A rectangle at the edge, where pixels outside would be black.
    corner = run(_augment.resized_crop(area=0.25, ratio=1.0), images[:1], noise((0, 0.5, 0, 0)))
    assert np.abs(corner[0] - bilinear(images[0], 0, 0, 0.5, 0.5)).mean() < 25 and corner.min() > 0


def test_flip_follows_its_noise(run):
    got = run(_augment.flip(), IMAGES, noise([0.0], [0.99], [0.49], [0.5], [0.0], [0.99]))
    flipped = IMAGES[:, :, ::-1]
    np.testing.assert_array_equal(got, np.stack([flipped[0], IMAGES[1], flipped[2], IMAGES[3], flipped[4], IMAGES[5]]))
    assert got.dtype == np.uint8


def test_cutout_blackens_the_square(run):
    images = np.full((3, 9, 11, 3), 7, np.uint8)
    got = run(_augment.cutout(size=4), images, noise([4.5 / 9, 5.5 / 11], [0.0, 0.0], [0.999, 0.999]))
    want = images.copy()
    want[0, 2:6, 3:7] = 0
    want[1, :2, :2] = 0
    want[2, 6:, 8:] = 0
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint8


def test_colour_against_numpy(run):
    drawn = RNG.random((6, 3)).astype(np.float32)
    got = run(_augment.colour(brightness=0.4, contrast=0.6, saturation=0.8), IMAGES, drawn)
    for image, row, result in zip(IMAGES.astype(np.float64), drawn, got, strict=True):
        b, c, s = 1 + (2 * row - 1) * np.array([0.4, 0.6, 0.8])
        image = image * b
        image = image.mean() + (image - image.mean()) * c
        grey = image.mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(result, np.clip(grey + (image - grey) * s, 0, 255), atol=1e-3)
    middle = run(_augment.colour(), IMAGES, np.full((6, 3), 0.5, np.float32))
    np.testing.assert_allclose(middle, IMAGES, atol=1e-3)


def mixed(run, op, seed=(1, 2)):
    # Constant images whose value names the sample, so that the share can be read off.
    images = np.zeros((64, 8, 10, 1), np.float32) + 2.0 * np.arange(64, dtype=np.float32)[:, None, None, None]
    out, labels = run(op, images, np.eye(64, dtype=np.float32), np.array(seed, np.int64))
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, atol=1e-6)
    return images, out, labels


def test_mixup_is_the_convex_mix_that_the_labels_say(run):
    images, out, labels = mixed(run, _augment.mixup(alpha=1.0))
    np.testing.assert_allclose(out, np.einsum("bk,khwc->bhwc", labels, images), atol=1e-3)
    own = np.diag(labels)
    assert 0.35 < own.mean() < 0.65 and own.std() > 0.2  # Beta(1, 1): mean 0.5, deviation 0.29
    partners = (labels - np.diag(own)).argmax(axis=1)
    assert (partners != np.arange(64)).sum() > 55


def test_mixup_alpha_is_the_beta_distributions():
    images = tf.zeros((4000, 1, 1, 1))
    labels = tf.one_hot(tf.range(4000) % 2, 2)
    for alpha in (0.2, 1.0, 8.0):
        _, _, share = None, None, _augment._draw(alpha, 4000, tf.constant([5, 6], tf.int64))[1].numpy()
        assert abs(share.mean() - 0.5) < 0.03
        assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    mixed_labels = _augment.mixup(alpha=1e-3)(images, labels, tf.constant([5, 6], tf.int64))[1]
    assert np.all(np.isfinite(mixed_labels))


def test_cutmix_label_share_is_the_pixel_share(run):
    images, out, labels = mixed(run, _augment.cutmix(alpha=1.0))
    boxes = 0
    for n in range(64):
        foreign = out[n, :, :, 0] != images[n, 0, 0, 0]
        np.testing.assert_allclose(1.0 - labels[n, n], foreign.mean(), atol=1e-6)
        if foreign.any():
            partner = int(np.delete(labels[n], n).argmax())
            partner += partner >= n
            assert set(out[n, :, :, 0][foreign]) == {2.0 * partner}
            rows, columns = np.where(foreign)
            assert foreign[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
            boxes += 1
    assert boxes > 30 and 0.3 < np.diag(labels).mean() < 0.9


@pytest.mark.parametrize("op", [_augment.mixup(alpha=0.5), _augment.cutmix(alpha=0.5)])
def test_mixing_is_a_function_of_the_seed(run, op):
    _, one, _ = mixed(run, op, (1, 2))
    _, same, _ = mixed(run, op, (1, 2))
    _, other, _ = mixed(run, op, (1, 3))
    np.testing.assert_array_equal(one, same)
    assert (one != other).mean() > 0.2


@pytest.mark.parametrize(
    "text",
    ["pad_crop(pixels=-1)", "pad_crop(pixels=1.5)", "pad_crop(mode='edge')", "colour(contrast=2)", "cutout(size=0)",
     "resized_crop(area=0)", "resized_crop(ratio=0.5)",
     "mixup(alpha=0)", "cutmix(alpha=-1)", "mixup(alpha='x')", "keras_cv(layer='NoSuch')", "keras_cv(layer='MixUp')",
     "keras_cv(layer=RandAugment(nonsense=1))", "keras_cv(layer=3)"],
)  # fmt: skip
def test_wrong_values_are_refused(text):
    with pytest.raises(InputError) as caught:
        spec.build("kd_keras.data.augment", spec.parse(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param("'RandAugment'", marks=pytest.mark.slow),
        "RandAugment(magnitude=0.9)",
        "GridMask(ratio_factor=(0.4, 0.6))",
    ],
)
def test_keras_cv_layers_change_images_within_range(run, layer, monkeypatch):
    said = []
    monkeypatch.setattr(logging, "log_first_n", lambda level, message, n: said.append((level, message)))
    op = spec.build("kd_keras.data.augment", spec.parse(f"keras_cv(layer={layer})"))
    assert not op.stateless and not op.mixes_labels and op.columns == 0
    assert said[0][0] == logging.WARNING and "exact resume" in said[0][1]
    images = RNG.integers(1, 256, (16, 32, 32, 3), dtype=np.uint8)
    got = run(op, images, np.zeros((16, 0), np.float32))
    assert got.dtype == np.float32 and got.shape == images.shape
    assert got.min() >= 0 and got.max() <= 255 and got.max() > 100
    assert (np.abs(got - images) > 1).mean() > 0.05


def test_a_text_names_operations_in_their_order():
    assert augmentations("pad_crop(2, mode='zero') + flip()") == [_augment.pad_crop(2, mode="zero"), _augment.flip()]
    assert augmentations("none") == []
    with pytest.raises(InputError, match="did you mean 'flip'"):
        augmentations("pad_crop(4) + flop()")
