"""Where training runs: one device, or a replica on each of several local ones."""

import tensorflow as tf


def strategy(name: str) -> tf.distribute.Strategy:
    """The strategy in whose scope models are built and trained.

    Args:
        name: ``'one'``; ``'mirrored'``, a replica on every local GPU, or on every logical CPU where there is no GPU;
            or ``'auto'``, mirrored where there are several GPUs.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
