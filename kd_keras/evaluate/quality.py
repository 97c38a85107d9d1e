"""What a model is worth: predictions and quality figures."""

import math

import numpy as np

from kd_keras.errors import InputError

CALIBRATION_BINS = 15


def predict(model, dataset):
    """Runs a classifier over a dataset, batch by batch, without touching its state.

    Args:
        model: callable as ``model(images, training=False)``, returning logits (B, K).
        dataset: yields ``(image, label)``; images (B, H, W, C), labels integers (B,).

    Returns:
        ``(logits, labels)``: float32 (N, K) and int64 (N,), in the dataset's order.

    Raises:
        InputError: the dataset is empty, or a batch holds anything but one integer label per image.
    """
    import tensorflow as tf

    forward = tf.function(lambda images: tf.cast(model(images, training=False), tf.float32))
    if isinstance(dataset, tf.data.Dataset):
        # A signature that leaves the batch open: the uneven last batch is not traced again. Traced here, since
        # TensorFlow would warn of a function that is made anew for each of many small splits.
        forward = forward.get_concrete_function(dataset.element_spec[0])
    logits, labels = [], []
    for images, targets in dataset:
        outputs, targets = forward(images).numpy(), np.asarray(targets)
        if targets.shape != outputs.shape[:1] or targets.dtype.kind not in "iu":
            raise InputError(
                f"evaluation needs one integer label per image: got labels of shape {targets.shape} and type "
                f"{targets.dtype} for {len(outputs)} images; drop mixup or one-hot coding from this dataset"
            )
        logits.append(outputs)
        labels.append(targets)
    if not logits:
        raise InputError("there is nothing to evaluate: the dataset yielded no batch; check the split's size")
    return np.concatenate(logits), np.concatenate(labels).astype(np.int64)


def logits(model):
    """A Keras classifier as `predict` calls it, a final softmax taken off: (B, H, W, C) -> (B, K).

    Raises:
        InputError: what ends the model can't be turned into logits; see `Taps`.
    """
    from kd_keras.distillation.distiller import Taps

    taps = Taps(model)
    return lambda images, training: taps(images, ("logits",), training=training)["logits"]


def metrics(logits, labels):
    """Quality of predictions.

    Precision, recall and F1 are macro averages over all K classes: a class that is neither present nor predicted
    counts as 0, so that the figures agree with `class_report`.

    Args:
        logits: (N, K), before softmax.
        labels: (N,) integers in [0, K).

    Returns:
        dict of floats in [0, 1]: ``accuracy``, ``precision``, ``recall``, ``f1`` and ``ece``, the expected calibration
        error over 15 equal-width bins of the confidence (Guo et al. 2017, arXiv:1706.04599, equation 3).
    """
    from sklearn.metrics import precision_recall_fscore_support

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    predicted = logits.argmax(axis=-1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(logits.shape[-1]), average="macro", zero_division=0
    )
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "ece": _calibration_error(logits, predicted == labels),
    }


def _calibration_error(logits, correct):
    from scipy.special import softmax

    confidence = softmax(logits, axis=-1).max(axis=-1)
    # The paper's bins are ((m - 1) / M, m / M]: closed on the right.
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    # Each bin's |accuracy - confidence| weighted by its share of the samples is |sum of the differences| / N.
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def agreement(logits_a, logits_b):
    """Share of samples that two models give the same class.

    Args:
        logits_a: (N, K).
        logits_b: (N, K), for the same samples in the same order.

    Returns:
        float in [0, 1].

    Raises:
        ValueError: the two do not have the same shape.
    """
    logits_a, logits_b = np.asarray(logits_a), np.asarray(logits_b)
    if logits_a.shape != logits_b.shape:
        raise ValueError(f"agreement needs logits of one shape, got {logits_a.shape} and {logits_b.shape}")
    return float(np.mean(logits_a.argmax(axis=-1) == logits_b.argmax(axis=-1)))


def accuracy_change(logits, reference, labels):
    """How much more accurate one model is than another on the same samples, with a paired 95 % interval.

    Each sample is right by both, by neither (0), by the one (+1) or the other (-1); the interval is that of these
    numbers' mean (normal approximation), over the samples, not over trainings.

    Args:
        logits: (N, K).
        reference: (N, K), of the model that it is compared with.
        labels: (N,) integers.

    Returns:
        ``(change, low, high)``, floats in [-1, 1].
    """
    labels = np.asarray(labels)
    right = [np.asarray(one).argmax(axis=-1) == labels for one in (logits, reference)]
    apart = right[0].astype(np.float64) - right[1]
    mean, half = apart.mean(), 1.96 * apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
    return float(mean), float(mean - half), float(mean + half)


def worst_class_drop(logits, reference, labels):
    """Largest loss of recall in a class, against another model; (N, K), (N, K), (N,) -> float in [-1, 1]."""
    from sklearn.metrics import recall_score

    ours, theirs = (
        recall_score(labels, np.asarray(one).argmax(axis=-1), labels=np.unique(labels), average=None)
        for one in (logits, reference)
    )
    return float((theirs - ours).max())


def class_report(logits, labels, class_names):
    """Precision, recall, F1 and support of every class.

    Args:
        logits: (N, K).
        labels: (N,) integers.
        class_names: K names, in label order.

    Returns:
        scikit-learn's ``classification_report(..., output_dict=True)``: a dict per class name, and ``accuracy``,
        ``macro avg``, ``weighted avg``.

    Raises:
        InputError: the number of names is not K, or a name occurs twice.
    """
    from sklearn.metrics import classification_report

    logits, class_names = np.asarray(logits), [str(name) for name in class_names]
    if len(class_names) != logits.shape[-1] or len(set(class_names)) != len(class_names):
        raise InputError(
            f"a class report needs {logits.shape[-1]} different class names, one for each output: got {class_names}"
        )
    return classification_report(
        np.asarray(labels),
        logits.argmax(axis=-1),
        labels=np.arange(len(class_names)),
        target_names=class_names,
        output_dict=True,
        zero_division=0,
    )


def confusion(logits, labels, num_classes):
    """Confusion matrix.

    Args:
        logits: (N, K).
        labels: (N,) integers.
        num_classes: K.

    Returns:
        (K, K) integers; rows are true classes, columns predicted ones.
    """
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(np.asarray(labels), np.asarray(logits).argmax(axis=-1), labels=np.arange(num_classes))
