"""Private and experimental names of TensorFlow, imported where they are used: one function for each."""


def replica_spec(iterator):
    """The `TensorSpec`s of the batches that one replica takes from an iterator that Keras made of a data set.

    Args:
        iterator: Keras' iterator over a data set that is divided among replicas.
    """
    import tensorflow as tf

    spec = iterator._distributed_dataset.element_spec
    # A PerReplicaSpec holds one TensorSpec for each replica.
    return tf.nest.map_structure(lambda part: getattr(part, "_value_specs", (part,))[0], spec)


def set_batch_count(dataset, count: int) -> None:
    """Tells Keras how many global batches a data set has that is divided among replicas; TensorFlow doesn't know."""
    dataset._cardinality = count


def gpu_capability() -> tuple[int, int] | None:
    """The lowest compute capability of the GPUs, (0, 0) for one that does not report it; None without a GPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return min((detail.get("compute_capability", (0, 0)) for detail in details), default=None)


def variable_in_place(array):
    """A variable that reads an array where it lies in memory, without a copy.

    Args:
        array: a NumPy array, writable, that begins at a multiple of 64 bytes.
    """
    import tensorflow as tf

    return tf.Variable(tf.experimental.dlpack.from_dlpack(array.__dlpack__()), trainable=False)
