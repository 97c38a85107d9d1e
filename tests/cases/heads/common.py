"""What the tests here share: the package's names (imported here only), tiny models, and the right values in float64."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

# The one place where the package is named.
from kd_keras import Distiller, InputError, losses

OwnLoss = losses.Loss
CE, KD, DKD, NKD, DIST, MLKD = losses.CE, losses.KD, losses.DKD, losses.NKD, losses.DIST, losses.MLKD
SoftCE, TeacherFree, SimKD, Hint, CRD = losses.SoftCE, losses.TeacherFree, losses.SimKD, losses.Hint, losses.CRD

control = pytest.mark.control
K, B, SHAPE = 5, 64, (8, 8, 1)
_rng = np.random.default_rng(3)
X = _rng.uniform(0, 1, (B, *SHAPE)).astype("float32")
Y = _rng.integers(0, K, B).astype("int32")
ONE_HOT = np.eye(K, dtype="float32")[Y]


def cases(*names, control=()):
    """Test cases by name, marked where they are a control."""
    marks = {name: [pytest.mark.control] for name in control}
    unknown = set(marks) - set(names)
    assert not unknown, unknown
    return [pytest.param(name, id=str(name), marks=marks.get(name, ())) for name in names]


# ---- the package, as a user calls it


def distiller(student, teacher=None, terms=None, **kwargs):
    """A Distiller of the terms, by default KD at two temperatures, which together pin the teacher's logits down."""
    terms = [KD(temperature=1.0), KD(temperature=4.0)] if terms is None else terms
    return Distiller(student=student, teacher=teacher, losses=terms, **kwargs)


def compiled(d, rate=0.0, **kwargs):
    d.compile(optimizer=keras.optimizers.SGD(rate), **kwargs)
    return d


def logs_of(d, x=X, y=Y, rate=0.0, **kwargs):
    """What a user reads in the history after one step on one batch; at rate 0 nothing moves."""
    if not d.compiled:
        compiled(d, rate)
    options = {"batch_size": B, "shuffle": False} if not isinstance(x, tf.data.Dataset) else {}
    history = d.fit(x, y, epochs=1, verbose=0, **{**options, **kwargs}).history
    return {name: float(values[0]) for name, values in history.items()}


def logs(student, teacher=None, terms=None, x=X, y=Y, **kwargs):
    return logs_of(distiller(student, teacher, terms), x, y, **kwargs)


# ---- models


def scores(seed=1, classes=K, scale=0.7, policy=None):
    """A plain classifier that gives logits of a width of some units: flatten, dense."""
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE)
    init = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    z = layers.Dense(classes, kernel_initializer=init, name="scores", dtype=policy)(layers.Flatten()(image))
    return keras.Model(image, z, name=f"plain{seed}")


def on_top(head, seed=1, classes=K, scale=0.7, features=None):
    """(a model with ``head`` on the plain classifier's logits, the plain classifier on the same weights)."""
    plain = scores(seed, classes, scale)
    return keras.Model(plain.inputs[0], head(plain.outputs[0]), name=f"headed{seed}"), plain


def student(seed=2, scale=0.3):
    return scores(seed, scale=scale)


def values(model, x=X):
    return np.asarray(ops.convert_to_numpy(ops.cast(model(x, training=False), "float32")), "float64")


# ---- first principles, in float64


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, "float64")))


def kl(log_p, log_q):
    """KL(p ‖ q) a row; what has no probability counts nothing."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1)


def kd_values(z_s, z_t, temperature):
    """T²·KL(softmax(z_t / T) ‖ softmax(z_s / T)), a sample."""
    with np.errstate(invalid="ignore"):
        return temperature**2 * kl(log_softmax(z_t / temperature), log_softmax(z_s / temperature))


def logits_of(p):
    """Logits of probabilities, up to a constant."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, "float64"))


def ce_values(z, y=Y):
    return -log_softmax(z)[np.arange(len(y)), y]


# ---- the verdict

# What TensorFlow and Keras wrap a message in: nothing for a user to read.
TRACES = r"Graph execution error|Traceback|\{\{node|File \"|Exception encountered when|Arguments received by"


def refusal(error, *words):
    """A refusal that a user can act on: one clear sentence of the package's or Keras' with these words in it.

    Args:
        error: what was raised.
        *words: regular expressions; each has to be found.
    """
    text = str(error)
    assert text.strip(), f"{type(error).__name__} without a message"
    assert not re.search(TRACES, text), f"a traceback: {text[:600]}"
    for word in words:
        assert re.search(word, text, re.IGNORECASE), f"nothing of {word!r} in: {text[:600]}"


def refused(run, *words):
    """What cannot be right has to be refused, in words."""
    try:
        result = run()
    except ValueError as error:  # InputError is one
        refusal(error, *words)
    else:
        pytest.fail(f"taken without a word; it gave {_short(result)}")


def right_or_refused(run, right, *words):
    """Both the right values and a clear refusal will do; wrong values without a word will not."""
    try:
        result = run()
    except ValueError as error:
        refusal(error, *words)
    else:
        right(result)


def _short(result):
    if isinstance(result, dict):
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
    return repr(result)[:200]


def close(found, expected, what, rtol=2e-3, atol=1e-5):
    __tracebackhide__ = True
    # One expected value, or several of which each would be right.
    options = expected if isinstance(expected, tuple) else (expected,)
    if not any(np.allclose(found, one, rtol=rtol, atol=atol) for one in options):
        pytest.fail(f"silently wrong: {what} is {_text(found)}, right is {' or '.join(map(_text, options))}")


def _text(value):
    value = np.asarray(value)
    return f"{float(value):.5g}" if value.ndim == 0 else np.array2string(value.ravel()[:5], precision=4) + "…"


def right_kd(z_s, z_t, names=("kd", "kd_2"), temperatures=(1.0, 4.0)):
    """Checks KD's values in the logs against the float64 ones of these logits."""

    def check(found):
        for name, temperature in zip(names, temperatures, strict=True):
            close(found[name], kd_values(z_s, z_t, temperature).mean(), f"KD at T = {temperature}")

    return check


def binary_kd(z_s, z_t, temperature):
    """KD of independent labels: T² times the KL of Bernoullis of z / T; a sample's sum and mean over labels."""
    p, q = sigmoid(np.asarray(z_t) / temperature), sigmoid(np.asarray(z_s) / temperature)
    both = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * both.sum(axis=-1), temperature**2 * both.mean(axis=-1)


def binary_ce(z, y):
    """Cross-entropy of independent labels (B, K): a sample's sum and mean over labels."""
    q = sigmoid(z)
    both = -(y * np.log(q) + (1 - y) * np.log(1 - q))
    return both.sum(axis=-1), both.mean(axis=-1)


def dkd_values(z_s, z_t, y, temperature=4.0, alpha=1.0, beta=8.0):
    """Decoupled KD, a sample (arXiv:2203.08679)."""
    p_s, p_t = softmax(np.asarray(z_s) / temperature), softmax(np.asarray(z_t) / temperature)
    rows, result = np.arange(len(y)), []
    for b in rows:
        own_s, own_t = p_s[b, y[b]], p_t[b, y[b]]
        rest_s, rest_t = (np.delete(p[b], y[b]) for p in (p_s, p_t))
        pair = lambda own: np.array([own, 1 - own])
        with np.errstate(divide="ignore"):
            first = kl(np.log(pair(own_t)), np.log(pair(own_s)))
            second = kl(np.log(rest_t / rest_t.sum()), np.log(rest_s / rest_s.sum()))
        result.append(temperature**2 * (alpha * first + beta * second))
    return np.array(result)


def batches_of(*parts, size=B):
    """A tf.data.Dataset of arrays, or of a dict of them."""
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(size)


def fed(route, x, y, size=B):
    """The arguments of fit or evaluate for the same samples in one of the forms that a user may give."""
    if route == "arrays":
        return dict(x=x, y=y, batch_size=size)
    if route == "data set":
        return dict(x=batches_of(x, y, size=size))
    if route == "dicts":
        return dict(x=batches_of({"image": x, "label": y}, size=size))
    if route == "generator":
        return dict(x=((x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)))
    raise KeyError(route)


def fitted(d, data, rate=0.0, **kwargs):
    """`logs_of` for what `fed` gives."""
    if not d.compiled:
        compiled(d, rate)
    options = {"shuffle": False} if isinstance(data["x"], np.ndarray) else {}
    history = d.fit(**data, **options, epochs=1, verbose=0, **kwargs).history
    return {name: float(found[0]) for name, found in history.items()}
