"""Heads of independent labels and of one unit: what they are taken for, trained on and refused with."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kd_keras import Distiller, losses
from kd_keras.distillation import heads
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from tests.losses import reference as ref

K, SHAPE, COUNT = 5, (4, 4, 1), 12
X = np.random.default_rng(0).uniform(0, 1, (COUNT, *SHAPE)).astype("float32")
Y = ref.multi_hot(batch=COUNT)
CLASSES = ref.classes(COUNT) % 2


def plain(seed=1, units=K, activation=None):
    image = keras.Input(SHAPE)
    hidden = layers.Flatten(name="pooled")(image)
    kernel = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    return keras.Model(image, layers.Dense(units, activation, kernel_initializer=kernel, name="scores")(hidden))


class Subclassed(keras.Model):
    def __init__(self, end, **kwargs):
        super().__init__()
        self.below, self.end = plain(**kwargs), end

    def call(self, x):
        return self.end(self.below(x))


def subclassed(end, **kwargs):
    model = Subclassed(end, **kwargs)
    model(X)
    return model


def z_of(seed=1, units=K):
    return np.float64(plain(seed, units)(X))


def distiller(student, teacher=None, terms=None, metrics=(), eager=True, **kwargs):
    terms = [losses.BCE(), losses.BinaryKD(temperature=3.0)] if terms is None else terms
    model = Distiller(student=student, teacher=teacher, losses=terms, **kwargs)
    model.compile(keras.optimizers.SGD(0.0), metrics=list(metrics), run_eagerly=eager)
    return model


def logs(*args, y=Y, **kwargs):
    history = distiller(*args, **kwargs).fit(X, y, batch_size=COUNT, shuffle=False, verbose=0).history
    return {name: values[0] for name, values in history.items()}


def bce(z, y):
    y = np.float64(y)
    terms = np.where(y < 0, 0, -(y * ref.log_sigmoid(z) + (1 - y) * ref.log_sigmoid(-z)))
    return terms.sum(axis=-1) / np.maximum((y >= 0).sum(axis=-1), 1)


# ---- heads of independent labels

MULTILABEL = {
    "logits": lambda seed: plain(seed),
    "Dense(sigmoid)": lambda seed: plain(seed, activation="sigmoid"),
    "subclassed": lambda seed: subclassed(ops.sigmoid, seed=seed),
    "subclassed, logits": lambda seed: subclassed(lambda z: z, seed=seed),
}


@pytest.mark.parametrize("of_teacher", MULTILABEL)
@pytest.mark.parametrize("of_student", MULTILABEL)
def test_each_loss_is_that_of_the_true_logits(of_student, of_teacher):
    actual = logs(MULTILABEL[of_student](1), MULTILABEL[of_teacher](2))
    np.testing.assert_allclose(actual["bce"], bce(z_of(1), Y).mean(), rtol=1e-4)
    np.testing.assert_allclose(actual["binary_kd"], 9 * ref.binary_kl(z_of(2), z_of(1), 3.0).mean(), rtol=1e-4)


def test_the_kind_of_logits_is_said_by_the_losses():
    model = distiller(plain(1), plain(2))
    model.fit(X, Y, verbose=0)
    assert model.is_multilabel and model._student_taps.value.head.kind == "multilabel_logits"
    model = distiller(plain(1), plain(2), [losses.KD()])
    model.fit(X, CLASSES, verbose=0)
    assert not model.is_multilabel and model._student_taps.value.head.kind == "logits"


@pytest.mark.parametrize("route", ["arrays", "data set", "train_on_batch"])
def test_by_the_labels_where_the_losses_are_for_either(route):
    model = distiller(plain(1), plain(2), [losses.Hint(pairs="pooled:pooled")], ["accuracy"])
    if route == "train_on_batch":
        model.train_on_batch(X, Y)
    else:
        model.fit(*((X, Y) if route == "arrays" else (tf.data.Dataset.from_tensor_slices((X, Y)).batch(6),)), verbose=0)
    assert model.is_multilabel
    actual = model.evaluate(X, Y, verbose=0, return_dict=True)
    np.testing.assert_allclose(actual["loss"], bce(z_of(1), Y).mean(), rtol=1e-4)
    np.testing.assert_allclose(actual["accuracy"], ((z_of(1) > 0) == Y).mean(), rtol=1e-5)


def test_a_student_of_sigmoids_is_evaluated_as_such_whatever_the_losses():
    teacher = plain(2, activation="softmax")
    model = distiller(plain(1, activation="sigmoid"), teacher, [losses.Hint(pairs="pooled:pooled")])
    model.fit(X, Y, verbose=0)
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), bce(z_of(1), Y).mean(), rtol=1e-4)


def test_an_earlier_look_does_not_fix_the_kind():
    model = distiller(plain(1), plain(2), [losses.Hint(pairs="pooled:pooled")], ["accuracy"])
    model.predict(X, verbose=0)
    model.fit(X, Y, verbose=0)
    assert model._student_taps.value.head.kind == "multilabel_logits"


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_metrics_get_what_the_student_gives(activation, eager):
    threshold = 0.5 if activation else 0.0
    metrics = ["accuracy", keras.metrics.BinaryAccuracy(name="keras", threshold=threshold)]
    actual = logs(plain(1, activation=activation), terms=[losses.BCE()], metrics=metrics, eager=eager)
    right = ((z_of(1) > 0) == Y).mean()
    np.testing.assert_allclose([actual["accuracy"], actual["keras"]], right, rtol=1e-5)


@pytest.mark.parametrize("eager", [True, False])
def test_unknown_labels_are_left_out_and_images_without_any_are_not_averaged_over(eager):
    y = Y.copy()
    y[1, 2], y[3], y[4, :4] = -1, -1, -1
    actual = logs(plain(1), plain(2), y=y, metrics=["accuracy"], eager=eager)
    known = [row for row in range(COUNT) if row != 3]
    np.testing.assert_allclose(actual["bce"], bce(z_of(1), y)[known].mean(), rtol=1e-4)
    np.testing.assert_allclose(actual["binary_kd"], 9 * ref.binary_kl(z_of(2), z_of(1), 3.0).mean(), rtol=1e-4)
    right = ((z_of(1) > 0) == y) & (y >= 0)
    shares = right.sum(axis=-1) / np.maximum((y >= 0).sum(axis=-1), 1)
    np.testing.assert_allclose(actual["accuracy"], shares[known].mean(), rtol=1e-5)


def test_the_teachers_probabilities_come_with_the_batch():
    values = {"logits": z_of(2), "probabilities": np.exp(ref.log_sigmoid(z_of(2)))}
    for teacher in values.values():
        batch = {"image": X, "label": Y, "teacher": teacher.astype("float32")}
        model = distiller(plain(1), None, [losses.BinaryKD(temperature=3.0)])
        actual = model.fit(batch, batch_size=COUNT, shuffle=False, verbose=0).history["binary_kd"][0]
        np.testing.assert_allclose(actual, 9 * ref.binary_kl(z_of(2), z_of(1), 3.0).mean(), rtol=1e-4)


def test_labels_that_sum_to_1_by_chance_are_told_by_the_graph():
    image = keras.Input(SHAPE)
    z = layers.Dense(1, name="first")(layers.Flatten()(image))
    sums_to_1 = keras.Model(image, layers.Activation("sigmoid")(layers.Concatenate()([z, -z])))
    assert Taps(sums_to_1).decide(X).kind == "probabilities"
    assert Taps(sums_to_1, is_multilabel=True).decide(X).kind == "multilabel_probabilities"


def test_a_head_of_zeros_that_is_not_trained_yet():
    assert Taps(on_zeros("sigmoid")).decide(X).kind == "multilabel_probabilities"
    assert Taps(subclassed(lambda z: ops.sigmoid(0 * z))).decide(X).kind == "multilabel_probabilities"
    assert Taps(on_zeros(None), is_multilabel=True).decide(X).kind == "multilabel_logits"


def on_zeros(activation):
    image = keras.Input(SHAPE)
    return keras.Model(image, layers.Dense(K, activation, kernel_initializer="zeros")(layers.Flatten()(image)))


def test_decisions_about_labels_are_refused():
    decides = subclassed(lambda z: ops.cast(z > 0, "float32"))
    with pytest.raises(InputError, match=r"the teacher gives decisions, .* or say teacher_output='multilabel_prob"):
        distiller(plain(1), decides).fit(X, Y, verbose=0)


def test_saved_and_loaded_it_evaluates_as_before(tmp_path):
    model = distiller(plain(1), plain(2))
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.evaluate(X, Y, verbose=0), bce(z_of(1), Y).mean(), rtol=1e-4)


# ---- what is refused


@pytest.mark.parametrize(
    ("student", "teacher", "terms", "given", "message"),
    [
        (
            None,
            "sigmoid",
            [losses.CE, losses.KD],
            {},
            "kd is for one class .*, and the teacher's output is that of indep",
        ),
        ("sigmoid", None, [losses.CE], {}, "ce is for one class .*, and the student's output is that of independent"),
        (
            None,
            "softmax",
            [losses.BCE, losses.BinaryKD],
            {},
            "binary_kd is for independent .*the teacher's .* one class",
        ),
        (
            "softmax",
            None,
            [losses.BCE],
            {},
            r"bce is for independent .*the student's .*say student_output='multilabel_p",
        ),
        (None, None, [losses.BCE], {"student_output": "logits"}, "say student_output='multilabel_logits'"),
        (None, None, [losses.KD], {"teacher_output": "multilabel_logits"}, "say teacher_output='logits'"),
        (None, None, [losses.BCE, losses.KD], {}, "losses don't go together: bce for independent .*, and kd for one"),
    ],
)
def test_a_loss_of_another_head_is_refused_by_name_before_anything_moves(student, teacher, terms, given, message):
    model, before = plain(1, activation=student), plain(1).get_weights()
    with pytest.raises(InputError, match=message) as error:
        d = distiller(model, plain(2, activation=teacher), [term() for term in terms], **given)
        d.optimizer.learning_rate = 1.0
        d.fit(X, Y if losses.BCE in terms else CLASSES, verbose=0)
    assert "\n" not in str(error.value)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_a_loss_that_reads_no_logits_of_the_teacher_takes_any_teacher():
    teacher = plain(2, activation="sigmoid")
    logs(plain(1), teacher, [losses.CE(), losses.Hint(pairs="pooled:pooled")], y=CLASSES)
    logs(plain(1), plain(2, activation="softmax"), [losses.BCE(), losses.SP(pairs="pooled:pooled")])


@keras.saving.register_keras_serializable(package="tests")
class Either(losses.Loss):
    heads = frozenset({"softmax", "multilabel"})
    reads_labels = False

    def call(self, student, teacher, labels):
        return ops.mean(ops.square(student["logits"] - teacher["logits"]), axis=-1)


def test_a_loss_for_either_head_compares_none_with_the_other():
    logs(plain(1, activation="sigmoid"), plain(2, activation="sigmoid"), [Either()])
    with pytest.raises(InputError, match="either compares two outputs of different kinds: the student's"):
        logs(plain(1, activation="sigmoid"), plain(2, activation="softmax"), [Either()])


def test_a_loss_has_to_declare_heads_that_there_are():
    class Wrong(Either):
        heads = "multilabel"

    with pytest.raises(InputError, match=r"wrong\.heads is 'multilabel': give a set of 'softmax' and 'multilabel'"):
        distiller(plain(1), plain(2), [Wrong()])


MINUS = 2 * Y - 1
MINUS[0, 0] = 1
WRONG = {
    "classes": (ref.classes(COUNT), r"int64 \(B\), and .* independent labels .*: give \(B, 5\), each 0 or 1"),
    "another number of labels": (Y[:, :4], r"\(B, 4\)"),
    "percent": (100 * Y, "label . of sample . is 100: independent labels are 0 or 1"),
    "not a number": (np.where(Y == 1, np.nan, 0), "not finite"),
    "below 0": (Y - 0.25, "is -0.25"),
}


@pytest.mark.parametrize("route", ["arrays", "data set", "evaluate"])
@pytest.mark.parametrize("name", WRONG)
def test_labels_that_are_none(name, route):
    y, message = WRONG[name]
    model = distiller(plain(1), plain(2), eager=False)
    with pytest.raises(InputError, match=message):
        if route == "evaluate":
            model.evaluate(X, y, verbose=0)
        elif route == "arrays":
            model.fit(X, y, verbose=0)
        else:
            model.fit(tf.data.Dataset.from_tensor_slices((X, y)).batch(6), verbose=0)


def test_minus_1_for_not_this_is_noticed():
    images, y = np.tile(X, (30, 1, 1, 1)), np.tile(MINUS, (30, 1))
    with pytest.raises(InputError, match=r"all -1 or 1: .* write 0 for a label that an image does not have"):
        distiller(plain(1), plain(2)).fit(images, y, verbose=0)


def test_unknown_labels_are_refused_by_metrics_that_cannot_leave_them_out():
    y = np.where(Y == 1, -1, 0)
    with pytest.raises(InputError, match="labels are -1, for not known, which one of the compiled metrics"):
        logs(plain(1), plain(2), y=y, metrics=[keras.metrics.BinaryAccuracy()])


def test_class_weight_has_no_meaning():
    with pytest.raises(InputError, match="class_weight weights each image by its one class"):
        distiller(plain(1), plain(2)).fit(X, Y, class_weight={0: 2.0}, verbose=0)


# ---- one unit

UNITS = {
    "sigmoid": lambda seed: plain(seed, 1, "sigmoid"),
    "logit": lambda seed: plain(seed, 1),
    "subclassed sigmoid": lambda seed: subclassed(ops.sigmoid, seed=seed, units=1),
}


def two(z):
    return np.concatenate([np.zeros_like(z), z], axis=-1) if z.shape[-1] == 1 else z


@pytest.mark.parametrize("labels", ["(B,)", "(B, 1)"])
@pytest.mark.parametrize("role", ["student", "teacher", "both"])
@pytest.mark.parametrize("name", UNITS)
def test_one_unit_is_two_classes(name, role, labels):
    student = UNITS[name](1) if role != "teacher" else plain(1, 2)
    teacher = UNITS[name](2) if role != "student" else plain(2, 2, "softmax")
    z_s, z_t = (
        two(z_of(1, student.output_shape[-1] if role == "teacher" else 1)),
        two(z_of(2, 2 if role == "student" else 1)),
    )
    y = CLASSES if labels == "(B,)" else CLASSES[:, None]
    actual = logs(student, teacher, [losses.CE(), losses.KD(temperature=3.0)], ["accuracy"], y=y)
    np.testing.assert_allclose(actual["kd"], 9 * ref.kl(z_t, z_s, 3.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(actual["ce"], -ref.log_softmax(z_s)[np.arange(COUNT), CLASSES].mean(), rtol=1e-4)
    np.testing.assert_allclose(actual["accuracy"], (z_s.argmax(axis=-1) == CLASSES).mean(), rtol=1e-5)


def test_one_units_metrics_get_its_own_output():
    metrics = [keras.metrics.BinaryAccuracy(), keras.metrics.AUC(name="auc")]
    student = plain(1, 1, "sigmoid")
    model = distiller(student, None, [losses.CE()], metrics)
    actual = model.evaluate(X, CLASSES, verbose=0, return_dict=True)
    auc = keras.metrics.AUC()
    auc.update_state(CLASSES, student(X)[:, 0])
    assert actual["binary_accuracy"] == pytest.approx(np.mean((z_of(1, 1)[:, 0] > 0) == CLASSES))
    assert actual["auc"] == pytest.approx(float(auc.result()), rel=1e-5)
    np.testing.assert_allclose(model.predict(X, verbose=0), two(z_of(1, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", UNITS)
def test_the_model_of_a_one_unit_heads_logits(name):
    taps = Taps(UNITS[name](1))
    taps.decide(X)
    assert taps.num_classes == 2 and taps.shapes(["logits"]) == {"logits": (None, 2)}
    np.testing.assert_allclose(taps.logits_model()(X), two(z_of(1, 1)), rtol=1e-4, atol=1e-5)


def test_a_batch_brings_the_probability_of_class_1():
    p = np.exp(ref.log_sigmoid(z_of(2, 1))).astype("float32")
    model = distiller(plain(1, 2), None, [losses.KD(temperature=3.0)])
    batch = {"image": X, "label": CLASSES, "teacher": p}
    actual = model.fit(batch, batch_size=COUNT, shuffle=False, verbose=0).history["kd"][0]
    np.testing.assert_allclose(actual, 9 * ref.kl(two(z_of(2, 1)), z_of(1, 2), 3.0).mean(), rtol=1e-4)


def test_one_unit_is_not_multilabel():
    with pytest.raises(InputError, match="the student has one unit, which is two classes"):
        distiller(plain(1, 1), None, [losses.CE()], student_output="multilabel_logits")


@pytest.mark.parametrize("kind", heads.KINDS)
@pytest.mark.parametrize("units", [1, 2, K])
def test_what_a_model_gives_is_got_back_from_its_logits(kind, units):
    if units == 1 and kind.startswith("multilabel"):
        pytest.skip("one unit is two classes")
    z = z_of(3, units)
    is_binary = kind.startswith("multilabel") or units == 1
    p = np.exp(ref.log_sigmoid(z)) if is_binary else np.exp(ref.log_softmax(z))
    output = (p if kind.endswith("probabilities") else z).astype("float32")
    head = heads.Head(kind, "log" if kind.endswith("probabilities") else "as it is")
    np.testing.assert_allclose(head.to_output(head.to_logits(output), units), output, rtol=1e-4, atol=1e-6)
