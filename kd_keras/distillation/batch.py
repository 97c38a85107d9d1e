"""Batches in every form that a Distiller takes, read by one function."""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras

from kd_keras.errors import InputError

_FIELDS = ("image", "label", "sample_weight", "index", "teacher", "teacher_image")
# Words in a name that stand for a field.
_WORDS = {
    "weight": "sample_weight",
    "logits": "teacher",
    "soft": "teacher",
    "prob": "teacher",
    "target": "label",
    "class": "label",
    "idx": "index",
    "indices": "index",
    **{field: field for field in _FIELDS},
}
# Whole names that do.
_NAMES = {"x": "image", "y": "label", "y_true": "label", "w": "sample_weight", "truth": "label"}
# Last words of names that say something about a field and don't stand for it, as in image_id.
_ABOUT = ("id", "ids", "name", "names", "file", "filename", "path", "url", "key", "size", "shape", "width", "height")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The fields of a training batch.

    Attributes:
        image: (B, H, W, C); for a model of several inputs a dict or a list of what it takes.
        label: classes (B,), or class weights (B, K); None when predicting.
        sample_weight: (B,) or None.
        index: position of each sample in its split (B,), or None.
        teacher: the teacher's taps for exactly these images, by name. Where they are given, the teacher is not run.
        teacher_image: the same images for the teacher, in its size and channels; by default they are made of ``image``.
        inputs: what models of several inputs take besides ``image``, by the inputs' names.
    """

    image: Any
    label: Any = None
    sample_weight: Any = None
    index: Any = None
    teacher: Any = None
    teacher_image: Any = None
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def unpack_batch(data, inputs: Collection[str] = ()) -> Batch:
    """Reads a batch in any form that Keras or the input pipeline produces.

    Args:
        data: ``image``, ``(image, label)``, ``(image, label, sample_weight)``, or a dict with the fields of `Batch`.
            The dict may also take the place of the image in a tuple, which is how `split_dicts` passes it to Keras.
        inputs: further fields that are read: names of the models' inputs.

    Raises:
        InputError: a field has nearly the name of one that is read.
    """
    image, label, weight = (*data, None, None)[:3] if isinstance(data, (tuple, list)) else (data, None, None)
    if not _is_batch_dict(image):
        return Batch(image, label, weight)
    check_fields(image, inputs)
    fields = {key: image[key] for key in _FIELDS if key in image}
    fields["inputs"] = {name: image[name] for name in inputs if name in image}
    if "teacher" in fields and not isinstance(fields["teacher"], Mapping):
        fields["teacher"] = {"logits": fields["teacher"]}
    separate = {"label": label, "sample_weight": weight}
    return Batch(**{**fields, **{key: value for key, value in separate.items() if value is not None}})


def check_fields(batch: Mapping, inputs: Collection[str] = ()) -> None:
    """Raises InputError for a field whose name stands for one that is read; other fields do no harm."""
    for key in batch:
        lower = str(key).lower()
        if key in _FIELDS or key in inputs or re.split(r"[^a-z]", lower)[-1] in _ABOUT:
            continue
        meant = [_NAMES[lower]] if lower in _NAMES else difflib.get_close_matches(lower, _FIELDS, 1, 0.76)
        meant += [field for field in _FIELDS if len(lower) > 2 and f"_{lower}" in f"_{field}"]
        meant += [field for word, field in _WORDS.items() if word in lower]
        if meant:
            raise InputError(f"a batch has a field {key!r}, which nothing reads: is {meant[0]!r} meant?")


def split_dicts(data):
    """A data set, PyDataset or generator of batch dicts as ``(dict, label, sample_weight)``, as Keras reads batches.

    Anything else is returned as it is.
    """
    if hasattr(data, "__next__"):
        return _split_each(data)
    if isinstance(data, keras.utils.PyDataset):
        return _SplitDataset(data)
    spec = getattr(data, "element_spec", None)
    return data.map(_split) if _is_batch_dict(spec) and "label" in spec else data


def split_arrays(x, y, sample_weight, inputs: Collection[str] = ()):
    """A dict of arrays as (dict, label, sample_weight); anything else as it is. ``inputs``: see `unpack_batch`."""
    if not _is_batch_dict(x):
        return x, y, sample_weight
    check_fields(x, inputs)
    counts = {len(part) for part in keras.tree.flatten([x, y, sample_weight]) if getattr(part, "shape", ())}
    if len(counts) > 1:
        sizes = {key: len(keras.tree.flatten(part)[0]) for key, part in x.items()}
        raise InputError(f"the arrays of a batch dict have different lengths: {sizes}; give one row for each image")
    rest, label, weight = (*_split(x), None, None)[:3]
    for name, apart, inside in (("label", y, label), ("sample_weight", sample_weight, weight)):
        if apart is not None and inside is not None:
            raise InputError(f"{name} is given twice, in the dict and beside it: leave one of them out")
    return rest, label if y is None else y, weight if sample_weight is None else sample_weight


def _split_each(batches: Iterator) -> Iterator:
    for batch in batches:
        yield _split(batch) if _is_batch_dict(batch) else batch


class _SplitDataset(keras.utils.PyDataset):
    """A PyDataset whose batch dicts are split; its workers, length and order are those of the one that was given."""

    def __init__(self, data):
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self._data = data

    @property
    def num_batches(self):
        return self._data.num_batches

    def __getitem__(self, index):
        batch = self._data[index]
        return _split(batch) if _is_batch_dict(batch) else batch

    def on_epoch_begin(self):
        self._data.on_epoch_begin()

    def on_epoch_end(self):
        self._data.on_epoch_end()


def _split(batch):
    rest = {key: value for key, value in batch.items() if key not in ("label", "sample_weight")}
    weight = (batch["sample_weight"],) if "sample_weight" in batch else ()
    return (rest, batch["label"], *weight) if "label" in batch else (rest,)


def batch_count(data) -> int | None:
    """How many samples, or batches of a data set, there are; None where data don't tell."""
    if hasattr(data, "cardinality"):
        count = int(data.cardinality())
        return count if count >= 0 else None
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    parts = keras.tree.flatten(data) if isinstance(data, Mapping) or hasattr(data, "shape") else []
    return len(parts[0]) if parts and getattr(parts[0], "shape", ()) else None


def shows_its_fields(data) -> bool:
    """Whether data tell what their batches contain; a generator or a PyDataset shows it in its first batch."""
    return hasattr(data, "element_spec") or isinstance(data, Mapping) or hasattr(data, "shape")


def teacher_taps_in(data) -> list[str] | None:
    """Names of the teacher's taps that the batches of a data set or dict contain, or None where they contain none."""
    spec = getattr(data, "element_spec", data)
    spec = spec[0] if isinstance(spec, tuple) else spec
    if not _is_batch_dict(spec) or "teacher" not in spec:
        return None
    return list(spec["teacher"]) if isinstance(spec["teacher"], Mapping) else ["logits"]


def may_contain(data, field: str) -> bool:
    """Whether batches contain a field of `Batch`. True for data that does not tell, such as a generator."""
    if hasattr(data, "element_spec"):
        data = data.element_spec
        data = data[0] if isinstance(data, tuple) else data
    elif not isinstance(data, Mapping) and not hasattr(data, "shape"):
        return True
    return _is_batch_dict(data) and field in data


def contains_weights(data) -> bool:
    """Whether the batches of a data set contain sample weights."""
    spec = getattr(data, "element_spec", ())
    return "sample_weight" in spec if _is_batch_dict(spec) else isinstance(spec, tuple) and len(spec) > 2


def _is_batch_dict(value) -> bool:
    return isinstance(value, Mapping) and "image" in value
