"""Labels in their two forms: classes (B,) or (B, 1), and class weights (B, K) after mixup and cutmix."""

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
