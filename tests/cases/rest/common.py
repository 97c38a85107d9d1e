"""The one place that names the package: every test takes it from here."""

import contextlib
import dataclasses
import io
import os
import pathlib
import runpy
import subprocess
import sys
import traceback
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

from kd_keras import Distiller, InputError, losses  # noqa: F401

ROOT = pathlib.Path(os.environ.get("KD_KERAS_ROOT", ".")).resolve()
K = 3
SHAPE = (8, 8, 1)


# ---------------------------------------------------------------- data and models


def data(n=16, seed=0, k=K, shape=SHAPE):
    """Images (n, H, W, C) of 0…1 and classes (n,)."""
    draw = np.random.default_rng(seed)
    return draw.random((n, *shape)).astype("float32"), draw.integers(0, k, n).astype("int32")


def mlp(units=6, k=K, shape=SHAPE, seed=0, softmax=False, name=None, **last):
    """Flatten, one hidden layer called ``pooled``, logits; every weight from the seed."""
    first, second = (keras.initializers.GlorotUniform(seed=seed + i) for i in (1, 2))
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="tanh", kernel_initializer=first, name="pooled"),
            keras.layers.Dense(
                k, kernel_initializer=second, activation="softmax" if softmax else None, name="out", **last
            ),
        ],
        name=name,
    )


def conv(filters=4, k=K, shape=SHAPE, seed=0, norm=False, name=None):
    """One convolution whose map is called ``stage1``, its mean ``pooled``, logits."""
    first, second = (keras.initializers.GlorotUniform(seed=seed + i) for i in (1, 2))
    image = keras.Input(shape)
    x = keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=first, name="conv")(image)
    if norm:
        x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="stage1")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, keras.layers.Dense(k, kernel_initializer=second, name="out")(x), name=name)


def distil(student=None, teacher=None, terms=None, optimizer=None, metrics=("accuracy",), **compiled):
    """A compiled Distiller, by default of `mlp`s with KD at T = 2 and plain SGD, so that steps can be done by hand."""
    made = Distiller(
        student=mlp(seed=0) if student is None else student,
        teacher=mlp(seed=50) if teacher is None else teacher,
        losses=[losses.KD(temperature=2.0)] if terms is None else terms,
    )
    made.compile(optimizer=optimizer or keras.optimizers.SGD(0.1), metrics=list(metrics), **compiled)
    return made


# ---------------------------------------------------------------- what is right, by numpy


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def kd(z_s, z_t, temperature):
    """T² · KL(p_t ‖ p_s) of each sample (Hinton et al., arXiv:1503.02531)."""
    s, t = log_softmax(np.asarray(z_s) / temperature), log_softmax(np.asarray(z_t) / temperature)
    return temperature**2 * (np.exp(t) * (t - s)).sum(-1)


def ce(labels, z):
    """−log p(label) of each sample."""
    return -log_softmax(z)[np.arange(len(labels)), labels]


def logits(model, x):
    return np.asarray(model(x, training=False))


# ---------------------------------------------------------------- supported, or refused in a clear line


@dataclasses.dataclass
class Refused:
    message: str


def done_or_refused(work, *words):
    """What ``work()`` gives; a refusal is as good, if it is an InputError of one line with each of the words."""
    try:
        return work()
    except InputError as error:
        message = str(error)
        assert message.strip() and "\n" not in message.strip(), f"not one line: {message!r}"
        for word in words:
            choices = (word,) if isinstance(word, str) else word
            assert any(one.lower() in message.lower() for one in choices), f"{message!r} does not say {word!r}"
        return Refused(message)


def refused(result):
    return isinstance(result, Refused)


def must_refuse(work, *words):
    """``work()`` has to be refused as in `done_or_refused`."""
    assert refused(done_or_refused(work, *words)), f"was taken without a word; expected a refusal that says {words}"


# ---------------------------------------------------------------- command lines


@dataclasses.dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def said(self):
        return [line for line in self.err.splitlines() if line.startswith("kd_keras:")]


def tool(script, *arguments, cwd=None):
    """``python tools/<script> …`` in a process of its own."""
    line = [sys.executable, str(ROOT / "tools" / script), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=cwd or ROOT)
    return Ended(done.returncode, done.stdout, done.stderr)


def run(*flags, cwd=None, paths=()):
    """``python -m kd_keras.run …``, in this process: TensorFlow is then imported once for all tests."""
    out, err = io.StringIO(), io.StringIO()
    before, here, path = sys.argv, os.getcwd(), list(sys.path)
    sys.argv = ["run", *map(str, flags)]
    sys.path[:0] = map(str, paths)
    if cwd is not None:
        os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in [name for name in sys.modules if name == "kd_keras.run"]:
                del sys.modules[name]
            try:
                runpy.run_module("kd_keras.run", run_name="__main__", alter_sys=False)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            except BaseException:
                traceback.print_exc(file=err)
                code = 1
    finally:
        sys.argv, sys.path[:] = before, path
        os.chdir(here)
        keras.config.set_dtype_policy("float32")
    return Ended(code, out.getvalue(), err.getvalue())


#: A run of seconds.
TINY = (
    "--data=digits()",
    "--teacher=cnn(filters=(4,), dense=())",
    "--student=cnn(filters=(2,), dense=())",
    "--epochs=1",
    "--teacher_epochs=1",
    "--train_examples=100",
    "--teacher_dtype=none",
    "--tracking=none",
    "--export=none",
    "--progress=none",
)


def refused_line(ended, *words):
    """A command line that is refused as documented: code 2, one line on stderr, no traceback, and it says the words."""
    assert "Traceback" not in ended.err, ended.err.strip().splitlines()[-1][:300]
    assert ended.code == 2, f"exit code {ended.code}, expected 2; stderr: {ended.err[-300:]!r}"
    assert len(ended.said) == 1, f"expected one line on stderr: {ended.err[-500:]!r}"
    for word in words:
        choices = (word,) if isinstance(word, str) else word
        assert any(one.lower() in ended.said[0].lower() for one in choices), f"{ended.said[0]!r} does not say {word!r}"


# ---------------------------------------------------------------- files for devices


def to_tflite(model, variant, images):
    """The TFLite file of a model as bytes, as docs/edge.md does it."""
    from kd_keras.export import tflite

    return tflite.convert(model, variant, images)


def quantised_as_it_learns(student, teacher, x, y, variant):
    """The TFLite file of a student that was trained with its rounding, as docs/edge.md does it."""
    from kd_keras import compress
    from kd_keras.export import tflite

    smaller = compress.prepare(student, compress.QAT(), steps=2)
    distiller = Distiller(student=smaller.model, teacher=teacher, losses=[losses.CE()])
    distiller.compile("adam")
    distiller.fit(x, y, batch_size=16, verbose=0)
    smaller.finish()
    return tflite.convert_quantised(smaller.wrapped, variant)


#: The files of a user's own package: a loss as docs/losses.md writes one, a network, a data set.
OWN_PACKAGE = {
    "terms.py": """
import keras
from keras import ops
from kd_keras import losses


@keras.saving.register_keras_serializable(package="atelier")
class Apart(losses.Loss):
    def call(self, student, teacher, labels):
        return ops.mean(ops.square(student["logits"] - teacher["logits"]), axis=-1)
""",
    "nets.py": """
import keras


def small(num_classes, input_shape, width=2):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input(input_shape), layers.Flatten(), layers.Dense(width), layers.Dense(num_classes)]
    )
""",
    "sets.py": """
from kd_keras.data import Digits


def mine(seed=0):
    return Digits(seed=seed)
""",
}
