"""Images a second: our pipeline, the usual one of a map a sample, and a folder of files; and the stall at the end."""

import io
import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks import measure
from kd_keras import data

TITLE = "The input pipeline"
_SIDE, _PADDING, _FILE_SIDE = 32, 4, 96
OURS, USUAL = "in memory, pad_crop + flip", "in memory, tf.image a sample"
FILES, USUAL_FILES = "JPEG folder, pad_crop + flip", "JPEG folder, tf.image a sample"
READING = "the reading before it"
OUR_END, USUAL_END = "end of fit, ours", "end of fit, tf.image a sample, repeated"


def run(options, done) -> dict:
    """Measures the pipelines in interleaved passes over the same images, then how long each takes to end."""
    batch = options.batch
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.images, _SIDE, _SIDE, 3), np.uint8)
    labels = rng.integers(0, 10, options.images).astype(np.int32)
    source = data.ArraySource(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        paths = jpegs(pathlib.Path(folder), options.files, 10, _FILE_SIDE)
        file_labels = np.arange(len(paths)) % 10
        files = data.FileSource(paths, file_labels, (_FILE_SIDE, _FILE_SIDE, 3))
        epochs = {
            OURS: _ours(source, batch),
            USUAL: _usual((images, labels), batch, _SIDE),
            FILES: _ours(files, batch),
            USUAL_FILES: _usual((paths, file_labels), batch, _FILE_SIDE, decode=True),
        }
        calls = {name: _pass(epoch) for name, epoch in epochs.items()}
        samples = measure.interleave(calls, options.pipeline_rounds, warmup=1)
    ends = {
        # More epochs than are ever read.
        OUR_END: [_end(_ours(source, batch, 10**6), options.end_seconds) for _ in range(options.ends)],
        USUAL_END: [
            _end(_usual((images, labels), batch, _SIDE, repeat=True), options.end_seconds) for _ in range(options.ends)
        ],
    }
    kept = {name: measure.summary(values) for name, values in {**samples, **ends}.items()}
    rates = {name: measure.summary(batch / np.asarray(values)) for name, values in samples.items()}
    rows = [[name, f"{one['median']:,.0f}", f"{one['iqr']:,.0f}"] for name, one in rates.items()]
    stalls = [[name, f"{kept[name]['median']:.3f}", f"{kept[name]['iqr']:.3f}"] for name in ends]
    note = (
        f"{options.images:,} images of {_SIDE}×{_SIDE} in memory, {options.files:,} files of {_FILE_SIDE}×{_FILE_SIDE},"
        f" batch {batch}, {options.pipeline_rounds} whole epochs."
    )
    stall_note = f"Seconds to drop an iterator that was read for {options.end_seconds:g} s, as `fit` does at its end."
    return {
        "title": TITLE,
        "tables": [
            {"title": TITLE, "columns": ["pipeline", "images/s", "IQR"], "rows": rows, "note": note},
            {"title": "The stall at the end", "columns": ["pipeline", "s", "IQR"], "rows": stalls, "note": stall_note},
        ],
        # Half the time is twice the images.
        "claims": [
            measure.Claim((OURS,), 0.5, (USUAL,)).judge(samples, {}),
            measure.Claim((OUR_END,), 0.02, (READING,)).judge(
                {**ends, READING: [options.end_seconds] * options.ends}, {}
            ),
        ],
        "samples": kept,
        "batch": batch,
        "file_pixels": _FILE_SIDE**2,
    }


def _ours(source, batch, epochs=1):
    augment = data.augmentations(f"pad_crop(pixels={_PADDING}) + flip()")
    return data.batches(source, batch, training=True, epochs=epochs, augment=augment, drop_remainder=True)


def _usual(arrays, batch, side, decode=False, repeat=False):
    """What the tutorials show: cache, shuffle, an augmentation a sample, batch, prefetch."""

    def augment(image, label):
        if decode:
            image = tf.ensure_shape(tf.io.decode_jpeg(tf.io.read_file(image), channels=3), (side, side, 3))
        image = tf.image.resize_with_crop_or_pad(image, side + 2 * _PADDING, side + 2 * _PADDING)
        image = tf.image.random_flip_left_right(tf.image.random_crop(image, (side, side, 3)))
        return tf.cast(image, tf.float32), label

    dataset = tf.data.Dataset.from_tensor_slices(arrays).cache().shuffle(len(arrays[0]))
    if repeat:
        dataset = dataset.repeat()
    dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _pass(epoch):
    """A call that reads an epoch from its start to its end, and gives the seconds a batch."""

    # From an iterator of its own: one that is kept would fill its buffers while the others are timed.
    def read():
        for _ in epoch:
            pass

    return measure.timed(read, steps=int(epoch.cardinality()))


def _end(stream, seconds):
    """Seconds that it takes to drop an iterator which has been read from for so long."""
    iterator, start = iter(stream), time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(iterator)
    start = time.perf_counter()
    del iterator
    return time.perf_counter() - start


def jpegs(folder: pathlib.Path, count: int, classes: int, side: int) -> list[str]:
    """Writes ``count`` JPEG files as ``<class>/<number>.jpg``, smooth like photographs; gives their paths."""
    rng = np.random.default_rng(0)
    contents = []
    # A file's content is of no matter, its size and decoding are: a few pictures, written again and again.
    for _ in range(min(count, 64)):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    paths = [folder / f"class{number % classes}" / f"{number:07}.jpg" for number in range(count)]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        path.write_bytes(contents[number % len(contents)])
    return [str(path) for path in paths]
