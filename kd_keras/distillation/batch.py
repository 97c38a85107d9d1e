"""Batches in every form that a Distiller takes, read by one function."""

import dataclasses
from collections.abc import Mapping
from typing import Any

_FIELDS = ("image", "label", "sample_weight", "index", "teacher")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The fields of a training batch.

    Attributes:
        image: (B, H, W, C).
        label: classes (B,), or class weights (B, K); None when predicting.
        sample_weight: (B,) or None.
        index: position of each sample in its split (B,), or None.
        teacher: the teacher's taps for exactly these images, by name. Where they are given, the teacher is not run.
    """

    image: Any
    label: Any = None
    sample_weight: Any = None
    index: Any = None
    teacher: Any = None


def unpack_batch(data) -> Batch:
    """Reads a batch in any form that Keras or the input pipeline produces.

    Args:
        data: ``image``, ``(image, label)``, ``(image, label, sample_weight)``, or a dict with the fields of `Batch`.
            The dict may also take the place of the image in a tuple, which is how `split_dicts` passes it to Keras.
    """
    image, label, weight = (*data, None, None)[:3] if isinstance(data, (tuple, list)) else (data, None, None)
    if not _is_batch_dict(image):
        return Batch(image, label, weight)
    fields = {key: image[key] for key in _FIELDS if key in image}
    separate = {"label": label, "sample_weight": weight}
    return Batch(**{**fields, **{key: value for key, value in separate.items() if value is not None}})


def split_dicts(data):
    """A data set of batch dicts as ``(dict, label, sample_weight)``, which Keras' own code can take apart.

    Anything else is returned as it is.
    """
    spec = getattr(data, "element_spec", None)
    if not (_is_batch_dict(spec) and "label" in spec):
        return data

    def split(batch):
        rest = {key: value for key, value in batch.items() if key not in ("label", "sample_weight")}
        weight = (batch["sample_weight"],) if "sample_weight" in batch else ()
        return (rest, batch["label"], *weight)

    return data.map(split)


def teacher_taps_in(data) -> list[str] | None:
    """Names of the teacher's taps that a data set's batches contain, or None where they contain none."""
    spec = getattr(data, "element_spec", None)
    return list(spec["teacher"]) if _is_batch_dict(spec) and "teacher" in spec else None


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
