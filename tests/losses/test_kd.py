import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER = ref.logits(0), ref.logits(1)


def value(z_s=STUDENT, z_t=TEACHER, **kwargs):
    return losses.KD(**kwargs)({"logits": z_s}, {"logits": z_t}, ref.classes()).numpy()


@pytest.mark.parametrize("temperature", [0.5, 1, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_golden(temperature, standardize, weight):
    z_s, z_t = (ref.standardized(z) if standardize else z for z in (STUDENT, TEACHER))
    expected = temperature**2 * ref.kl(z_t, z_s, temperature)
    actual = value(temperature=temperature, standardize=standardize, weight=weight)
    assert actual.shape == (ref.BATCH,)
    # A sample's divergence is a difference of terms of size T²·log K, which float32 holds to 1e-7 of that.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-7 * temperature**2)
    np.testing.assert_allclose(actual.mean(), expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_golden_without_the_square_of_the_temperature(temperature):
    actual = value(temperature=temperature, squared=False)
    np.testing.assert_allclose(actual, ref.kl(TEACHER, STUDENT, temperature), rtol=1e-5, atol=2e-7)
    assert not np.allclose(actual, value(temperature=temperature), rtol=0.1)
    assert losses.KD(squared=False).get_config()["squared"] is False


def test_by_hand():
    z_t, z_s = (np.log([row]).astype("float32") for row in ([0.5, 0.5], [0.25, 0.75]))
    # ½ log(½ / ¼) + ½ log(½ / ¾), at temperature 1; the other way round ¼ log ½ + ¾ log 3/2.
    np.testing.assert_allclose(value(z_s, z_t, temperature=1), [0.5 * np.log(4 / 3)], rtol=1e-5)
    swapped = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(value(z_t, z_s, temperature=1), [swapped], rtol=1e-5)


def test_default_temperature_is_4():
    np.testing.assert_array_equal(value(), value(temperature=4.0))


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_is_0_where_both_are_equal_and_above_elsewhere(standardize, temperature):
    np.testing.assert_array_equal(value(TEACHER, TEACHER, temperature=temperature, standardize=standardize), 0)
    assert np.all(value(temperature=temperature, standardize=standardize) > 1e-3)


def test_negative_logits_are_logits():
    """Keras' own default distillation loss is 0 there, for it applies no softmax."""
    np.testing.assert_allclose(value(STUDENT - 50, TEACHER - 50), value(), rtol=1e-4)


def test_is_divided_by_the_batch_not_by_the_classes():
    z_s, z_t = ref.logits(0, classes=100), ref.logits(1, classes=100)
    per_batch = 16 * ref.kl(z_t, z_s, 4.0).sum() / ref.BATCH
    np.testing.assert_allclose(value(z_s, z_t).mean(), per_batch, rtol=1e-5)


def test_a_high_temperature_leaves_the_squared_difference_of_centred_logits():
    """Σ (z̃_s − z̃_t)² / (2K) for T → ∞, what equation 4 is the gradient of: the error falls as 1 / T."""
    centred = [np.float64(z) - np.float64(z).mean(axis=-1, keepdims=True) for z in (STUDENT, TEACHER)]
    expected = np.square(centred[0] - centred[1]).sum(axis=-1) / (2 * ref.CLASSES)
    errors = [abs(value(temperature=temperature) / expected - 1).max() for temperature in (10.0, 100.0)]
    assert errors[1] < 0.02 and 0.05 < errors[1] / errors[0] < 0.2


def test_size_of_the_gradient_does_not_fall_with_the_temperature():
    """Hinton et al., equation 4: for a high temperature, T² times the gradient tends to (z_s − z_t) / K."""
    z = tf.constant(STUDENT)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = tf.reduce_sum(losses.KD(temperature=500.0)({"logits": z}, {"logits": TEACHER}, ref.classes()))
    centred = [logits - logits.mean(axis=-1, keepdims=True) for logits in (STUDENT, TEACHER)]
    np.testing.assert_allclose(tape.gradient(total, z), (centred[0] - centred[1]) / ref.CLASSES, atol=0.02)


def test_standardized_logits_do_not_feel_scale_and_shift():
    expected = value(standardize=True)
    np.testing.assert_allclose(value(7 * STUDENT - 3, 0.2 * TEACHER + 5, standardize=True), expected, rtol=1e-3)
    assert not np.allclose(value(7 * STUDENT, TEACHER), value(), rtol=0.1)


@pytest.mark.parametrize("standardize", [False, True])
def test_gradient_equals_the_formulas_differences(standardize):
    z = tf.constant(STUDENT)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = tf.reduce_sum(losses.KD(standardize=standardize)({"logits": z}, {"logits": TEACHER}, ref.classes()))
    prepare = ref.standardized if standardize else np.float64
    expected = np.zeros(STUDENT.shape)
    for place in np.ndindex(STUDENT.shape):
        nudge = np.zeros(STUDENT.shape)
        nudge[place] = 1e-5
        up, down = (ref.kl(prepare(TEACHER), prepare(STUDENT + sign * nudge), 4.0).sum() for sign in (1, -1))
        expected[place] = 16 * (up - down) / 2e-5
    np.testing.assert_allclose(tape.gradient(total, z), expected, rtol=1e-4, atol=1e-5)


def test_standardize_takes_rows_of_equal_logits():
    flat = tf.ones((ref.BATCH, ref.CLASSES))
    with tf.GradientTape() as tape:
        tape.watch(flat)
        term = losses.KD(standardize=True)({"logits": flat}, {"logits": TEACHER}, ref.classes())
    np.testing.assert_allclose(term, 16 * ref.kl(ref.standardized(TEACHER), 0 * STUDENT, 4.0), rtol=1e-4)
    assert np.all(np.isfinite(tape.gradient(term, flat)))


def test_standardize_is_refused_for_two_classes_by_name():
    two = ref.logits(classes=2)
    with pytest.raises(InputError, match=r"kd\(standardize=True\) is void for two classes"):
        value(two, two, standardize=True)
    assert np.all(np.isfinite(value(two, two)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0}, "kd's temperature=0 reaches 0: it has to stay above 0"),
        ({"temperature": -2.0}, "kd's temperature=-2.0 reaches -2: .* above 0"),
        ({"temperature": "linear(start=4, end=0, over=5)"}, "temperature=linear.* reaches 0: .* above 0"),
        ({"temperature": "cosine(start=4, end=1)"}, "lacks over"),
        ({"temperature": None}, "None is neither a number nor a schedule"),
        ({"weight": -0.1}, "kd's weight=-0.1 reaches -0.1: it has to stay 0 or more"),
        ({"weight": float("nan")}, "weight=nan reaches nan"),
        ({"standardize": "no"}, "kd's standardize='no': write True or False"),
        ({"squared": 2}, "kd's squared=2: write True or False"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.KD(**kwargs)


def test_reads_both_logits():
    assert losses.KD().taps(["logits"], None) == (("logits",), ("logits",))


def test_temperature_follows_its_schedule():
    term = losses.KD(temperature="linear(start=2, end=6, over=4)", weight="complement(constant(0.1))")
    call = ({"logits": STUDENT}, {"logits": TEACHER}, ref.classes())
    np.testing.assert_allclose(term(*call), value(temperature=2.0), rtol=1e-6)
    term.clock = lambda: (tf.constant(2.0), tf.constant(100.0))
    np.testing.assert_allclose(term(*call), value(temperature=4.0), rtol=1e-6)
    assert list(term.schedules) == ["weight", "temperature"]
    assert list(losses.KD().schedules) == []


@pytest.mark.parametrize("temperature", [20.0, 100.0, 1000.0])
def test_distributions_that_are_nearly_equal_keep_their_digits(temperature):
    expected = temperature**2 * ref.kl(TEACHER, STUDENT, temperature)
    np.testing.assert_allclose(value(temperature=temperature), expected, rtol=2e-4)
    near = TEACHER + 1e-3 * STUDENT
    assert np.all(value(near, TEACHER, temperature=temperature) >= 0)


@pytest.mark.parametrize("level", [0.0, 7.3, -300.0])
def test_a_row_of_equal_logits_is_standardised_to_0_without_a_gradient_of_1e7(level):
    z = tf.Variable(np.full((8, 3), level, "float32"))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(losses.KD(standardize=True)({"logits": z}, {"logits": ref.logits(1, 3, 8)}, None))
    assert np.abs(tape.gradient(total, z)).max() < 10


def test_a_class_that_the_teacher_never_names_counts_0():
    z_t = TEACHER.copy()
    z_t[:, 1] = -np.inf
    log_p_t, log_p_s = ref.log_softmax(np.float64(z_t) / 4), ref.log_softmax(np.float64(STUDENT) / 4)
    expected = 16 * sum(np.exp(log_p_t[:, k]) * (log_p_t[:, k] - log_p_s[:, k]) for k in range(ref.CLASSES) if k != 1)
    z = tf.Variable(STUDENT)
    with tf.GradientTape() as tape:
        actual = losses.KD()({"logits": z}, {"logits": z_t}, None)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert np.all(np.isfinite(tape.gradient(actual, z)))
