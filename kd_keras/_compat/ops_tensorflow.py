"""Operations that `keras.ops` lacks, in TensorFlow; `kd_keras._compat.ops.backend` chooses this file."""

import tensorflow as tf


def random_integers(seed: int, step, count: int, below: int):
    """Integers (count,) in [0, below): the same for the same seed and step, on every replica.

    Args:
        seed: a Python int.
        step: a number or a scalar tensor.
        count: how many.
        below: exclusive upper limit.
    """
    seed = tf.stack([tf.constant(seed, tf.int32), tf.cast(step, tf.int32)])
    return tf.random.stateless_uniform((count,), seed, 0, below, tf.int32)


#: What the messages of these assertions start with, so that a user is given them and not TensorFlow's report.
SAYS = "kd_keras: "


def assert_below(indices, limit: int, message: str):
    """The indices, or an error with this message where one is not below the limit, in eager code and in a graph."""
    return _after(tf.debugging.assert_less(indices, limit, message=SAYS + message), indices)


def assert_at_least(indices, limit: int, message: str):
    """The indices, or an error with this message where one is below the limit, in eager code and in a graph."""
    limit = tf.cast(limit, indices.dtype)
    return _after(tf.debugging.assert_greater_equal(indices, limit, message=SAYS + message), indices)


def _after(assertion, tensor):
    # Else what reads the tensor may fail first, by a message of its own.
    with tf.control_dependencies([] if assertion is None else [assertion]):
        return tf.identity(tensor)


def said_by(error: Exception) -> str | None:
    """The message of an assertion above, in the error that TensorFlow made of it; None in any other."""
    line = next((line for line in str(error).splitlines() if SAYS in line), None)
    return None if line is None else line.partition(SAYS)[2].partition("]")[0].strip()


def scatter_rows(variable, indices, rows) -> None:
    """Overwrites some rows of a Keras variable, without a copy of the others."""
    variable.value.scatter_update(tf.IndexedSlices(rows, indices))


def add_to_rows(variable, indices, rows) -> None:
    """Adds to some rows of a Keras variable; a row that is given twice gets both."""
    variable.value.scatter_add(tf.IndexedSlices(rows, indices))


def is_concrete(tensor) -> bool:
    """See `ops.has_values`."""
    return not tf.is_tensor(tensor) or hasattr(tensor, "numpy")


def outside_of_graphs():
    """See `ops.outside_of_graphs`."""
    return tf.init_scope()
