"""Predictions of a classifier, and the quality that they have."""

import math

import numpy as np

from kd_keras.errors import InputError

CALIBRATION_BINS = 15


def predict(model, dataset):
    """Predicts a whole data set, batch by batch, without changing the model's state.

    Args:
        model: callable as ``model(images, training=False)``, returning logits (B, K).
        dataset: batches ``(image, label)``: images (B, H, W, C), labels integers (B,), or (B, K) where they are
            independent.

    Returns:
        ``(logits, labels)``: float32 (N, K) and int64 (N,) or (N, K), in the dataset's order.

    Raises:
        InputError: the data set is empty, or its labels are not one integer per image.
    """
    import tensorflow as tf

    # Without AutoGraph, as in Keras' own predict: it warns of imports that happen while a model is traced.
    forward = tf.function(lambda images: tf.cast(model(images, training=False), tf.float32), autograph=False)
    decide = getattr(model, "decide", None)
    if isinstance(dataset, tf.data.Dataset):
        if decide is not None:
            decide(next(iter(dataset))[0])
        # The signature leaves the batch size open, so that a smaller last batch is not traced again. It is traced here
        # because TensorFlow warns of retracing when many small splits are predicted.
        forward = forward.get_concrete_function(dataset.element_spec[0])
    logits, labels = [], []
    for images, targets in dataset:
        if decide is not None:
            decide(images)
        outputs, targets = forward(images).numpy(), np.asarray(targets)
        if targets.shape not in (outputs.shape[:1], outputs.shape) or targets.dtype.kind not in "iu":
            raise InputError(
                f"evaluation needs one integer label per image, or per output: got labels of shape {targets.shape} and "
                f"type {targets.dtype} for {len(outputs)} images; remove mixup or one-hot coding from this data set"
            )
        logits.append(outputs)
        labels.append(targets)
    if not logits:
        raise InputError("there is nothing to evaluate: the data set has no batch; check the split's size")
    return np.concatenate(logits), np.concatenate(labels).astype(np.int64)


def logits(model):
    """A function ``(images, training) -> logits`` of a Keras classifier; of probabilities those behind them.

    Its attribute ``decide`` looks at images for what the model's output is; `predict` calls it with the first batch.

    Raises:
        InputError: the output can't be that of a classifier; see `Taps`.
    """
    from kd_keras.distillation.taps import Taps

    taps = Taps(model)

    def read(images, training):
        return taps(images, ("logits",), training=training)["logits"]

    read.decide = taps.decide
    return read


def metrics(logits, labels):
    """Accuracy, precision, recall, F1 and calibration of predictions.

    Precision, recall and F1 are averages over all K classes (macro). A class that is neither present nor predicted
    counts as 0, as in `class_report`.

    Args:
        logits: (N, K).
        labels: (N,) integers in [0, K).

    Returns:
        dict of floats in [0, 1]: ``accuracy``, ``precision``, ``recall``, ``f1`` and ``ece``, the expected calibration
        error over 15 bins of the confidence, of equal width.

    Reference:
        Guo et al., arXiv:1706.04599, equation 3 (calibration error).
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
    bins = calibration_bins(confidence)
    # |accuracy − confidence| of a bin, weighted by its share of the samples, is |sum of the differences| / N.
    gaps = np.bincount(bins, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_bins(confidence):
    """The bin of each confidence (N,) in [0, 1], counted from 0; the paper's bins ((m - 1) / M, m / M] hold m / M."""
    return np.digitize(confidence, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], right=True)


def agreement(logits_a, logits_b):
    """Share of samples for which two models predict the same class.

    Args:
        logits_a: (N, K).
        logits_b: (N, K), for the same samples in the same order.

    Returns:
        float in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    logits_a, logits_b = np.asarray(logits_a), np.asarray(logits_b)
    if logits_a.shape != logits_b.shape:
        raise ValueError(f"agreement needs logits of one shape, got {logits_a.shape} and {logits_b.shape}")
    return float(np.mean(logits_a.argmax(axis=-1) == logits_b.argmax(axis=-1)))


def knn_accuracy(train, train_labels, test, labels, k=20, temperature=0.07):
    """Accuracy of the k nearest neighbours by cosine similarity s, each with the weight exp(s / temperature).

    Args:
        train, test: features (N, D) and (M, D).
        train_labels, labels: (N,) and (M,) integers.
        k: neighbours, at most N.
        temperature: of the weights.

    Reference: Wu et al., arXiv:1805.01978, section 3.4; its settings are those of arXiv:2104.14294.
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(
        min(k, len(train)),
        weights=lambda distances: np.exp((1 - distances) / temperature),
        algorithm="brute",
        metric="cosine",
    )
    return float(classifier.fit(train, train_labels).score(test, labels))


def recall_by_chance(matrix) -> tuple[float, float]:
    """The mean recall of the classes, and what guessing reaches but once in a thousand times.

    A guess of each of K classes is right with probability 1/K, whatever the classes' shares; the limit is three
    standard deviations above it.

    Args:
        matrix: (K, K), of `confusion`.
    """
    matrix = np.asarray(matrix, np.float64)
    counts = matrix.sum(axis=1)
    seen, chance = counts > 0, 1 / len(matrix)
    recall = (np.diag(matrix)[seen] / counts[seen]).mean()
    deviation = math.sqrt((chance * (1 - chance) / counts[seen]).sum()) / seen.sum()
    return float(recall), chance + 3 * deviation


def accuracy_change(logits, reference, labels):
    """Difference in accuracy between two models on the same samples, with a paired 95 % confidence interval.

    Each sample counts 0 if both models are right or both are wrong, +1 if only the first is right, −1 if only the
    reference is. The interval is that of the mean (normal approximation). It is over samples, not over trainings.

    Args:
        logits: (N, K).
        reference: (N, K), of the other model.
        labels: (N,) integers.

    Returns:
        ``(change, low, high)``, floats in [-1, 1].
    """
    labels = np.asarray(labels)
    return paired_change(*(np.asarray(z).argmax(axis=-1) == labels for z in (logits, reference)))


def paired_change(correct, reference_correct):
    """The same of what is right already: bool (N,), bool (N,) -> ``(change, low, high)``; see `accuracy_change`."""
    change = np.asarray(correct, np.float64) - np.asarray(reference_correct)
    mean, half = change.mean(), 1.96 * change.std(ddof=1) / math.sqrt(len(change)) if len(change) > 1 else math.inf
    return float(mean), float(mean - half), float(mean + half)


def worst_class_drop(logits, reference, labels):
    """Largest drop of a class's recall below that of another model: (N, K), (N, K), (N,) -> float in [-1, 1]."""
    from sklearn.metrics import recall_score

    recall, reference_recall = (
        recall_score(labels, np.asarray(z).argmax(axis=-1), labels=np.unique(labels), average=None)
        for z in (logits, reference)
    )
    return float((reference_recall - recall).max())


def class_report(logits, labels, class_names):
    """Precision, recall, F1 and number of samples of every class.

    Args:
        logits: (N, K).
        labels: (N,) integers.
        class_names: K names, in label order.

    Returns:
        scikit-learn's ``classification_report(..., output_dict=True)``: a dict for each class name, ``accuracy``,
        ``macro avg`` and ``weighted avg``.

    Raises:
        InputError: the names are not K different ones.
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
    """Confusion matrix: counts of true and predicted classes.

    Args:
        logits: (N, K).
        labels: (N,) integers.
        num_classes: K.

    Returns:
        (K, K) integers; rows are true classes, columns predicted ones.
    """
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(np.asarray(labels), np.asarray(logits).argmax(axis=-1), labels=np.arange(num_classes))
