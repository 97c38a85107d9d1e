"""Image files as a source: each is checked once and decoded when it is read, or once for a cache.

The user's cache (`kd_keras.data.downloads.cache_folder`), never the folder of the images, holds:

- the result of the check, so that an unchanged file is not decoded again at the next start;
- a PNG of each file that Pillow can decode and TensorFlow cannot, or not in the right colours (TIFF, WebP, BMP with a
  palette);
- with ``cache='disk'`` the decoded images, one NumPy file that is mapped, not loaded.

A file is unchanged while its path, size and modification time (``mtime_ns``) are the same.
"""

import dataclasses
import hashlib
import math
import os
import pathlib
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras import files as whole_files
from kd_keras.data import fingerprints
from kd_keras.data.arrays import aligned, mapped_images
from kd_keras.data.decoding import decode_rgb
from kd_keras.data.downloads import cache_folder
from kd_keras.data.sources import FileSource, NumpySource, Source
from kd_keras.errors import InputError, check_switch, is_count

_CACHES = ("none", "memory", "disk")
_NAMED = 5  # bad files that a message lists; the others are counted
_LARGEST_SIDE = 2**14
#: The limit by default. A small file can claim to hold far more, and would fill the memory when it is decoded.
MOST_PIXELS = 100_000_000
# The formats that Pillow may open, whatever a file is called. For others it would start Ghostscript, or a plug-in.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
# What Pillow's readers raise for damaged files.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, OverflowError, KeyError, struct.error)
_BATCH = 64  # images that are decoded together to fill a cache
# Part of every key: raised when `decode` returns other pixels, so that older caches are not used.
_DECODER = f"2 {tf.__version__}"
# Findings of the check, stored by number, so new ones go to the end. Pillow reads a foreign file.
_GOOD, _BROKEN, _FOREIGN, _LARGE = range(4)
_VERDICT = np.dtype([("key", "<u8"), ("size", "<i4", 2), ("finding", "u1"), ("orientation", "u1")])


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads image files as a source.

    Args:
        image_size: pixels, one side or (height, width), to which images are resized; by default all have the same size.
        channels: 3 for colour, 1 for grey.
        cache: where decoded images are stored: ``'none'`` (files are decoded each time they are read), ``'memory'``,
            or ``'disk'`` (in Keras' cache, for later runs too).
        skip_bad_images: leave out files that cannot be decoded, with a warning, instead of stopping.
        max_image_pixels: a file whose header says more is not decoded, and counts as bad; by default 100 million.

    Raises:
        InputError: a value is out of range.
    """

    image_size: int | tuple[int, int] | None = None
    channels: int = 3
    cache: str = "none"
    skip_bad_images: bool = False
    max_image_pixels: int | None = None

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise InputError(f"channels={self.channels!r}: give 3 for colour or 1 for grey")
        if self.cache not in _CACHES:
            raise InputError(f"cache={self.cache!r}: give one of {', '.join(map(repr, _CACHES))}")
        check_switch("skip_bad_images", self.skip_bad_images)
        if self.max_image_pixels is not None and not is_count(self.max_image_pixels):
            raise InputError(f"max_image_pixels={self.max_image_pixels!r}: give a whole number of at least 1")
        object.__setattr__(self, "image_size", checked_size(self.image_size))

    def source(self, files: Sequence[str | os.PathLike], labels: Any) -> tuple[Source, np.ndarray]:
        """Checks files and returns them as a source.

        Args:
            files: N image files, JPEG, PNG, GIF or BMP; TIFF and WebP are converted to PNG once. The content decides,
                not the name.
            labels: integers (N,).

        Returns:
            The source of the M usable files, and their positions (M,) in ``files``, ascending.

        Raises:
            InputError: files cannot be decoded, differ in size without ``image_size``, or the disk has no room for
                their cache.
        """
        if not len(files):
            raise InputError("there are no image files: check the folder")
        files = [os.path.abspath(file) for file in files]
        keys = fingerprints.keys(files, salt=_DECODER)
        verdicts = _check(files, keys, self.image_size is None, self.max_image_pixels or MOST_PIXELS)
        findings = verdicts["finding"]
        usable = np.flatnonzero(_is_usable(findings))
        _report(files, findings, verdicts["size"], self.skip_bad_images)
        shape = (*(self.image_size or map(int, verdicts["size"][usable[0]])), self.channels)
        foreign = findings == _FOREIGN
        # What Pillow has converted is upright.
        orientations = np.where(foreign, 1, verdicts["orientation"]).astype(np.uint8)[usable]
        paths = [_as_png(files[place], keys[place]) if foreign[place] else files[place] for place in usable]
        source = FileSource(paths, np.asarray(labels)[usable], shape, orientations)
        if self.cache == "none":
            return source, usable
        if self.cache == "disk":
            digest = hashlib.sha256(keys[usable].tobytes()).digest()
            name = f"{_root_name(files)}-{'x'.join(map(str, shape))}"
            images = mapped_images(name, digest, (len(usable), *shape), lambda: _decoded(source))
        else:
            images, start = aligned((len(usable), *shape)), 0
            for batch in _decoded(source):
                images[start : start + len(batch)] = batch
                start += len(batch)
        return NumpySource(images, source.labels, source.digests, source), usable


def checked_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A size as (height, width) in pixels.

    Raises:
        InputError: it is not a size.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if sides is None:
        return None
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(map(is_count, sides)):
        raise InputError(f"image_size={image_size!r}: give pixels, as 64 or (height, width)")
    if max(sides) > _LARGEST_SIDE:
        raise InputError(f"image_size={image_size!r}: give at most {_LARGEST_SIDE} pixels a side")
    return tuple(sides)


def _root_name(files: list[str]) -> str:
    """The name in the cache of what is stored for these files."""
    root = os.path.commonpath(files)
    return f"{os.path.basename(root)}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"


def _check(files: list[str], keys: np.ndarray, one_size: bool, most_pixels: int) -> np.ndarray:
    """Sizes, findings and orientations (N,) `_VERDICT`; decodes the files without a stored result."""
    path = cache_folder("kd_keras") / "checked" / f"{_root_name(files)}-2"
    verdicts = np.zeros(len(files), _VERDICT)
    verdicts["key"], verdicts["finding"] = keys, _BROKEN
    stored = _read_verdicts(path)
    rows = np.minimum(np.searchsorted(stored["key"], keys), max(len(stored) - 1, 0))
    is_known = stored["key"][rows] == keys if len(stored) else np.zeros(len(files), bool)
    verdicts[is_known] = stored[rows[is_known]]
    sizes, findings = verdicts["size"], verdicts["finding"]
    good = np.flatnonzero(findings != _BROKEN)
    findings[good[sizes[good].astype(np.int64).prod(axis=1) > most_pixels]] = _LARGE
    good = np.flatnonzero(_is_usable(findings))
    if one_size:
        _refuse_several_sizes(files, sizes, good)
    new = np.flatnonzero(~is_known)
    if not len(new):
        return verdicts
    logging.info("checking %d of %d image files", len(new), len(files))
    verdicts["orientation"][new] = 1
    for places, file_sizes, finding in _findings(files, keys, new, verdicts["orientation"], most_pixels):
        sizes[places], findings[places] = file_sizes, finding
        if one_size and finding != _LARGE:
            # At once, so that the user learns early that image_size is missing.
            good = np.concatenate([good[:1], places])
            _refuse_several_sizes(files, sizes, good)
    # Others are checked again next time: they may have been temporarily unreadable.
    content = np.sort(verdicts[_is_usable(findings)], order="key").tobytes()
    try:
        whole_files.write(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        logging.warning("%s cannot be written (%s): the images are checked again next time", path, error.strerror)
    return verdicts


def _is_usable(findings: np.ndarray) -> np.ndarray:
    return (findings == _GOOD) | (findings == _FOREIGN)


def _read_verdicts(path: pathlib.Path) -> np.ndarray:
    """The stored results of an earlier check, keys ascending; empty where the record is missing or damaged."""
    nothing = np.zeros(0, _VERDICT)
    if not path.exists():
        return nothing
    record = path.read_bytes()
    digest, content = record[:32], record[32:]
    if hashlib.sha256(content).digest() != digest:
        logging.warning("%s is not a complete record of checked images: it is written again", path)
        return nothing
    return np.frombuffer(content, _VERDICT)


def _findings(
    files: list[str], keys: np.ndarray, places: np.ndarray, orientations: np.ndarray, most_pixels: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Positions (B,) of files that can be read, with their sizes (B, 2) and the finding; fills in orientations (N,)."""
    heads = {int(place): _head(files[place]) for place in places}
    large = np.array([at for at, head in heads.items() if head and math.prod(head[0]) > most_pixels], np.int64)
    if len(large):
        yield large, np.array([heads[at][0] for at in large.tolist()]), _LARGE
    for at, head in heads.items():
        orientations[at] = head[1] if head else 1
    places = np.setdiff1d(places, large)
    good = [places[:0]]
    for decoded, sizes, bitmaps in _decoded_sizes(files, places):
        palettes = [bitmap and _has_palette(files[place]) for place, bitmap in zip(decoded, bitmaps, strict=True)]
        right = ~np.array(palettes, bool)
        good.append(decoded[right])
        on_its_side = orientations[good[-1]] > 4
        yield good[-1], np.where(on_its_side[:, None], sizes[right][:, ::-1], sizes[right]), _GOOD
    for place in np.setdiff1d(places, np.concatenate(good)):
        pixels = _by_pillow(files[place])
        if pixels is not None:
            _as_png(files[place], keys[place], pixels)
            yield np.array([place]), np.array([pixels.shape[:2]]), _FOREIGN


def _decoded_sizes(files: list[str], places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions, in order, of files that training can decode, their sizes, and whether each is a BMP."""

    def decoded(place, path):
        content = tf.io.read_file(path)
        # The size of the decoded image, not that of the header: the whole file is decoded.
        return place, tf.shape(decode_rgb(content))[:2], tf.strings.substr(content, 0, 2) == b"BM"

    if not len(places):
        return
    dataset = tf.data.Dataset.from_tensor_slices((places, [os.fsencode(files[place]) for place in places]))
    dataset = _host(dataset.map(decoded, os.cpu_count() or 1))
    yield from dataset.ignore_errors().batch(256).as_numpy_iterator()


def _head(file: str) -> tuple[tuple[int, int], int] | None:
    """What the start of a file says without decoding it: height and width, and the EXIF orientation.

    Returns:
        None for what Pillow does not take for an image of one of the formats. Orientation 1 where there is none, or one
        out of range.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # Of the size, which is checked here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                # Of a PNG only what stands before the pixels: Pillow would decode them for the rest.
                exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
                orientation = exif.get(_ORIENTATION, 1)
                return image.size[::-1], orientation if orientation in range(1, 9) else 1
    except Image.DecompressionBombError:
        return (_LARGEST_SIDE * 2, _LARGEST_SIDE * 2), 1
    except _PILLOW_ERRORS:
        return None


def _by_pillow(file: str) -> np.ndarray | None:
    """The pixels (H, W) or (H, W, 3), upright, of a file that TensorFlow does not read correctly; None if incomplete.

    A JPEG or PNG that TensorFlow refuses is broken: Pillow would return the readable part of some without an error.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.format in ("JPEG", "MPO", "PNG"):  # MPO: a JPEG of several pictures
                return None
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                # Scaled as TensorFlow does; Pillow would clip at 255.
                return (np.asarray(image) >> 8).astype(np.uint8)
            # The range of other numbers (modes I and F) is unknown.
            return None if image.mode in "IF" else np.asarray(image.convert("RGB"))
    except (*_PILLOW_ERRORS, Image.DecompressionBombError):
        return None


def _as_png(file: str, key: int, pixels: np.ndarray | None = None) -> str:
    """The PNG in the cache of a file that Pillow reads; it is written if it does not exist."""
    from PIL import Image

    path = cache_folder("kd_keras") / "converted" / f"{os.path.basename(file)}-{key:016x}.png"
    if path.exists():
        return str(path)
    pixels = _by_pillow(file) if pixels is None else pixels
    if pixels is None:
        raise InputError(f"{file} changed while it was read: start again")
    try:
        whole_files.write(path, lambda out: Image.fromarray(pixels).save(out, "PNG"))
    except OSError as error:
        what = f"{file} has to be converted to {path}, which cannot be written ({error.strerror})"
        raise InputError(f"{what}: make room, or set KERAS_HOME to a folder on another disk") from error
    return str(path)


def _decoded(source: Source) -> Iterator[np.ndarray]:
    """All images of a source, in order."""
    dataset = tf.data.Dataset.range(len(source)).batch(_BATCH)
    dataset = dataset.map(lambda indices: source.read(indices)[0], os.cpu_count() or 1)
    try:
        yield from _host(dataset.prefetch(1)).as_numpy_iterator()
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())
        raise InputError(f"an image file changed while it was read ({reason}): start again") from error


def _host(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    # As in the pipeline: a deleted iterator waits for its thread.
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.with_options(options)


def _has_palette(file: str) -> bool:
    """Whether a BMP has a palette, which TensorFlow decodes as shades of grey without an error."""
    from PIL import Image

    with Image.open(file, formats=("BMP",)) as image:
        return image.mode == "P"


def _refuse_several_sizes(files: list[str], sizes: np.ndarray, places: np.ndarray) -> None:
    other = places[np.any(sizes[places] != sizes[places[:1]], axis=1)]
    if len(other):
        (h, w), (first_h, first_w) = sizes[other[0]], sizes[places[0]]
        differing = f"{files[other[0]]} is {h}×{w} pixels and {files[places[0]]} {first_h}×{first_w}"
        raise InputError(f"{differing}: set image_size to resize them, such as image_size=({first_h}, {first_w})")


def _report(files: list[str], findings: np.ndarray, sizes: np.ndarray, skip: bool) -> None:
    large = np.flatnonzero(findings == _LARGE)
    if len(large) and not skip:
        height, width = sizes[large[0]]
        more = f" and {len(large) - 1} more" if len(large) > 1 else ""
        raise InputError(
            f"{files[large[0]]}{more} says that it has {height}×{width} pixels: remove it, leave it out with "
            "skip_bad_images=True, or raise max_image_pixels if it is meant to be so large"
        )
    bad = np.flatnonzero((findings == _BROKEN) | (findings == _LARGE))
    if len(bad) == len(files):
        raise InputError(f"none of the {len(files)} images can be read, {files[0]} the first: check the files")
    if not len(bad):
        return
    first = ", ".join(files[place] for place in bad[:_NAMED])
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    what = f"{len(bad)} of {len(files)} images cannot be decoded: {first}{more}"
    if not skip:
        raise InputError(f"{what}: mend or remove them, or leave them out with skip_bad_images=True")
    logging.warning("%s: they are left out", what)
