import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from kd_keras.losses.led import structure
from tests.losses import reference as ref

K, LABELS = ref.CLASSES, ref.multi_hot()
MAPS = ref.features(0, 4, 4, 3), ref.features(10, 2, 3, 5)
LOGITS = ref.logits(1)


def distances(e):
    """The published code's `phi`, pair by pair, divided by the mean of those above 0."""
    e = np.float64(e)
    d = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
    return d / d[d > 0].mean() if (d > 0).any() else d


def huber(a, b):
    size = np.abs(a - b)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def expected_structure(e_s, e_t, counts):
    """Equations 6 to 9 for one group: only the embeddings that count."""
    chosen = np.asarray(counts) == 1
    if chosen.sum() < 2:
        return 0.0
    return huber(distances(np.asarray(e_s)[chosen]), distances(np.asarray(e_t)[chosen])).sum() / chosen.sum()


def encoded(features, queries, kernel, bias):
    f = np.float64(features).reshape(len(features), -1, features.shape[-1])
    scores = np.exp(np.einsum("bjc,kc->bkj", f, queries) / np.sqrt(f.shape[-1]))
    e = np.einsum("bkj,bjc->bkc", scores / scores.sum(axis=-1, keepdims=True), f)
    return e, np.einsum("bkc,kc->bk", e, kernel) + bias


def made(**kwargs):
    loss = losses.LED(pairs="stage1:stage2", **kwargs)
    value = loss({"stage1": MAPS[0]}, {"stage2": MAPS[1], "logits": LOGITS}, LABELS)
    return loss, value.numpy()


def bce(p, z):
    return -(p * ref.log_sigmoid(z) + (1 - p) * ref.log_sigmoid(-z)).mean(axis=-1)


@pytest.mark.parametrize(("classes", "instances"), [(1.0, 1.0), (0.0, 2.0), (3.0, 0.0), (0.0, 0.0)])
def test_golden(classes, instances):
    loss, value = made(classes=classes, instances=instances)
    weights = [np.float64(weight) for weight in loss.adapters[0].weights]
    (e_s, z_s), (e_t, z_t) = encoded(MAPS[0], *weights[:3]), encoded(MAPS[1], *weights[3:])
    p = np.exp(ref.log_sigmoid(LOGITS))
    over_images = sum(expected_structure(e_s[:, k], e_t[:, k], LABELS[:, k]) for k in range(K))
    over_labels = np.array([expected_structure(e_s[i], e_t[i], LABELS[i]) for i in range(ref.BATCH)])
    expected = classes * over_images + instances * over_labels + bce(p, z_s) + bce(p, z_t)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_structure_is_0_for_equal_ones_up_to_scale_and_rotation():
    e = ref.features(3, 7, 4)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype("float32")
    counts = np.ones((ref.BATCH, 7), "float32")
    np.testing.assert_allclose(structure(3 * e @ rotation + 1, e, counts), 0, atol=1e-6)
    assert np.all(structure(ref.features(4, 7, 4), e, counts).numpy() > 0.1)


def test_equal_embeddings_have_finite_gradients():
    e = tf.Variable(np.ones((2, 3, 4), "float32"))
    with tf.GradientTape() as tape:
        value = structure(e, ref.features(0, 3, 4, batch=2), np.ones((2, 3), "float32"))
    assert np.isfinite(value).all() and np.isfinite(tape.gradient(value, e)).all()


def test_labels_that_are_not_known_or_alone_count_nothing():
    labels = np.zeros_like(LABELS)
    labels[0] = -1
    labels[1, 2] = 1
    loss, _ = made()
    call = {"stage1": MAPS[0]}, {"stage2": MAPS[1], "logits": LOGITS}
    np.testing.assert_array_equal(loss(*call, labels), loss(*call, np.zeros_like(LABELS)))


def test_the_teachers_embeddings_are_moved_by_their_own_loss_alone():
    loss, _ = made(classes=50.0, instances=50.0)
    teacher = loss.adapters[0].weights[3:]
    with tf.GradientTape() as tape:
        value = loss({"stage1": MAPS[0]}, {"stage2": MAPS[1], "logits": LOGITS}, LABELS)
    gradients = tape.gradient(value, teacher)
    plain, _ = made(classes=0.0, instances=0.0)
    for ours, weight in zip(plain.adapters[0].weights, loss.adapters[0].weights, strict=True):
        ours.assign(weight)
    with tf.GradientTape() as tape:
        value = plain({"stage1": MAPS[0]}, {"stage2": MAPS[1], "logits": LOGITS}, LABELS)
    for ours, other in zip(gradients, tape.gradient(value, plain.adapters[0].weights[3:]), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"classes": -1}, r"led\(classes=-1\): give a number of at least 0"),
        ({"pairs": "stage1:stage1,stage2:stage2"}, "led compares one pair of maps, and 2 are given"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.LED(**kwargs)
