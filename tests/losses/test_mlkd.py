import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER, LABELS = ref.logits(0), ref.logits(1), ref.classes()


def value(z_s=STUDENT, z_t=TEACHER, **kwargs):
    return losses.MLKD(**kwargs)({"logits": z_s}, {"logits": z_t}, LABELS).numpy()


def expected(z_s, z_t, temperatures, squared=True, factors=(1, 1, 1), instance=None):
    """Equations 3 to 8; ``instance``: other logits of student and teacher, for the KL."""
    total = 0
    for t in temperatures:
        p_s, p_t = (np.exp(ref.log_softmax(np.float64(z) / t)) for z in (z_s, z_t))
        samples = sum((p_t[i] @ p_t[j] - p_s[i] @ p_s[j]) ** 2 for i in range(ref.BATCH) for j in range(ref.BATCH))
        classes = sum(
            (p_t[:, i] @ p_t[:, j] - p_s[:, i] @ p_s[:, j]) ** 2 for i in range(ref.CLASSES) for j in range(ref.CLASSES)
        )
        soft_s, soft_t = instance or (z_s, z_t)
        parts = (t**2 if squared else 1) * ref.kl(soft_t, soft_s, t), samples / ref.BATCH, classes / ref.CLASSES
        total = total + sum(factor * part for factor, part in zip(factors, parts, strict=True))
    return total


@pytest.mark.parametrize("temperatures", [(2, 3, 4, 5, 6), (1.0,)])
@pytest.mark.parametrize("squared", [True, False])
def test_golden(temperatures, squared):
    actual = value(temperatures=temperatures, squared=squared)
    np.testing.assert_allclose(actual, expected(STUDENT, TEACHER, temperatures, squared), rtol=1e-5)


def test_golden_standardized():
    z_s, z_t = ref.standardized(STUDENT), ref.standardized(TEACHER)
    np.testing.assert_allclose(value(standardize=True), expected(z_s, z_t, (2, 3, 4, 5, 6)), rtol=1e-5, atol=1e-5)


def test_golden_of_the_published_runs():
    actual = value(instance=1.35, batch=0.45, classes=0.45)
    np.testing.assert_allclose(actual, expected(STUDENT, TEACHER, range(2, 7), factors=(1.35, 0.45, 0.45)), rtol=1e-5)


def test_golden_standardized_in_the_kl_alone():
    instance = ref.standardized(STUDENT), ref.standardized(TEACHER)
    term = losses.MLKD(standardize="instance")
    actual = term({"logits": STUDENT}, {"logits": TEACHER}, LABELS).numpy()
    np.testing.assert_allclose(actual, expected(STUDENT, TEACHER, range(2, 7), instance=instance), rtol=1e-5)
    assert losses.MLKD.from_config(term.get_config()).standardize == "instance"
    with pytest.raises(InputError, match="mlkd's standardize='all'"):
        losses.MLKD(standardize="all")


def test_defaults():
    np.testing.assert_array_equal(value(), value(temperatures=(2, 3, 4, 5, 6)))


def test_is_0_where_both_are_equal():
    np.testing.assert_array_equal(value(TEACHER, TEACHER), 0)


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ((), r"mlkd\(temperatures=\(\)\): give positive numbers"),
        (4, r"mlkd\(temperatures=4\): give positive numbers"),
        ((2, 0), "mlkd's temperature2=0 reaches 0"),
        (("4",), "is not a spec"),
    ],
)
def test_refuses_what_cannot_be(temperatures, message):
    with pytest.raises(InputError, match=message):
        losses.MLKD(temperatures=temperatures)


def test_temperatures_follow_their_schedules():
    term = losses.MLKD(temperatures=(2.0, "linear(start=2.0, end=6.0, over=4)"))
    assert list(term.schedules) == ["temperature2"]
    term.clock = lambda: (4, 0)
    np.testing.assert_allclose(
        term({"logits": STUDENT}, {"logits": TEACHER}, ref.classes()), value(temperatures=(2, 6)), rtol=1e-6
    )
    again = losses.MLKD.from_config(term.get_config())
    assert again.temperatures == term.temperatures
