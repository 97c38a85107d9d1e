"""Metrics of a Distiller. They leave out labels that are −1, and are told what the student's output is."""

import keras
from keras import ops

from kd_keras._compat import keras as compat
from kd_keras.losses import labels


class OfHead:
    """A metric that a Distiller tells what the student's output is."""

    #: A `heads.Head`; None where it is not said: logits.
    head = None

    @property
    def _gets_probabilities(self):
        return self.head is not None and self.head.gives_probabilities


@keras.saving.register_keras_serializable(package="kd_keras")
class Accuracy(OfHead, keras.metrics.Mean):
    """Share of samples whose largest logit is the label, for classes (B,) and for class weights (B, K).

    Of independent labels (B, K) it is the mean over samples of the share of known labels that are right, with a
    threshold of ½ on the probability, as Keras' ``binary_accuracy``.

    After mixup the training labels are class weights while the validation labels are classes. Keras' own metric
    decides by the first batch which of the two forms it takes. Samples without a label (−1) don't count.
    """

    def __init__(self, name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        compat.set_higher_is_better(self)

    def update_state(self, y_true, y_pred, sample_weight=None):
        is_multilabel = self.head is not None and self.head.is_multilabel
        y_true, has_label = labels.without_missing(y_true, is_multilabel)
        is_likely = y_pred > (0.5 if self._gets_probabilities else 0.0)
        if is_multilabel:
            y_true, known = labels.known_labels(y_true)
            right = ops.cast(ops.equal(y_true > 0.5, is_likely), "float32")
            correct = ops.sum(right * known, axis=-1) / ops.maximum(ops.sum(known, axis=-1), 1.0)
        else:
            predicted = is_likely[:, 0] if y_pred.shape[-1] == 1 else ops.argmax(y_pred, axis=-1)
            correct = ops.equal(labels.classes(y_true), ops.cast(predicted, "int32"))
        if sample_weight is not None:
            sample_weight = ops.cast(ops.reshape(sample_weight, (-1,)), self.dtype)
        if has_label is not None:
            has_label = ops.cast(has_label, self.dtype)
            sample_weight = has_label if sample_weight is None else sample_weight * has_label
        return super().update_state(ops.cast(correct, self.dtype), sample_weight)


# Logits beyond these count as equal, and so do those of one bin.
_REACH, _BINS = 16.0, 2048


@keras.saving.register_keras_serializable(package="kd_keras")
class MeanAveragePrecision(OfHead, keras.metrics.Metric):
    """Mean over independent labels of the average precision, from counts of the logits in 2048 bins of −16 to 16.

    Labels of which there are no samples of either kind are left out of the mean. Labels between 0 and 1, as after
    mixup, count in part.

    Args:
        num_labels: K.
        name: in the logs.
        dtype: of the counts.
    """

    def __init__(self, num_labels, name="map", dtype=None):
        super().__init__(name=name, dtype=dtype)
        compat.set_higher_is_better(self)
        self.num_labels = num_labels
        shape = (num_labels * _BINS,)
        self.positives = self.add_variable(shape=shape, initializer="zeros", name="positives")
        self.known = self.add_variable(shape=shape, initializer="zeros", name="known")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, known = labels.known_labels(y_true, self.dtype)
        logits = ops.cast(y_pred, "float32")
        if self._gets_probabilities:
            logits = ops.log(ops.maximum(logits, 1e-37)) - ops.log(ops.maximum(1 - logits, 1e-37))
        if sample_weight is not None:
            known = known * ops.cast(ops.reshape(sample_weight, (-1, 1)), self.dtype)
        place = ops.floor((ops.clip(logits, -_REACH, _REACH) + _REACH) * ((_BINS - 1) / (2 * _REACH)))
        place = ops.cast(place, "int32") + _BINS * ops.arange(self.num_labels, dtype="int32")
        for variable, counts in ((self.positives, known * y_true), (self.known, known)):
            counts, at = ops.reshape(counts, (-1,)), ops.reshape(place, (-1,))
            variable.assign_add(ops.segment_sum(counts, at, num_segments=self.num_labels * _BINS))

    def result(self):
        positives, known = (ops.reshape(counts, (self.num_labels, _BINS)) for counts in (self.positives, self.known))
        hits, called = (ops.flip(ops.cumsum(ops.flip(counts, 1), axis=1), 1) for counts in (positives, known))
        precision = hits / ops.maximum(called, 1e-12)
        has_both = ops.cast(ops.logical_and(hits[:, 0] > 0, called[:, 0] > hits[:, 0]), self.dtype)
        average = ops.sum(precision * positives, axis=1) / ops.maximum(hits[:, 0], 1e-12)
        return ops.sum(average * has_both) / ops.maximum(ops.sum(has_both), 1.0)

    def get_config(self):
        return {"num_labels": self.num_labels, "name": self.name, "dtype": self.dtype}
