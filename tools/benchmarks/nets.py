"""The networks, the batch and the ways to run a step that several sections share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from benchmarks import measure
from kd_keras import Distiller, TeacherCache, data, losses, spec
from kd_keras.errors import InputError

# So many models in one process look to TensorFlow like one that is traced again and again.
tf.get_logger().setLevel("ERROR")
RATE, MOMENTUM, TEMPERATURE, WEIGHT = 0.01, 0.9, 4.0, 0.9
#: Size of the training split that a loss which keeps something of each sample is made for: that of CIFAR.
SAMPLES = 50_000


def model(text: str, options, policy: str = "float32", image_size: int | None = None):
    """A model by its spec, built under a dtype policy."""
    side = image_size or options.image_size
    keras.config.set_dtype_policy(policy)
    try:
        return spec.build("kd_keras.models", spec.parse(text), num_classes=options.classes, input_shape=(side, side, 3))
    finally:
        keras.config.set_dtype_policy("float32")


def batch(options):
    """Images float32 (B, H, W, 3) of whole pixels, and labels int32 (B,)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.batch, options.image_size, options.image_size, 3))
    return images.astype("float32"), rng.integers(0, options.classes, options.batch).astype("int32")


def numbered(options):
    """The batch with the number of each sample, as losses that know samples need it."""
    images, labels = batch(options)
    return {"image": images, "label": labels, "index": np.arange(options.batch)}


def repeated(one):
    """The same batch without end, ready before it is asked for: what is timed is the step, not the pipeline."""
    settings = tf.data.Options()
    settings.autotune.enabled = False
    return tf.data.Dataset.from_tensors(one).repeat().prefetch(2).with_options(settings)


def optimizer():
    return keras.optimizers.SGD(RATE, momentum=MOMENTUM)


def distiller(student, teacher, terms, *, teacher_dtype=None, **compile_options):
    made = Distiller(student=student, teacher=teacher, losses=terms, teacher_dtype=teacher_dtype)
    made.compile(optimizer(), metrics=["accuracy"], **compile_options)
    return made


def hinton():
    return [losses.CE(weight=1 - WEIGHT), losses.KD(weight=WEIGHT, temperature=TEMPERATURE)]


def loss(text: str):
    """A loss by its spec."""
    return losses.from_spec(spec.parse(text), SAMPLES)


def each_loss(options):
    """A Distiller for every loss that can be built from its defaults.

    Returns:
        Distillers by the loss's name, and why each other loss was left out, by name.
    """
    teacher, found, skipped = model(options.loss_teacher, options), {}, {}
    for name in spec.names("kd_keras.losses"):
        try:
            term = loss(name)
            if "softmax" not in term.heads:
                raise InputError("it is for several labels, and the batch has one class for each image")
            found[name] = distiller(model(options.loss_student, options), teacher, [term])
        except InputError as reason:
            skipped[name] = str(reason)
    return found, skipped


def point(options) -> dict:
    """A training in a process of its own (`benchmarks.point`), of the networks that losses are measured with."""
    return {
        "teacher": options.loss_teacher,
        "student": options.loss_student,
        "batch": options.batch,
        "classes": options.classes,
        "image_size": options.image_size,
        "steps": options.growth_steps,
        "replicas": 1,
    }


def stream(options, cache_of=None, folder=None):
    """Batches of the whole input pipeline, pad_crop + flip, without end.

    Args:
        options: of the command.
        cache_of: the teacher whose cached logits the batches bring; None for plain batches.
        folder: where its cache is put.
    """
    shape = (8 * options.batch, options.image_size, options.image_size, 3)
    rng = np.random.default_rng(1)
    images, classes = rng.integers(0, 256, shape, np.uint8), rng.integers(0, options.classes, shape[0])
    source, augment = data.ArraySource(images, classes), data.augmentations("pad_crop(pixels=4) + flip()")
    cache = None
    if cache_of is not None:
        # A deep teacher that was never trained gives logits that float16 does not hold.
        cache = TeacherCache(folder, data.Views(source, 2, augment), cache_of, dtype="float32")
        cache.fill(options.batch)
    return data.batches(source, options.batch, training=True, epochs=10**6, augment=augment, cache=cache)


def train_call(compiled, batches):
    """A call that runs Keras' own train function, the one that `fit` runs, and gives the seconds a step.

    Args:
        compiled: the model.
        batches: one batch, which is given again and again, or a data set.
    """
    compiled.make_train_function()
    iterator = iter(batches if isinstance(batches, tf.data.Dataset) else repeated(batches))
    # Reading the logs waits for the device.
    return measure.timed(
        lambda: [float(np.ravel(value)[0]) for value in tf.nest.flatten(compiled.train_function(iterator))],
        steps=compiled.steps_per_execution,
    )


def forward_call(network, images):
    """A call that runs a network's forward pass for inference, and gives its seconds."""
    forward = tf.function(lambda batch: network(batch, training=False))
    iterator = iter(repeated(images))
    return measure.timed(lambda: forward(next(iterator)).numpy())


def stages(*networks) -> list[str]:
    """The last three stages that all of the networks have, the deepest last."""
    names = [{layer.name for layer in network.layers} for network in networks]
    found = []
    while all(f"stage{len(found) + 1}" in known for known in names):
        found.append(f"stage{len(found) + 1}")
    return found[-3:]
