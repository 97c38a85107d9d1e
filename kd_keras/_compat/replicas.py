"""The replicas that a training runs on, under any backend: one, unless a strategy of TensorFlow says otherwise."""

import keras


def count() -> int:
    """Number of replicas that the current scope builds or trains for."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def total(x):
    """The sum of a tensor over the replicas, not differentiated."""
    context = _context()
    return x if context is None else context.all_reduce("SUM", x)


def gather(x):
    """A tensor (B, …) of each replica, concatenated in the same order on all; differentiable."""
    context = _context()
    return x if context is None else context.all_gather(x, axis=0)


def _context():
    """TensorFlow's replica context, or None where there is a single replica."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context
