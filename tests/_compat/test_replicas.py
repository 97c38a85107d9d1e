"""What losses and models ask of the replicas."""

import numpy as np
import tensorflow as tf

from kd_keras._compat import replicas


def test_one_replica_changes_nothing():
    x = tf.constant([1.0, 2.0])
    assert replicas.count() == 1 and replicas.total(x) is x and replicas.gather(x) is x


def test_several_replicas_are_summed_and_gathered(monkeypatch):
    # The losses' tests prove both on replicas with data; here a context stands in for TensorFlow's.
    class Context:
        num_replicas_in_sync = 2

        def all_reduce(self, operation, x):
            assert tf.distribute.ReduceOp(operation) == tf.distribute.ReduceOp.SUM
            return 2 * x

        def all_gather(self, x, axis):
            return tf.concat([x, x], axis)

    monkeypatch.setattr(tf.distribute, "get_replica_context", Context)
    np.testing.assert_array_equal(replicas.total(tf.constant([1.0])), [2.0])
    np.testing.assert_array_equal(replicas.gather(tf.constant([1.0])), [1.0, 1.0])
