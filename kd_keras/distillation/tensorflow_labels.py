"""Labels are checked inside the graph of a step, before anything that reads them moves."""

import contextlib

import tensorflow as tf

from kd_keras._compat.ops import backend
from kd_keras.errors import InputError
from kd_keras.losses import labels


class LabelChecks:
    """A part of the step under TensorFlow. The attributes that it reads are the `Distiller`'s."""

    def _checked_labels(self, label, missing):
        """Labels behind a check that they are a classifier's: what reads them waits for it, and so do the weights."""
        num_classes, is_multilabel = self._student_taps.value.num_classes, self.is_multilabel
        if reason := labels.fault_of_form(label.shape, label.dtype.name, num_classes, is_multilabel):
            raise InputError(reason)

        def check(values):
            if reason := labels.fault(values, num_classes, missing, is_multilabel):
                self._label_fault = reason
                raise InputError(reason)
            return True

        def look():
            return tf.numpy_function(check, [label], tf.bool)

        is_doubtful = labels.may_be_at_fault(label, num_classes, missing, is_multilabel)
        is_right = tf.cond(is_doubtful, look, lambda: tf.constant(True))
        with tf.control_dependencies([is_right]):
            return tf.identity(label)

    def _with_checked_labels(self, data, reads, missing):
        """A data set that checks its labels where XLA compiles the step, which can't do it."""
        if not (self.jit_compile and reads and isinstance(data, tf.data.Dataset)):
            return data

        def checked(*batch):
            batch = batch[0] if len(batch) == 1 else batch
            label = self.unpack(batch).label
            return tf.nest.map_structure(
                lambda part: self._checked_labels(part, missing) if part is label else part, batch
            )

        return data.map(tf.autograph.experimental.do_not_convert(checked)).prefetch(1)

    @contextlib.contextmanager
    def _faults_told(self):
        """Raises what a check of the data found inside a graph as the sentence that it is."""
        self._label_fault = None
        try:
            yield
        except tf.errors.OpError as error:
            if (reason := self._label_fault or backend().said_by(error)) is None:
                raise
            raise InputError(reason) from None
