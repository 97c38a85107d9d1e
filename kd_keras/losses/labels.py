"""Labels in their two forms: classes (B,) or (B, 1), −1 for none, and class weights (B, K) after mixup and cutmix."""

import numpy as np
from keras import ops


def are_class_weights(labels) -> bool:
    """Whether labels are class weights rather than classes."""
    return len(labels.shape) == 2 and labels.shape[-1] != 1


def classes(labels):
    """Classes (B,) int32 of labels in either form; of class weights, the largest."""
    if are_class_weights(labels):
        return ops.cast(ops.argmax(labels, axis=-1), "int32")
    return ops.cast(ops.reshape(labels, (-1,)), "int32")


def class_weights(labels, num_classes: int):
    """Class weights (B, K) float32 of labels in either form: one-hot of classes, NaN for a class out of range."""
    if are_class_weights(labels):
        return ops.cast(labels, "float32")
    indices = classes(labels)
    # One-hot of a class out of range is 0, and so would be its cross-entropy: an error that nobody sees.
    valid = ops.logical_and(indices >= 0, indices < num_classes)
    return ops.where(valid[:, None], ops.one_hot(indices, num_classes), float("nan"))


def cross_entropy(labels, logits, smoothing: float = 0.0):
    """Cross-entropy (B,) of logits (B, K) with labels in either form.

    Args:
        labels: classes (B,) or (B, 1), or class weights (B, K).
        logits: (B, K).
        smoothing: ε in [0, 1): the weights y become (1 − ε)·y + ε / K.
    """
    num_classes = logits.shape[-1]
    targets = class_weights(labels, num_classes) * (1 - smoothing) + smoothing / num_classes
    return -ops.sum(targets * ops.log_softmax(logits), axis=-1)


def without_missing(labels):
    """Splits labels of which −1 says that there is none.

    Returns:
        Labels with a class in every place, and (B,) booleans: which samples have a label; None where all have.
    """
    if labels is None or are_class_weights(labels):
        return labels, None
    return ops.maximum(labels, ops.zeros_like(labels)), ops.reshape(labels, (-1,)) >= 0


def fault_of_form(shape: tuple, dtype: str, num_classes: int) -> str | None:
    """What is wrong with the shape or dtype of labels, in a sentence, or None."""
    if not any(kind in dtype for kind in ("int", "float", "bool")):
        return f"the labels are {dtype}: give classes, whole numbers from 0 to {num_classes - 1}"
    if tuple(shape)[1:] not in ((), (1,), (num_classes,)):
        sizes = ", ".join(["B", *map(str, tuple(shape)[1:])])
        return f"the labels have the shape ({sizes}): give classes (B,), or class weights (B, {num_classes})"
    return None


def may_be_at_fault(labels, num_classes: int, missing: bool = True):
    """A boolean scalar: whether `fault` has to look at labels of a right form. A few operations, for each batch."""
    if are_class_weights(labels):
        weights = ops.cast(labels, "float32")
        sums = ops.sum(weights, axis=-1, keepdims=True)
        return ops.logical_not(ops.all(ops.logical_and(weights >= 0, ops.abs(sums - 1) < 1e-2)))
    values = ops.cast(labels, "float32")
    is_class = ops.logical_and(values >= (-1 if missing else 0), values < num_classes)
    return ops.logical_not(ops.all(ops.logical_and(is_class, ops.equal(values, ops.floor(values)))))


def fault(labels: np.ndarray, num_classes: int, missing: bool = True) -> str | None:
    """What is wrong with labels, in a sentence, or None.

    Args:
        labels: classes (B,) or (B, 1), or class weights (B, K).
        num_classes: K.
        missing: whether −1 may say that a sample has no label.
    """
    if reason := fault_of_form(labels.shape, str(labels.dtype), num_classes):
        return reason
    values = labels.astype("float64")
    if are_class_weights(values):
        return _fault_of_class_weights(values)
    values = values.reshape(-1)
    last = num_classes - 1
    if not np.isfinite(values).all():
        return f"label {values[at := int(np.argmin(np.isfinite(values)))]} (sample {at}) is not a finite number"
    if (fractions := values != np.floor(values)).any():
        at = int(np.argmax(fractions))
        return f"label {values[at]:g} (sample {at}) is not a whole number: give classes from 0 to {last}"
    if not missing and (values == -1).any():
        return (
            f"{int((values == -1).sum())} labels are -1, for no label, which one of the compiled metrics or losses "
            f"can't leave out: give classes from 0 to {last}, compile metrics=['accuracy'], or leave these samples out"
        )
    if (outside := (values < -1) | (values >= num_classes)).any():
        at = int(np.argmax(outside))
        return (
            f"label {values[at]:g} (sample {at}; {int(outside.sum())} in all) is out of range: the classes are 0 to "
            f"{last}, and -1 says that there is no label"
        )
    return None


def _fault_of_class_weights(values) -> str | None:
    if not np.isfinite(values).all():
        return "the labels are class weights of which some are not finite numbers"
    if (values < 0).any():
        return f"the labels are class weights below 0, down to {values.min():g}: give weights that sum to 1"
    sums = values.sum(axis=-1)
    if (np.abs(sums - 1) < 1e-2).all():
        return None
    is_multi_hot = np.isin(values, (0, 1)).all()
    meaning = " (several labels for an image, multi-label, which a softmax is not for)" if is_multi_hot else ""
    return (
        f"the labels are class weights that sum to {sums.min():.3g} to {sums.max():.3g}{meaning}: they have to sum to 1"
    )
