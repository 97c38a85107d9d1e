"""Metrics of a Distiller."""

import keras
from keras import ops

from kd_keras._compat import keras as compat
from kd_keras.losses import labels


@keras.saving.register_keras_serializable(package="kd_keras")
class Accuracy(keras.metrics.Mean):
    """Share of samples whose largest logit is the label, for classes (B,) and for class weights (B, K).

    After mixup the training labels are class weights while the validation labels are classes. Keras' own metric
    decides by the first batch which of the two forms it takes. Samples without a label (−1) don't count.
    """

    def __init__(self, name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        compat.set_higher_is_better(self)

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, has_label = labels.without_missing(y_true)
        correct = ops.equal(labels.classes(y_true), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))
        if sample_weight is not None:
            sample_weight = ops.cast(ops.reshape(sample_weight, (-1,)), self.dtype)
        if has_label is not None:
            has_label = ops.cast(has_label, self.dtype)
            sample_weight = has_label if sample_weight is None else sample_weight * has_label
        return super().update_state(ops.cast(correct, self.dtype), sample_weight)
