"""What is refused before a Distiller trains: models, losses and labels that don't go together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.distillation.heads import Head
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.losses.base import Loss


def models(student: Any, teacher: Any) -> None:
    """Raises InputError for what is no model, and for a student and a teacher that share weights."""
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, keras.Model) and (role, model) != ("teacher", None):
            raise InputError(f"the {role} is {model!r:.60}: give a keras.Model")
    if student is teacher:
        raise InputError("student and teacher are the same model, which would teach itself: give a copy as the teacher")
    of_teacher = {id(variable) for variable in (teacher.variables if teacher is not None else ())}
    if shared := [variable.path for variable in student.trainable_variables if id(variable) in of_teacher]:
        raise InputError(
            f"student and teacher share {', '.join(shared[:3])}, and training the student would change both: build the "
            "student of layers of its own (keras.models.clone_model and set_weights)"
        )


def losses(given: Any) -> list[Loss]:
    """The losses as a list; of those that another Distiller has, new ones of the same settings.

    Raises:
        InputError: there is none, one is no loss or is given twice, or one can't be made again.
    """
    if isinstance(given, Loss):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"losses={given!r:.60}: give a list of losses, such as [losses.CE(), losses.KD()]")
    if not given:
        raise InputError("a Distiller needs at least one loss, such as losses.CE()")
    for loss in given:
        if isinstance(loss, type) or not hasattr(loss, "taps"):
            raise InputError(f"{loss!r} is no loss: give those of kd_keras.losses, such as losses.KD()")
        if sum(loss is other for other in given) > 1:
            raise InputError(
                f"the loss {loss.name} is given twice: give it once, with twice the weight, or make another"
            )
    used = [loss.name for loss in given if loss.clock is not None]
    if used:
        logging.info("in use in another Distiller, so that this one has new ones: %s", ", ".join(used))
    return [loss if loss.clock is None else loss.renewed() for loss in given]


def term_names(terms: Sequence[Loss]) -> list[str]:
    """The names of losses in the logs: ``['kd', 'kd']`` as ``['kd', 'kd_2']``.

    Raises:
        InputError: two figures of the logs have one name.
    """
    given = [term.name for term in terms]
    names = [name if (n := given[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(given)]
    _check_names("loss", names, [], logged(terms, names))
    return names


def logged(terms: Sequence[Loss], names: Sequence[str]) -> list[str]:
    """The names that a training step logs besides the metrics, from the total to the schedules."""
    schedules = [f"{name}_{key}" for name, term in zip(names, terms, strict=True) for key in term.schedules]
    return ["loss", *names, *schedules]


def metrics(given: Any, taken: Sequence[str]) -> None:
    """Raises InputError for compiled metrics that Keras doesn't know, and for names that the logs have already."""
    names = []
    for metric in keras.tree.flatten(given or []):
        if isinstance(metric, str) and metric not in ("accuracy", "acc"):
            try:
                keras.metrics.get(metric)
            except ValueError as error:
                raise InputError(
                    f"metrics: Keras knows no {metric!r}; give one of keras.metrics, for logits (from_logits=True) or "
                    "for probabilities, whichever the student gives"
                ) from error
        if metric is not None:
            name = metric if isinstance(metric, str) else getattr(metric, "name", None)
            names.append(name or getattr(metric, "__name__", str(metric)))
    _check_names("metric", names, taken, names)


def _check_names(what: str, names: Sequence[str], taken: Sequence[str], figures: Sequence[str]):
    for name in names:
        if name in taken or figures.count(name) > 1 or name.startswith("val_"):
            raise InputError(
                f"a {what} is named {name!r}, as another figure of the logs is or may be: give it another, name='mine'"
            )


_HEADS = {
    "softmax": "one class for each image (a softmax)",
    "multilabel": "independent labels (multi-label, a sigmoid each)",
}


def are_multilabel(terms: Sequence[Loss]) -> bool | None:
    """Whether the losses are for independent labels; None where they are for either.

    Raises:
        InputError: one is for independent labels, and another for one class for each image.
    """
    only = {}
    for term in terms:
        if isinstance(term.heads, str) or not term.heads or not set(term.heads) <= set(_HEADS):
            raise InputError(f"{term.name}.heads is {term.heads!r}: give a set of {' and '.join(map(repr, _HEADS))}")
        if len(term.heads) == 1:
            only.setdefault(*term.heads, term.name)
    if len(only) > 1:
        text = ", and ".join(f"{name} for {_HEADS[kind]}" for kind, name in only.items())
        raise InputError(f"the losses don't go together: {text}; take all for one of the two")
    return "multilabel" in only if only else None


def heads(terms: Sequence[Loss], tap_names: Sequence[tuple], found: Mapping[str, Head]) -> None:
    """Raises InputError where a loss reads logits of a head that it is not for, or of two that differ.

    Args:
        terms: the losses.
        tap_names: for each of them, the names of the taps of student and teacher that it reads.
        found: ``'student'`` and ``'teacher'``, as far as they are known.
    """
    for term, names in zip(terms, tap_names, strict=True):
        read = [
            (role, found[role])
            for role, taps in zip(("student", "teacher"), names, strict=True)
            if taps and role in found
        ]
        for role, head in read:
            if head.labels not in term.heads:
                other = "multilabel_logits" if head.labels == "softmax" else "logits"
                if head.gives_probabilities:
                    other = other.replace("logits", "probabilities")
                raise InputError(
                    f"{term.name} is for {_HEADS[next(iter(term.heads))]}, and the {role}'s output is that of "
                    f"{_HEADS[head.labels]}: {head.reason}; take losses for such a head "
                    f"({'bce, binary_kd' if head.is_multilabel else 'ce, kd'} or losses on features), or say "
                    f"{role}_output={other!r}"
                )
        if "logits" in set(names[0]) & set(names[1]) and len({head.labels for _, head in read}) > 1:
            text = ", the ".join(f"{role}'s is that of {_HEADS[head.labels]}" for role, head in read)
            raise InputError(f"{term.name} compares two outputs of different kinds: the {text}")


def pair(teacher: Taps, student: Taps, readers: Sequence[str]) -> None:
    """Raises InputError where losses read the logits of a teacher that has not the student's classes.

    Args:
        teacher: the teacher's taps.
        student: the student's.
        readers: the losses that read the teacher's logits.
    """
    if readers and teacher.is_headless:
        raise InputError(
            f"the teacher gives features of shape {teacher.shapes(['output'])['output']} and no classes, and "
            f"{', '.join(readers)} reads its logits: give losses on features alone, such as hint(pairs='…:output')"
        )
    if readers and teacher.num_classes != student.num_classes:
        raise InputError(
            f"the teacher has {teacher.num_classes} classes (or features, if it has no classifier's head) and the "
            f"student {student.num_classes}, and {', '.join(readers)} compares them: they have to be the same"
        )


def augments(student: keras.Model) -> None:
    """Warns of layers of the student that change its images at random."""
    layers = ((layer, type(layer)) for layer in graph.all_layers(student))
    names = [
        layer.name
        for layer, kind in layers
        if kind.__module__.startswith("keras") and kind.__name__.startswith(("Rand", "AugMix", "MixUp", "CutMix"))
    ]
    if names:
        logging.warning(
            "the student changes its images at random (%s), so the teacher sees other views: augment the data instead",
            ", ".join(names),
        )


def images(given: Any, taps: Taps) -> None:
    """Raises InputError where images (B, H, W, C), or (B, H, W) of one channel, are not what a model takes.

    Args:
        given: the images, or a dict or list of what a model of several inputs takes.
        taps: the model's.
    """
    shapes = shapes_of(given)
    if not _fits(shapes, taps.input_shape):
        what = "" if isinstance(taps.input_shape, tuple) else "the inputs "
        raise InputError(f"the images of the batch are {shapes}, and the {taps.role} takes {what}{taps.input_shape}")


def shapes_of(given: Any) -> Any:
    """The shapes of images without their first axis; in a dict or list where there are several tensors."""
    if isinstance(given, Mapping):
        return {name: shapes_of(part) for name, part in given.items()}
    return [shapes_of(part) for part in given] if isinstance(given, (list, tuple)) else tuple(given.shape)[1:]


def _fits(shape, wanted) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(shape, Mapping) and all(_fits(shape[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return isinstance(shape, list) and len(shape) == len(wanted) and all(map(_fits, shape, wanted))
    if not isinstance(shape, tuple):
        return False
    shape = shape if len(shape) == len(wanted) else (*shape, 1)
    return len(shape) == len(wanted) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(shape, wanted, strict=True)
    )


def class_weight(weights: Any) -> None:
    """Raises InputError where class_weight is not a dict of classes, which Keras would pass over."""
    if weights is None:
        return
    if not isinstance(weights, Mapping) or not all(isinstance(key, (int, np.integer)) for key in weights):
        raise InputError(f"class_weight={weights!r:.60}: give a dict from class, a whole number, to weight")


def teacher_logits(logits: Any, num_classes: int) -> Any:
    """A batch's precomputed logits or probabilities as (B, K).

    Raises:
        InputError: they have another shape; axes of one entry are dropped.
    """
    sizes = tuple(logits.shape)[1:]
    if sizes == (1,) and num_classes == 2:  # of one unit
        return logits
    if [size for size in sizes if size != 1] != [num_classes]:
        shape = ", ".join(["B", *map(str, sizes)])
        raise InputError(
            f"the teacher's logits in the batch have the shape ({shape}), and there are {num_classes} classes: "
            f"give (B, {num_classes})"
        )
    return ops.reshape(logits, (ops.shape(logits)[0], num_classes))


def one_each(taps: Mapping, images: int) -> None:
    """Raises InputError where a batch has not one of the teacher's outputs for each of its images."""
    for name, values in taps.items():
        if len(values.shape) == 0 or values.shape[0] != images:
            count = values.shape[0] if len(values.shape) else "one"
            raise InputError(f"a batch has {images} images and {count} of the teacher's {name}: give one each")


def sample_weight(weight: Any) -> None:
    """Raises InputError unless there is one weight for each sample."""
    if weight is not None and any(size not in (1, None) for size in tuple(weight.shape)[1:]):
        raise InputError(f"sample_weight has the shape {tuple(weight.shape)}: give one value for each sample, (B,)")


def can_be_weighted(terms: Sequence[Loss]) -> None:
    """Raises InputError where a loss compares samples, whose weights have no meaning for it."""
    refusing = [term.name for term in terms if term.compares_samples and "sample_weight" not in term.needs]
    if refusing:
        raise InputError(
            f"these losses don't support sample weights: {', '.join(refusing)}; "
            "leave out sample_weight and class_weight"
        )


# ---- losses of the user's own ----


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a loss is called.

    Attributes:
        reads_labels: whether it reads labels.
        is_scalar: whether it gives one value for the whole batch.
    """

    reads_labels: bool
    is_scalar: bool


def manner(loss: Loss, student: Taps, teacher: Taps | None) -> Manner:
    """How a loss is called; one that does not say so is tried on seven samples of noise, which change nothing.

    Raises:
        InputError: it returns something else than a number for each sample or for the batch.
    """
    if loss.reads_labels is not None:
        return Manner(loss.reads_labels, False)
    names, teacher_names = loss.taps(student.names, None if teacher is None else teacher.names)
    # As no other axis, so that (B,) and (K,) are told apart.
    count = 11 if student.num_classes == 7 else 7

    def noise(shapes):
        draw = np.random.default_rng(0)
        return {
            name: ops.convert_to_tensor(draw.normal(size=(count, *(size or 8 for size in shape[1:]))), "float32")
            for name, shape in shapes.items()
        }

    logits = {"logits": (None, student.num_classes)}
    taps = noise(student.shapes(names)), noise(logits if teacher is None else teacher.shapes(teacher_names))
    more = {"index": ops.arange(count, dtype="int32"), "sample_weight": None}
    more = {name: value for name, value in more.items() if name in loss.needs}
    with keras.StatelessScope():
        try:
            value, reads_labels = loss.call(*taps, _Labels(), **more), False
        except Exception:  # of anybody's making: the labels were looked at, or else it is raised again
            shape = (count,) if "softmax" in loss.heads else (count, student.num_classes)
            value, reads_labels = loss.call(*taps, ops.zeros(shape, "int32"), **more), True
    _check_value(loss.name, value, count)
    return Manner(reads_labels, len(value.shape) == 0)


class _Labels:
    """Labels that can't be read: every operation on them fails."""


def _check_value(name, value, count) -> None:
    accepted = "it has to return a float tensor, one value for each sample (B,) or a scalar for the batch"
    if not ops.is_tensor(value):
        raise InputError(f"the loss {name} returns {type(value).__name__}: {accepted}")
    if "float" not in keras.backend.standardize_dtype(value.dtype):
        raise InputError(f"the loss {name} returns {keras.backend.standardize_dtype(value.dtype)}: {accepted}")
    sizes = tuple(value.shape)
    if sizes and (sizes[0] != count or any(size != 1 for size in sizes[1:])):
        shape = ", ".join("B" if size == count else str(size) for size in sizes)
        raise InputError(f"the loss {name} returns the shape ({shape}): {accepted}")
