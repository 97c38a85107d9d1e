import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

N, K = 40, 7
STUDENT, TEACHER, INDEX = ref.features(0, 5), ref.features(10, 8), np.array([3, 9, 0, 39, 20, 11])


def made(**kwargs):
    keras.utils.set_random_seed(0)
    term = losses.CRD(**{"samples": N, "negatives": K, "size": 4, **kwargs})
    term.build({"pooled": (None, 5)}, {"pooled": (None, 8)})
    return term


def value(term, **kwargs):
    return term({"pooled": STUDENT}, {"pooled": TEACHER}, ref.classes(), index=INDEX, **kwargs).numpy()


def embedded(layer, features):
    kernel, bias = (np.float64(w) for w in layer.get_weights())
    v = np.float64(features) @ kernel + bias
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def expected(term, z=None, temperature=0.07):
    """Equations 17 to 19: each embedding against the other model's bank."""
    contrast, drawn = term.adapters[0], term._draw().numpy()
    banks = {name: np.float64(getattr(contrast, f"{name}_bank")) for name in ("student", "teacher")}
    v_s, v_t = embedded(contrast.student_embedding, STUDENT), embedded(contrast.teacher_embedding, TEACHER)
    total, constants = np.zeros(ref.BATCH), []
    for at, (v, bank) in enumerate(((v_s, banks["teacher"]), (v_t, banks["student"]))):
        scores = np.array(
            [[np.exp(v[b] @ bank[i] / temperature) for i in (INDEX[b], *drawn)] for b in range(ref.BATCH)]
        )
        constants.append(scores.mean() * N if z is None else z[at])
        p, noise = scores / constants[at], K / N
        total += -np.log(p[:, 0] / (p[:, 0] + noise)) - np.log(noise / (p[:, 1:] + noise)).sum(axis=1)
    return total, constants


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_golden(temperature):
    term = made(temperature=temperature)
    np.testing.assert_allclose(value(term), expected(term, temperature=temperature)[0], rtol=2e-5)


def test_the_first_steps_constants_stay():
    term = made()
    first, constants = expected(term)
    np.testing.assert_allclose(value(term, training=True), first, rtol=2e-5)
    np.testing.assert_allclose([term.adapters[0].of_student, term.adapters[0].of_teacher], constants, rtol=1e-5)
    # The banks have moved, the constants have not.
    second, _ = expected(term, constants)
    np.testing.assert_allclose(value(term, training=True), second, rtol=2e-5)
    np.testing.assert_allclose([term.adapters[0].of_student, term.adapters[0].of_teacher], constants, rtol=1e-5)


def test_the_banks_move_halfway_to_what_they_see():
    term = made()
    contrast = term.adapters[0]
    before = {name: np.float64(getattr(contrast, f"{name}_bank")) for name in ("student", "teacher")}
    value(term, training=True)
    for name, features in (("student", STUDENT), ("teacher", TEACHER)):
        v = embedded(getattr(contrast, f"{name}_embedding"), features)
        moved = 0.5 * before[name][INDEX] + 0.5 * v
        before[name][INDEX] = moved / np.linalg.norm(moved, axis=-1, keepdims=True)
        np.testing.assert_allclose(getattr(contrast, f"{name}_bank"), before[name], rtol=1e-5, atol=1e-6)


def test_what_is_only_measured_moves_nothing():
    term = made()
    before = term.get_weights()
    value(term)
    for was, now in zip(before, term.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_every_step_draws_others_and_the_same_again():
    term = made(negatives=1000)
    draws = []
    for step in (0.0, 1.0, 2.0):
        term.clock = lambda step=step: (tf.constant(0.0), tf.constant(step))
        draws.append(term._draw().numpy())
        np.testing.assert_array_equal(term._draw(), draws[-1])
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[1], draws[2])
    counts = np.bincount(draws[0], minlength=N)
    assert len(counts) == N and counts.min() > 5
    assert not np.array_equal(made(negatives=1000, seed=1)._draw(), draws[0])


def test_banks_are_not_trained_and_are_saved():
    term = made()
    assert len(term.trainable_weights) == 4 and len(term.non_trainable_weights) == 4
    assert sorted(tuple(w.shape) for w in term.non_trainable_weights) == [(), (), (N, 4), (N, 4)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(samples=None), "crd has no samples"),
        (lambda: made(negatives=0), "negatives=0.: give a whole number of at least 1"),
        (lambda: made(temperature=0), "temperature=0 reaches 0"),
        (lambda: made(pairs="pooled:pooled,pooled:pooled"), "embeds one pair"),
        (lambda: made()({"pooled": STUDENT}, {"pooled": TEACHER}, ref.classes()), "needs each sample's index"),
    ],
)
def test_refuses_what_cannot_be(make, message):
    with pytest.raises(InputError, match=message):
        make()
