"""A teacher's outputs on disk, read instead of running the teacher. TensorFlow only, as tf.data reads them.

The cache holds the taps of view k of sample i, for K views of each sample; epochs cycle through the views. Each tap of
each view has files of its own, memory-mapped when read, and complete or absent: an interrupted cache continues after
the last complete file, views and taps can be added, and the runs of a sweep share the files that they have in common.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from kd_keras import files
from kd_keras.data import arrays
from kd_keras.distillation import device
from kd_keras.distillation.fast_teacher import fast_copy
from kd_keras.distillation.model_hash import model_hash
from kd_keras.distillation.tap_storage import TapStorage
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError, is_count

DTYPES = ("float16", "float32")
_IDENTITY = "identity.json"


class TeacherCache:
    """A teacher's taps for the views of a training split, given to ``kd_keras.data.batches(cache=…)``.

    The folder's name is a hash of all that the outputs depend on: the teacher's weights and architecture, the samples,
    the augmentation and its seed, the dtype that the teacher computes in and the dtype of the files. So outputs of
    another teacher or of other views are never read.

    Logits in float16, or only the ``top_k`` largest, are stored as `TapStorage` says.

    Args:
        folder: root of caches; runs may share it.
        views: `kd_keras.data.Views`: samples, augmentation, number of views.
        teacher: a built classifier.
        taps: names of the taps to store.
        dtype: ``'float16'`` or ``'float32'``, of the files.
        top_k: number of logits to store, for a softmax alone; None stores all.
        teacher_dtype: the dtype that the teacher computes in, as for `Distiller`.
        limit_gb: gigabytes (1e9 bytes) that the cache may take; None for no limit.

    Attributes:
        views: as given.
        taps: as given.
        folder: the folder of this cache.

    Raises:
        InputError: a value is out of range, a tap does not exist or has no known size, the cache would exceed the
            limit, or the folder holds another cache under the same name.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        views,
        teacher: keras.Model,
        taps: Sequence[str] = ("logits",),
        *,
        dtype: str = "float16",
        top_k: int | None = None,
        teacher_dtype: str | None = None,
        limit_gb: float | None = None,
    ):
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r}: a teacher cache stores {' or '.join(DTYPES)}")
        self._teacher = Taps(teacher, "teacher", features=True)
        self._teacher.require(taps)
        if top_k is not None and not is_count(top_k):
            raise InputError(f"top_k={top_k!r}: give a whole number of at least 1, or None to store all logits")
        if top_k is not None and self._teacher.decide().is_multilabel:
            raise InputError(f"top_k={top_k} is for a softmax, and the teacher has independent labels: leave it out")
        if top_k is not None and top_k >= self._teacher.num_classes:
            top_k = None
        if teacher_dtype == "auto":
            teacher_dtype = device.teacher_dtype()
        self.views, self.taps = views, tuple(taps)
        self._positions = {tap: self._teacher.position(tap) for tap in self.taps}
        self._teacher_dtype = teacher_dtype
        self._storages = {tap: self._storage(tap, dtype, top_k) for tap in self.taps}
        identity = {
            "teacher": model_hash(teacher),
            "teacher_dtype": teacher_dtype,
            **views.identity(),
            "dtype": dtype,
            "top_k": top_k,
            "format": 1,
        }
        # As JSON returns it, so that it can be compared with the file.
        self._identity = json.loads(json.dumps(identity))
        self._root = pathlib.Path(folder).absolute()
        self.folder = self._folder()
        self._check_identity()
        self._check_size("limit_gb", self.nbytes, None if limit_gb is None else limit_gb * 1e9)
        self._rows: dict[tuple[int, str], dict[str, arrays.Rows]] = {}

    def _folder(self) -> pathlib.Path:
        key = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()
        return self._root / key[:16]

    def _follow_teacher(self):
        """Takes another folder where the teacher's weights have changed."""
        if (now := model_hash(self._teacher.model)) != self._identity["teacher"]:
            logging.info("the teacher has changed since %s was made: it gets a cache of its own", self.folder)
            self._identity["teacher"], self._rows = now, {}
            self.folder = self._folder()
            self._check_identity()

    def _storage(self, tap, dtype, top_k) -> TapStorage:
        shape = tuple(self._teacher.shapes([tap])[tap][1:])
        if any(size is None for size in shape):
            raise InputError(
                f"the teacher's {tap} is {shape}: a cache needs known sizes, so fix the model's input size"
            )
        return TapStorage(tap, shape, dtype, top_k)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache once it is filled."""
        return sum(self._tap_bytes(tap) for tap in self.taps) * self.views.count

    def _tap_bytes(self, tap) -> int:
        return self._storages[tap].nbytes * len(self.views)

    def _check_identity(self):
        path = self.folder / _IDENTITY
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} can't be read: remove {self.folder} to fill the cache again") from error
        differing = [key for key in {**self._identity, **stored} if self._identity.get(key) != stored.get(key)]
        if differing:
            raise InputError(f"{self.folder} was made with another {', '.join(differing)}: remove it, or name another")

    def _check_size(self, limit, nbytes, room):
        if room is not None and nbytes > room:
            raise InputError(
                f"the teacher cache would take {nbytes / 1e9:.3g} GB, more than {limit} ({room / 1e9:.3g} GB): "
                "store fewer views, fewer taps or only the top_k logits, or allow more"
            )

    @property
    def missing(self) -> list[tuple[int, str]]:
        """The (view, tap) pairs that are not on disk yet."""
        return [pair for pair in self._pairs if not self._record(*pair).exists()]

    @property
    def records(self) -> list[pathlib.Path]:
        """Files that exist once the cache is filled: one for each view and tap, written after its data."""
        return [self._record(*pair) for pair in self._pairs]

    @property
    def _pairs(self) -> list[tuple[int, str]]:
        return [(view, tap) for view in range(self.views.count) for tap in self.taps]

    def _record(self, view, tap) -> pathlib.Path:
        return self.folder / f"{self._stem(view, tap)}.json"

    def _part(self, view, tap, part) -> pathlib.Path:
        return self.folder / f"{self._stem(view, tap)}-{part}.npy"

    def _stem(self, view, tap) -> str:
        # With the layer's place in the model: Keras numbers names such as conv2d_5 again in each process.
        place = "" if self._positions[tap] is None else f"{self._positions[tap]}-"
        return f"view{view:03}-{place}{tap.replace('/', '_')}"

    def fill(self, batch_size: int = 256, progress: Callable[[int, int], None] | None = None) -> int:
        """Runs the teacher, in inference mode and in the samples' order, for the taps that are missing.

        Where the teacher's weights have changed since this object was made, that is all taps, in another folder.

        Args:
            batch_size: images in a forward pass.
            progress: called as ``progress(images done, images in all)`` after each pass.

        Returns:
            Number of images that the teacher was run on; 0 if nothing was missing.

        Raises:
            InputError: an output is not finite, or too large for float16; or the disk is full.
        """
        self._follow_teacher()
        missing = self.missing
        views = sorted({view for view, _ in missing})
        if not views:
            return 0
        self._check_size("the disk's free space", sum(self._tap_bytes(t) for _, t in missing), _free_bytes(self.folder))
        teacher = self._teacher
        if self._teacher_dtype is not None:
            keep = tuple(map(teacher.without_part, self.taps))
            teacher = Taps(fast_copy(teacher.model, self._teacher_dtype, keep=keep), "teacher", features=True)
        forward = tf.function(
            lambda images: teacher(images, self.taps, training=False),
            input_signature=[tf.TensorSpec((None, *self.views.image_shape), tf.float32)],
            autograph=False,
        )
        if not (self.folder / _IDENTITY).exists():
            files.write(self.folder / _IDENTITY, json.dumps(self._identity, indent=2) + "\n")
        count, total = 0, len(views) * len(self.views)
        for view in views:
            with _Writer([tap for v, tap in missing if v == view], self, view) as writer:
                for images in self.views.batches(view, batch_size):
                    outputs = forward(images)
                    writer.add({tap: self._storages[tap].encode(value.numpy()) for tap, value in outputs.items()})
                    count += len(images)
                    if progress is not None:
                        progress(count, total)
        return total

    def checksums(self, tap: str) -> dict[str, str]:
        """The SHA-256 of each file that holds a tap, by its name; of a filled cache."""
        sums = {}
        for view in range(self.views.count):
            record = json.loads(self._record(view, tap).read_text(encoding="utf-8"))
            sums |= {self._part(view, tap, part).name: sha256 for part, sha256 in record.items()}
        return sums

    def drop_damaged(self) -> None:
        """Forgets the files that are damaged or missing, so that `fill` makes them again."""
        for view, tap in self._pairs:
            path = self._record(view, tap)
            try:
                sums = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
                is_whole = all(files.sha256(self._part(view, tap, part)) == sha256 for part, sha256 in sums.items())
            except (OSError, ValueError, AttributeError):
                is_whole = False
            if not is_whole:
                path.unlink()

    def read(self, view, index) -> dict[str, tf.Tensor]:
        """The taps of some samples, as TensorFlow operations.

        Args:
            view: number of the view, an integer scalar, or of each sample's view (B,).
            index: integers (B,), positions in the split.

        Returns:
            ``{tap: (B, …)}`` in float32.

        Raises:
            InputError: a tap is missing or the teacher has changed (call `fill`), or a file is damaged.
        """
        with tf.init_scope():
            has_changed = model_hash(self._teacher.model) != self._identity["teacher"]
        if has_changed:
            raise InputError(f"the teacher has changed since {self.folder} was filled: call fill() again")
        if not self._rows:
            self._open()
        index = tf.cast(index, tf.int64)
        view, count = tf.cast(view, tf.int32), self.views.count
        if count == 1:
            parts = self._parts(0, index)
        elif view.shape.rank == 0:
            parts = tf.switch_case(view, [lambda number=number: self._parts(number, index) for number in range(count)])
        else:
            places = tf.dynamic_partition(tf.range(tf.shape(index)[0]), view, count)
            each = [self._parts(number, tf.gather(index, rows)) for number, rows in enumerate(places)]
            parts = tf.nest.map_structure(lambda *views: tf.dynamic_stitch(places, views), *each)
        return {tap: self._storages[tap].decode(parts[tap]) for tap in self.taps}

    def _parts(self, view, index):
        # Cast here: on a CPU few of TensorFlow's operations take float16, and none is faster in it.
        return {
            tap: {
                part: tf.cast(rows(index), "int32" if part == "index" else "float32")
                for part, rows in self._rows[view, tap].items()
            }
            for tap in self.taps
        }

    def _open(self):
        if self.missing:
            raise InputError(f"the teacher cache {self.folder} lacks {len(self.missing)} parts: call fill() first")
        opened = {}
        for view, tap in self._pairs:
            sums = json.loads(self._record(view, tap).read_text(encoding="utf-8"))
            opened[view, tap] = {part: self._map(view, tap, part, sums) for part in self._storages[tap].arrays}
        self._rows = opened

    def _map(self, view, tap, part, sums) -> arrays.Rows:
        """One file, mapped into memory and checked."""
        path = self._part(view, tap, part)
        shape, dtype = self._storages[tap].arrays[part]
        try:
            array = np.load(path, mmap_mode="r")
            fits = array.shape == (len(self.views), *shape) and array.dtype == dtype
            is_whole = fits and files.sha256(path) == sums[part]
        except (OSError, ValueError, KeyError):
            is_whole = False
        if not is_whole:
            raise InputError(f"{path} is damaged: remove {self.folder} to fill the cache again")
        return arrays.Rows(arrays.mapped(path, array.dtype, array.shape, array.offset))


class _Writer:
    """Writes the files of one view under temporary names, and renames them once they are complete."""

    def __init__(self, taps, cache: TeacherCache, view: int):
        self._taps, self._cache, self._view, self._position = taps, cache, view, 0
        self._arrays, self._partial = {}, {}

    def __enter__(self):
        for tap in self._taps:
            for part, (shape, dtype) in self._cache._storages[tap].arrays.items():
                path = self._cache._part(self._view, tap, part)
                partial = files.partial(path)
                self._partial[tap, part] = (partial, path)
                shape = (len(self._cache.views), *shape)
                self._arrays[tap, part] = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
        return self

    def add(self, outputs):
        count = 0
        for tap, part in self._arrays:
            value = outputs[tap][part]
            count = len(value)
            self._arrays[tap, part][self._position : self._position + count] = value
        self._position += count

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._finish()
        finally:
            self._arrays.clear()
            for partial, _ in self._partial.values():
                partial.unlink(missing_ok=True)

    def _finish(self):
        sums = {}
        # Another run may have been faster: files that others may already read are not replaced.
        taps = [tap for tap in self._taps if not self._cache._record(self._view, tap).exists()]
        for (tap, part), array in self._arrays.items():
            if tap not in taps:
                continue
            array.flush()
            partial, path = self._partial[tap, part]
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            sums.setdefault(tap, {})[part] = files.sha256(partial)
            os.replace(partial, path)
        # The record comes last: where it exists, the files are complete.
        for tap in taps:
            files.write(self._cache._record(self._view, tap), json.dumps(sums[tap]) + "\n")


def _free_bytes(folder: pathlib.Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
