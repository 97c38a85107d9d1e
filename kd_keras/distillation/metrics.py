"""Metrics of a Distiller."""

import keras
from keras import ops

from kd_keras._compat import keras as compat
from kd_keras.losses import labels


@keras.saving.register_keras_serializable(package="kd_keras")
class Accuracy(keras.metrics.Mean):
    """Share of samples whose largest logit is the label, for classes (B,) and for class weights (B, K).

    Of independent labels (B, K) it is the mean over samples of the share of known labels that are right, with a
    threshold of ½ on the probability, as Keras' ``binary_accuracy``.

    After mixup the training labels are class weights while the validation labels are classes. Keras' own metric
    decides by the first batch which of the two forms it takes. Samples without a label (−1) don't count.
    """

    def __init__(self, name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        #: What the model gives, a `heads.Head`; logits of a softmax where it is not said.
        self.head = None
        compat.set_higher_is_better(self)

    def update_state(self, y_true, y_pred, sample_weight=None):
        is_multilabel = self.head is not None and self.head.is_multilabel
        y_true, has_label = labels.without_missing(y_true, is_multilabel)
        is_likely = y_pred > (0.5 if self.head is not None and self.head.gives_probabilities else 0.0)
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
