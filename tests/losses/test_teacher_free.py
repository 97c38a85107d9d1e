import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER, LABELS = ref.logits(0), ref.logits(1), ref.classes()


def value(labels=LABELS, z_s=STUDENT, **kwargs):
    term = losses.TeacherFree(**kwargs)
    return term({"logits": z_s}, {"logits": TEACHER} if term.kind == "self" else {}, labels).numpy()


def hard(labels=None):
    weights = np.eye(ref.CLASSES)[LABELS] if labels is None else np.float64(labels)
    return -np.sum(weights * ref.log_softmax(STUDENT), axis=-1)


def virtual(temperature, correct=0.99):
    """Equation 9, softened: p^(1/T), normalised."""
    p = np.where(np.eye(ref.CLASSES)[LABELS] == 1, correct, (1 - correct) / (ref.CLASSES - 1))
    soft = p ** (1 / temperature)
    return soft / soft.sum(-1, keepdims=True)


@pytest.mark.parametrize(("alpha", "temperature", "correct"), [(0.1, 20.0, 0.99), (0.5, 3.0, 0.8), (1.0, 1.0, 0.9)])
@pytest.mark.parametrize("squared", [True, False])
def test_golden_of_the_virtual_teacher(alpha, temperature, correct, squared):
    p_t, log_p_s = virtual(temperature, correct), ref.log_softmax(np.float64(STUDENT) / temperature)
    soft = np.sum(p_t * (np.log(p_t) - log_p_s), axis=-1) * (temperature**2 if squared else 1)
    actual = value(kind="reg", alpha=alpha, temperature=temperature, correct=correct, squared=squared)
    np.testing.assert_allclose(actual, (1 - alpha) * hard() + alpha * soft, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.95, 6.0), (0.2, 2.0)])
def test_golden_of_an_earlier_student(alpha, temperature):
    soft = temperature**2 * ref.kl(TEACHER, STUDENT, temperature)
    actual = value(kind="self", alpha=alpha, temperature=temperature)
    np.testing.assert_allclose(actual, (1 - alpha) * hard() + alpha * soft, rtol=1e-5)


def test_defaults():
    np.testing.assert_array_equal(value(), value(kind="reg", alpha=0.1, temperature=20.0, correct=0.99))
    np.testing.assert_array_equal(value(kind="self"), value(kind="self", alpha=0.95, temperature=6.0))


def test_labels_after_mixup_share_the_correct_part():
    shares = ref.shares()
    p = shares * (0.99 - 0.01 / 4) + 0.01 / 4
    soft = p ** (1 / 20) / np.sum(p ** (1 / 20), -1, keepdims=True)
    kl = np.sum(soft * (np.log(soft) - ref.log_softmax(np.float64(STUDENT) / 20)), axis=-1)
    np.testing.assert_allclose(value(shares), 0.9 * hard(shares) + 0.1 * 400 * kl, rtol=1e-4)


def test_only_self_reads_a_teacher():
    assert losses.TeacherFree().taps(["logits"], None) == (("logits",), ())
    assert losses.TeacherFree(kind="self").taps(["logits"], ["logits"]) == (("logits",), ("logits",))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "none"}, "teacher_free.kind='none'.: known are self, reg"),
        ({"alpha": 1.5}, "alpha=1.5.*at most 1"),
        ({"correct": 1}, "correct=1.: give a probability"),
        ({"standardize": True}, "no effect with kind='reg'"),
        ({"temperature": 0}, "temperature=0 reaches 0"),
    ],
)
def test_refuses_what_cannot_be(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.TeacherFree(**kwargs)
