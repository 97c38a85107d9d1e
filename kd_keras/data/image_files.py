"""Image files as a source: each checked once, read when asked for, or kept decoded in memory or on disk.

What is kept lies in the user's cache (`kd_keras.data.downloads.cache_folder`), never among the user's images:

- the verdict of the check, so that an unchanged file is not decoded again at the next start;
- a PNG of each file that TensorFlow cannot decode, or would decode to wrong colours, and Pillow can;
- with ``cache='disk'`` the decoded images, one NumPy file that is mapped, not loaded.

A file counts as unchanged while its path, size and time of change (``mtime_ns``) are the same.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras import files as whole_files
from kd_keras.data import fingerprints
from kd_keras.data.arrays import aligned, mapped
from kd_keras.data.downloads import cache_folder
from kd_keras.data.sources import FileSource, NumpySource, Source, decode_rgb
from kd_keras.errors import InputError, check_switch, is_count

_CACHES = ("none", "memory", "disk")
_NAMED = 5  # bad files that a message names; the rest are counted
_BATCH = 64  # images that are decoded at a time to fill a cache
# Part of every key: raised when `decode` gives other pixels, so that what older code kept is not used.
_DECODER = f"1 {tf.__version__}"
# What the check finds of a file; kept by number, so new ones go to the end. A foreign one is read by way of Pillow.
_GOOD, _BROKEN, _FOREIGN = range(3)
_VERDICT = np.dtype([("key", "<u8"), ("size", "<i4", 2), ("finding", "u1")])


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """How image files become a source.

    Args:
        image_size: pixels, a side or (height, width), to which images are resized; by default all have one size.
        channels: 3 for colour, 1 for grey.
        cache: where the decoded images are kept: ``'none'`` (files are decoded each time they are read),
            ``'memory'``, or ``'disk'`` (for all runs that come, in Keras' cache).
        skip_bad_images: leave out files that cannot be decoded, with a warning, rather than stop.

    Raises:
        InputError: a value is out of range.
    """

    image_size: int | tuple[int, int] | None = None
    channels: int = 3
    cache: str = "none"
    skip_bad_images: bool = False

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise InputError(f"channels={self.channels!r}: give 3 for colour or 1 for grey")
        if self.cache not in _CACHES:
            raise InputError(f"cache={self.cache!r}: give one of {', '.join(map(repr, _CACHES))}")
        check_switch("skip_bad_images", self.skip_bad_images)
        object.__setattr__(self, "image_size", checked_size(self.image_size))

    def source(self, files: Sequence[str | os.PathLike], labels: Any) -> tuple[Source, np.ndarray]:
        """Checks files and makes them a source.

        Args:
            files: N image files (JPEG, PNG, GIF or BMP; what else Pillow reads is turned into PNG once).
            labels: integers (N,).

        Returns:
            The source of the M files that can be used, and their places (M,) in ``files``, ascending.

        Raises:
            InputError: files cannot be decoded, are of several sizes without ``image_size``, or their cache has no
                room on the disk.
        """
        if not len(files):
            raise InputError("there are no image files: check the folder")
        files = [os.path.abspath(file) for file in files]
        keys = fingerprints.keys(files, salt=_DECODER)
        sizes, findings = _check(files, keys, one_size=self.image_size is None)
        usable = np.flatnonzero(findings != _BROKEN)
        _report(files, findings, self.skip_bad_images)
        shape = (*(self.image_size or map(int, sizes[usable[0]])), self.channels)
        foreign = findings == _FOREIGN
        paths = [_as_png(files[place], keys[place]) if foreign[place] else files[place] for place in usable]
        source = FileSource(paths, np.asarray(labels)[usable], shape)
        if self.cache == "none":
            return source, usable
        if self.cache == "disk":
            digest = hashlib.sha256(keys[usable].tobytes()).digest()
            name = f"{_root_name(files)}-{'x'.join(map(str, shape))}"
            images = mapped_images(name, digest, (len(usable), *shape), lambda: _decoded(source))
        else:
            images = aligned((len(usable), *shape))
            at = 0
            for batch in _decoded(source):
                images[at : at + len(batch)] = batch
                at += len(batch)
        return NumpySource(images, source.labels, source.digests), usable


def mapped_images(
    name: str, digest: bytes, shape: tuple[int, ...], images: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """Images in one file of the cache, mapped into memory; written when they are not there yet.

    Args:
        name: the file's name in the cache, without ending; images of another digest under it are replaced.
        digest: 32 bytes that change whenever the images do.
        shape: (N, H, W, C).
        images: gives the images, uint8 (B, H, W, C), batch after batch; asked only where they are to be written.

    Returns:
        uint8 (N, H, W, C), for `NumpySource`; writing to it would change the cache.

    Raises:
        InputError: the disk has no room, or refuses the file.
    """
    path = cache_folder("kd_keras") / "images" / f"{name}.npy"
    kept = _mapped(path, digest, shape)
    if kept is not None:
        return kept
    header, size = _header(shape), int(np.prod(shape))
    what = f"{shape[0]} decoded images of {'×'.join(map(str, shape[1:]))} take {size / 1e9:.3f} GB as {path}"
    advice = "make room, set KERAS_HOME to a folder on another disk, or lower image_size"
    # Said as a warning, since information is not shown by default and the user's disk is filled.
    logging.warning("%s: they are written once", what)

    def write(file):
        # A file that this one replaces stays until the new one is whole.
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise InputError(f"{what}, and {free / 1e9:.3f} GB are free: {advice}")
        file.write(header)
        for batch in images():
            file.write(np.ascontiguousarray(batch))
        if file.tell() != len(header) + size:
            raise ValueError(f"{file.tell() - len(header)} bytes of images were given for {shape}")
        # Behind the array, where NumPy does not look, so that images and digest are replaced as one.
        file.write(digest)

    try:
        whole_files.write(path, write)
    except OSError as error:
        raise InputError(f"{what}, which cannot be written ({error.strerror}): {advice}") from error
    return mapped(path, np.uint8, shape, len(header))


def _header(shape: tuple[int, ...]) -> bytes:
    """The head of a ``.npy`` file of uint8."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _mapped(path: pathlib.Path, digest: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images of a file of the cache; None where it is missing, damaged or of other images."""
    if not path.exists():
        return None
    header = _header(shape)
    if path.stat().st_size == len(header) + int(np.prod(shape)) + len(digest):
        with path.open("rb") as file:
            head = file.read(len(header))
            file.seek(-len(digest), os.SEEK_END)
            if head == header and file.read() == digest:
                return mapped(path, np.uint8, shape, len(header))
    logging.warning("%s is damaged or of other images: it is made anew", path)
    return None


def checked_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A size as (height, width) in pixels.

    Raises:
        InputError: it is none.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if sides is None:
        return None
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(map(is_count, sides)):
        raise InputError(f"image_size={image_size!r}: give pixels, as 64 or (height, width)")
    return tuple(sides)


def _root_name(files: list[str]) -> str:
    """A name in the cache for all that is kept of these files."""
    root = os.path.commonpath(files)
    return f"{os.path.basename(root)}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}"


def _check(files: list[str], keys: np.ndarray, one_size: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sizes (N, 2) and findings (N,); decodes the files of which no verdict is kept."""
    path = cache_folder("kd_keras") / "checked" / _root_name(files)
    verdicts = np.zeros(len(files), _VERDICT)
    verdicts["key"], verdicts["finding"] = keys, _BROKEN
    kept = _read_verdicts(path)
    at = np.minimum(np.searchsorted(kept["key"], keys), max(len(kept) - 1, 0))
    known = kept["key"][at] == keys if len(kept) else np.zeros(len(files), bool)
    verdicts[known] = kept[at[known]]
    sizes, findings = verdicts["size"], verdicts["finding"]
    good = np.flatnonzero(findings != _BROKEN)
    if one_size:
        _refuse_several_sizes(files, sizes, good)
    new = np.flatnonzero(~known)
    if not len(new):
        return sizes, findings
    logging.info("checking %d of %d image files", len(new), len(files))
    for places, found, finding in _findings(files, keys, new):
        sizes[places], findings[places] = found, finding
        if one_size:
            # At once: the user need not wait for the rest to learn that image_size is missing.
            good = np.concatenate([good[:1], places])
            _refuse_several_sizes(files, sizes, good)
    # Broken ones are looked at again: what could not be read may only have been out of reach.
    content = np.sort(verdicts[findings != _BROKEN], order="key").tobytes()
    try:
        whole_files.write(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        logging.warning("%s cannot be written (%s): the images are checked again next time", path, error.strerror)
    return sizes, findings


def _read_verdicts(path: pathlib.Path) -> np.ndarray:
    """What an earlier check kept, keys ascending; nothing where the record is missing or damaged."""
    nothing = np.zeros(0, _VERDICT)
    if not path.exists():
        return nothing
    record = path.read_bytes()
    digest, content = record[:32], record[32:]
    if hashlib.sha256(content).digest() != digest:
        logging.warning("%s is no whole record of checked images: it is made anew", path)
        return nothing
    return np.frombuffer(content, _VERDICT)


def _findings(files: list[str], keys: np.ndarray, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Places (B,) of files that can be read, with their sizes (B, 2) and what was found of them."""
    good = [places[:0]]
    for decoded, sizes, bitmaps in _decoded_sizes(files, places):
        palettes = [bitmap and _has_palette(files[place]) for place, bitmap in zip(decoded, bitmaps, strict=True)]
        right = ~np.array(palettes, bool)
        good.append(decoded[right])
        yield good[-1], sizes[right], _GOOD
    for place in np.setdiff1d(places, np.concatenate(good)):
        pixels = _by_pillow(files[place])
        if pixels is not None:
            _as_png(files[place], keys[place], pixels)
            yield np.array([place]), np.array([pixels.shape[:2]]), _FOREIGN


def _decoded_sizes(files: list[str], places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places of files that can be decoded, by the operation that training uses, in order, their sizes and whether each
    is a BMP."""

    def decoded(place, path):
        content = tf.io.read_file(path)
        # The size of the decoded image, not the head's, has the whole file decoded.
        return place, tf.shape(decode_rgb(content))[:2], tf.strings.substr(content, 0, 2) == b"BM"

    dataset = tf.data.Dataset.from_tensor_slices((places, [files[place] for place in places]))
    dataset = _host(dataset.map(decoded, os.cpu_count() or 1))
    yield from dataset.ignore_errors().batch(256).as_numpy_iterator()


def _by_pillow(file: str) -> np.ndarray | None:
    """The pixels (H, W) or (H, W, 3) of a file that TensorFlow does not read rightly; None where it is no whole image.

    A JPEG or PNG that TensorFlow refuses is broken: Pillow would show what there is of some without a word.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.format in ("JPEG", "PNG"):
                return None
            if image.mode.startswith("I;16"):
                # Scaled as TensorFlow does; Pillow would cut off all above 255.
                return (np.asarray(image) >> 8).astype(np.uint8)
            # The range of other numbers (modes I and F) is not known.
            return None if image.mode in "IF" else np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        # Pillow's readers raise any of these for damaged files.
        return None


def _as_png(file: str, key: int, pixels: np.ndarray | None = None) -> str:
    """A PNG in the cache of a file that is read by way of Pillow; written when it is not there yet."""
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
    # As in the pipeline: dropped iterators wait for its thread.
    options.autotune.enabled = False
    options.deterministic = True
    return dataset.with_options(options)


def _has_palette(file: str) -> bool:
    """Whether a BMP holds colours by number, which TensorFlow decodes as shades of grey without saying so."""
    from PIL import Image

    with Image.open(file) as image:
        return image.mode == "P"


def _refuse_several_sizes(files: list[str], sizes: np.ndarray, places: np.ndarray) -> None:
    other = places[np.any(sizes[places] != sizes[places[:1]], axis=1)]
    if len(other):
        (h, w), (first_h, first_w) = sizes[other[0]], sizes[places[0]]
        differing = f"{files[other[0]]} is {h}×{w} pixels and {files[places[0]]} {first_h}×{first_w}"
        raise InputError(f"{differing}: set image_size to resize them, such as image_size=({first_h}, {first_w})")


def _report(files: list[str], findings: np.ndarray, skip: bool) -> None:
    bad = np.flatnonzero(findings == _BROKEN)
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
