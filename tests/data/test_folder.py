"""Folders of images, of every mode that the decoder meets, and what is wrong with them."""

import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import logging
from PIL import Image, ImageOps

from kd_keras.data import FileSource, batches, decoding, folder
from kd_keras.data import image_files as _image_files
from kd_keras.errors import InputError
from kd_keras.run import __main__ as run


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


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_one_tree_is_split_stratified_without_overlap(tmp_path, cache):
    write_tree(tmp_path)
    splits = folder.Folder(str(tmp_path), val_fraction=0.2, test_fraction=0.3, cache=cache)
    parts = [reds(split) for split in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [20, 8, 12]
    assert len(set().union(*parts)) == 40
    assert np.bincount(splits.val.labels).tolist() == [4, 4]
    assert splits.class_names == ("cat", "dog") and splits.image_shape == (10, 12, 3)
    again = folder.Folder(str(tmp_path), val_fraction=0.2, test_fraction=0.3)
    assert reds(again.test) == parts[2]
    (batch, _) = next(iter(batches(splits.train, 4)))
    assert batch.shape == (4, 10, 12, 3)


@pytest.mark.parametrize("alias", ["val", "valid", "validation"])
def test_given_splits_are_kept(tmp_path, alias):
    for n, split in enumerate(("train", alias, "test")):
        write_tree(tmp_path / split, counts=3 + n)
    splits = folder.Folder(str(tmp_path))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [6, 8, 10]


def test_missing_val_or_test_is_carved_from_train(tmp_path):
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test", counts=5)
    splits = folder.Folder(str(tmp_path), val_fraction=0.25)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [30, 10, 10]
    assert not reds(splits.train) & reds(splits.val)
    (tmp_path / "test").rename(tmp_path / "val")
    splits = folder.Folder(str(tmp_path), test_fraction=0.25)
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
        # Of these TensorFlow decodes none, or to other colours without a word; the last two have another's name.
        "palette.bmp": colour.quantize(4),
        "bits.bmp": Image.new("1", (12, 10), 1),
        "tiff.png": colour,
        "palette.jpg": colour.quantize(4),
    }.items():
        image.save(root / name, {"tiff.png": "TIFF", "palette.jpg": "BMP"}.get(name))
        wanted[name] = (120, 60, 30) if name != "bits.bmp" else (255, 255, 255)
    grey = colour.convert("L")
    value = grey.getpixel((0, 0))
    for name, image in {
        "grey.png": grey,
        "grey_alpha.png": grey.convert("LA"),
        "grey.bmp": grey,
        "grey.jpg": grey,
        "sixteen.png": Image.fromarray(np.full((10, 12), value * 257, np.uint16)),
        "sixteen_tiff.png": Image.fromarray(np.full((10, 12), value * 257, np.uint16)),
    }.items():
        image.save(root / name, "TIFF" if "tiff" in name else None)
        wanted[name] = (value,) * 3
    return wanted, value


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("image_size", [None, (5, 6), 16])
def test_every_mode_decodes_to_uint8(tmp_path, channels, image_size):
    write_tree(tmp_path, classes=("b",))
    (tmp_path / "a").mkdir()
    wanted, grey = modes(tmp_path / "a")
    splits = folder.Folder(str(tmp_path), image_size=image_size, channels=channels, val_fraction=0.3, test_fraction=0.3)
    height, width = {None: (10, 12), (5, 6): (5, 6), 16: (16, 16)}[image_size]
    assert splits.image_shape == (height, width, channels)
    seen = 0
    for split in (splits.train, splits.val, splits.test):
        files = split._source.paths
        images, labels = split.read(range(len(split)))
        for row, image, label in zip(split._rows.numpy(), images.numpy(), labels.numpy(), strict=True):
            if label == 0:
                name = files[row].rpartition("/")[2]
                name = name.partition("-")[0]  # of a converted file <name>-<key>.png
                expected = wanted[name] if channels == 3 else ({"bits.bmp": 255}.get(name, grey),)
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
    splits = folder.Folder(str(tmp_path), image_size=8, val_fraction=0.25, test_fraction=0.25)
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
        folder.Folder(str(tmp_path))
    message = str(caught.value)
    assert "7 of 47 images" in message and "2 more" in message and "skip_bad_images=True" in message
    assert message.count(".jpg") == 5 and "\n" not in message


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_broken_files_can_be_left_out(tmp_path, cache, monkeypatch):
    write_tree(tmp_path)
    break_files(tmp_path, 2)
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "dog" / "text.jpg").write_text("no image")
    picture((0, 0, 9)).quantize(4).save(tmp_path / "dog" / "cut.bmp")
    whole = (tmp_path / "dog" / "cut.bmp").read_bytes()
    (tmp_path / "dog" / "cut.bmp").write_bytes(whole[:-30])
    # Pillow would show it without a word, as it does what a broken PNG has.
    picture((0, 0, 9)).save(tmp_path / "dog" / "cut.png")
    whole = (tmp_path / "dog" / "cut.png").read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(whole[:-6])
    Image.fromarray(np.zeros((10, 12), np.float32)).save(tmp_path / "dog" / "no_range.png", "TIFF")
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
    splits = folder.Folder(str(tmp_path), skip_bad_images=True, cache=cache)
    found = [reds(split) for split in (splits.train, splits.val, splits.test)]
    assert set().union(*found) == {(label, n) for label in (0, 1) for n in range(20)}
    assert "7 of 47 images" in said[0] and "cut.bmp" in said[0] and "empty.png" in said[0]


def test_a_file_read_by_way_of_pillow_is_converted_once(tmp_path, keras_home, monkeypatch):
    write_tree(tmp_path, counts=10)
    path = tmp_path / "cat" / "palette.bmp"
    picture((99, 0, 9)).quantize(4).save(path)
    first = folder.Folder(str(tmp_path))
    (png,) = (keras_home / "datasets" / "kd_keras" / "converted").iterdir()
    before = png.stat()
    assert folder.Folder(str(tmp_path)).train.fingerprint == first.train.fingerprint
    assert png.stat().st_ctime_ns == before.st_ctime_ns
    png.unlink()
    again = folder.Folder(str(tmp_path))
    assert again.train.fingerprint == first.train.fingerprint
    assert (0, 99) in set().union(*(reds(split) for split in (again.train, again.val, again.test)))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"1 of 21 images cannot be decoded: .*palette\.bmp"):
        folder.Folder(str(tmp_path))
    # A cache that holds its verdict but can take no file.
    picture((99, 0, 9)).quantize(4).save(path)
    folder.Folder(str(tmp_path))
    shutil.rmtree(png.parent)
    png.parent.write_text("in the way")
    with pytest.raises(InputError, match=r"palette\.bmp has to be converted to .* cannot be written .*KERAS_HOME"):
        folder.Folder(str(tmp_path))


@pytest.mark.parametrize(
    "orientation", [6, *(pytest.param(other, marks=pytest.mark.slow) for other in (1, 2, 3, 4, 5, 7, 8))]
)
def test_an_image_is_turned_as_its_camera_says(tmp_path, orientation):
    """Against Pillow, which decodes and turns on its own."""
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (3, 2, 3)), np.ones((16, 16, 1))).astype("uint8")
    write_tree(tmp_path, size=(48, 32) if orientation < 5 else (32, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "cat" / "turned.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    splits = folder.Folder(str(tmp_path))
    sources = (splits.train, splits.val, splits.test)
    source, row = next((s, row) for s in sources for row in range(len(s)) if s.name_of(row) == str(path))
    seen = source.read([row])[0][0].numpy()
    assert seen.shape == expected.shape and np.abs(seen.astype(int) - expected).max() <= 2
    # Another size is drawn from the upright image.
    assert source.at((16, 16, 1)).read([0])[0].shape == (1, 16, 16, 1)


def test_every_orientation_turns_as_in_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype("uint8")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "TIFF", exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(stored)))
        np.testing.assert_array_equal(decoding.upright(pixels, np.uint8(orientation)), expected)


def test_the_digest_of_a_turned_image_is_its_own(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for path in paths:
        picture(3).save(path)
    plain, turned = (FileSource(paths, [0, 1], (10, 12, 3), o) for o in (None, [1, 6]))
    assert (plain.digests[0] == turned.digests[0]).all() and (plain.digests[1] != turned.digests[1]).any()
    assert plain.fingerprint == FileSource(paths, [0, 1], (10, 12, 3), [1, 1]).fingerprint


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp"])
def test_postscript_is_opened_by_nobody(tmp_path, monkeypatch, name):
    """Pillow starts Ghostscript on it, whatever it is called."""
    write_tree(tmp_path)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n"
    (tmp_path / "cat" / name).write_bytes(text)
    programs = tmp_path.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "gs").write_text(f"#!/bin/sh\necho started >> {programs / 'log'}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(InputError, match=rf"1 of .* images cannot be decoded: .*{name}"):
        folder.Folder(str(tmp_path))
    assert not (programs / "log").exists()


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    write_tree(tmp_path)
    picture(0, (3000, 2000)).save(tmp_path / "cat" / "large.png")
    size = {"image_size": 8}
    with pytest.raises(InputError, match=r"large.png says that it has 3000×2000 pixels: remove it, leave it out"):
        folder.Folder(str(tmp_path), max_image_pixels=5_999_999, **size)
    left_out = folder.Folder(str(tmp_path), max_image_pixels=5_999_999, skip_bad_images=True, **size)
    taken = folder.Folder(str(tmp_path), **size)
    counts = [sum(len(source) for source in (s.train, s.val, s.test)) for s in (left_out, taken)]
    assert counts[1] == counts[0] + 1
    # The limit holds for what an earlier check has taken, too.
    with pytest.raises(InputError, match=r"large.png says"):
        folder.Folder(str(tmp_path), max_image_pixels=5_999_999, **size)


def test_odd_names_and_links(tmp_path):
    write_tree(tmp_path)
    for crumb in ("__MACOSX", "@eaDir"):
        (tmp_path / crumb).mkdir()
        (tmp_path / crumb / "._a.png").write_bytes(b"no image")
    name = os.fsencode(tmp_path / "cat") + b"/caf\xe9.png"
    os.rename(os.fsencode(tmp_path / "cat" / "000.png"), name)
    splits = folder.Folder(str(tmp_path))
    assert splits.class_names == ("cat", "dog")
    every = [source.read(range(len(source)))[0] for source in (splits.train, splits.val, splits.test)]
    assert sum(map(len, every)) == sum(len(os.listdir(tmp_path / kind)) for kind in ("cat", "dog"))
    os.symlink("loop.png", tmp_path / "cat" / "loop.png")
    with pytest.raises(InputError, match=r"loop.png can't be read .*: remove it"):
        folder.Folder(str(tmp_path))


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "x" * 5000])
def test_what_is_no_name_of_a_folder_is_told(path):
    with pytest.raises(InputError, match=r"path=.*: give the folder that holds the data"):
        folder.Folder(path)


def test_a_class_of_one_image_is_named(tmp_path):
    write_tree(tmp_path, counts=9)
    for path in sorted((tmp_path / "cat").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match=r"class 'cat' has 1 sample where a split in two needs at least 2"):
        folder.Folder(str(tmp_path))


def test_hidden_and_other_files_are_passed_over(tmp_path):
    write_tree(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    splits = folder.Folder(str(tmp_path))
    assert sum(len(s) for s in (splits.train, splits.val, splits.test)) == 40


def test_another_size_is_named(tmp_path):
    write_tree(tmp_path)
    picture((0, 0, 9), (10, 13)).save(tmp_path / "dog" / "wide.png")
    with pytest.raises(InputError, match=r"wide.png is 10×13 pixels and .*000.png 10×12: set image_size"):
        folder.Folder(str(tmp_path))
    assert len(folder.Folder(str(tmp_path), image_size=(10, 12)).class_names) == 2
    # The sizes are known by now, from the check.
    with pytest.raises(InputError, match=r"wide.png is 10×13 pixels and .*000.png 10×12: set image_size"):
        folder.Folder(str(tmp_path))


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        folder.Folder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="0 class folders"):
        folder.Folder(str(tmp_path))
    write_tree(tmp_path, classes=("cat",))
    with pytest.raises(InputError, match="1 class folder "):
        folder.Folder(str(tmp_path))
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match=r"dog has no image"):
        folder.Folder(str(tmp_path))
    for wrong in ({"channels": 2}, {"image_size": 0}, {"image_size": (1, 2, 3)}, {"image_size": 1.5}, {"cache": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            folder.Folder(str(tmp_path), **wrong)


def test_classes_that_differ_between_splits_are_named(tmp_path):
    write_tree(tmp_path / "train")
    write_tree(tmp_path / "test", classes=("cat", "cow"))
    with pytest.raises(InputError, match="differ in the classes cow, dog"):
        folder.Folder(str(tmp_path))


def test_two_names_of_one_split_are_refused(tmp_path):
    for name in ("train", "val", "validation"):
        write_tree(tmp_path / name, counts=2)
    with pytest.raises(InputError, match="both val and validation"):
        folder.Folder(str(tmp_path))


def checks(monkeypatch):
    """The names of the files that are decoded to be checked, as they come."""
    decoded = []
    original = _image_files._decoded_sizes

    def watched(files, places):
        decoded.extend(os.path.basename(files[place]) for place in places)
        return original(files, places)

    monkeypatch.setattr(_image_files, "_decoded_sizes", watched)
    return decoded


def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: said.append(message % args))
    return said


def kept(keras_home, kind):
    (path,) = (keras_home / "datasets" / "kd_keras" / kind).iterdir()
    return path


def test_an_unchanged_file_is_checked_once(tmp_path, monkeypatch):
    write_tree(tmp_path, counts=10)
    decoded = checks(monkeypatch)
    folder.Folder(str(tmp_path))
    assert len(decoded) == 20
    decoded.clear()
    # Neither another size nor another cache asks for a new check.
    folder.Folder(str(tmp_path), image_size=5, channels=1, cache="memory")
    assert decoded == []
    picture((3, 0, 9)).save(tmp_path / "cat" / "new.png")
    picture((4, 0, 9)).save(tmp_path / "cat" / "003.png")
    broken = tmp_path / "dog" / "005.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"1 of 21 images cannot be decoded: .*dog/005.png:"):
        folder.Folder(str(tmp_path))
    assert sorted(decoded) == ["003.png", "005.png", "new.png"]
    decoded.clear()
    with pytest.raises(InputError, match="1 of 21 images"):
        folder.Folder(str(tmp_path))
    said = warnings(monkeypatch)
    splits = folder.Folder(str(tmp_path), skip_bad_images=True)
    assert "005.png" in said[0] and sum(map(len, (splits.train, splits.val, splits.test))) == 20
    # What could not be read may only have been out of reach.
    assert decoded == ["005.png"] * 2


def test_a_touched_file_is_checked_again_though_its_size_is_the_same(tmp_path, monkeypatch):
    write_tree(tmp_path, counts=10)
    folder.Folder(str(tmp_path))
    decoded = checks(monkeypatch)
    path = tmp_path / "dog" / "004.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(InputError, match=r"dog/004\.png"):
        folder.Folder(str(tmp_path))
    assert decoded == ["004.png"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
@pytest.mark.parametrize("kind", ["checked", "images"])
def test_a_damaged_record_is_made_anew(tmp_path, keras_home, monkeypatch, kind, damage):
    write_tree(tmp_path, counts=10)
    first = folder.Folder(str(tmp_path), cache="disk")
    wanted = reds(first.train)
    path = kept(keras_home, kind)
    whole = path.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"cut": whole[:-1], "flipped": flipped, "foreign": b"x" * len(whole), "empty": b""}[damage])
    said, decoded = warnings(monkeypatch), checks(monkeypatch)
    assert reds(folder.Folder(str(tmp_path), cache="disk").train) == wanted
    assert any(str(path) in line and "written again" in line for line in said)
    assert len(decoded) == (20 if kind == "checked" else 0) and path.read_bytes() == whole
    said.clear()
    folder.Folder(str(tmp_path), cache="disk")
    assert said == []


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path, keras_home, monkeypatch):
    write_tree(tmp_path, counts=10)
    (keras_home / "datasets").write_text("in the way")
    said = warnings(monkeypatch)
    assert len(folder.Folder(str(tmp_path)).train) == 16
    assert "cannot be written" in said[0] and "checked again next time" in said[0]
    with pytest.raises(InputError, match=r"cannot be written .*set KERAS_HOME"):
        folder.Folder(str(tmp_path), cache="disk")


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_cache_gives_the_images_of_the_files(tmp_path, cache):
    write_tree(tmp_path, counts=10, classes=("b",))
    (tmp_path / "a").mkdir()
    modes(tmp_path / "a")
    for keys in ({}, {"image_size": (7, 5)}, {"image_size": (7, 5), "channels": 1}):
        plain, cached = (folder.Folder(str(tmp_path), cache=kind, **keys) for kind in ("none", cache))
        for one, other in zip(
            (plain.train, plain.val, plain.test), (cached.train, cached.val, cached.test), strict=True
        ):
            rows = np.arange(len(one))[::-1]
            for left, right in zip(one.read(rows), other.read(rows), strict=True):
                np.testing.assert_array_equal(left, right)


def test_disk_cache_is_written_once_until_a_file_changes(tmp_path, keras_home, monkeypatch):
    write_tree(tmp_path, counts=10)
    said = warnings(monkeypatch)
    folder.Folder(str(tmp_path), cache="disk")
    path = kept(keras_home, "images")
    assert len(said) == 1 and "20 decoded images of 10×12×3 take 0.000 GB" in said[0] and str(path) in said[0]
    assert np.load(path).shape == (20, 10, 12, 3)
    before = path.stat()
    # Nothing is decoded any more: the mapped images serve.
    monkeypatch.setattr(_image_files, "_decoded", lambda source: pytest.fail("decoded again"))
    assert len(reds(folder.Folder(str(tmp_path), cache="disk").train)) == 16
    assert path.stat().st_mtime_ns == before.st_mtime_ns and len(said) == 1
    monkeypatch.undo()
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    picture((77, 0, 9)).save(tmp_path / "cat" / "003.png")
    splits = folder.Folder(str(tmp_path), cache="disk")
    assert (0, 77) in set().union(*(reds(split) for split in (splits.train, splits.val, splits.test)))
    assert kept(keras_home, "images") == path


def test_disk_cache_is_refused_where_there_is_no_room(tmp_path, keras_home, monkeypatch):
    write_tree(tmp_path, counts=10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7199))
    with pytest.raises(InputError, match=r"take 0.000 GB as .*0.000 GB are free: make room") as caught:
        folder.Folder(str(tmp_path), cache="disk")
    assert "\n" not in str(caught.value)
    assert list((keras_home / "datasets" / "kd_keras" / "images").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=7200))
    folder.Folder(str(tmp_path), cache="disk")


def test_a_file_that_breaks_after_its_check_is_told(tmp_path, monkeypatch):
    write_tree(tmp_path, counts=10)
    original = _image_files._check

    def check(*args, **keys):
        found = original(*args, **keys)
        (tmp_path / "cat" / "003.png").write_bytes(b"")
        return found

    monkeypatch.setattr(_image_files, "_check", check)
    with pytest.raises(InputError, match="changed while it was read"):
        folder.Folder(str(tmp_path), cache="memory")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 1])
def test_a_run_names_a_broken_file_and_trains_on_the_rest(tmp_path, capsys, monkeypatch, channels):
    """A user's own photographs: every mode, of mixed sizes, one of them broken."""
    images = tmp_path / "photographs"
    for label, name in enumerate(("a", "b")):
        for copy in range(2):
            (images / name / str(copy)).mkdir(parents=True)
            modes(images / name / str(copy))
            for file in (images / name / str(copy)).iterdir():
                file.rename(images / name / f"{copy}-{file.name}")
        write_tree(images, counts=4, classes=(name,), size=(9 + label, 14))
    broken = images / "a" / "1-cmyk.JPEG"
    broken.write_bytes(broken.read_bytes()[:-60])
    tiny = "cnn(filters=(2,), dense=())"
    flags = [
        *(f"--data=folder({str(images)!r}, channels={channels})", "--image_size=8,9", f"--workdir={tmp_path / 'run'}"),
        *(f"--teacher={tiny}", f"--student={tiny}", "--nobaseline", "--epochs=1", "--tracking=none", "--export=none"),
    ]
    assert run.main(["kd_keras", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"1 of 76 images cannot be decoded: {broken}:" in line and "skip_bad_images=True" in line
    assert not (tmp_path / "run").exists()
    said = warnings(monkeypatch)
    assert run.main(["kd_keras", *flags, "--skip_bad_images"]) == 0
    assert str(broken) in said[0] and "left out" in said[0]
    counts = re.search(r"(\d+) train, (\d+) val, (\d+) test; 2 classes, 8×9×(\d)", capsys.readouterr().out).groups()
    assert sum(map(int, counts[:3])) == 75 and int(counts[3]) == channels


# Prints the most memory of its own, in MB, that a run over a folder takes.
RUN = """
import sys
from kd_keras.data import augment as _augment
from kd_keras.data import FileSource, batches, decoding, folder
splits = folder.Folder(sys.argv[1], image_size=128, cache=sys.argv[2], val_fraction=0.01, test_fraction=0.01)
augment = (_augment.pad_crop(pixels=4), _augment.flip())
most = 0
for step, _ in enumerate(batches(splits.train, 64, training=True, epochs=2, augment=augment)):
    if step % 10 == 0:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        most = max(most, int(status["RssAnon"].split()[0]) // 1024)
print(most)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' account of memory")
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_memory_of_a_run_does_not_grow_with_the_folder(tmp_path, keras_home, cache):
    one = tmp_path / "one.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(one)
    most = {}
    for count in (1000, 4000, 16000):
        root = tmp_path / str(count)
        for place in range(count):
            name = root / str(place % 2) / f"{place}.jpg"
            name.parent.mkdir(parents=True, exist_ok=True)
            os.link(one, name)
        line = [sys.executable, "-c", RUN, str(root), cache]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        most[count] = int(done.stdout.split()[-1])
    print(f"cache={cache!r}: MB by files: {most}")
    # 15 000 decoded images are 737 MB; paths, labels and verdicts are a few.
    assert most[16000] - most[1000] < 60
