"""Images of which only some have a label."""

import numpy as np
import pytest

from kd_keras.data import ArraySource, Splits, batches, folder, join, keep_labels, labelled, take, without_labels
from kd_keras.data import augment as _augment
from kd_keras.errors import InputError
from kd_keras.testing import check_data
from tests.data.test_folder import picture, write_tree

N, K, BATCH = 60, 5, 8
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(N, dtype=np.int64) % K
SOURCE = ArraySource(IMAGES, LABELS)
FEW = keep_labels(SOURCE, 11, seed=0)


def stream(source, **kw):
    kw = {"training": True, "num_classes": K, "with_index": True, **kw}
    return list(batches(source, BATCH, **kw).as_numpy_iterator())


def joined(some, field):
    return np.concatenate([batch[field] for batch in some])


def test_the_labels_of_some_images_are_kept():
    assert (FEW.labels >= 0).sum() == 11 and set(FEW.labels) == {-1, *range(K)}
    assert np.bincount(FEW.labels[FEW.labels >= 0]).tolist() == [3, 2, 2, 2, 2]
    here = FEW.labels >= 0
    np.testing.assert_array_equal(FEW.labels[here], LABELS[here])
    images, labels = FEW.read(np.arange(N))
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, FEW.labels)
    np.testing.assert_array_equal(labelled(FEW).labels, LABELS[here])
    # The same samples as a subset of that size.
    np.testing.assert_array_equal(labelled(FEW).read(range(11))[0], take(SOURCE, 11, seed=0).read(range(11))[0])
    assert not np.array_equal(FEW.labels, keep_labels(SOURCE, 11, seed=1).labels)
    assert keep_labels(SOURCE, N, seed=0) is SOURCE and labelled(SOURCE) is SOURCE
    assert FEW.fingerprint != SOURCE.fingerprint and FEW.images_fingerprint == SOURCE.images_fingerprint


@pytest.mark.parametrize(
    ("n", "reason"), [(0, "0 labelled examples"), (61, "61 labelled examples asked of"), (4, "cannot hold 5 classes")]
)
def test_a_number_of_labels_that_cannot_be_is_refused(n, reason):
    with pytest.raises(InputError, match=reason):
        keep_labels(SOURCE, n, seed=0)


def test_joined_sources_read_any_rows_in_any_order():
    both = join(SOURCE.subset(range(20)), without_labels(SOURCE.subset(range(20, N))))
    rows = np.array([59, 0, 19, 20, 3, 3, 41])
    images, labels = both.read(rows)
    np.testing.assert_array_equal(images, IMAGES[rows])
    np.testing.assert_array_equal(labels, [-1, 0, 4, -1, 3, 3, -1])
    assert both.images_fingerprint == SOURCE.images_fingerprint
    check_data(Splits(both, SOURCE.subset(range(5)), SOURCE.subset(range(5, 10)), tuple("abcde"), SOURCE.image_shape))
    with pytest.raises(InputError, match="can't be joined"):
        join(SOURCE, ArraySource(IMAGES[:, :8], LABELS))


def test_a_label_that_is_left_out_changes_nothing():
    other = LABELS.copy()
    other[FEW.labels < 0] = 0
    swapped = ArraySource(IMAGES, np.where(FEW.labels < 0, -1, other))
    for one, two in zip(stream(FEW), stream(swapped), strict=True):
        for field in ("image", "label", "index"):
            np.testing.assert_array_equal(one[field], two[field])


def test_an_epoch_longer_than_the_data_passes_through_it_again():
    few = labelled(FEW)
    seen = stream(few, length=N, epochs=2, augment=(_augment.pad_crop(pixels=2),))
    assert [len(batch["index"]) for batch in seen] == 2 * [8, 8, 8, 8, 8, 8, 8, 4]
    index = joined(seen, "index")
    for start in range(0, 2 * N - 11, 11):
        assert sorted(index[start : start + 11]) == list(range(11))
    assert len({tuple(index[start : start + 11]) for start in range(0, 2 * N - 11, 11)}) > 5
    # Each time in another view, of which pad_crop(2) has 25.
    views = {image.tobytes() for image in joined(seen, "image")[index == 3]}
    assert len(views) > 5
    resumed = stream(few, length=N, epochs=2, initial_epoch=1, augment=(_augment.pad_crop(pixels=2),))
    np.testing.assert_array_equal(joined(resumed, "image"), joined(seen[8:], "image"))


def test_an_epoch_shorter_than_the_data_goes_on_where_the_last_one_ended():
    index = joined(stream(SOURCE, length=25, epochs=3), "index")
    assert sorted(index[:N]) == list(range(N))


def test_each_batch_has_its_share_of_labelled_images():
    seen = stream(FEW, unlabelled_ratio=3, epochs=2)
    shares = [(batch["label"] >= 0).mean() for batch in seen if len(batch["label"]) == BATCH]
    assert set(shares) == {0.25}
    index, label = joined(seen, "index"), joined(seen, "label")
    np.testing.assert_array_equal(label, FEW.labels[index])
    assert len(index) == 2 * N
    for is_labelled, group in ((True, 11), (False, 49)):
        order = index[(label >= 0) == is_labelled]
        assert len(set(order[:group])) == group
    resumed = stream(FEW, unlabelled_ratio=3, epochs=2, initial_epoch=1)
    np.testing.assert_array_equal(joined(resumed, "index"), index[N:])


def test_without_a_ratio_an_epoch_is_one_pass_over_all():
    assert sorted(joined(stream(FEW), "index")) == list(range(N))


def test_what_is_mixed_with_an_image_without_a_label_has_none():
    for op in (_augment.mixup(alpha=0.5), _augment.cutmix()):
        label = joined(stream(FEW, augment=(op,), epochs=3), "label")
        missing = (label == -1).all(axis=-1)
        assert missing.any() and not missing.all()
        np.testing.assert_allclose(label[~missing].sum(axis=-1), 1, rtol=1e-6)
        assert (label[~missing] >= 0).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"unlabelled_ratio": 0}, "give a number above 0"),
        ({"unlabelled_ratio": 1, "source": SOURCE}, "there are 60 and 0"),
        ({"length": 0}, "length=0"),
        ({"length": 5, "training": False}, "length and unlabelled_ratio are those of training"),
    ],
)
def test_what_cannot_be_is_refused(options, reason):
    options = {"source": FEW, **options}
    with pytest.raises(InputError, match=reason):
        stream(**options)


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_folder_of_images_without_labels(tmp_path, place, cache):
    write_tree(tmp_path / "data", 20)
    rest = tmp_path / ("data" if place == "inside" else ".") / "rest"
    (rest / "deeper").mkdir(parents=True)
    for n in range(7):
        picture((100 + n, 5, 9)).save((rest / "deeper" if n % 2 else rest) / f"{n}.png")
    (rest / ".hidden.png").write_bytes(b"")
    splits = folder.Folder(str(tmp_path / "data"), cache=cache, unlabelled=str(rest) if place == "outside" else "rest")
    assert splits.class_names == ("cat", "dog") and len(splits.train) == 32
    images, labels = splits.unlabelled.read(range(7))
    assert set(labels.numpy()) == {-1} and sorted(images[:, 0, 0, 0].numpy()) == list(range(100, 107))
    check_data(splits)


def test_a_folder_without_images_is_refused(tmp_path):
    write_tree(tmp_path, 20)
    (tmp_path / "rest").mkdir()
    with pytest.raises(InputError, match="rest has no image"):
        folder.Folder(str(tmp_path), unlabelled="rest")
    with pytest.raises(InputError, match=r"unlabelled=.*does not exist"):
        folder.Folder(str(tmp_path), unlabelled="elsewhere")
