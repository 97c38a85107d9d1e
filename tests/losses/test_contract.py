"""What holds for every loss. A new file of kd_keras/losses is tested here on arrival, at its defaults."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses, schedules, spec
from kd_keras.errors import InputError
from kd_keras.losses import base as _base
from tests.losses import reference as ref

PACKAGE = "kd_keras.losses"
SLOW, GRAPHS = pytest.mark.slow, ("function", "jit")
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
    "dkd(standardize=True, alpha=0.5, beta=2.0)",
    "dist(standardize=True, beta=2.0, gamma=0.5)",
    "nkd(standardize=True, temperature=3.0)",
    "mlkd(standardize=True, temperatures=(1.0, 3.0))",
    "teacher_free(kind='self')",
    "rkd(angle=0.0, pairs='stage2:stage1')",
    "sp(pairs='pooled:stage1,stage2:stage2')",
]
# These compare no models of different widths.
ONE_WIDTH = {"fsp"}
B = ref.BATCH
SAMPLES = 20
INDEX = np.arange(B) * 3


def make(case, **kwargs):
    keras.utils.set_random_seed(1)
    parsed = spec.parse(case)
    given = {"samples": SAMPLES, "negatives": 5} if parsed.name == "crd" else {}
    return spec.build(PACKAGE, spec.Spec(parsed.name, {**given, **parsed.kwargs, **kwargs}))


def call(term, student, teacher, labels, index=INDEX, **kwargs):
    """The term with what it needs beside taps and labels."""
    given = {"index": index} if "index" in term.needs else {}
    return term(student, teacher, labels, **given, **kwargs)


def taps(seed, channels, dtype="float32", scale=1.0):
    """Taps of a model; student and teacher differ in channels and, at stage1, in the grid."""
    side = 8 if channels == 3 else 6
    values = {
        "logits": scale * ref.logits(seed),
        "stage1": ref.features(seed + 1, side, side, channels),
        "stage2": ref.features(seed + 2, 4, 4, 2 * channels),
        "stage1_pre": ref.features(seed + 4, side, side, channels),
        "stage2_pre": ref.features(seed + 5, 4, 4, 2 * channels),
        "pooled": ref.features(seed + 3, 2 * channels),
        # What SimKD puts on the student, of the teacher's channels.
        "sim_kd": ref.features(seed + 6, 4, 4, 10),
    }
    return {name: tf.cast(value, dtype) for name, value in values.items()}


def student(**kwargs):
    return taps(0, 3, **kwargs)


def teacher(case, **kwargs):
    return taps(10, 3 if spec.parse(case).name in ONE_WIDTH else 5, **kwargs)


LABELS = ref.classes()


def gradients(term, s, t, labels=LABELS):
    """Value, and gradients by the student's taps that it reads and by its own weights."""
    read = {name: s[name] for name in term.taps(list(s), list(t))[0]}
    with tf.GradientTape() as tape:
        tape.watch(read)
        value = call(term, read, t, labels, **({"training": True} if "training" in _arguments(term) else {}))
        total = tf.reduce_sum(value)
    return value, *tape.gradient(total, (read, list(term.trainable_weights)))


def _arguments(term):
    return term.call.__code__.co_varnames


OF_LOGITS = [case for case in CASES if "logits" in make(case).taps(list(student()), list(teacher(case)))[0]]
OF_FEATURES = [case for case in CASES if case not in OF_LOGITS]


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
    for names, offered in zip(
        make(case).taps(list(student()), list(teacher(case))), (student(), teacher(case)), strict=True
    ):
        assert set(names) <= set(offered)
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_gives_a_finite_float32_value_a_sample(case):
    value = call(make(case), student(), teacher(case), LABELS)
    assert value.shape in ((B,), ())
    assert value.dtype == tf.float32
    assert np.all(np.isfinite(value)) and np.any(np.not_equal(value, 0))


@pytest.mark.parametrize("case", CASES)
def test_called_by_itself_is_unweighted(case):
    expected = call(make(case), student(), teacher(case), LABELS)
    for weight in (0.25, 0, "linear(start=0.1, end=0.2, over=3)"):
        np.testing.assert_array_equal(call(make(case, weight=weight), student(), teacher(case), LABELS), expected)


@pytest.mark.parametrize("case", CASES)
def test_order_of_the_samples_does_not_matter(case):
    order = np.random.default_rng(0).permutation(B)
    moved = [{name: tf.gather(x, order) for name, x in side.items()} for side in (student(), teacher(case))]
    value = call(make(case), student(), teacher(case), LABELS)
    expected = value if value.shape == () else tf.gather(value, order)
    close(call(make(case), *moved, LABELS[order], index=INDEX[order]), expected, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_takes_labels_in_every_form(case):
    expected = call(make(case), student(), teacher(case), LABELS)
    one_hot = np.eye(ref.CLASSES, dtype="float32")[LABELS]
    for labels in (LABELS[:, None], LABELS.astype("uint8"), tf.constant(LABELS), one_hot, one_hot.astype("float16")):
        close(call(make(case), student(), teacher(case), labels), expected)


@pytest.mark.parametrize("case", CASES)
def test_shift_of_the_logits_does_not_matter(case):
    """Holds for what goes through a softmax and, trivially, for what reads no logits."""
    moved = {**student(), "logits": student()["logits"] + 8}
    moved_teacher = {**teacher(case), "logits": teacher(case)["logits"] - 16}
    expected = call(make(case), student(), teacher(case), LABELS)
    close(call(make(case), moved, moved_teacher, LABELS), expected, rtol=1e-4, atol=1e-5)


# What is slow differs from the others in the cast of its inputs.
@pytest.mark.parametrize("case", OF_LOGITS)
@pytest.mark.parametrize(
    ("policy", "mode"),
    [
        *(("mixed_float16", mode) for mode in ("eager", "function", "jit")),
        *(pytest.param(policy, mode, marks=SLOW) for policy in ("float32", "mixed_bfloat16") for mode in GRAPHS),
    ],
)
def test_extreme_logits_give_finite_values_and_gradients(case, policy, mode):
    keras.config.set_dtype_policy(policy)  # tests/conftest.py sets it back
    dtype = policy.removeprefix("mixed_")
    extreme = np.where(np.random.default_rng(3).random((B, ref.CLASSES)) < 0.5, -1e4, 1e4)
    extreme[0], extreme[1] = 1e4, -1e4
    s, t = student(dtype=dtype), teacher(case, dtype=dtype)
    of_teacher = -extreme[:, ::-1]
    # A teacher that is sure and right, and one that is sure and wrong, each of a student who is as sure of another.
    for row, wrong in ((2, 0), (3, 1)):
        of_teacher[row] = extreme[row] = -1e4
        of_teacher[row, (LABELS[row] + wrong) % ref.CLASSES] = extreme[row, (LABELS[row] + 2) % ref.CLASSES] = 1e4
    s["logits"] = tf.cast(extreme, dtype)
    t["logits"] = tf.cast(of_teacher, dtype)
    term = make(case)
    call(term, s, t, LABELS)  # builds it
    run = {"eager": gradients, "function": tf.function(gradients), "jit": tf.function(gradients, jit_compile=True)}
    value, by_taps, by_weights = run[mode](term, s, t)
    assert np.all(np.isfinite(value))
    for gradient in (*by_taps.values(), *by_weights):
        assert np.all(np.isfinite(tf.cast(gradient, "float32")))


@pytest.mark.parametrize("case", OF_FEATURES)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_dead_and_extreme_features_give_finite_values_and_gradients(case, scale):
    term = make(case)
    s, t = ({name: scale * x for name, x in side.items()} for side in (student(), teacher(case)))
    value, by_taps, by_weights = gradients(term, s, t)
    assert np.all(np.isfinite(value))
    for gradient in (*by_taps.values(), *by_weights):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=SLOW)])
def test_compiled_equals_eager(case, jit):
    term = make(case)
    call(term, student(), teacher(case), LABELS)
    compiled = tf.function(functools.partial(call, term), jit_compile=jit)
    close(
        compiled(student(), teacher(case), tf.constant(LABELS), index=tf.constant(INDEX)),
        call(term, student(), teacher(case), LABELS),
        rtol=1e-4,
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=SLOW)])
def test_computes_in_float32_under_mixed_precision(case, policy):
    dtype = policy.removeprefix("mixed_")
    halves = [{name: tf.cast(x, dtype) for name, x in side.items()} for side in (student(), teacher(case))]
    same = [{name: tf.cast(x, "float32") for name, x in side.items()} for side in halves]
    expected = call(make(case), *same, LABELS)
    keras.config.set_dtype_policy(policy)  # tests/conftest.py sets it back
    term = make(case)
    value = call(term, *halves, LABELS)
    assert (term.compute_dtype, term.variable_dtype, value.dtype) == ("float32", "float32", tf.float32)
    for layer in term._flatten_layers():
        assert layer.compute_dtype == "float32", layer.name
    close(value, expected)
    close(call(term, *same, LABELS), expected)  # not rounded on its way in


@pytest.mark.parametrize("case", CASES)
def test_every_read_tap_and_adapter_gets_a_gradient(case):
    term = make(case)
    call(term, student(), teacher(case), LABELS)
    _, by_taps, by_weights = gradients(term, student(), teacher(case))
    assert by_taps
    for name, gradient in by_taps.items():
        assert gradient is not None and np.any(np.not_equal(gradient, 0)), name
    for weight, gradient in zip(term.trainable_weights, by_weights, strict=True):
        assert gradient is not None, weight.path
        assert np.any(np.abs(gradient) > 1e-6), weight.path


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    changing = {"weight": schedules.complement(schedules.linear(start=0.9, end=0.1, over=7, per="step"))}
    if hasattr(make(case), "temperature"):
        changing["temperature"] = schedules.exponential_decay(start=6.0, rate=0.9, floor=1.5)
    term = make(case, **changing)
    value = call(term, student(), teacher(case), LABELS)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(term))
    assert type(again) is type(term) and again.name == term.name
    assert again.get_config() == term.get_config()
    assert again.weight == term.weight == changing["weight"]
    assert again.schedules == term.schedules and set(again.schedules) == set(changing)
    if not again.built:
        again.build_from_config(term.get_build_config())
    again.set_weights(term.get_weights())
    np.testing.assert_array_equal(call(again, student(), teacher(case), LABELS), value)


@pytest.mark.parametrize("case", CASES)
def test_file_round_trip(case, tmp_path):
    def inputs(values, role):
        return {name: keras.Input(x.shape[1:], name=f"{role}_{name}") for name, x in values.items()}

    s, t, labels = inputs(student(), "s"), inputs(teacher(case), "t"), keras.Input((), dtype="int32", name="labels")
    term = make(case, weight="linear(start=1, end=0, over=3)")
    index = keras.Input((), dtype="int32", name="index")
    model = keras.Model((s, t, labels, index), call(term, s, t, labels, index=index))
    for weight in term.weights:  # away from the values of a fresh one
        weight.assign_add(0.1 * tf.ones_like(weight))
    model.save(tmp_path / "term.keras")
    again = keras.models.load_model(tmp_path / "term.keras", safe_mode=True, compile=False)
    assert len(again.weights) == len(term.weights)
    for ours, theirs in zip(term.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    batch = (student(), teacher(case), tf.constant(LABELS, "int32"), tf.constant(INDEX, "int32"))
    np.testing.assert_array_equal(model(batch), again(batch))


@pytest.mark.parametrize("case", CASES)
def test_optimisation_of_a_toy_student_lowers_it(case):
    term = make(case)
    call(term, student(), teacher(case), LABELS)
    x = ref.features(20, 16)
    read, _ = term.taps(list(student()), list(teacher(case)))
    # The student: a linear map from a code of each sample to every tap that is read.
    sizes = {name: int(np.prod(student()[name].shape[1:])) for name in read}
    maps = {name: tf.Variable(0.1 * ref.features(30, size, batch=16)) for name, size in sizes.items()}
    optimizer = keras.optimizers.Adam(0.03)
    variables = [*maps.values(), *term.trainable_weights]
    optimizer.build(variables)

    def loss():
        made = {name: tf.reshape(x @ maps[name], student()[name].shape) for name in read}
        return tf.reduce_mean(call(term, made, teacher(case), LABELS))

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
    with pytest.raises(InputError, match=f"{name} has no key 'weigth': known keys are weight.*mean 'weight'"):
        make(name, weigth=1)


def test_every_file_is_a_public_name():
    assert len(losses.__all__) == len(NAMES)
    assert {"ce", "kd", "soft_ce", "hint"} <= set(NAMES)
