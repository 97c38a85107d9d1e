"""The Distiller: a step worked out by hand, Keras' public behaviour, and the traps of public implementations."""

import contextlib
import copy
import csv
import io
import pathlib
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kd_keras import Distiller, losses, unpack_batch
from kd_keras.distillation.metrics import Accuracy
from kd_keras.errors import InputError
from kd_keras.losses import base as _base

RNG = np.random.default_rng(0)
X = RNG.normal(size=(14, 8, 8, 3)).astype("float32")
Y = RNG.integers(0, 4, 14)
ONE_HOT = np.eye(4, dtype="float32")[Y]
MIXED = (0.7 * ONE_HOT + 0.3 * np.eye(4)[(Y + 1) % 4]).astype("float32")
WEIGHTS = RNG.uniform(0, 3, 14).astype("float32")


@keras.saving.register_keras_serializable(package="test_distiller")
class Counter(layers.Layer):
    """Counts how often the model that holds it runs: (in training mode, in inference mode)."""

    def build(self, shape):
        self.runs = [
            self.add_weight(name=name, shape=(), dtype="int32", initializer="zeros", trainable=False)
            for name in ("training", "inference")
        ]

    def call(self, x, training=None):
        self.runs[0 if training else 1].assign_add(1)
        return x

    @classmethod
    def of(cls, model):
        (counter,) = (layer for layer in model.layers if isinstance(layer, cls))
        return tuple(int(runs.numpy()) for runs in counter.runs)


def net(
    filters,
    seed=0,
    batch_norm=True,
    regularizer=None,
    dropout=0.0,
    classes=4,
    activation=None,
    size=8,
    count=False,
    end=None,
    name=None,
    **conv,
):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((size, size, 3))
    if count:
        x = Counter()(x)
    for i, n in enumerate(filters, 1):
        x = layers.Conv2D(n, 3, strides=2, padding="same", kernel_regularizer=regularizer, name=f"conv{i}", **conv)(x)
        if batch_norm:
            x = layers.BatchNormalization(momentum=0.5, name=f"norm{i}")(x)
        x = layers.ReLU(name=f"stage{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(classes, activation, name="logits", dtype="float32")(x)
    return keras.Model(inputs, x if end is None else end(x), name=name)


def student(**kwargs):
    return net((4, 6), **{"seed": 1, **kwargs})


def teacher(**kwargs):
    return net((8, 12), **{"seed": 2, **kwargs})


def three_losses():
    return [losses.CE(weight=0.3), losses.KD(weight=0.7, temperature=2.0), losses.Hint(weight=0.1)]


def distiller(terms=None, optimizer=None, compiled=None, **kwargs):
    keras.utils.set_random_seed(3)
    d = Distiller(**{"student": student(), "teacher": teacher(), "losses": terms or three_losses(), **kwargs})
    d.compile(optimizer=optimizer or keras.optimizers.SGD(0.1), metrics=["accuracy"], **(compiled or {}))
    return d


def values(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def assert_equal(a, b, **tolerance):
    for value, expected in zip(a, b, strict=True):
        np.testing.assert_allclose(value, expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def ce_of(logits, labels=ONE_HOT):
    """Cross-entropies, in float64."""
    return -(labels * log_softmax(np.asarray(logits, "float64"))).sum(-1)


def kd_of(z_s, z_t, temperature):
    """T² KL(teacher ‖ student), in float64."""
    log_s, log_t = (log_softmax(np.asarray(z, "float64") / temperature) for z in (z_s, z_t))
    return temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1)


def still(terms, **kwargs):
    """A distiller that nothing moves, and the logits of its student and teacher for X."""
    d = distiller(terms, keras.optimizers.SGD(0.0), **{"student": student(batch_norm=False), **kwargs})
    return d, d.student(X), d.teacher(X, training=False)


def state(d):
    """All that a step may move, but for the metrics' running sums."""
    metrics = {id(v) for metric in d.metrics for v in metric.variables}
    return values([*(v for v in d.variables if id(v) not in metrics), *d.optimizer.variables])


# ---- a step ----


def test_a_step_is_the_weighted_sum_of_the_terms_worked_out_by_hand():
    d = distiller()
    s, t = student(), teacher()
    projectors = [keras.layers.Conv2D(n, 1) for n in (8, 12)]
    for mine, theirs, channels in zip(projectors, d.terms[2].adapters, (4, 6), strict=True):
        mine.build((None, None, None, channels))
        mine.set_weights(theirs.get_weights())
    read = {m: keras.Model(m.inputs, [m.get_layer(n).output for n in ("stage1", "stage2", "logits")]) for m in (s, t)}
    t1, t2, t_logits = read[t](X, training=False)
    with tf.GradientTape() as tape:
        s1, s2, logits = read[s](X, training=True)
        ce = tf.reduce_mean(-tf.reduce_sum(ONE_HOT * tf.nn.log_softmax(logits), -1))
        p_t = tf.nn.softmax(t_logits / 2)
        kd = 4 * tf.reduce_mean(tf.reduce_sum(p_t * (tf.math.log(p_t) - tf.nn.log_softmax(logits / 2)), -1))
        pairs = zip(projectors, (s1, s2), (t1, t2), strict=True)
        hint = sum(tf.reduce_mean((project(a) - b) ** 2) for project, a, b in pairs)
        loss = 0.3 * ce + 0.7 * kd + 0.1 * hint
    variables = [*s.trainable_variables, *(v for p in projectors for v in p.trainable_variables)]
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(0.1 * gradient)
    logs = d.fit(X, Y, batch_size=14, verbose=0).history
    assert_equal(values(d.student.weights), values(s.weights))
    assert_equal(
        values(w for p in d.terms[2].adapters for w in p.weights), values(w for p in projectors for w in p.weights)
    )
    for name, expected in {"ce": ce, "kd": kd, "hint": hint, "loss": loss}.items():
        assert logs[name][0] == pytest.approx(float(expected), rel=1e-5), name


def test_the_uneven_last_batch_is_averaged_over_its_own_samples():
    d, by_hand = distiller([losses.CE()]), student()
    optimizer = keras.optimizers.SGD(0.1)
    for begin in (0, 5, 10):
        x, y = X[begin : begin + 5], Y[begin : begin + 5]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, by_hand(x, training=True)))
        gradients = tape.gradient(loss, by_hand.trainable_variables)
        optimizer.apply_gradients(zip(gradients, by_hand.trainable_variables, strict=True))
    d.fit(X, Y, batch_size=5, shuffle=False, verbose=0)
    assert_equal(values(d.student.weights), values(by_hand.weights))


@pytest.mark.slow
def test_weights_of_samples_and_classes():
    weight = np.linspace(0, 2, 14).astype("float32")
    a, b, plain = (distiller([losses.CE(), losses.KD()]) for _ in range(3))
    log_p = log_softmax(np.array(a.student(X, training=True)))
    a = distiller([losses.CE(), losses.KD()])
    logged = a.fit(X, Y, sample_weight=weight, batch_size=14, verbose=0).history["ce"][0]
    assert logged == pytest.approx(np.mean(-log_p[np.arange(14), Y] * weight), rel=1e-4)
    by_class = {0: 1.0, 1: 3.0, 2: 0.0, 3: 0.5}
    a, b = distiller([losses.CE(), losses.KD()]), distiller([losses.CE(), losses.KD()])
    a.fit(X, Y, class_weight=by_class, batch_size=14, verbose=0)
    b.fit(X, Y, sample_weight=np.array([by_class[y] for y in Y]), batch_size=14, verbose=0)
    plain.fit(X, Y, batch_size=14, verbose=0)
    assert_equal(values(a.student.weights), values(b.student.weights))
    assert np.abs(a.student.weights[0] - plain.student.weights[0]).max() > 1e-4


@pytest.mark.parametrize("labels", [Y, Y[:, None], ONE_HOT], ids=["classes", "column", "one-hot"])
def test_labels_of_every_form_train_alike(labels):
    a, b = distiller(), distiller()
    history = a.fit(X, labels, batch_size=14, verbose=0).history
    expected = b.fit(X, Y, batch_size=14, verbose=0).history
    assert history["accuracy"] == expected["accuracy"]
    assert_equal(values(a.student.weights), values(b.student.weights))


def test_mixed_labels_in_training_and_classes_in_validation():
    mixed = 0.6 * ONE_HOT + 0.4 * ONE_HOT[::-1]
    history = distiller().fit(X, mixed, validation_data=(X, Y), batch_size=14, verbose=0).history
    assert 0 <= history["accuracy"][0] <= 1 and 0 <= history["val_accuracy"][0] <= 1


def test_the_students_own_regularisation_counts():
    d = distiller([losses.CE()], student=student(regularizer=keras.regularizers.L2(0.5)))
    regularization = sum(0.5 * np.sum(np.square(layer.kernel)) for layer in d.student.layers if "conv" in layer.name)
    logs = d.fit(X, Y, batch_size=14, verbose=0).history
    assert logs["loss"][0] - logs["ce"][0] == pytest.approx(regularization, rel=1e-4)
    plain = distiller([losses.CE()])
    plain.fit(X, Y, batch_size=14, verbose=0)
    assert np.abs(d.student.weights[0] - plain.student.weights[0]).max() > 1e-3


def test_each_model_runs_once_a_step():
    d = distiller()
    before = np.array(d.student.get_layer("norm1").moving_mean)
    maps = d.student.get_layer("conv1")(X)
    d.fit(X, Y, batch_size=14, verbose=0)
    once = 0.5 * before + 0.5 * np.mean(maps, axis=(0, 1, 2))
    np.testing.assert_allclose(d.student.get_layer("norm1").moving_mean, once, rtol=1e-4, atol=1e-6)


class Counting(keras.Model):
    """A teacher that counts how often it runs, and tells in which mode."""

    def __init__(self):
        super().__init__()
        self.flat, self.head = layers.Flatten(), layers.Dense(4)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.training_calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="training_calls")

    def call(self, x, training=False):
        self.calls.assign_add(1)
        if training:
            self.training_calls.assign_add(1)
        return self.head(self.flat(x))


def test_the_teacher_runs_once_a_step_in_inference_mode_and_not_where_it_is_not_needed():
    counting = Counting()
    counting(X)
    d = distiller([losses.CE(), losses.KD(), losses.SoftCE()], teacher=counting)
    counting.calls.assign(0)
    d.fit(X, Y, batch_size=7, epochs=2, verbose=0)
    assert float(counting.calls) == 4 and float(counting.training_calls) == 0
    d.evaluate(X, Y, verbose=0)
    d.predict(X, verbose=0)
    distiller([losses.CE()], teacher=counting)
    counting.calls.assign(0)
    distiller([losses.CE()], teacher=counting).fit(X, Y, verbose=0)
    cached = {
        "image": X,
        "label": Y,
        "index": np.arange(14),
        "teacher": {"logits": np.array(counting.head(X.reshape(14, -1)))},
    }
    d2 = distiller([losses.KD()], teacher=counting)
    counting.calls.assign(0)
    d2.fit(tf.data.Dataset.from_tensor_slices(cached).batch(14), verbose=0)
    # The first batch alone is compared with what the teacher gives.
    assert float(counting.calls) == 1
    live = distiller([losses.KD()], teacher=counting)
    live.fit(X, Y, batch_size=14, shuffle=False, verbose=0)
    assert_equal(values(live.student.weights), values(d2.student.weights))


def test_the_teacher_is_left_alone_and_kept_out(tmp_path, capsys):
    t = teacher(dropout=0.5)
    before, trainable = values(t.weights), [layer.trainable for layer in t.layers]
    d = distiller(teacher=t)
    d.fit(X, Y, validation_data=(X, Y), epochs=2, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(t.weights), strict=True))
    assert t.trainable and [layer.trainable for layer in t.layers] == trainable and d.teacher is t
    ours = {id(v) for v in [*d.variables, *d.optimizer.variables]}
    assert not ours & {id(v) for v in t.variables}
    parts = len(d.student.variables) + sum(len(term.variables) for term in d.terms)
    assert len(d.trainable_variables) == len(d.student.trainable_variables) + 4 and len(d.weights) == parts + 2
    d.save(tmp_path / "with.keras")
    size = (tmp_path / "with.keras").stat().st_size
    distiller(teacher=net((64, 128), seed=2), terms=[losses.CE(), losses.KD()]).save(tmp_path / "huge.keras")
    assert (tmp_path / "huge.keras").stat().st_size < 1.2 * size
    keras.config.enable_interactive_logging()  # another test may have turned it off
    d.summary()
    assert f"{d.student.count_params():,}" in capsys.readouterr().out


def test_adapters_train():
    d = distiller()
    before = values(w for p in d.terms[2].adapters for w in p.weights)
    d.fit(X, Y, verbose=0)
    after = values(w for p in d.terms[2].adapters for w in p.weights)
    assert len(before) == 4 and all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))


# ---- schedules ----


def test_schedules_move_and_are_logged():
    terms = [
        losses.CE(weight="linear(start=1.0, end=0.0, over=4, per='step')"),
        losses.KD(weight=0.5, temperature="exponential_decay(start=8.0, rate=0.5, floor=1.5)"),
    ]
    d = distiller(terms)
    history = d.fit(X, Y, batch_size=7, epochs=4, verbose=0).history
    assert history["kd_temperature"] == [8.0, 4.0, 2.0, 1.5]
    assert history["ce_weight"] == [0.75, 0.25, 0.0, 0.0]  # at the last of each epoch's two steps
    assert "kd_weight" not in history
    for name in ("loss",):
        assert history[name][3] == pytest.approx(0.5 * history["kd"][3], rel=1e-4)
    again = d.fit(X, Y, batch_size=7, epochs=3, initial_epoch=2, verbose=0).history
    assert again["kd_temperature"] == [2.0]
    # The third epoch of two steps each, whatever was trained before.
    assert int(d.step) == 6


def test_terms_of_one_name_are_told_apart():
    history = distiller([losses.KD(temperature=1.0), losses.KD(temperature=4.0)]).fit(X, Y, verbose=0).history
    assert history["kd"] != history["kd_2"]


# ---- Keras' public behaviour ----


def test_evaluate_is_the_students_own_and_moves_nothing():
    d = distiller([losses.KD()])
    before = values(d.student.variables)
    seen = d.evaluate(X, Y, batch_size=5, return_dict=True, verbose=0)
    logits = np.array(d.student(X, training=False))
    assert set(seen) == {"loss", "accuracy"}
    assert seen["loss"] == pytest.approx(-log_softmax(logits)[np.arange(14), Y].mean(), rel=1e-5)
    assert seen["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == Y))
    assert all(np.array_equal(a, b) for a, b in zip(before, values(d.student.variables), strict=True))
    weight = np.arange(14.0)
    weighted = d.evaluate(X, Y, sample_weight=weight, return_dict=True, verbose=0)
    assert weighted["loss"] == pytest.approx(np.mean(-log_softmax(logits)[np.arange(14), Y] * weight), rel=1e-5)
    np.testing.assert_allclose(d.predict(X, batch_size=5, verbose=0), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d(X), logits, rtol=1e-5, atol=1e-6)


def test_validation_leaves_training_mode_on():
    d = distiller([losses.CE()])
    d.fit(X, Y, validation_data=(X, Y), verbose=0)
    before = np.array(d.student.get_layer("norm1").moving_mean)
    d.fit(X, Y, verbose=0)
    assert np.abs(d.student.get_layer("norm1").moving_mean - before).max() > 0


@pytest.mark.slow
def test_batches_may_be_dicts():
    batch = {"image": X, "label": Y, "index": np.arange(14)}
    a, b = distiller(), distiller()
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(7)
    ours = a.fit(dataset, validation_data=dataset, verbose=0).history
    theirs = b.fit(X, Y, batch_size=7, shuffle=False, validation_data=(X, Y), verbose=0).history
    assert {k: pytest.approx(v, rel=1e-5) for k, v in ours.items()} == theirs
    assert a.evaluate(dataset, verbose=0) == pytest.approx(b.evaluate(X, Y, verbose=0), rel=1e-5)
    np.testing.assert_allclose(a.predict(dataset, verbose=0), b.predict(X, verbose=0), rtol=1e-4, atol=1e-5)
    weighted = tf.data.Dataset.from_tensor_slices({**batch, "sample_weight": np.zeros(14, "float32")}).batch(7)
    assert a.fit(weighted, verbose=0).history["loss"][0] == pytest.approx(0, abs=1.0)
    assert a.evaluate(weighted, verbose=0)[0] == 0


def test_unpack_batch():
    full = {"image": X, "label": Y, "sample_weight": Y, "index": Y, "teacher": {"logits": X}}
    assert unpack_batch(full).teacher is full["teacher"] and unpack_batch(full).index is Y
    assert unpack_batch((X, Y)).label is Y and unpack_batch((X, Y)).sample_weight is None
    assert unpack_batch((X,)).image is X and unpack_batch(X).label is None
    assert unpack_batch(({"image": X}, Y, Y)).sample_weight is Y


def test_keras_callbacks_work(tmp_path):
    d = distiller()
    seen = []
    callbacks = [
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=0, min_delta=100.0),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"), monitor="val_accuracy"),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "w.weights.h5"), save_weights_only=True),
        keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
        keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=0, min_delta=100.0, factor=0.5),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(sorted(logs))),
    ]
    d.fit(X, Y, validation_data=(X, Y), epochs=5, callbacks=callbacks, verbose=0)
    assert len(seen) == 2 and {"ce", "kd", "hint", "loss", "accuracy", "val_loss", "val_accuracy"} <= set(seen[0])
    assert (tmp_path / "log.csv").read_text().count("\n") == 3
    assert float(d.optimizer.learning_rate) < 0.1
    loaded = keras.models.load_model(tmp_path / "2.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), d.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    other = distiller()
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(other.predict(X, verbose=0), d.predict(X, verbose=0), rtol=1e-5, atol=1e-6)
    d.fit(X, Y, callbacks=keras.callbacks.CallbackList([], model=d, epochs=1, steps=1), verbose=0)
    d.fit(X, Y, callbacks=keras.callbacks.TerminateOnNaN(), verbose=0)


@pytest.mark.parametrize(
    "compiled",
    [
        {"steps_per_execution": 2},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"run_eagerly": True},
    ],
    ids=lambda c: next(iter(c)),
)
def test_ways_to_compile_agree(compiled):
    a, b = distiller(), distiller(compiled=compiled)
    for model in (a, b):
        model.fit(X[:12], Y[:12], batch_size=6, epochs=2, shuffle=False, verbose=0)
    assert_equal(values(a.trainable_variables), values(b.trainable_variables), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    d = distiller(optimizer=keras.optimizers.Adam(1e-2))
    assert isinstance(d.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert d.terms[1].compute_dtype == "float32"
    history = d.fit(X, Y, batch_size=14, epochs=12, verbose=0).history
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
    assert d.predict(X, verbose=0).dtype == np.float32


def test_gradients_can_be_clipped():
    d = distiller(optimizer=keras.optimizers.SGD(1.0, global_clipnorm=1e-6))
    before = values(d.trainable_variables)
    d.fit(X, Y, verbose=0)
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, values(d.trainable_variables), strict=True)))
    assert moved < 1e-5


def test_softmax_models_teach_and_learn_by_their_logits():
    a = distiller(student=student(activation="softmax"), teacher=teacher(activation="softmax"))
    b = distiller()
    for model in (a, b):
        model.fit(X, Y, batch_size=14, verbose=0)
    assert_equal(values(a.student.weights), values(b.student.weights), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.predict(X, verbose=0), b.predict(X, verbose=0), rtol=1e-3, atol=1e-4)


def test_a_teacher_in_another_precision():
    t = teacher()
    before = values(t.weights)
    d, plain = distiller([losses.KD()], teacher=t, teacher_dtype="bfloat16"), distiller([losses.KD()], teacher=t)
    a, b = (model.fit(X, Y, batch_size=14, verbose=0).history["kd"][0] for model in (d, plain))
    assert a == pytest.approx(b, rel=0.05, abs=1e-3) and a != b
    assert d.teacher is t and t.get_layer("conv1").compute_dtype == "float32"
    assert all(np.array_equal(x, y) for x, y in zip(before, values(t.weights), strict=True))
    with pytest.raises(InputError, match="teacher_dtype='int8'"):
        distiller(teacher_dtype="int8")
    counting = Counting()
    counting(X)
    with pytest.raises(InputError, match="functional or Sequential"):
        distiller([losses.KD()], teacher=counting, teacher_dtype="float16")


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": []}, "at least one loss"),
        ({"losses": ["kd"]}, "is no loss"),
        ({"teacher": lambda: net((4,), classes=5)}, r"the teacher has 5 classes .*and the student 4"),
        ({"losses": [losses.Hint(pairs="stage1:stage7")]}, "stage7"),
        ({"losses": [losses.Hint(pairs="stage7:stage1")]}, "stage7"),
        ({"student": lambda: keras.Sequential([layers.Dense(4)])}, "not built"),
    ],
)
def test_what_can_not_be_is_refused(arguments, message):
    arguments = {key: value() if callable(value) and key != "losses" else value for key, value in arguments.items()}
    with pytest.raises(InputError, match=message):
        Distiller(**{"student": student(), "teacher": teacher(), "losses": [losses.KD()], **arguments})


def test_a_loss_is_not_compiled_and_a_teacher_has_to_be_there():
    with pytest.raises(InputError, match="takes no loss"):
        distiller().compile("adam", loss="mse")
    alone = Distiller(student=student(), losses=[losses.CE(), losses.KD()])
    alone.compile("adam")
    assert alone.needs_teacher
    with pytest.raises(InputError, match="there is none"):
        alone.fit(X, Y)
    assert Distiller(student=student(), losses=[losses.Hint()]).needs_teacher
    assert not Distiller(student=student(), losses=[losses.CE()]).needs_teacher
    d = distiller()
    with pytest.raises(InputError, match="adapters were made for"):
        d.attach_teacher(net((3, 5)))


# ---- hard labels alone: plain Keras is the judge ----

COMPILED = {"run_eagerly": False}
# Mostly eager, as tracing takes longer than these few steps.
PLAIN = {
    "eager": {},
    "compiled": {"compile": COMPILED},
    "sample_weight": {"fit": {"sample_weight": WEIGHTS}},
    "class_weight": {"fit": {"class_weight": {0: 0.5, 1: 2.0, 2: 0.0, 3: 3.0}}},
    "mixup": {"labels": MIXED},
    "float labels": {"labels": Y.astype("float32")},
    "weight decay": {"net": {"regularizer": "l2"}},
    "activity": {"compile": COMPILED, "net": {"activity_regularizer": keras.regularizers.L2(0.1)}},
    "clipnorm": {"optimizer": {"clipnorm": 0.01}},
    "two steps an execution": {"compile": {**COMPILED, "steps_per_execution": 2}},
    "validation split": {"fit": {"validation_split": 0.4}},
}


# Each of these differs from another in one word of Keras.
SLOW = ("clipnorm", "float labels", "validation split")


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in PLAIN.items()]
)
def test_cross_entropy_alone_trains_as_keras_does(case):
    labels, compiled = case.get("labels", Y), {"metrics": ["accuracy"], "run_eagerly": True, **case.get("compile", {})}
    weights = labels.shape[1:] == (4,)
    kind = keras.losses.CategoricalCrossentropy if weights else keras.losses.SparseCategoricalCrossentropy
    plain = student(**case.get("net", {}))
    d = Distiller(student=student(**case.get("net", {})), losses=[losses.CE()])
    plain.compile(keras.optimizers.SGD(0.2, **case.get("optimizer", {})), kind(from_logits=True), **compiled)
    d.compile(keras.optimizers.SGD(0.2, **case.get("optimizer", {})), **compiled)
    fit = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **case.get("fit", {})}
    expected, history = (model.fit(X, labels, **fit).history for model in (plain, d))
    assert_equal(values(plain.weights), values(d.student.weights), rtol=1e-4, atol=1e-5)
    assert set(history) == {*expected, "ce"}
    for name, series in expected.items():
        assert history[name] == pytest.approx(series, rel=1e-4), name


def test_the_loss_is_the_weighted_terms_and_the_regularisation():
    terms = [losses.CE(weight=0.25), losses.KD(weight=2.0)]
    d, _, _ = still(terms, student=student(regularizer=keras.regularizers.L2(0.1), batch_norm=False))
    logs = d.fit(X, Y, batch_size=5, verbose=0).history
    regularization = sum(0.1 * np.sum(np.square(layer.kernel)) for layer in d.student.layers if "conv" in layer.name)
    assert logs["loss"][0] == pytest.approx(0.25 * logs["ce"][0] + 2 * logs["kd"][0] + regularization, rel=1e-5)


class BatchStatistic(_base.Loss):
    def call(self, student, teacher, labels):
        return ops.mean(ops.square(student["logits"] - teacher["logits"]))


class PerSample(_base.Loss):
    def call(self, student, teacher, labels):
        return ops.mean(ops.square(student["logits"] - teacher["logits"]), axis=1)


def test_a_scalar_term_counts_whole():
    a, b = (distiller([kind(weight=0.4, name="mse")]) for kind in (BatchStatistic, PerSample))
    ours, theirs = (d.fit(X, Y, batch_size=4, shuffle=False, verbose=0).history for d in (a, b))
    assert ours["mse"][0] > 1e-3
    assert ours == {name: pytest.approx(series, rel=1e-5) for name, series in theirs.items()}
    assert_equal(values(a.student.weights), values(b.student.weights))


# ---- labels, weights and batches, in numbers ----


def test_mixed_labels_and_sample_weights_in_numbers():
    d, z_s, z_t = still([losses.CE(weight=0.5), losses.KD(temperature=3.0)])
    other = (Y + 1) % 4
    logs = d.fit(X, MIXED, batch_size=4, sample_weight=WEIGHTS, validation_data=(X, other), verbose=0).history
    ce, kd = (WEIGHTS * ce_of(z_s, MIXED)).mean(), (WEIGHTS * kd_of(z_s, z_t, 3.0)).mean()
    assert [logs[name][0] for name in ("ce", "kd", "loss")] == pytest.approx([ce, kd, 0.5 * ce + kd], rel=1e-4)
    # In training the label is the larger share.
    guess = np.argmax(z_s, axis=-1)
    assert logs["accuracy"][0] == pytest.approx((guess == Y).mean())
    assert logs["val_accuracy"][0] == pytest.approx((guess == other).mean())
    assert logs["val_loss"][0] == pytest.approx(ce_of(z_s, np.eye(4)[other]).mean(), rel=1e-5)


def test_weights_reach_batches_that_are_dicts():
    d, z_s, _ = still([losses.CE()])
    shares = np.array([0.5, 2.0, 1.0, 3.0])
    data = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(4)
    logs = d.fit(data, class_weight=dict(enumerate(shares)), verbose=0).history
    assert logs["loss"][0] == pytest.approx((shares[Y] * ce_of(z_s)).mean(), rel=1e-5)
    data = tf.data.Dataset.from_tensor_slices({"image": X, "label": Y, "sample_weight": WEIGHTS}).batch(4)
    weighted = (WEIGHTS * ce_of(z_s)).mean()
    logs = d.fit(data, validation_data=data, verbose=0).history
    assert [logs["loss"][0], logs["val_loss"][0], d.evaluate(data, verbose=0)[0]] == pytest.approx(
        [weighted] * 3, rel=1e-5
    )


def test_accuracy_is_the_share_of_right_guesses_however_labels_are_given():
    for labels in (Y, Y[:, None], Y.astype("float32"), ONE_HOT, MIXED):
        metric = Accuracy()
        metric.update_state(labels, ONE_HOT)
        # Then some that are wrong, and in the other form.
        metric.update_state((Y[:7] + 1) % 4, ONE_HOT[:7])
        assert float(metric.result()) == pytest.approx(2 / 3)
    metric = Accuracy()
    metric.update_state(np.array([0, 1]), np.array([[1.0, 0], [1, 0]]), sample_weight=np.array([[3.0], [1.0]]))
    assert float(metric.result()) == pytest.approx(3 / 4)


# ---- who runs, and how often ----


def test_runs_are_counted_and_training_goes_on_after_validation():
    d = distiller(student=student(count=True), teacher=teacher(count=True))
    d.fit(X, Y, batch_size=5, epochs=2, validation_data=(X, Y), validation_batch_size=7, verbose=0)
    assert Counter.of(d.student) == (6, 4)
    assert Counter.of(d.teacher) == (0, 6)
    d.evaluate(X, Y, batch_size=7, verbose=0)
    d.predict(X, batch_size=7, verbose=0)
    assert (Counter.of(d.student), Counter.of(d.teacher)) == ((6, 8), (0, 6))
    alone = distiller([losses.CE()], teacher=teacher(count=True))
    alone.fit(X, Y, verbose=0)
    assert Counter.of(alone.teacher) == (0, 0) and not alone.needs_teacher


def brought(t, names=("stage1", "stage2", "logits")):
    """Batches that bring a teacher's taps."""
    taps = keras.Model(t.inputs[0], {name: t.get_layer(name).output for name in names})(X, training=False)
    batch = {"image": X, "label": Y, "teacher": {name: np.array(tap) for name, tap in taps.items()}}
    return tf.data.Dataset.from_tensor_slices(batch).batch(4)


def test_features_that_the_batch_brings_stand_for_the_teachers():
    a, b = distiller(teacher=teacher(count=True)), distiller()
    ours = a.fit(brought(teacher()), epochs=2, verbose=0).history
    theirs = b.fit(X, Y, batch_size=4, shuffle=False, epochs=2, verbose=0).history
    # The first batch alone is compared with what the teacher gives.
    assert Counter.of(a.teacher) == (0, 1)
    assert ours == {name: pytest.approx(series, rel=1e-5) for name, series in theirs.items()}
    assert_equal(values(a.trainable_variables), values(b.trainable_variables), rtol=1e-4, atol=1e-5)


def test_taps_that_the_batch_brings_need_no_teacher():
    d = Distiller(student=student(), losses=[losses.CE(), losses.KD(), losses.Hint(pairs="stage1:stage1")])
    d.compile(keras.optimizers.SGD(0.1))
    history = d.fit(brought(teacher()), epochs=3, verbose=0).history
    assert history["hint"][2] < history["hint"][0]
    # Which stages there are, and so which adapters, only a teacher can tell.
    d = Distiller(student=student(), losses=[losses.Hint()])
    d.compile("sgd")
    with pytest.raises(InputError, match="there is none"):
        d.fit(brought(teacher()), verbose=0)


def test_no_trace_of_the_teacher_is_saved_or_shown(tmp_path):
    t = teacher(name="wise")
    t.layers[1].trainable = False
    d = distiller(teacher=t, student=student(name="small"))
    d.fit(X, Y, verbose=0)
    assert not t.layers[1].trainable and t.layers[2].trainable and t.trainable
    text = io.StringIO()
    d.summary(print_fn=lambda line: text.write(line + "\n"), expand_nested=True)
    assert "small" in text.getvalue() and "hint" in text.getvalue() and "wise" not in text.getvalue()

    d.save(tmp_path / "d.keras")
    d.save_weights(tmp_path / "d.weights.h5")
    with zipfile.ZipFile(tmp_path / "d.keras") as file:
        assert b"small" in file.read("config.json") and b"wise" not in file.read("config.json")
        stored = [file.read("model.weights.h5"), (tmp_path / "d.weights.h5").read_bytes()]
    kernel, theirs = (m.get_layer("conv2").kernel.numpy() for m in (d.student, t))
    for content in stored:
        arrays = []
        with h5py.File(io.BytesIO(content)) as file:
            file.visititems(lambda _, item, to=arrays: to.append(item[()]) if isinstance(item, h5py.Dataset) else None)
        assert any(np.array_equal(array, kernel) for array in arrays)
        assert not any(np.array_equal(array, theirs) for array in arrays)


def test_loading_weights_leaves_the_attached_teacher_alone(tmp_path):
    a, b = distiller(), distiller(teacher=teacher(seed=5))
    before = values(b.teacher.weights)
    a.fit(X, Y, verbose=0)
    a.save_weights(tmp_path / "a.weights.h5")
    b.load_weights(tmp_path / "a.weights.h5")
    assert all(np.array_equal(x, y) for x, y in zip(before, values(b.teacher.weights), strict=True))
    assert all(np.array_equal(x, y) for x, y in zip(values(a.student.weights), values(b.student.weights), strict=True))


@pytest.mark.parametrize("direction", ["student_to_teacher", "teacher_to_student"])
def test_adapters_of_both_directions_are_trained(direction):
    hint = losses.Hint(direction=direction, pairs="stage1:stage1", batch_norm=True)
    d = distiller([losses.CE(), hint])
    assert {id(v) for v in hint.trainable_variables} <= {id(v) for v in d.trainable_variables}
    before = values(hint.variables)
    d.fit(X, Y, epochs=2, batch_size=7, verbose=0)
    after = values(hint.variables)
    # Kernel, gamma, beta and both moving statistics: a bias before a batch norm would have no gradient.
    assert len(before) == 5 and not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


# ---- schedules, in numbers ----


def test_a_schedule_is_read_at_each_step():
    d, z_s, z_t = still([losses.KD(temperature="exponential_decay(start=8.0, rate=0.5, per='step')")])
    history = d.fit(X, Y, batch_size=5, shuffle=False, verbose=0).history
    steps = ((0, 5, 8.0), (5, 10, 4.0), (10, 14, 2.0))
    each = np.concatenate([kd_of(z_s[a:b], z_t[a:b], temperature) for a, b, temperature in steps])
    assert [history["kd"][0], history["loss"][0]] == pytest.approx([each.mean()] * 2, rel=1e-4)


def test_a_schedule_starts_at_the_initial_epoch():
    d, z_s, _ = still([losses.CE(weight="linear(start=0.0, end=1.0, over=4)")])
    history = d.fit(X, Y, initial_epoch=2, epochs=4, verbose=0).history
    assert history["ce_weight"] == pytest.approx([0.5, 0.75])
    assert history["loss"] == pytest.approx([0.5 * ce_of(z_s).mean(), 0.75 * ce_of(z_s).mean()], rel=1e-5)


# ---- mixed precision, in numbers ----


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_goes_where_float32_goes(policy):
    def move():
        d = distiller()
        before = values(d.trainable_variables)
        logs = d.fit(X, Y, batch_size=14, verbose=0).history
        moved = [(b - a).ravel() for a, b in zip(before, values(d.trainable_variables), strict=True)]
        return d, logs, np.concatenate(moved)

    _, expected, straight = move()
    keras.config.set_dtype_policy(policy)
    d, logs, moved = move()
    assert d.student.get_layer("conv1").compute_dtype == policy.removeprefix("mixed_")
    # Without the loss scaled it would be 32768 times too short.
    assert np.linalg.norm(moved - straight) < 0.1 * np.linalg.norm(straight)
    assert logs["loss"] == pytest.approx(expected["loss"], rel=0.02)


def test_a_reloaded_half_precision_distiller_still_scales_its_loss(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    d = distiller([losses.CE()])
    d.save(tmp_path / "half.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    for model in (d, loaded):
        model.fit(X, Y, batch_size=14, verbose=0)
    assert_equal(values(d.student.weights), values(loaded.student.weights), rtol=1e-3, atol=1e-4)


# ---- evaluation moves nothing ----


def test_evaluate_and_predict_move_no_state_at_all():
    d = distiller(student=student(dropout=0.5), optimizer="adam")
    d.fit(X, Y, batch_size=5, verbose=0)
    before = state(d)
    assert any("seed_generator_state" in v.path for v in d.variables), "dropout's generator is part of the state"
    figures = d.evaluate(X, Y, batch_size=5, verbose=0)
    logits = d.predict(X, batch_size=5, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, state(d), strict=True))
    np.testing.assert_array_equal(logits, d.student.predict(X, batch_size=5, verbose=0))
    assert figures == pytest.approx([ce_of(logits).mean(), (logits.argmax(-1) == Y).mean()], rel=1e-5)
    np.testing.assert_array_equal(d({"image": X}), d(X))
    assert np.abs(d(X, training=True) - d(X)).max() > 1e-3


# ---- kinds of models ----


@pytest.mark.parametrize("end", [layers.Softmax, lambda: ops.softmax], ids=["layer", "operation"])
def test_a_softmax_of_any_kind_is_taken_off(end):
    compiled = {"run_eagerly": True}
    a = distiller(student=student(end=lambda x: end()(x)), teacher=teacher(end=lambda x: end()(x)), compiled=compiled)
    b = distiller(compiled=compiled)
    for model in (a, b):
        model.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0)
    assert_equal(values(a.trainable_variables), values(b.trainable_variables), rtol=1e-4, atol=1e-5)
    logits = a.predict(X, verbose=0)
    # What ships still gives probabilities.
    np.testing.assert_allclose(np.exp(log_softmax(logits)), a.student.predict(X, verbose=0), atol=1e-6)
    assert a.evaluate(X, Y, verbose=0)[0] == pytest.approx(ce_of(logits).mean(), rel=1e-5)


def test_a_nested_softmax_is_taken_off():
    plain = student()
    ends_in_softmax = student(activation="softmax")
    ends_in_softmax.set_weights(plain.get_weights())
    image = keras.Input((8, 8, 3))
    wrapped = keras.Model(image, ends_in_softmax(image))
    d = Distiller(student=wrapped, losses=[losses.CE()])
    d.compile()
    np.testing.assert_allclose(d.predict(X, verbose=0), plain.predict(X, verbose=0), atol=1e-5)


@keras.saving.register_keras_serializable(package="test_distiller")
class Subclassed(keras.Model):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv, self.norm, self.pool, self.head = parts(filters)

    def call(self, x, training=None):
        return self.head(self.pool(self.norm(self.conv(x), training=training)))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="test_distiller")
class WithTaps(Subclassed):
    def taps(self, x, training):
        stage1 = self.norm(self.conv(x), training=training)
        return {"logits": self.head(self.pool(stage1)), "stage1": stage1}


def parts(filters):
    return [
        layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu"),
        layers.BatchNormalization(momentum=0.5, name="stage1"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4),
    ]


def of_kind(kind, filters, seed):
    keras.utils.set_random_seed(seed)
    if kind in (Subclassed, WithTaps):
        model = kind(filters)
        model(X)
        return model
    if kind == "sequential":
        return keras.Sequential([keras.Input((8, 8, 3)), *parts(filters)])
    x = image = keras.Input((8, 8, 3))
    for layer in parts(filters):
        x = layer(x)
    return keras.Model(image, x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequential", Subclassed, WithTaps])
def test_every_kind_of_model_learns_the_same_and_can_be_saved(kind, tmp_path):
    features = kind is not Subclassed

    def learn(kind):
        terms = [losses.CE(), losses.KD()]
        if features:
            terms.append(losses.Hint(pairs="stage1:stage1", weight=3.0))
        d = distiller(terms, student=of_kind(kind, 3, 1), teacher=of_kind(kind, 6, 2))
        d.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0)
        return d

    d, expected = learn(kind), learn("functional")
    np.testing.assert_allclose(d.predict(X, verbose=0), expected.predict(X, verbose=0), atol=1e-4)
    d.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), d.predict(X, verbose=0), atol=1e-6)
    loaded.attach_teacher(d.teacher)
    for model in (d, loaded):
        model.fit(X, Y, batch_size=14, verbose=0)
    assert_equal(values(d.trainable_variables), values(loaded.trainable_variables))


def test_a_subclassed_teacher_without_taps_gives_logits_only():
    with pytest.raises(InputError, match="the teacher has no tap 'stage1'"):
        distiller([losses.Hint(pairs="stage1:stage1")], teacher=of_kind(Subclassed, 6, 2))


def test_a_size_that_is_left_open_is_any_size():
    d = distiller([losses.KD()], teacher=teacher(size=None))
    assert d.teacher.input_shape == (None, None, None, 3)
    d.fit(X, Y, verbose=0)


@pytest.mark.parametrize("kind", ["softmax", "sequential"])
def test_a_copy_of_the_teacher_runs_in_another_precision(kind):
    t = of_kind("sequential", 6, 2) if kind == "sequential" else teacher(activation="softmax")
    before = values(t.weights)
    half, full = (
        distiller([losses.KD(), losses.Hint(pairs="stage1:stage1")], teacher=t, teacher_dtype=dtype)
        for dtype in ("bfloat16", None)
    )
    a, b = (d._teacher_taps.value(X, ("logits", "stage1"), training=False) for d in (half, full))
    assert (a["stage1"].dtype, b["stage1"].dtype, a["logits"].dtype) == ("bfloat16", "float32", "float32")
    np.testing.assert_allclose(a["logits"], b["logits"], atol=0.02)
    assert np.abs(a["logits"] - b["logits"]).max() > 0
    half.fit(X, Y, verbose=0)
    assert half.teacher is t and {layer.dtype_policy.name for layer in t.layers} == {"float32"}
    assert all(np.array_equal(x, y) for x, y in zip(before, values(t.weights), strict=True))


# ---- callbacks, in numbers ----


def test_callbacks_see_a_training_like_any_other(tmp_path):
    terms = [losses.CE(weight="linear(start=0.5, end=1.0, over=4)"), losses.KD(), losses.Hint()]
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=2, min_delta=1e6, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=1e6, factor=0.5),
    ]
    d = distiller(terms)
    history = d.fit(X, Y, epochs=9, validation_data=(X, Y), callbacks=callbacks, verbose=0).history
    names = {"loss", "accuracy", "ce", "kd", "hint", "ce_weight", "val_loss", "val_accuracy", "learning_rate"}
    assert set(history) == names
    # Never better than the first by a million, so two more and no further.
    assert history["learning_rate"] == pytest.approx([0.1, 0.1, 0.05])
    with open(tmp_path / "log.csv") as file:
        assert [float(row["kd"]) for row in csv.DictReader(file)] == pytest.approx(history["kd"])
    first, last = (keras.models.load_model(tmp_path / f"{epoch}.keras").predict(X, verbose=0) for epoch in (1, 3))
    np.testing.assert_allclose(d.predict(X, verbose=0), first, atol=1e-6)
    assert np.abs(first - last).max() > 1e-4


@pytest.mark.parametrize("form", ["one", "tuple", "CallbackList"])
def test_callbacks_in_any_form_leave_the_clock_running(form):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["ce_weight"]))
    d, _, _ = still([losses.CE(weight="linear(start=0.0, end=1.0, over=2)")])
    forms = {"one": callback, "tuple": (callback,)}
    as_list = keras.callbacks.CallbackList([callback], add_history=True, model=d, epochs=2)
    d.fit(X, Y, epochs=2, callbacks=forms.get(form, as_list), verbose=0)
    assert seen == pytest.approx([0, 0.5])


@pytest.mark.slow
def test_backup_and_restore_goes_on_where_it_was(tmp_path):
    class Killed(Exception):
        pass

    def kill(epoch, logs=None):
        if epoch == 2:
            raise Killed

    def run(*callbacks):
        terms = [losses.CE(weight="linear(start=0.0, end=1.0, over=4)"), losses.Hint()]
        terms += [losses.KD(temperature="exponential_decay(start=8.0, rate=0.9, per='step')")]
        d = distiller(terms, keras.optimizers.SGD(0.1, momentum=0.9))
        fit = {"batch_size": 7, "epochs": 4, "shuffle": False, "verbose": 0}
        return d, d.fit(X, Y, callbacks=[*callbacks], **fit).history

    whole, expected = run()
    backup = str(tmp_path / "backup")
    with contextlib.suppress(Killed):
        run(keras.callbacks.BackupAndRestore(backup), keras.callbacks.LambdaCallback(on_epoch_begin=kill))
    resumed, history = run(keras.callbacks.BackupAndRestore(backup))
    for name in ("ce_weight", "kd_temperature", "loss"):
        assert history[name] == pytest.approx(expected[name][2:], rel=1e-4)
    assert int(resumed.step) == int(whole.step) == 8
    assert_equal(state(whole), state(resumed))


# ---- saving and loading, in full ----


def test_all_that_training_needs_but_the_teacher_is_saved(tmp_path):
    terms = [
        losses.CE(weight="linear(start=0.2, end=1.0, over=4)", label_smoothing=0.1),
        losses.KD(weight=0.7, temperature=3.0),
        losses.Hint(batch_norm=True),
    ]
    d = distiller(terms, keras.optimizers.Adam(0.01))
    fit = {"batch_size": 5, "shuffle": False, "verbose": 0}
    d.fit(X, Y, epochs=2, **fit)
    d.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), d.predict(X, verbose=0), rtol=1e-6)
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(d.evaluate(X, Y, verbose=0))
    assert loaded.teacher is None
    with pytest.raises(InputError, match="attach_teacher"):
        loaded.fit(X, Y, **fit)
    assert type(loaded) is Distiller and loaded.needs_teacher and loaded.term_names == ["ce", "kd", "hint"]
    assert [term.get_config() for term in loaded.terms] == [term.get_config() for term in d.terms]
    assert all(np.array_equal(a, b) for a, b in zip(state(d), state(loaded), strict=True))
    assert int(loaded.step) == int(loaded.optimizer.iterations) == 6
    for wrong, message in (
        (teacher(classes=3), "the teacher has 3 classes .*and the student 4"),
        (teacher(size=16), "hint's adapters were made for"),
        (net((8, 5)), "hint's adapters were made for"),
        (net((8,)), "the teacher has no tap 'stage2'"),
    ):
        with pytest.raises(InputError, match=message):
            loaded.attach_teacher(wrong)
        assert loaded.teacher is None
    loaded.attach_teacher(d.teacher)
    theirs, ours = (model.fit(X, Y, initial_epoch=2, epochs=4, **fit).history for model in (d, loaded))
    assert ours == {name: pytest.approx(series, rel=1e-4) for name, series in theirs.items()}
    assert ours["ce_weight"] == pytest.approx([0.6, 0.8])
    assert_equal(values(d.trainable_variables), values(loaded.trainable_variables), rtol=1e-4, atol=1e-5)
    assert_equal(values(d.optimizer.variables), values(loaded.optimizer.variables), rtol=1e-4, atol=1e-5)


def test_another_teacher_takes_over_in_the_next_fit():
    d, z_s, _ = still([losses.KD(temperature=2.0)])
    for t in (teacher(), teacher(seed=7)):
        d.attach_teacher(t)
        logged = d.fit(X, Y, batch_size=14, verbose=0).history["kd"][0]
        assert logged == pytest.approx(kd_of(z_s, t(X, training=False), 2.0).mean(), rel=1e-3)


def test_config_round_trip():
    d = distiller([losses.CE(weight=0.2), losses.KD(temperature=2.0, name="soft")], teacher_dtype="bfloat16")
    config = d.get_config()
    again = Distiller.from_config(copy.deepcopy(config))
    assert again.get_config() == config
    assert (again.name, again.teacher_dtype, again.term_names) == (d.name, "bfloat16", ["ce", "soft"])
    assert [w.shape for w in again.student.weights] == [w.shape for w in d.student.weights]


# ---- bad input, and names ----


def test_terms_of_one_name_keep_their_own_figures():
    d, z_s, z_t = still([losses.KD(temperature=1.0), losses.KD(temperature=4.0), losses.CE(), losses.KD(name="soft")])
    logs = d.fit(X, Y, batch_size=14, verbose=0).history
    assert set(logs) == {"kd", "kd_2", "ce", "soft", "loss", "accuracy"}
    expected = [kd_of(z_s, z_t, temperature).mean() for temperature in (1.0, 4.0)]
    assert [logs["kd"][0], logs["kd_2"][0]] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("wrong", ["kd", keras.losses.KLDivergence(), losses.KD])
def test_what_is_no_loss_is_refused(wrong):
    with pytest.raises(InputError, match="is no loss:"):
        Distiller(student=student(), losses=[losses.CE(), wrong])


def test_arguments_have_to_be_named():
    with pytest.raises(TypeError):
        Distiller(student(), teacher(), [losses.CE()])


def test_fit_without_a_teacher_is_refused_for_features_too():
    d = Distiller(student=student(), losses=[losses.CE(), losses.Hint()])
    d.compile("adam")
    with pytest.raises(InputError, match="the losses read a teacher and there is none"):
        d.fit(X, Y, verbose=0)


# ---- several devices ----

MIRRORED = """
import sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
from tests.distillation import test_distiller as t
results = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        terms = [*t.three_losses(), t.losses.SoftCE(temperature="exponential_decay(start=4.0, rate=0.9, per='step')")]
        d = t.distiller(terms, student=t.student(batch_norm=False, regularizer="l2"), teacher=t.teacher())
    # 13 samples in batches of 8: the last is shared out as 3 and 2.
    batches = {"image": t.X[:13], "label": t.Y[:13], "sample_weight": t.WEIGHTS[:13]}
    batches = tf.data.Dataset.from_tensor_slices(batches).batch(8)
    history = d.fit(batches, epochs=2, validation_data=batches, verbose=0).history
    # A scalar term is each replica's own, so only even shares give what one device does.
    with strategy.scope():
        e = t.distiller([t.BatchStatistic(weight=0.4)], student=t.student(batch_norm=False), teacher=t.teacher())
    e.fit(t.X[:12], t.Y[:12], batch_size=6, shuffle=False, verbose=0)
    results.append((t.values([*d.trainable_variables, *e.trainable_variables]), history))
(a, single), (b, mirrored) = results
t.assert_equal(a, b, rtol=1e-5, atol=1e-6)
assert set(single) == set(mirrored), (single, mirrored)
for name in single:
    np.testing.assert_allclose(single[name], mirrored[name], rtol=1e-4, err_msg=name)
print("equal")
"""


@pytest.mark.slow
def test_two_replicas_do_as_one():
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", MIRRORED, str(root)], capture_output=True, text=True, cwd=root)
    assert result.stdout.endswith("equal\n"), result.stderr[-3000:]
