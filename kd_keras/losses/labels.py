"""Labels in all their forms.

Of a softmax: classes (B,) or (B, 1), −1 for none, or class weights (B, K) after mixup and cutmix, a row of −1 for none.
Of independent labels (multi-label): (B, K), each 0 or 1, between them after mixup, or −1 where it is not known.
"""

import numpy as np
from keras import ops

# Known labels of a data set, or of a batch.
_MANY = 100


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


def known_labels(labels, dtype="float32"):
    """Independent labels (B, K), and a mask (B, K) of the known ones: 0 where a label is −1."""
    labels = ops.cast(labels, dtype)
    return labels, ops.cast(labels >= 0, dtype)


def binary_cross_entropy(labels, logits, smoothing: float = 0.0):
    """The mean (B,) over the known labels of the binary cross-entropy of logits (B, K); 0 where none is known.

    Args:
        labels: (B, K) from 0 to 1, −1 for labels that are not known.
        logits: (B, K).
        smoothing: ε in [0, 1): labels y become (1 − ε)·y + ε / 2.
    """
    targets, known = known_labels(labels)
    targets = targets * (1 - smoothing) + smoothing / 2
    # y·softplus(−z) + (1 − y)·softplus(z): nothing cancels. Unknown labels have no gradient, whatever z.
    terms = targets * ops.softplus(-logits) + (1 - targets) * ops.softplus(logits)
    return ops.sum(ops.where(known > 0, terms, 0.0), axis=-1) / ops.maximum(ops.sum(known, axis=-1), 1.0)


def are_multi_hot(labels: np.ndarray) -> bool:
    """Whether labels can only be independent ones: (N, K) of 0 and 1 (−1: not known), not each row with a single 1.

    A row of −1 alone says nothing.
    """
    if labels.ndim != 2 or labels.shape[1] == 1 or not np.isin(labels, (-1, 0, 1)).all():
        return False
    labels = labels[(labels != -1).any(axis=-1)]
    return bool((labels == 0).any() and (labels.astype("float64").sum(axis=-1) != 1).any())


def without_missing(labels, is_multilabel: bool = False):
    """Splits labels of which −1 says that there is none.

    Returns:
        Labels with a class in every place (independent labels as they are), and (B,) booleans: which samples have a
        label; None where all have.
    """
    if is_multilabel and labels is not None:
        return labels, ops.any(known_labels(labels)[1] > 0, axis=-1)
    if labels is None:
        return labels, None
    if are_class_weights(labels):
        labels = ops.cast(labels, "float32")
        has_label = ops.any(labels >= 0, axis=-1)
    else:
        has_label = ops.reshape(labels, (-1,)) >= 0
    return ops.maximum(labels, ops.zeros_like(labels)), has_label


def fault_of_form(shape: tuple, dtype: str, num_classes: int, is_multilabel: bool = False) -> str | None:
    """What is wrong with the shape or dtype of labels, in a sentence, or None."""
    is_number = any(kind in dtype for kind in ("int", "float", "bool"))
    if is_multilabel and not (is_number and tuple(shape)[1:] == (num_classes,)):
        sizes = ", ".join(["B", *map(str, tuple(shape)[1:])])
        return (
            f"the labels are {dtype} ({sizes}), and losses or student are for independent labels (multi-label): give "
            f"(B, {num_classes}), each 0 or 1, or -1 where a label is not known"
        )
    if not is_number:
        return f"the labels are {dtype}: give classes, whole numbers from 0 to {num_classes - 1}"
    if tuple(shape)[1:] not in ((), (1,), (num_classes,)):
        sizes = ", ".join(["B", *map(str, tuple(shape)[1:])])
        return f"the labels have the shape ({sizes}): give classes (B,), or class weights (B, {num_classes})"
    return None


def may_be_at_fault(labels, num_classes: int, missing: bool = True, is_multilabel: bool = False):
    """A boolean scalar: whether `fault` has to look at labels of a right form. A few operations, for each batch."""
    if is_multilabel:
        values = ops.cast(labels, "float32")
        is_label, is_unknown = ops.logical_and(values >= 0, values <= 1), ops.equal(values, -1.0)
        is_doubtful = ops.any(is_unknown)
        if missing:  # where none is 0, -1 may have been written for 0
            is_doubtful = ops.logical_and(is_doubtful, ops.all(ops.logical_or(is_unknown, values == 1)))
        return ops.logical_or(is_doubtful, ops.logical_not(ops.all(ops.logical_or(is_label, is_unknown))))
    if are_class_weights(labels):
        weights = ops.cast(labels, "float32")
        sums = ops.sum(weights, axis=-1, keepdims=True)
        is_right = ops.all(ops.logical_and(weights >= 0, ops.abs(sums - 1) < 1e-2), axis=-1)
        if missing:
            is_right = ops.logical_or(is_right, ops.all(ops.equal(weights, -1.0), axis=-1))
        return ops.logical_not(ops.all(is_right))
    values = ops.cast(labels, "float32")
    is_class = ops.logical_and(values >= (-1 if missing else 0), values < num_classes)
    return ops.logical_not(ops.all(ops.logical_and(is_class, ops.equal(values, ops.floor(values)))))


def fault(labels: np.ndarray, num_classes: int, missing: bool = True, is_multilabel: bool = False) -> str | None:
    """What is wrong with labels, in a sentence, or None.

    Args:
        labels: classes (B,) or (B, 1), or class weights (B, K); or independent labels (B, K).
        num_classes: K.
        missing: whether −1 may say that a sample has no label.
        is_multilabel: whether the labels are independent.
    """
    if reason := fault_of_form(labels.shape, str(labels.dtype), num_classes, is_multilabel):
        return reason
    values = labels.astype("float64")
    if is_multilabel:
        return _fault_of_independent(values, missing)
    if are_class_weights(values):
        return _fault_of_class_weights(values, missing)
    values = values.reshape(-1)
    last = num_classes - 1
    if not np.isfinite(values).all():
        return f"label {values[at := int(np.argmin(np.isfinite(values)))]} (sample {at}) is not a finite number"
    if (fractions := values != np.floor(values)).any():
        at = int(np.argmax(fractions))
        return f"label {values[at]:g} (sample {at}) is not a whole number: give classes from 0 to {last}"
    if not missing and (values == -1).any():
        return _fault_of_missing(int((values == -1).sum()), f"classes from 0 to {last}")
    if (outside := (values < -1) | (values >= num_classes)).any():
        at = int(np.argmax(outside))
        return (
            f"label {values[at]:g} (sample {at}; {int(outside.sum())} in all) is out of range: the classes are 0 to "
            f"{last}, and -1 says that there is no label"
        )
    return None


def _fault_of_independent(values, missing) -> str | None:
    accepted = "independent labels are 0 or 1, between them after mixup, or -1 where a label is not known"
    if not np.isfinite(values).all():
        return f"some of the labels are not finite numbers: {accepted}"
    is_unknown = values == -1
    if (wrong := ~is_unknown & ((values < 0) | (values > 1))).any():
        sample, label = np.argwhere(wrong)[0]
        return f"label {label} of sample {sample} is {values[sample, label]:g}: {accepted}"
    if is_unknown.any() and not missing:
        return (
            f"{int(is_unknown.sum())} labels are -1, for not known, which one of the compiled metrics or losses can't "
            "leave out: give 0 or 1, compile metrics=['accuracy'], or leave these samples out"
        )
    # With so many, it is no chance that none of those known is 0.
    if is_unknown.any() and (~is_unknown).sum() >= _MANY and (values[~is_unknown] == 1).all():
        return f"the labels are all -1 or 1: {accepted}; write 0 for a label that an image does not have"
    return None


def _fault_of_missing(count, accepted) -> str:
    return (
        f"{count} labels are -1, for no label, which one of the compiled metrics or losses can't leave out: give "
        f"{accepted}, compile metrics=['accuracy'], or leave these samples out"
    )


def _fault_of_class_weights(values, missing) -> str | None:
    if not np.isfinite(values).all():
        return "the labels are class weights of which some are not finite numbers"
    is_missing = (values == -1).all(axis=-1)
    if is_missing.any() and not missing:
        return _fault_of_missing(int(is_missing.sum()), "class weights")
    values = values[~is_missing]
    if (values < 0).any():
        return f"the labels are class weights below 0, down to {values.min():g}: give weights that sum to 1"
    sums = values.sum(axis=-1)
    if (np.abs(sums - 1) < 1e-2).all():  # also where no sample has a label
        return None
    is_multi_hot = np.isin(values, (0, 1)).all()
    meaning = " (several labels for an image, multi-label: take bce and binary_kd)" if is_multi_hot else ""
    return (
        f"the labels are class weights that sum to {sums.min():.3g} to {sums.max():.3g}{meaning}: they have to sum to 1"
    )
