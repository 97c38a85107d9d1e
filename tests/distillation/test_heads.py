"""What a model's output is, found out by its values; and every loss computed from the logits behind it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kd_keras import Distiller, losses
from kd_keras.distillation import heads
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from tests.losses import reference as ref
from tests.losses import test_dist, test_mlkd, test_nkd

K, SHAPE = ref.CLASSES, (4, 4, 1)
X = np.random.default_rng(0).uniform(0, 1, (ref.BATCH, *SHAPE)).astype("float32")
Y = ref.classes()


def plain(seed=1, scale=1.0):
    keras.utils.set_random_seed(seed)
    image = keras.Input(SHAPE)
    kernel = keras.initializers.RandomNormal(stddev=scale, seed=seed)
    return keras.Model(image, layers.Dense(K, kernel_initializer=kernel, name="scores")(layers.Flatten()(image)))


def on_top(head):
    """(a model with a head on a plain classifier's logits, that classifier)."""
    below = plain()
    return keras.Model(below.inputs[0], head(below.outputs[0])), below


class CallsSoftmax(layers.Layer):
    def call(self, z):
        return ops.softmax(z)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.below = plain()

    def call(self, x):
        return ops.softmax(self.below(x))


def subclassed():
    model = Subclassed()
    model(X)
    return model, model.below


def nested():
    below = plain()
    inner = keras.Model(below.inputs[0], layers.Softmax()(below.outputs[0]))
    image = keras.Input(SHAPE)
    return keras.Model(image, layers.Reshape((K,))(inner(image))), below


def mean_of_softmaxes():
    first, second = plain(1), plain(2)
    image = keras.Input(SHAPE)
    mean = layers.Average()([layers.Softmax()(first(image)), layers.Softmax()(second(image))])
    model = keras.Model(image, mean)
    return model, lambda x: ops.log(model(x))


def changed(how):
    """A head of Dense(softmax) that is quantised, or has an adapter; its own probabilities are right."""
    model, _ = on_top(layers.Dense(K, "softmax", name="head"))
    how(model)
    return model, lambda x: ops.log(model(x))


def enable_lora(model):
    head = model.get_layer("head")
    head.enable_lora(2)
    head.lora_kernel_b.assign(0.5 * np.ones(head.lora_kernel_b.shape))


def saved_model(tmp_path):
    model, below = on_top(layers.Softmax())
    model.export(tmp_path / "exported", verbose=False)
    image = keras.Input(SHAPE)
    served = layers.TFSMLayer(tmp_path / "exported", call_endpoint="serve")
    return keras.Model(image, served(image)), below


def identity(**kwargs):
    return layers.Dense(K, kernel_initializer="identity", **kwargs)


HEADS = {
    "logits": lambda path: on_top(layers.Activation("linear")),
    "Dense(softmax)": lambda path: on_top(identity(activation="softmax")),
    "Softmax layer": lambda path: on_top(layers.Softmax()),
    "Activation": lambda path: on_top(layers.Activation("softmax")),
    "ops.softmax": lambda path: on_top(ops.softmax),
    "Lambda": lambda path: on_top(layers.Lambda(tf.nn.softmax, output_shape=(K,))),
    "layer of one's own": lambda path: on_top(CallsSoftmax()),
    "nested functional": lambda path: nested(),
    "nested Sequential": lambda path: on_top(keras.Sequential([keras.Input((K,)), layers.Softmax()])),
    "subclassed": lambda path: subclassed(),
    "mean of softmaxes": lambda path: mean_of_softmaxes(),
    "quantised Dense": lambda path: changed(lambda model: model.quantize("int8")),
    "LoRA Dense": lambda path: changed(enable_lora),
    "SavedModel layer": saved_model,
}


def dkd(z_s, z_t, temperature=4.0, alpha=1.0, beta=8.0):
    """Equation 7 of arXiv:2203.08679, sample by sample."""
    values = []
    for s, t, y in zip(z_s, z_t, Y, strict=True):
        p_s, p_t = (np.exp(ref.log_softmax(z / temperature)) for z in (s, t))
        target = sum(p * np.log(p / q) for p, q in ((p_t[y], p_s[y]), (1 - p_t[y], 1 - p_s[y])))
        others = ref.kl(np.delete(t, y), np.delete(s, y), temperature)
        values.append(temperature**2 * (alpha * target + beta * others))
    return np.array(values)


def soft_ce(z_s, z_t, temperature=1.0):
    p_t = np.exp(ref.log_softmax(z_t / temperature))
    return -(temperature**2) * (p_t * ref.log_softmax(z_s / temperature)).sum(axis=-1)


LOSSES = {
    "kd": (losses.KD, lambda s, t: 16 * ref.kl(t, s, 4.0)),
    "soft_ce": (losses.SoftCE, soft_ce),
    "dkd": (losses.DKD, dkd),
    "nkd": (losses.NKD, lambda s, t: test_nkd.expected(s, t, 1.5, 1.0, Y)),
    "dist": (losses.DIST, lambda s, t: test_dist.expected(s, t, 1.0, 1.0, 4.0)),
    "mlkd": (losses.MLKD, lambda s, t: test_mlkd.expected(s, t, (2, 3, 4, 5, 6))),
}


@pytest.mark.parametrize("role", ["teacher", pytest.param("student", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HEADS)
def test_each_loss_is_that_of_the_true_logits(name, role, tmp_path):
    model, logits = HEADS[name](tmp_path)
    other = plain(7, scale=0.3)
    z, z_other = (np.float64(ops.convert_to_numpy(f(X))) for f in (logits, other))
    student, teacher = (other, model) if role == "teacher" else (model, other)
    if not student.trainable_variables:
        pytest.skip("a student that can't be trained")
    distiller = Distiller(student=student, teacher=teacher, losses=[make() for make, _ in LOSSES.values()])
    distiller.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    logs = distiller.fit(X, Y, batch_size=len(X), shuffle=False, verbose=0).history
    z_s, z_t = (z_other, z) if role == "teacher" else (z, z_other)
    for term, (_, expected) in LOSSES.items():
        np.testing.assert_allclose(logs[term][0], expected(z_s, z_t).mean(), rtol=1e-4, atol=1e-5, err_msg=term)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_in_16_bits_the_loss_is_that_of_what_the_network_gave(policy):
    model, _ = on_top(layers.Dense(K, "softmax", dtype=policy))
    other = plain(7, scale=0.3)
    log_p = np.log(np.maximum(np.float64(ops.convert_to_numpy(ops.cast(model(X), "float32"))), 1e-38))
    distiller = Distiller(student=other, teacher=model, losses=[losses.KD()])
    distiller.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    actual = distiller.fit(X, Y, batch_size=len(X), shuffle=False, verbose=0).history["kd"][0]
    expected = 16 * ref.kl(log_p, np.float64(other(X)), 4.0).mean()
    assert actual == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("probabilities", "teacher_output='probabilities', and its values reach from -"),
        ("softmax", "teacher_output='softmax': known are logits, probabilities, multilabel_logits"),
        ("multilabel_logits", "the teacher's output is that of independent labels"),
    ],
)
def test_what_the_user_says_is_checked(given, message):
    distiller_of = lambda: Distiller(student=plain(7), teacher=plain(), losses=[losses.KD()], teacher_output=given)  # noqa: E731
    with pytest.raises(InputError, match=message):
        distiller = distiller_of()
        distiller.compile()
        distiller.fit(X, Y, verbose=0)


def test_small_logits_are_told_from_sigmoids_by_images_of_absurd_contrast():
    small, _ = on_top(layers.Rescaling(0.01, offset=0.5))
    assert np.all((small(X) >= 0) & (small(X) <= 1))
    assert Taps(small).decide(X).kind == "logits"
    sigmoids, _ = on_top(layers.Activation("sigmoid"))
    assert Taps(sigmoids).decide(X).kind == "multilabel_probabilities"
    assert Taps(sigmoids, "teacher", "logits").decide(X).kind == "logits"


def test_the_first_batch_is_looked_at_and_trained_on():
    """A generator that can be read once gives the same weights as a loop over its batches."""
    images = np.random.default_rng(1).uniform(0, 1, (5, 4, *SHAPE)).astype("float32")
    labels = np.arange(20).reshape(5, 4) % K

    def student_after(run):
        student = plain(7)
        distiller = Distiller(student=student, teacher=on_top(layers.Softmax())[0], losses=[losses.KD()])
        distiller.compile(keras.optimizers.SGD(0.1))
        run(distiller)
        return student.get_weights()

    one_by_one = student_after(lambda d: [d.train_on_batch(x, y) for x, y in zip(images, labels, strict=True)])
    by_fit = student_after(lambda d: d.fit(zip(images, labels, strict=True), verbose=0))
    for first, second in zip(one_by_one, by_fit, strict=True):
        np.testing.assert_array_equal(first, second)


def test_nothing_of_a_model_changes_when_it_is_looked_at():
    model, _ = on_top(layers.BatchNormalization())
    before = [np.array(variable) for variable in model.variables]
    head = Taps(model).decide(X)
    assert head.kind == "logits" and head.way == "as it is"
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_probabilities_of_0_are_never_named_by_a_teacher_and_have_a_slope_for_a_student():
    probabilities = np.array([[0.0, 0.25, 0.75]], "float32")
    head = heads.Head("probabilities", "log")
    np.testing.assert_allclose(head.to_logits(probabilities)[:, 1:], np.log([[0.25, 0.75]]), rtol=1e-6)
    assert np.isneginf(head.to_logits(probabilities)[0, 0])
    assert np.isfinite(head.to_logits(probabilities, floor=True)).all()


def votes(z):
    """Of 51 people, as in CIFAR-10H."""
    return ops.round(51 * ops.softmax(z))


@pytest.mark.parametrize(("head", "total"), [(lambda z: 100 * ops.softmax(z), 100), (votes, "5[01]")])
def test_percents_and_votes_are_refused(head, total):
    teacher = on_top(layers.Lambda(head))[0]
    distiller = Distiller(student=plain(seed=2), teacher=teacher, losses=[losses.KD()])
    distiller.compile("sgd")
    with pytest.raises(InputError, match=f"the teacher gives shares.*sums to {total}.*teacher_output='logits'"):
        distiller.fit(X, Y, batch_size=len(X), verbose=0)


@pytest.mark.parametrize("count", [3, 1000])
@pytest.mark.parametrize("activation", [ops.relu, ops.softplus, lambda z: 1e-6 * z + 3, lambda z: 0 * z + 3])
def test_logits_that_are_not_negative_are_logits(activation, count):
    z = np.random.default_rng(0).normal(size=(32, count))
    assert heads.of_values(ops.convert_to_numpy(activation(z)), "teacher").kind == "logits"
