"""What holds for every loss. A new file of kd_keras/losses is tested here on arrival, at its defaults."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses, schedules, spec
from kd_keras.errors import InputError
from kd_keras.losses import _base
from tests.losses import reference as ref

PACKAGE = "kd_keras.losses"
NAMES = spec.names(PACKAGE)
# Beside its defaults, each loss's other sides.
CASES = [
    *NAMES,
    "ce(label_smoothing=0.1)",
    "kd(standardize=True, temperature=2.0)",
    "soft_ce(standardize=True, temperature=4.0)",
    "kd(squared=False, temperature=0.5)",
    "hint(direction='teacher_to_student', batch_norm=True, relu=True)",
    "hint(pairs='pooled:pooled,stage1:stage2')",
]
B = ref.BATCH


def make(case, **kwargs):
    keras.utils.set_random_seed(1)
    parsed = spec.parse(case)
    return spec.build(PACKAGE, spec.Spec(parsed.name, {**parsed.kwargs, **kwargs}))


def taps(seed, channels, dtype="float32", scale=1.0):
    """Taps of a model; student and teacher differ in channels and, at stage1, in the grid."""
    side = 8 if channels == 3 else 6
    values = {
        "logits": scale * ref.logits(seed),
        "stage1": ref.features(seed + 1, side, side, channels),
        "stage2": ref.features(seed + 2, 4, 4, 2 * channels),
        "pooled": ref.features(seed + 3, 2 * channels),
    }
    return {name: tf.cast(value, dtype) for name, value in values.items()}


def student(**kwargs):
    return taps(0, 3, **kwargs)


def teacher(**kwargs):
    return taps(10, 5, **kwargs)


LABELS = ref.classes()


def gradients(term, s, t, labels=LABELS):
    """Value, and gradients by the student's taps that it reads and by its own weights."""
    read = {name: s[name] for name in term.taps(list(s), list(t))[0]}
    with tf.GradientTape() as tape:
        tape.watch(read)
        value = term(read, t, labels, training=True) if "training" in _arguments(term) else term(read, t, labels)
        total = tf.reduce_sum(value)
    return value, *tape.gradient(total, (read, list(term.trainable_weights)))


def _arguments(term):
    return term.call.__code__.co_varnames


def close(actual, expected, **kwargs):
    np.testing.assert_allclose(actual, expected, **{"rtol": 1e-5, "atol": 1e-6, **kwargs})


@pytest.mark.parametrize("name", NAMES)
def test_is_a_registered_layer_of_its_files_name(name):
    build = spec.builder(PACKAGE, name)
    assert issubclass(build, _base.DistillationLoss)
    assert getattr(losses, build.__name__) is build
    assert build.__name__ in losses.__all__
    assert keras.saving.get_registered_name(build) == f"kd_keras>{build.__name__}"
    assert build().name == name
    assert build(name="other").name == "other"
    assert build.__doc__ and "Returns:" in build.__doc__


@pytest.mark.parametrize("case", CASES)
def test_reads_taps_that_are_on_offer(case):
    for names, offered in zip(make(case).taps(list(student()), list(teacher())), (student(), teacher()), strict=True):
        assert set(names) <= set(offered)
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_gives_a_finite_float32_value_a_sample(case):
    value = make(case)(student(), teacher(), LABELS)
    assert value.shape in ((B,), ())
    assert value.dtype == tf.float32
    assert np.all(np.isfinite(value)) and np.any(np.not_equal(value, 0))


@pytest.mark.parametrize("case", CASES)
def test_called_by_itself_is_unweighted(case):
    expected = make(case)(student(), teacher(), LABELS)
    for weight in (0.25, 0, "linear(start=0.1, end=0.2, over=3)"):
        np.testing.assert_array_equal(make(case, weight=weight)(student(), teacher(), LABELS), expected)


@pytest.mark.parametrize("case", CASES)
def test_order_of_the_samples_does_not_matter(case):
    order = np.random.default_rng(0).permutation(B)
    moved = [{name: tf.gather(x, order) for name, x in side.items()} for side in (student(), teacher())]
    value = make(case)(student(), teacher(), LABELS)
    close(make(case)(*moved, LABELS[order]), value if value.shape == () else tf.gather(value, order), rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_takes_labels_in_every_form(case):
    expected = make(case)(student(), teacher(), LABELS)
    one_hot = np.eye(ref.CLASSES, dtype="float32")[LABELS]
    for labels in (LABELS[:, None], LABELS.astype("uint8"), tf.constant(LABELS), one_hot, one_hot.astype("float16")):
        close(make(case)(student(), teacher(), labels), expected)


@pytest.mark.parametrize("case", CASES)
def test_shift_of_the_logits_does_not_matter(case):
    """Holds for what goes through a softmax and, trivially, for what reads no logits."""
    moved = {**student(), "logits": student()["logits"] + 8}
    moved_teacher = {**teacher(), "logits": teacher()["logits"] - 16}
    close(make(case)(moved, moved_teacher, LABELS), make(case)(student(), teacher(), LABELS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["eager", "function", "jit"])
def test_extreme_logits_give_finite_values_and_gradients(case, dtype, mode):
    extreme = np.where(np.random.default_rng(3).random((B, ref.CLASSES)) < 0.5, -1e4, 1e4)
    extreme[0], extreme[1] = 1e4, -1e4
    s, t = student(dtype=dtype), teacher(dtype=dtype)
    s["logits"] = tf.cast(extreme, dtype)
    t["logits"] = tf.cast(-extreme[:, ::-1], dtype)
    term = make(case)
    term(s, t, LABELS)  # builds it
    run = {"eager": gradients, "function": tf.function(gradients), "jit": tf.function(gradients, jit_compile=True)}
    value, by_taps, by_weights = run[mode](term, s, t)
    assert np.all(np.isfinite(value))
    for gradient in (*by_taps.values(), *by_weights):
        assert np.all(np.isfinite(tf.cast(gradient, "float32")))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("jit", [False, True])
def test_compiled_equals_eager(case, jit):
    term = make(case)
    term(student(), teacher(), LABELS)
    call = tf.function(term, jit_compile=jit)
    close(call(student(), teacher(), tf.constant(LABELS)), term(student(), teacher(), LABELS), rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_computes_in_float32_under_mixed_precision(case, policy):
    dtype = policy.removeprefix("mixed_")
    halves = [{name: tf.cast(x, dtype) for name, x in side.items()} for side in (student(), teacher())]
    same = [{name: tf.cast(x, "float32") for name, x in side.items()} for side in halves]
    expected = make(case)(*same, LABELS)
    keras.config.set_dtype_policy(policy)  # tests/conftest.py sets it back
    term = make(case)
    value = term(*halves, LABELS)
    assert (term.compute_dtype, term.variable_dtype, value.dtype) == ("float32", "float32", tf.float32)
    for layer in term._flatten_layers():
        assert layer.compute_dtype == "float32", layer.name
    close(value, expected)
    close(term(*same, LABELS), expected)  # not rounded on its way in


@pytest.mark.parametrize("case", CASES)
def test_every_read_tap_and_adapter_gets_a_gradient(case):
    term = make(case)
    term(student(), teacher(), LABELS)
    _, by_taps, by_weights = gradients(term, student(), teacher())
    assert by_taps
    for name, gradient in by_taps.items():
        assert gradient is not None and np.any(np.not_equal(gradient, 0)), name
    for weight, gradient in zip(term.trainable_weights, by_weights, strict=True):
        assert gradient is not None, weight.path
        # A bias ahead of a batch norm has none, by nature.
        before_norm = "batch_norm=True" in case and weight.path.endswith("projection/bias")
        assert before_norm or np.any(np.abs(gradient) > 1e-6), weight.path


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    changing = {"weight": schedules.complement(schedules.linear(start=0.9, end=0.1, over=7, per="step"))}
    if hasattr(make(case), "temperature"):
        changing["temperature"] = schedules.exponential_decay(start=6.0, rate=0.9, floor=1.5)
    term = make(case, **changing)
    value = term(student(), teacher(), LABELS)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(term))
    assert type(again) is type(term) and again.name == term.name
    assert again.get_config() == term.get_config()
    assert again.weight == term.weight == changing["weight"]
    assert again.schedules == term.schedules and set(again.schedules) == set(changing)
    if not again.built:
        again.build_from_config(term.get_build_config())
    again.set_weights(term.get_weights())
    np.testing.assert_array_equal(again(student(), teacher(), LABELS), value)


@pytest.mark.parametrize("case", CASES)
def test_file_round_trip(case, tmp_path):
    def inputs(values, role):
        return {name: keras.Input(x.shape[1:], name=f"{role}_{name}") for name, x in values.items()}

    s, t, labels = inputs(student(), "s"), inputs(teacher(), "t"), keras.Input((), dtype="int32", name="labels")
    term = make(case, weight="linear(start=1, end=0, over=3)")
    model = keras.Model((s, t, labels), term(s, t, labels))
    for weight in term.weights:  # away from the values of a fresh one
        weight.assign_add(0.1 * tf.ones_like(weight))
    model.save(tmp_path / "term.keras")
    again = keras.models.load_model(tmp_path / "term.keras", safe_mode=True, compile=False)
    assert len(again.weights) == len(term.weights)
    for ours, theirs in zip(term.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    batch = (student(), teacher(), tf.constant(LABELS, "int32"))
    np.testing.assert_array_equal(model(batch), again(batch))


@pytest.mark.parametrize("case", CASES)
def test_optimisation_of_a_toy_student_lowers_it(case):
    term = make(case)
    term(student(), teacher(), LABELS)
    x = ref.features(20, 16)
    read, _ = term.taps(list(student()), list(teacher()))
    # The student: a linear map from a code of each sample to every tap that is read.
    maps = {name: tf.Variable(tf.zeros((16, int(np.prod(student()[name].shape[1:]))))) for name in read}
    optimizer = keras.optimizers.Adam(0.03)
    variables = [*maps.values(), *term.trainable_weights]
    optimizer.build(variables)

    def loss():
        made = {name: tf.reshape(x @ maps[name], student()[name].shape) for name in read}
        return tf.reduce_mean(term(made, teacher(), LABELS))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss()
        optimizer.apply(tape.gradient(value, variables), variables)

    first = loss()
    for _ in range(60):
        step()
    assert loss() < 0.99 * first  # soft cross-entropy ends at the teacher's entropy, not at 0


@pytest.mark.parametrize("name", NAMES)
def test_refuses_what_cannot_be(name):
    with pytest.raises(InputError, match=f"{name}'s weight=-1 reaches -1"):
        make(name, weight=-1)
    with pytest.raises(InputError, match=f"{name} has no key 'wait': known keys are weight.*mean 'weight'"):
        make(name, wait=1)


def test_every_file_is_a_public_name():
    assert len(losses.__all__) == len(NAMES)
    assert {"ce", "kd", "soft_ce", "hint"} <= set(NAMES)
