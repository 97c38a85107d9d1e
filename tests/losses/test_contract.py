"""What holds for every loss. A new file of kd_keras/losses is tested here on arrival, at its defaults.

The contract itself is `kd_keras.testing`, which users call on losses of their own.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses, spec, testing
from kd_keras.errors import InputError
from tests.losses import reference as ref

PACKAGE = "kd_keras.losses"
SLOW, GRAPHS = pytest.mark.slow, ("function", "jit")
NAMES = spec.names(PACKAGE)
# Beside its defaults, each loss's other sides.
CASES = [
    *NAMES,
    "ce(label_smoothing=0.1)",
    "bce(label_smoothing=0.1)",
    "binary_kd(squared=False, temperature=0.5)",
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
SAMPLES = 20


def make(case, **kwargs):
    keras.utils.set_random_seed(1)
    parsed = spec.parse(case)
    given = {"samples": SAMPLES, "negatives": 5} if parsed.name == "crd" else {}
    return spec.build(PACKAGE, spec.Spec(parsed.name, {**given, **parsed.kwargs, **kwargs}))


def taps(seed, channels):
    """Taps of a model; student and teacher differ in channels and, at stage1, in the grid."""
    # What SimKD puts on the student, of the teacher's channels.
    return {**testing.example_taps(seed, channels), "sim_kd": ref.features(seed + 6, 4, 4, 10)}


def contract(case):
    return testing.LossCase(make(case), taps(0, 3), taps(10, 3 if spec.parse(case).name in ONE_WIDTH else 5))


def _reads_logits(case):
    return "logits" in make(case).taps(list(contract(case).student), list(contract(case).teacher))[0]


OF_LOGITS = [case for case in CASES if _reads_logits(case)]
OF_SOFTMAX = [case for case in CASES if "softmax" in make(case).heads]


def close(actual, expected, **kwargs):
    np.testing.assert_allclose(actual, expected, **{"rtol": 1e-5, "atol": 1e-6, **kwargs})


@pytest.mark.parametrize("name", NAMES)
def test_is_a_registered_layer_of_its_files_name(name):
    loss = spec.builder(PACKAGE, name)
    assert issubclass(loss, losses.Loss)
    assert getattr(losses, loss.__name__) is loss
    assert loss.__name__ in losses.__all__
    assert keras.saving.get_registered_name(loss) == f"kd_keras>{loss.__name__}"
    assert loss().name == name
    assert loss(name="other").name == "other"
    assert loss.__doc__ and "Returns:" in loss.__doc__


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", testing.LOSS_CHECKS, ids=lambda check: check.__name__)
def test_keeps_the_contract(case, check):
    check(contract(case))


@pytest.mark.parametrize("case", OF_SOFTMAX)
def test_shift_of_the_logits_does_not_matter(case):
    """Holds for what goes through a softmax and, trivially, for what reads no logits."""
    whole = contract(case)
    moved = {**whole.student, "logits": whole.student["logits"] + 8}
    moved_teacher = {**whole.teacher, "logits": whole.teacher["logits"] - 16}
    close(whole.call(whole.make(), moved, moved_teacher), whole.call(whole.make()), rtol=1e-4, atol=1e-5)


# What is slow differs from the others in the cast of its inputs.
@pytest.mark.parametrize("case", OF_LOGITS)
@pytest.mark.parametrize(
    ("policy", "mode"),
    [
        ("mixed_float16", "function"),
        *(pytest.param("mixed_float16", mode, marks=SLOW) for mode in ("eager", "jit")),
        *(pytest.param(policy, mode, marks=SLOW) for policy in ("float32", "mixed_bfloat16") for mode in GRAPHS),
    ],
)
def test_extreme_logits_in_every_precision_compiled_and_not(case, policy, mode):
    keras.config.set_dtype_policy(policy)  # tests/conftest.py sets it back
    run = {"eager": lambda f: f, "function": tf.function, "jit": lambda f: tf.function(f, jit_compile=True)}
    testing.losses.survives_extreme_logits(contract(case), policy.removeprefix("mixed_"), run[mode])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_is_the_same_under_xla_and_computes_bfloat16_in_float32(case):
    testing.losses.is_the_same_when_compiled(contract(case), jit=True)
    testing.losses.computes_in_float32(contract(case), "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_optimisation_of_a_toy_student_lowers_it(case):
    whole = contract(case)
    term = whole.make()
    whole.call(term)
    x = ref.features(20, 16)
    read, _ = term.taps(list(whole.student), list(whole.teacher))
    # The student: a linear map from a code of each sample to every tap that is read.
    sizes = {name: int(np.prod(whole.student[name].shape[1:])) for name in read}
    maps = {name: tf.Variable(0.1 * ref.features(30, size, batch=16)) for name, size in sizes.items()}
    optimizer = keras.optimizers.Adam(0.03)
    variables = [*maps.values(), *term.trainable_weights]
    optimizer.build(variables)

    def loss():
        outputs = {name: tf.reshape(x @ maps[name], whole.student[name].shape) for name in read}
        return tf.reduce_mean(whole.call(term, outputs))

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


def test_the_losses_that_are_known_are_found():
    assert {"ce", "kd", "soft_ce", "hint"} <= set(NAMES)
