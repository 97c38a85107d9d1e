"""A teacher's outputs that were made elsewhere: read from an array or a file, and added to batches. TensorFlow only."""

import collections
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kd_keras._compat import ops as backend_ops
from kd_keras.distillation import checks
from kd_keras.errors import InputError, needs

#: The columns that may say which sample a row is of, and the fields of a batch of the same names.
KEYS = ("index", "file_name")


class TeacherOutputs(Mapping):
    """A teacher's logits or probabilities (K,) by sample; made by `teacher_outputs`.

    Args:
        key: ``'index'`` or ``'file_name'``: what the samples are named by.
        names: the samples, in the order of the rows.
        values: (N, K).
    """

    def __init__(self, key: str, names: np.ndarray, values: np.ndarray):
        self.key, self.values_by_row = key, values
        self._rows = {name: row for row, name in enumerate(names.tolist())}

    def __getitem__(self, sample: int | str) -> np.ndarray:
        return self.values_by_row[self._rows[sample]]

    def __iter__(self):
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add_to(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """A data set of batch dicts, or of dicts of single samples, with the field ``teacher`` for `Distiller.fit`.

        Args:
            dataset: its dicts have the field ``index`` or ``file_name``, whichever these outputs are keyed by;
                ``(dict, label)`` will do too. It may be shuffled, repeated and batched in any way.

        Raises:
            InputError: it has no such field. A sample without a row ends the training with one line that says so.
        """
        spec = dataset.element_spec
        fields = spec[0] if isinstance(spec, tuple) else spec
        if not isinstance(fields, Mapping) or self.key not in fields:
            raise InputError(
                f"the teacher's outputs are keyed by {self.key}, and the data set has no field {self.key!r}: give "
                f"dicts {{image, label, {self.key}}}"
            )
        is_text = self.key == "file_name"
        keys = tf.constant(list(self._rows), tf.string if is_text else tf.int64)
        rows = tf.lookup.KeyValueTensorInitializer(keys, tf.range(len(self), dtype=tf.int64))
        table, values = tf.lookup.StaticHashTable(rows, -1), tf.constant(self.values_by_row)
        message = f"a sample of the data set has no row among the {len(self)} outputs of the teacher, by its {self.key}"

        def add(*batch):
            first, *rest = batch
            row = table.lookup(first[self.key] if is_text else tf.cast(first[self.key], tf.int64))
            row = backend_ops.backend().assert_at_least(row, 0, message)
            first = {**first, "teacher": {"logits": tf.gather(values, row)}}
            return (first, *rest) if rest else first

        return dataset.map(add, tf.data.AUTOTUNE)


def teacher_outputs(
    source: Any,
    *,
    key: str | None = None,
    classes: int | Sequence[str] | None = None,
    samples: int | Sequence[int | str] | None = None,
) -> TeacherOutputs:
    """Reads a teacher's logits or probabilities, one row for each sample.

        outputs = teacher_outputs("teacher.parquet", classes=10, samples=len(images))
        distiller.fit(outputs.add_to(dataset))

    Args:
        source: an array (N, K), or an ``.npy`` file of one, whose row i is that of sample ``index`` i; or a ``.csv`` or
            ``.parquet`` file with a column ``index`` or ``file_name``, and a column for each class. (N, 1, K) and the
            like are taken as (N, K).
        key: which of `KEYS` to read, where a table has both.
        classes: K, or the classes' names in the order of the student's outputs. By names the columns of a table are
            chosen, in any order.
        samples: how many samples there are, or all their keys: each has to have a row.

    Returns:
        A mapping from sample to output.

    Raises:
        InputError: the file can't be read, a row is missing, given twice or not finite, or the number of rows, the
            order of the columns or the number of classes is not what was said.
    """
    if isinstance(source, (str, os.PathLike)):
        what, path = str(source), pathlib.Path(source)
        if not path.is_file():
            raise InputError(f"{what}: there is no such file")
        if path.suffix in (".csv", ".parquet"):
            key, names, values = _from_table(path, key, classes)
        elif path.suffix == ".npy":
            key, names, values = _from_array(_read_npy(path), what, key)
        else:
            raise InputError(f"{what}: give an .npy, .csv or .parquet file")
    else:
        what = "the array"
        key, names, values = _from_array(np.asarray(source), what, key)
    count = classes if isinstance(classes, int) or classes is None else len(classes)
    if values.ndim < 2:
        raise InputError(f"{what} has the shape {values.shape}: give (N, K), a row for each sample")
    values = np.asarray(checks.teacher_logits(values, values.shape[-1] if count is None else count))
    # Minus infinity is the logit of a class that is never named.
    if not (np.isfinite(values) | (values == -np.inf)).all():
        row = int(np.argmin((np.isfinite(values) | (values == -np.inf)).all(axis=1)))
        raise InputError(f"{what}: the output of sample {names.tolist()[row]!r} is not finite")
    twice = [name for name, times in collections.Counter(names.tolist()).items() if times > 1]
    if twice:
        raise InputError(f"{what}: {len(twice)} samples have several rows, such as {twice[0]!r}: give one each")
    outputs = TeacherOutputs(key, names, values.astype("float32"))
    _check_samples(what, outputs, samples)
    return outputs


def _check_samples(what, outputs, samples):
    if samples is None:
        return
    if isinstance(samples, int):
        if len(outputs) != samples:
            raise InputError(f"{what} has {len(outputs)} rows, and there are {samples} samples: give one each")
        samples = range(samples) if outputs.key == "index" else ()
    missing = [sample for sample in samples if sample not in outputs]
    if missing:
        raise InputError(
            f"{what} has no row for {len(missing)} samples, such as the {outputs.key} {missing[0]!r}: make them with "
            "the teacher, or leave these samples out"
        )


def _read_npy(path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is no file of an array of numbers: {error}") from error


def _from_array(values, what, key):
    if key not in (None, "index"):
        raise InputError(f"{what} has no column {key!r}: the rows of an array are keyed by index")
    if values.dtype.kind not in "fiu":
        raise InputError(f"{what} is of dtype {values.dtype}: give numbers")
    return "index", np.arange(len(values) if values.ndim else 0), values


def _from_table(path, key, classes):
    """(key, names, values (N, K)) of a CSV or Parquet file."""
    with needs("PyArrow", "tables", str(path)):
        import pyarrow
        from pyarrow import csv, parquet

    try:
        table = csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
    present = [name for name in KEYS if name in table.column_names]
    if (key or (present[0] if len(present) == 1 else None)) not in present:
        raise InputError(f"{path} has to have a column {' or '.join(KEYS)}, said by key= where it has both: it has "
                         f"{', '.join(table.column_names[:8])}")  # fmt: skip
    key = key or present[0]
    names = table.column(key).to_numpy()
    if (names.dtype.kind in "iu") != (key == "index"):
        raise InputError(
            f"{path}: the column {key} holds {names.dtype}: give {'text' if key != 'index' else 'integers'}"
        )
    columns = [name for name in table.column_names if name not in KEYS]
    if classes is not None and not isinstance(classes, int):
        missing = [name for name in classes if name not in columns]
        if missing or len(set(columns)) < len(columns):
            raise InputError(f"{path} lacks a column of the class {missing[0] if missing else 'names, each once'!r}")
        columns = list(classes)
    numbers = [re.search(r"\d+$", name) for name in columns]
    if all(numbers) and (order := [int(number[0]) for number in numbers]) != sorted(order) and columns != classes:
        raise InputError(
            f"{path}: the columns of the classes are in the order {', '.join(columns[:4])} …: give them by number, or "
            "say classes=[names in the student's order]"
        )
    wrong = [name for name in columns if not _is_number(table.schema.field(name).type)]
    if wrong or not columns:
        raise InputError(
            f"{path}: the column {wrong[0] if wrong else 'of a class'!r} holds no numbers: name the classes'"
        )
    return key, names, np.stack([table.column(name).to_numpy().astype("float32") for name in columns], axis=1)


def _is_number(kind) -> bool:
    import pyarrow

    return pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)
