import dataclasses
import itertools
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses, schedules, spec
from kd_keras.distillation.distiller import Distiller
from kd_keras.errors import InputError

# Text, and its values at t = 0, 1, 2, 4, 100 by hand.
TIMES = (0, 1, 2, 4, 100)
GOLDEN = {
    "constant(3)": (3, 3, 3, 3, 3),
    "linear(start=1, end=3, over=4)": (1, 1.5, 2, 3, 3),
    "linear(start=0.8, end=0.2, over=2)": (0.8, 0.5, 0.2, 0.2, 0.2),
    "cosine(start=2, over=4)": (2, 1 + math.sqrt(0.5), 1, 0, 0),
    "cosine(start=1, end=0.5, over=2)": (1, 0.75, 0.5, 0.5, 0.5),
    "exponential_decay(start=8, rate=0.5)": (8, 4, 2, 0.5, 8 * 0.5**100),
    "exponential_decay(start=8, rate=0.5, floor=1.5)": (8, 4, 2, 1.5, 1.5),
    "warmup(over=4)": (0.25, 0.5, 0.75, 1, 1),
    "warmup(to=6, over=3)": (2, 4, 6, 6, 6),
    "warmup(to=linear(start=1, end=3, over=4), over=2)": (0.5, 1.5, 2, 3, 3),
    "warmup(to=warmup(to=2, over=4), over=2)": (0.25, 1, 1.5, 2, 2),
    "complement(0.3)": (0.7, 0.7, 0.7, 0.7, 0.7),
    "complement(linear(start=1, end=0, over=4))": (0, 0.25, 0.5, 1, 1),
    "complement(of=exponential_decay(start=0.5, rate=0.5, floor=0.125))": (0.5, 0.75, 0.875, 0.875, 0.875),
    "complement(complement(cosine(start=1, over=2)))": (1, 0.5, 0, 0, 0),
}
SHIFTING = [text for text in GOLDEN if "constant" not in text and text != "complement(0.3)"]


def by_steps(text):
    """The same schedule counted in steps, at every level."""
    return schedules._map(lambda s: dataclasses.replace(s, per="step") if hasattr(s, "per") else s, schedules.get(text))


@pytest.mark.parametrize("text", GOLDEN)
def test_golden(text):
    for t, expected in zip(TIMES, GOLDEN[text], strict=True):
        assert schedules.get(text)(epoch=t, step=17) == pytest.approx(expected, rel=1e-12, abs=1e-15)
        assert by_steps(text)(epoch=17, step=t) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("text", GOLDEN)
@pytest.mark.parametrize("jit", [False, True])
def test_number_and_tensor_agree(text, jit):
    schedule = schedules.get(text)

    @tf.function(jit_compile=jit)
    def compiled(epoch, step):
        return tf.convert_to_tensor(schedule(epoch=epoch, step=step), "float32")

    for t in TIMES:
        expected = schedule(epoch=t, step=0)
        assert compiled(tf.constant(float(t)), tf.constant(0.0)).numpy() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert compiled.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("text", SHIFTING)
def test_counts_epochs_by_default(text):
    values = [schedules.get(text)(epoch=1, step=step) for step in TIMES]
    assert values == [values[0]] * len(TIMES)
    assert schedules.get(text)(epoch=0, step=5) != values[0]


def test_inner_and_outer_count_in_their_own_unit():
    schedule = schedules.get("warmup(to=linear(start=10, end=0, over=5), over=100, per='step')")
    assert schedule(epoch=2, step=49) == pytest.approx(6 * 0.5)
    assert schedule(epoch=4, step=499) == pytest.approx(2)


@pytest.mark.parametrize("text", [*GOLDEN, "cosine(start=0.1)", "linear(start=1, end=0, per='step')"])
def test_text_round_trip(text):
    schedule = schedules.get(text)
    assert schedules.get(str(schedule)) == schedule
    assert schedules.get(spec.parse(text)) == schedule
    assert schedules.get(schedules.to_config(schedule)) == schedule
    assert schedules.get(schedule) is schedule
    assert hash(schedule) == hash(schedules.get(str(schedule)))
    assert schedule != schedules.get("linear(start=1.25, end=0, over=3)")


def test_numbers():
    assert schedules.get(2) == schedules.get(2.0) == schedules.constant(2.0)
    assert schedules.to_config(schedules.get(0.5)) == 0.5
    assert str(schedules.get(0.5)) == "constant(value=0.5)"


def test_values_without_keys():
    assert schedules.get("cosine(1, 0.5, 3)") == schedules.cosine(start=1, end=0.5, over=3)


@pytest.mark.parametrize("name", schedules.__all__)
def test_all_are_tested_by_hand(name):
    assert any(text.startswith(f"{name}(") for text in GOLDEN)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "None is neither a number nor a schedule: known schedules are complement, constant"),
        (True, "True is neither a number"),
        ([1], "neither a number"),
        ("kosine(start=1)", r"unknown name 'kosine' in schedules: .*did you mean 'cosine'"),
        ("cosine()", r"cosine\(\) lacks the key 'start'"),
        ("linear(start=1, ende=2)", "linear has no key 'ende'.*mean 'end'"),
        ("linear(start=1, end=0, per='batch')", r"linear\(per='batch'\): per is 'epoch' or 'step'"),
        ("warmup(per=1)", r"warmup\(per=1\): per is"),
        ("warmup(over=0)", r"warmup\(over=0\): over is a positive number"),
        ("warmup(over=-2)", "over is a positive number"),
        ("warmup(over='a')", r"warmup\(over='a'\): over is a number"),
        ("warmup(over=None)", "over is a number"),
        ("warmup(to=True)", "True is neither a number"),
        ("linear(start='a', end=1)", r"linear\(start='a'\): start is a number"),
        ("linear(start=1, end=cosine(start=1))", r"linear\(end=cosine\(start=1\)\): end is a number"),
        ("cosine(start=True)", r"start=True\): start is a number"),
        ("exponential_decay(start=1, rate=None)", "rate is a number"),
        ("constant('a')", "value is a number"),
        ("complement('a')", "unknown name 'a' in schedules"),
    ],
)
def test_get_refuses(value, message):
    with pytest.raises(InputError, match=message) as error:
        schedules.get(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["linear(start=1, end=0)", "cosine(start=1)", "complement(cosine(start=1))"])
def test_a_course_without_length_is_refused(text):
    with pytest.raises(InputError, match="lacks over: say over how many epochs"):
        schedules.get(text)(epoch=0, step=0)
    with pytest.raises(InputError, match=r"T=.*lacks over: say over how many epochs"):
        schedules.check(schedules.get(text), "T")


def test_check_fills_in_the_length_at_every_level():
    checked = schedules.check(schedules.get("warmup(to=cosine(start=1), over=2)"), "T", total=8)
    assert checked == schedules.get("warmup(to=cosine(start=1, over=8), over=2)")
    own = schedules.get("linear(start=1, end=0, over=3)")
    assert schedules.check(own, "T", total=8) == own


@pytest.mark.parametrize(
    ("value", "positive", "message"),
    [
        (-1, False, "w=-1 reaches -1: it has to stay 0 or more"),
        (0, True, "w=0 reaches 0: it has to stay above 0"),
        (math.nan, False, "reaches nan"),
        (math.inf, False, "reaches inf"),
        ("linear(start=1, end=-1, over=5)", False, "reaches -1"),
        ("linear(start=1, end=0, over=5)", True, "reaches 0: .*above 0"),
        ("complement(2)", False, r"w=complement\(of=constant\(value=2\)\) reaches -1"),
        ("exponential_decay(start=1, rate=-0.5, floor=-9)", False, "reaches -0.5"),
        ("exponential_decay(start=1, rate=1e200)", False, "reaches inf|reaches 1e"),
        ("linear(start=1, end=0, over=0)", False, "over is a positive number of epochs"),
        ("complement(linear(start=1, end=0, over=-3, per='step'))", False, "over is a positive number of steps"),
    ],
)
def test_check_refuses(value, positive, message):
    with pytest.raises(InputError, match=message):
        schedules.check(schedules.get(value), "w", positive=positive)


def test_check_lets_0_pass_unless_told():
    for value in (0, "linear(start=1, end=0, over=5)", "complement(1)"):
        schedules.check(schedules.get(value), "w")
    schedules.check(schedules.get("exponential_decay(start=1, rate=0.5, floor=0.1)"), "w", positive=True)


STEPS = 10  # an epoch
# What goes on smoothly between epochs has to agree at every step when its unit is a step.
RATES = [
    "linear(start=0.1, end=0.01, over=30, per='step')",
    "cosine(start=0.1, over=30, per='step')",
    "cosine(start=0, end=0.1, over=30, per='step')",
    "exponential_decay(start=0.1, rate=0.9)",
    "exponential_decay(start=0.1, rate=0.9, floor=0.05)",
    "exponential_decay(start=0.1, rate=0.99, per='step')",
    "warmup(to=0.1, over=7, per='step')",
    "warmup(to=cosine(start=0.1, end=0.001, over=30, per='step'), over=7, per='step')",
    "warmup(to=warmup(to=0.1, over=3, per='step'), over=20, per='step')",
    "complement(linear(start=0.5, end=0.9, over=20, per='step'))",
]


@pytest.mark.parametrize("text", RATES)
def test_learning_rate_equals_the_schedule_at_every_step(text):
    schedule = schedules.get(text)
    rate = schedules.to_keras(schedule, epochs=5, steps_per_epoch=STEPS)
    assert isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    compiled = tf.function(rate)
    for step in (0, 1, 6, 7, 9, 10, 19, 20, 29, 30, 31, 49, 500):
        expected = schedule(epoch=step // STEPS, step=step)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert float(compiled(tf.constant(step, "int64"))) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("text", ["linear(start=0.1, end=0.02, over=3)", "cosine(start=0.1, over=3)"])
def test_a_course_of_epochs_moves_with_the_steps(text):
    schedule = schedules.get(text)
    rate = schedules.to_keras(schedule, epochs=5, steps_per_epoch=STEPS)
    for step in range(45):
        assert float(rate(step)) == pytest.approx(schedule(epoch=step / STEPS, step=step), rel=1e-5, abs=1e-8)
    assert all(float(rate(s)) > float(rate(s + 1)) for s in range(29))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("linear(start=0.1, end=0.02)", "PolynomialDecay"),
        ("cosine(start=0.1)", "CosineDecay"),
        ("exponential_decay(start=0.1, rate=0.9)", "ExponentialDecay"),
    ],
)
def test_where_keras_has_the_schedule_it_is_keras_own(text, name):
    rate = schedules.to_keras(schedules.get(text), epochs=5, steps_per_epoch=STEPS)
    assert type(rate) is getattr(keras.optimizers.schedules, name)


def test_a_warm_up_of_epochs_moves_with_the_steps_and_wastes_none():
    rate = schedules.to_keras(schedules.get("warmup(to=cosine(start=0.1), over=2)"), epochs=5, steps_per_epoch=STEPS)
    for step in range(60):
        cosine = 0.05 * (1 + math.cos(math.pi * min(step / 50, 1)))
        assert float(rate(step)) == pytest.approx(cosine * min((step + 1) / 20, 1), rel=1e-5, abs=1e-8)
    assert float(rate(0)) > 0


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("cosine(start=0.1, end=0.01)", 50),
        ("linear(start=0.1, end=0.01)", 50),
        ("cosine(start=0.1, end=0.01, per='step')", 50),
        ("warmup(to=cosine(start=0.1, end=0.01), over=1)", 50),
    ],
)
def test_length_defaults_to_the_whole_training(text, last):
    rate = schedules.to_keras(schedules.get(text), epochs=5, steps_per_epoch=STEPS)
    assert float(rate(last)) == pytest.approx(0.01, rel=1e-4)
    assert float(rate(last - 2)) > 0.01001
    assert float(rate(last + 30)) == pytest.approx(0.01, rel=1e-4)


def test_a_number_stays_one():
    rate = schedules.to_keras(schedules.get(1), epochs=5, steps_per_epoch=STEPS)
    assert rate == 1.0 and type(rate) is float


@pytest.mark.parametrize("text", ["constant(-0.1)", "constant(nan)", "linear(start=0.1, end=-0.1, over=3)"])
def test_learning_rate_refuses(text):
    value = math.nan if "nan" in text else text
    with pytest.raises(InputError, match=r"learning_rate=.*has to stay 0 or more"):
        schedules.to_keras(schedules.get(value), epochs=5, steps_per_epoch=STEPS)


def test_the_optimizer_takes_the_rate_of_each_step():
    schedule = schedules.get("warmup(to=cosine(start=0.1, over=8, per='step'), over=3, per='step')")
    optimizer = keras.optimizers.SGD(schedules.to_keras(schedule, epochs=2, steps_per_epoch=4))
    weight = tf.Variable(0.0)
    optimizer.build([weight])
    step = tf.function(lambda: optimizer.apply([tf.constant(-1.0)], [weight]))
    values = [weight.numpy()]
    for _ in range(8):
        step()
        values.append(weight.numpy())
    expected = [schedule(epoch=0, step=t) for t in range(8)]
    np.testing.assert_allclose([b - a for a, b in itertools.pairwise(values)], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_saved_optimizer_keeps_its_schedule(tmp_path):
    text = "warmup(to=cosine(start=0.1), over=2)"
    inputs = keras.Input((3,))
    student = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    distiller = Distiller(student=student, losses=[losses.CE()])
    rate = schedules.to_keras(schedules.get(text), epochs=5, steps_per_epoch=STEPS)
    distiller.compile(optimizer=keras.optimizers.SGD(rate))
    distiller.fit(np.ones((4, 3), "float32"), np.arange(4), verbose=0)
    distiller.save(tmp_path / "d.keras")
    # In a process of its own: there, only importing the package tells Keras of the class.
    code = (
        "import kd_keras, keras, sys; d = keras.models.load_model(sys.argv[1]); o = d.optimizer;"
        "print([float(o._learning_rate(s)) for s in (0, 7, 30)], int(o.iterations))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "d.keras"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == f"{[float(rate(s)) for s in (0, 7, 30)]} 1"


def test_importing_imports_no_tensorflow():
    code = "import sys, kd_keras.schedules as s; s.get('warmup(to=cosine(start=1, over=3), over=2)')(epoch=1, step=1);"
    code += "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
