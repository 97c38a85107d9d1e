"""One training in a process of its own, whose peak memory is its own: ``python -m benchmarks.point JSON``.

The JSON gives ``teacher``, ``student``, ``batch``, ``classes``, ``image_size``, ``steps`` and ``replicas`` (virtual
CPUs). It may give ``loss`` (by default ce + kd) or ``folder`` (a tree of images: one epoch of it is trained in place of
``steps``). The last line of the output is JSON: ``seconds`` of each step but the first two, ``peak_bytes``.
"""

import argparse
import json
import sys
import time

from benchmarks import measure


def train(point: dict) -> dict:
    import tensorflow as tf

    replicas = point["replicas"]
    if replicas > 1:
        # Virtual devices are of the processor; an accelerator would be chosen before them.
        tf.config.set_visible_devices([], "GPU")
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    import keras

    from benchmarks import nets
    from kd_keras import data, spec
    from kd_keras._compat import distribute

    options = argparse.Namespace(**point)

    class Clock(keras.callbacks.Callback):
        """The time at the end of each step; reading the loss waits for the device."""

        ends = []

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])
            self.ends.append(time.perf_counter())

    if "folder" in point:
        splits = spec.build("kd_keras.data", spec.Spec("folder", {"path": point["folder"]}))
        options.classes, options.image_size = splits.num_classes, splits.image_shape[0]
        batches = data.batches(splits.train, options.batch, training=True, drop_remainder=True)
        steps = data.steps_per_epoch(len(splits.train), options.batch, drop_remainder=True)
    else:
        batches, steps = nets.repeated(nets.numbered(options)), options.steps
    with distribute.strategy("mirrored" if replicas > 1 else "one").scope():
        teacher, student = nets.model(options.teacher, options), nets.model(options.student, options)
        terms = [nets.loss(point["loss"])] if "loss" in point else nets.hinton()
        distiller = nets.distiller(student, teacher, terms)
    if any(term.needs_pretraining for term in distiller.terms):
        distiller.pretrain(batches, steps_per_epoch=1, verbose=0)
    distiller.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[Clock()])
    seconds = [after - before for before, after in zip(Clock.ends[1:], Clock.ends[2:], strict=False)]
    return {"seconds": seconds, "peak_bytes": measure.peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(train(json.loads(sys.argv[1]))))
