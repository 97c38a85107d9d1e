"""Folders of images, of every mode that the decoder meets, and what is wrong with them."""

import numpy as np
import pytest
from absl import logging
from PIL import Image

from kd_keras.data import batches, folder
from kd_keras.errors import InputError


def picture(value, size=(10, 12)):
    """A picture (height, width) of one colour, so that it stays exact under resizing."""
    return Image.fromarray(np.full((*size, 3), value, np.uint8))


def write_tree(root, counts=None, classes=("cat", "dog"), size=(10, 12)):
    """PNGs <root>/<class>/<n>.png whose red channel is n and whose green is the label."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for n in range(20 if counts is None else counts):
            picture((n, label, 9), size).save(root / name / f"{n:03d}.png")


def reds(source):
    images, labels = source.read(range(len(source)))
    np.testing.assert_array_equal(images[:, 0, 0, 1], labels)
    return {(int(label), int(red)) for label, red in zip(labels, images[:, 0, 0, 0], strict=True)}


@pytest.mark.parametrize("in_memory", [False, True])
def test_one_tree_is_split_stratified_without_overlap(tmp_path, in_memory):
    write_tree(tmp_path)
    splits = folder.build(str(tmp_path), val_fraction=0.2, test_fraction=0.3, in_memory=in_memory)
    parts = [reds(split) for split in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [20, 8, 12]
    assert len(set().union(*parts)) == 40
    assert np.bincount(splits.val.labels).tolist() == [4, 4]
    assert splits.class_names == ("cat", "dog") and splits.image_shape == (10, 12, 3)
    again = folder.build(str(tmp_path), val_fraction=0.2, test_fraction=0.3)
    assert reds(again.test) == parts[2]
    (batch, _) = next(iter(batches(splits.train, 4)))
    assert batch.shape == (4, 10, 12, 3)


@pytest.mark.parametrize("alias", ["val", "valid", "validation"])
def test_given_splits_are_kept(tmp_path, alias):
    for n, split in enumerate(("train", alias, "test")):
        write_tree(tmp_path / split, counts=3 + n)
    splits = folder.build(str(tmp_path))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 8, 10]


def test_missing_val_or_test_is_carved_from_train(tmp_path):
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test", counts=5)
    splits = folder.build(str(tmp_path), val_fraction=0.25)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert not reds(splits.train) & reds(splits.val)
    (tmp_path / "test").rename(tmp_path / "val")
    splits = folder.build(str(tmp_path), test_fraction=0.25)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert not reds(splits.train) & reds(splits.test)


def modes(root):
    """One file of each mode, the same colour in each: (120, 60, 30), or its grey."""
    colour = picture((120, 60, 30))
    wanted = {}
    for name, image in {
        "rgb.png": colour,
        "palette.png": colour.convert("P", palette=Image.Palette.ADAPTIVE),
        "alpha.png": colour.convert("RGBA"),
        "rgb.bmp": colour,
        "rgb.gif": colour,
        "rgb.jpg": colour,
        "cmyk.JPEG": colour.convert("CMYK"),
    }.items():
        image.save(root / name)
        wanted[name] = (120, 60, 30)
    grey = colour.convert("L")
    value = grey.getpixel((0, 0))
    for name, image in {
        "grey.png": grey,
        "grey_alpha.png": grey.convert("LA"),
        "grey.bmp": grey,
        "grey.jpg": grey,
        "sixteen.png": Image.fromarray(np.full((10, 12), value * 257, np.uint16)),
    }.items():
        image.save(root / name)
        wanted[name] = (value,) * 3
    return wanted, value


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("image_size", [None, (5, 6), 16])
def test_every_mode_decodes_to_uint8(tmp_path, channels, image_size):
    write_tree(tmp_path, classes=("b",))
    (tmp_path / "a").mkdir()
    wanted, grey = modes(tmp_path / "a")
    splits = folder.build(str(tmp_path), image_size=image_size, channels=channels, val_fraction=0.3, test_fraction=0.3)
    height, width = {None: (10, 12), (5, 6): (5, 6), 16: (16, 16)}[image_size]
    assert splits.image_shape == (height, width, channels)
    seen = 0
    for split in (splits.train, splits.val, splits.test):
        files = split._source.paths
        images, labels = split.read(range(len(split)))
        for row, image, label in zip(split._rows.numpy(), images.numpy(), labels.numpy(), strict=True):
            if label == 0:
                name = files[row].rpartition("/")[2]
                expected = wanted[name] if channels == 3 else (grey,)
                np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=3, err_msg=name)
                seen += 1
    assert seen == len(wanted)


def test_resizing_is_antialiased(tmp_path):
    # One bright column in four, which reading the middle of each four would miss.
    board = np.tile(np.array([255, 0, 0, 0], np.uint8), (32, 8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for n in range(4):
            Image.fromarray(board).save(tmp_path / name / f"{n}.png")
    splits = folder.build(str(tmp_path), image_size=8, val_fraction=0.25, test_fraction=0.25)
    inner = splits.train.read([0])[0].numpy()[0, 2:-2, 2:-2]
    assert np.all(np.abs(inner.astype(int) - 64) < 8)


def break_files(root, count):
    """Truncates JPEGs of the right head, so that only decoding finds them out."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    for n in range(count):
        path = root / "cat" / f"broken{n}.jpg"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-60])


def test_broken_files_are_named_and_counted(tmp_path):
    write_tree(tmp_path)
    break_files(tmp_path, 7)
    with pytest.raises(InputError) as caught:
        folder.build(str(tmp_path))
    message = str(caught.value)
    assert "7 of 47 images" in message and "2 more" in message and "skip_bad_images=True" in message
    assert message.count(".jpg") == 5 and "\n" not in message


@pytest.mark.parametrize("in_memory", [False, True])
def test_broken_files_can_be_left_out(tmp_path, in_memory, monkeypatch):
    write_tree(tmp_path)
    break_files(tmp_path, 2)
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "dog" / "text.jpg").write_text("no image")
    picture((200, 30, 9)).quantize(4).save(tmp_path / "dog" / "palette.bmp")
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
    splits = folder.build(str(tmp_path), skip_bad_images=True, in_memory=in_memory)
    found = [reds(split) for split in (splits.train, splits.val, splits.test)]
    assert set().union(*found) == {(label, n) for label in (0, 1) for n in range(20)}
    assert "5 of 45 images" in said[0] and "palette.bmp" in said[0] and "empty.png" in said[0]


def test_hidden_and_other_files_are_passed_over(tmp_path):
    write_tree(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    splits = folder.build(str(tmp_path))
    assert sum(len(s) for s in (splits.train, splits.val, splits.test)) == 40


def test_another_size_is_named(tmp_path):
    write_tree(tmp_path)
    picture((0, 0, 9), (10, 13)).save(tmp_path / "dog" / "wide.png")
    with pytest.raises(InputError, match=r"wide.png is 10×13 pixels and .*000.png 10×12: set image_size"):
        folder.build(str(tmp_path))
    assert len(folder.build(str(tmp_path), image_size=(10, 12)).class_names) == 2


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        folder.build(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="0 class folders"):
        folder.build(str(tmp_path))
    write_tree(tmp_path, classes=("cat",))
    with pytest.raises(InputError, match="1 class folder "):
        folder.build(str(tmp_path))
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match=r"dog has no image"):
        folder.build(str(tmp_path))
    for wrong in ({"channels": 2}, {"image_size": 0}, {"image_size": (1, 2, 3)}, {"image_size": 1.5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            folder.build(str(tmp_path), **wrong)


def test_classes_that_differ_between_splits_are_named(tmp_path):
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test", classes=("cat", "cow"))
    with pytest.raises(InputError, match="differ in the classes cow, dog"):
        folder.build(str(tmp_path))


def test_two_names_of_one_split_are_refused(tmp_path):
    for name in ("train", "val", "validation"):
        write_tree(tmp_path / name, counts=2)
    with pytest.raises(InputError, match="both val and validation"):
        folder.build(str(tmp_path))
