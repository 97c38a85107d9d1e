"""The ensemble: what the student is taught by, against the formulas; whose teachers they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import losses, schedules
from kd_keras.distillation import parts
from kd_keras.errors import InputError
from kd_keras.models import cnn
from tests.losses import reference as ref
from tests.schemes.tiny import checked, record, stage_of, trained

SHAPE, CLASSES = (8, 8, 1), ref.CLASSES
SHARES = {"teacher1.logits": 0.25, "teacher2.logits": 0.75}
Z_S, Z_T = ref.logits(0), (ref.logits(1), ref.logits(2))
TAPS = dict(zip(SHARES, map(tf.constant, Z_T), strict=True))


def of_teachers(term, **kwargs):
    return parts.OfTeachers(term=term, teachers=SHARES, **kwargs)


def value(term, z_s=Z_S):
    return term({"logits": tf.constant(z_s)}, TAPS, ref.classes(), training=True)


def mean_of_softened(temperature):
    parts = (np.exp(ref.log_softmax(np.float64(z) / temperature)) for z in Z_T)
    return sum(w * p for w, p in zip(SHARES.values(), parts, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_taught_by_the_mean_of_the_softened_probabilities(temperature):
    p = mean_of_softened(temperature)
    log_p_s = ref.log_softmax(np.float64(Z_S) / temperature)
    kl = temperature**2 * np.sum(p * (np.log(p) - log_p_s), axis=-1)
    np.testing.assert_allclose(value(of_teachers(losses.KD(temperature=temperature))), kl, rtol=1e-4, atol=1e-5)
    cross = -(temperature**2) * np.sum(p * log_p_s, axis=-1)
    np.testing.assert_allclose(value(of_teachers(losses.SoftCE(temperature=temperature))), cross, rtol=1e-4, atol=1e-5)


def test_a_schedules_temperature_softens_the_teachers_at_each_epoch():
    term = of_teachers(losses.KD(temperature=schedules.linear(start=1, end=5, over=4)))
    for epoch, temperature in ((0, 1.0), (3, 4.0)):
        term.clock = lambda epoch=epoch: (epoch, 0)
        p, log_p_s = mean_of_softened(temperature), ref.log_softmax(np.float64(Z_S) / temperature)
        kl = temperature**2 * np.sum(p * (np.log(p) - log_p_s), axis=-1)
        np.testing.assert_allclose(value(term), kl, rtol=1e-4, atol=1e-5)
    assert list(term.schedules) == ["temperature"]


def gradient(terms):
    z = tf.constant(Z_S)
    with tf.GradientTape() as tape:
        tape.watch(z)
        total = sum(tf.reduce_sum(term({"logits": z}, TAPS, ref.classes(), training=True)) for term in terms)
    return tape.gradient(total, z).numpy()


@pytest.mark.parametrize("loss", [losses.KD, losses.SoftCE])
def test_terms_have_the_gradient_of_the_mean_of_probabilities(loss):
    apart = [
        parts.OfTeachers(term=loss(temperature=3.0), teachers={tap: 1.0}, share=share) for tap, share in SHARES.items()
    ]
    np.testing.assert_allclose(gradient(apart), gradient([of_teachers(loss(temperature=3.0))]), rtol=1e-4, atol=1e-5)
    values = [ref.kl(z, Z_S, 3.0) * 9 * share for z, share in zip(Z_T, SHARES.values(), strict=True)]
    if loss is losses.KD:
        np.testing.assert_allclose(sum(map(value, apart)), sum(values), rtol=1e-4, atol=1e-5)


def test_a_term_is_saved_with_what_it_is_made_of():
    term = of_teachers(losses.KD(weight=0.3, temperature=2.0), share=0.5, name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(term))
    assert again.name == "mine" and again.now(again.weight) == 0.3
    np.testing.assert_array_equal(value(again), value(term))


def test_standardised_logits_have_no_mean_of_probabilities():
    with pytest.raises(InputError, match=r"kd\(standardize=True\) takes a teacher's logits"):
        of_teachers(losses.KD(standardize=True))
    for term in (losses.NKD(), losses.MLKD()):
        with pytest.raises(InputError, match=f"{term.name} reads the teacher at more than one temperature"):
            of_teachers(term)


TWO = ["--teacher=cnn(filters=(4,), dense=()) + cnn(filters=(4,), dense=())"]


@pytest.mark.parametrize("combine", ["logits", "probabilities", "terms"])
def test_the_first_step_has_the_formulas_loss(combine, tmp_path):
    flags = [f"--scheme=ensemble(combine='{combine}', weights=(1, 3))", *TWO, "--teacher_epochs=0", "--nobaseline"]
    runner = checked(tmp_path, *flags, "--loss=ce(weight=0.1) + kd(weight=0.9, temperature=2.0)")
    stage, facts = stage_of(runner, "student"), runner.session.facts
    teachers = [facts.model(teacher) for teacher in stage.teacher.of]
    distiller = runner.trainer.distiller(stage, facts.model(stage.model), facts.model(stage.teacher), None)
    x = np.random.default_rng(0).uniform(0, 255, (8, *SHAPE)).astype("float32")
    y = np.arange(8)
    z_s = np.asarray(distiller.student(x, training=True), "float64")
    z = [np.asarray(model(x), "float64") for model in teachers]
    if combine == "logits":
        soft = 4 * ref.kl(0.25 * z[0] + 0.75 * z[1], z_s, 2.0)
    elif combine == "probabilities":
        mean = sum(w * np.exp(ref.log_softmax(logits / 2)) for w, logits in zip((0.25, 0.75), z, strict=True))
        soft = 4 * np.sum(mean * (np.log(mean) - ref.log_softmax(z_s / 2)), axis=-1)
    else:
        soft = 4 * (0.25 * ref.kl(z[0], z_s, 2.0) + 0.75 * ref.kl(z[1], z_s, 2.0))
    hard = -ref.log_softmax(z_s)[np.arange(8), y]
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert float(logs["loss"]) == pytest.approx(np.mean(0.1 * hard + 0.9 * soft), rel=1e-3)
    assert ("kd_teacher2" in logs) == (combine == "terms") and ("kd" in logs) == (combine != "terms")


@pytest.mark.slow
def test_teachers_of_one_spec_differ_and_are_joined(tmp_path):
    flags = ["--scheme=ensemble(combine='terms', weights=(1, 2))", *TWO, "--cache_views=1"]
    feature = "--loss=kd() + hint(pairs='stage1:teacher2.stage1')"
    runner = trained(tmp_path, *flags, feature, "--nobaseline")
    assert [model.name for model in runner.plan.models] == ["teacher1", "teacher2", "ensemble", "student"]
    assert (runner.plan.reference.name, runner.plan.students[0].name) == ("ensemble", "student")
    first, second, both = (runner.load(model) for model in runner.plan.models[:3])
    assert not np.allclose(first.get_layer("logits").get_weights()[0], second.get_layer("logits").get_weights()[0])
    x = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE)).astype("float32")
    p = [np.exp(ref.log_softmax(np.asarray(model(x)))) for model in (first, second)]
    np.testing.assert_allclose(np.exp(ref.log_softmax(np.asarray(both(x)))), p[0] / 3 + p[1] * 2 / 3, rtol=1e-4)
    assert {"kd_teacher1", "kd_teacher2", "hint"} <= set(record(runner, "student")["series"])


BAD = {
    "one teacher": (["--teacher=cnn()"], r"--scheme=ensemble\(\) takes 2 teachers or more, and --teacher names 1"),
    "no teacher": (["--teacher=none", "--loss=ce()"], "takes 2 teachers or more, and --teacher names none"),
    "unknown": ([*TWO, "--scheme=ensemble(combine='votes')"], "combine='votes'.*logits, probabilities, terms"),
    "weights": ([*TWO, "--scheme=ensemble(weights=(1, 2, 3))"], "give 2 positive numbers"),
    "no distillation": ([*TWO, "--loss=ce()"], "no loss of --loss reads a teacher"),
    "stages of no teacher": ([*TWO, "--loss=hint()"], "the teacher offers no stages"),
    "standardised": (
        [*TWO, "--scheme=ensemble(combine='probabilities')", "--loss=kd(standardize=True)"],
        "takes a teacher's logits",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_is_refused_before_training(case, tmp_path):
    flags, message = BAD[case]
    with pytest.raises(InputError, match=message):
        checked(tmp_path, "--scheme=ensemble()", *flags)


def test_the_same_finished_model_twice_is_no_ensemble(tmp_path):
    path = tmp_path / "t.keras"
    cnn.CNN(10, SHAPE, filters=(2,)).save(path)
    with pytest.raises(InputError, match="two teachers of --teacher are identical"):
        checked(tmp_path, "--scheme=ensemble()", f"--teacher=saved(path='{path}') + saved(path='{path}')")
