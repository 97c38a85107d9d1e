"""All that the tries and tests take from the package under test: its public API, under neutral names."""

import os
import sys
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kd_keras import Distiller, InputError, TeacherCache, compress, data, hinton, losses, schedules  # noqa: F401
from kd_keras.distillation.fast_teacher import fast_copy as frozen  # noqa: F401
from kd_keras.export import tflite  # noqa: F401

qat, prune, cluster = (types.SimpleNamespace(build=step) for step in (compress.QAT, compress.Prune, compress.Cluster))
K = 4
SHAPE = (8, 8, 1)


def images(count=32, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, *shape)).astype("float32")


def labels(count=32, classes=K, seed=1):
    return np.random.default_rng(seed).integers(0, classes, count)


def dense(classes=K, shape=SHAPE, hidden=8, activation=None, seed=0, name=None, scale=True):
    """A tiny classifier; its last layer is called ``head``."""
    init = lambda i: keras.initializers.GlorotUniform(seed=1000 * seed + i)  # noqa: E731
    x = image = keras.Input(shape)
    if scale:
        x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(hidden, activation="relu", kernel_initializer=init(1), name="body")(x)
    x = layers.Dense(classes, activation=activation, kernel_initializer=init(2), name="head")(x)
    return keras.Model(image, x, name=name)


def conv(classes=K, shape=SHAPE, filters=4, seed=0, norm=True, name=None):
    init = lambda i: keras.initializers.GlorotUniform(seed=1000 * seed + i)  # noqa: E731
    x = image = keras.Input(shape)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Conv2D(filters, 3, padding="same", use_bias=not norm, kernel_initializer=init(1), name="conv1")(x)
    if norm:
        x = layers.BatchNormalization(name="norm1")(x)
    x = layers.ReLU(name="relu1")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(classes, kernel_initializer=init(2), name="head")(x)
    return keras.Model(image, x, name=name)


def distiller(student, teacher, terms, optimizer=None, **kwargs):
    made = Distiller(student=student, teacher=teacher, losses=terms, **kwargs)
    made.compile(optimizer=optimizer or keras.optimizers.SGD(0.0), metrics=["accuracy"])
    return made


def softmax(z, axis=-1):
    z = np.asarray(z, np.float64)
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def kd_by_hand(z_s, z_t, temperature):
    """T² · KL(softmax(z_t/T) ‖ softmax(z_s/T)) of each sample, in float64."""
    p, q = softmax(np.asarray(z_t) / temperature), softmax(np.asarray(z_s) / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def ce_by_hand(z, y):
    return -np.log(softmax(z)[np.arange(len(y)), y])


def run_file(content, batch):
    """Logits of a flatbuffer, an image at a time."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    given, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    results = []
    for image in batch:
        interpreter.set_tensor(given["index"], image[None].astype(given["dtype"]))
        interpreter.invoke()
        results.append(interpreter.get_tensor(out["index"])[0])
    return np.array(results)



def told(make):
    """(what ``make()`` gives, None), or (None, the message) where it is refused by name or warned of."""
    import warnings

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            value = make()
        except InputError as error:
            return None, str(error)
    ours = [str(w.message) for w in seen if "kd_keras" in str(w.filename)]
    return value, (ours[0] if ours else None)


def history(fitted):
    return {name: [float(one) for one in values] for name, values in fitted.history.items()}


def logs(model, *args, **kwargs):
    """What one pass over the data logs, in one batch, in order, nothing learnt where the rate is 0."""
    kwargs = {"epochs": 1, "batch_size": 32, "shuffle": False, "verbose": 0, **kwargs}
    if args and isinstance(args[0], (tf.data.Dataset, keras.utils.PyDataset)):
        kwargs.pop("batch_size"), kwargs.pop("shuffle")
    return {name: values[0] for name, values in history(model.fit(*args, **kwargs)).items()}


def with_tail(tail, seed=1, hidden=16, classes=K):
    """A classifier of plain logits, and one of the same weights with something behind them."""
    plain = dense(classes, hidden=hidden, seed=seed)
    return plain, keras.Model(plain.input, tail(plain.output))


def bright_images(count=64, seed=0):
    """Images that differ in brightness, from black to white, with some noise."""
    rng = np.random.default_rng(seed)
    levels = np.linspace(10, 245, count)[:, None, None, None]
    return (levels + rng.uniform(-10, 10, (count, *SHAPE))).clip(0, 255).astype("float32")


def bright_model():
    """A classifier of pixels 0…255 that tells four levels of brightness apart, its weights by hand."""
    image = keras.Input(SHAPE)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    x = layers.Conv2D(2, 1, activation="relu", name="conv1")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(4, name="head")(x))
    model.get_layer("conv1").set_weights([np.array([[[[1.0, -1.0]]]], "float32"), np.zeros(2, "float32")])
    # b = x[0] - x[1] is the brightness in -1…1; class k has the logit 8·(c_k·b − c_k²/2), largest at the nearest c_k.
    centres = np.array([-0.75, -0.25, 0.25, 0.75], "float32")
    model.get_layer("head").set_weights([np.stack([8 * centres, -8 * centres]), -4 * centres**2])
    return model


#: The package's command line.
RUN = [sys.executable, "-m", "kd_keras.run"]


def digits_arrays():
    """Images and labels of the training split of the digits."""
    pairs = [(image.numpy(), label.numpy()) for image, label in data.batches(data.Digits().train, 64)]
    return tuple(np.concatenate(part) for part in zip(*pairs))


def augmenting(layer):
    """A classifier that has a random layer inside."""
    init = lambda i: keras.initializers.GlorotUniform(seed=i)  # noqa: E731
    image = keras.Input(SHAPE)
    x = layer(layers.Rescaling(1 / 127.5, offset=-1.0)(image))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu", kernel_initializer=init(1))(x))
    return keras.Model(image, layers.Dense(K, kernel_initializer=init(2))(x))
