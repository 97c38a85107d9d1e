"""The Distiller: a step worked out by hand, Keras' public behaviour, and the traps of public implementations."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kd_keras import Distiller, losses, unpack_batch
from kd_keras.errors import InputError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(14, 8, 8, 3)).astype("float32")
Y = RNG.integers(0, 4, 14)
ONE_HOT = np.eye(4, dtype="float32")[Y]


def net(filters, seed=0, batch_norm=True, regularizer=None, dropout=0.0, classes=4, activation=None, size=8):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((size, size, 3))
    for i, n in enumerate(filters, 1):
        x = layers.Conv2D(n, 3, strides=2, padding="same", kernel_regularizer=regularizer, name=f"conv{i}")(x)
        if batch_norm:
            x = layers.BatchNormalization(momentum=0.5, name=f"norm{i}")(x)
        x = layers.ReLU(name=f"stage{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(classes, activation, name="logits", dtype="float32")(x))


def student(**kwargs):
    return net((4, 6), **{"seed": 1, **kwargs})


def teacher(**kwargs):
    return net((8, 12), **{"seed": 2, **kwargs})


def three_losses():
    return [losses.CE(weight=0.3), losses.KD(weight=0.7, temperature=2.0), losses.Hint(weight=0.1)]


def distiller(terms=None, optimizer=None, compiled=None, **kwargs):
    keras.utils.set_random_seed(3)
    made = Distiller(**{"student": student(), "teacher": teacher(), "losses": terms or three_losses(), **kwargs})
    made.compile(optimizer=optimizer or keras.optimizers.SGD(0.1), metrics=["accuracy"], **(compiled or {}))
    return made


def values(variables):
    return [np.array(v) for v in variables]


def assert_equal(a, b, **tolerance):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# ---- a step ----


def test_a_step_is_the_weighted_sum_of_the_terms_worked_out_by_hand():
    d = distiller()
    s, t = student(), teacher()
    projectors = [keras.layers.Conv2D(n, 1) for n in (8, 12)]
    for mine, theirs, channels in zip(projectors, d.terms[2].projectors, (4, 6), strict=True):
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
        values(w for p in d.terms[2].projectors for w in p.weights), values(w for p in projectors for w in p.weights)
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
    own = sum(0.5 * np.sum(np.square(layer.kernel)) for layer in d.student.layers if "conv" in layer.name)
    logs = d.fit(X, Y, batch_size=14, verbose=0).history
    assert logs["loss"][0] - logs["ce"][0] == pytest.approx(own, rel=1e-4)
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
    assert float(counting.calls) == 0
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
    d.summary()
    assert f"{d.student.count_params():,}" in capsys.readouterr().out


def test_adapters_train():
    d = distiller()
    before = values(w for p in d.terms[2].projectors for w in p.weights)
    d.fit(X, Y, verbose=0)
    after = values(w for p in d.terms[2].projectors for w in p.weights)
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
    assert int(d.step) == 10


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


def test_saved_and_loaded_it_goes_on(tmp_path):
    d = distiller(optimizer="adam")
    d.fit(X, Y, batch_size=14, verbose=0)
    d.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), d.predict(X, verbose=0), rtol=1e-6)
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(d.evaluate(X, Y, verbose=0))
    assert loaded.teacher is None
    with pytest.raises(InputError, match="attach_teacher"):
        loaded.fit(X, Y, verbose=0)
    loaded.attach_teacher(teacher())
    for one in (d, loaded):
        one.fit(X, Y, batch_size=14, verbose=0)
    assert_equal(values(loaded.trainable_variables), values(d.trainable_variables))
    assert_equal(values(loaded.optimizer.variables), values(d.optimizer.variables))
    copy = Distiller.from_config(d.get_config())
    assert [type(term) for term in copy.terms] == [losses.CE, losses.KD, losses.Hint]


@pytest.mark.parametrize(
    "compiled", [{"steps_per_execution": 2}, {"jit_compile": True}, {"run_eagerly": True}], ids=lambda c: next(iter(c))
)
def test_ways_to_compile_agree(compiled):
    a, b = distiller(), distiller(compiled=compiled)
    for one in (a, b):
        one.fit(X[:12], Y[:12], batch_size=6, epochs=2, shuffle=False, verbose=0)
    assert_equal(values(a.trainable_variables), values(b.trainable_variables), rtol=1e-4, atol=1e-5)


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
    for one in (a, b):
        one.fit(X, Y, batch_size=14, verbose=0)
    assert_equal(values(a.student.weights), values(b.student.weights), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.predict(X, verbose=0), b.predict(X, verbose=0), rtol=1e-3, atol=1e-4)


def test_a_teacher_in_another_precision():
    t = teacher()
    before = values(t.weights)
    d, plain = distiller([losses.KD()], teacher=t, teacher_dtype="bfloat16"), distiller([losses.KD()], teacher=t)
    a, b = (one.fit(X, Y, batch_size=14, verbose=0).history["kd"][0] for one in (d, plain))
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
        ({"losses": ["kd"]}, "no loss term"),
        ({"teacher": lambda: net((4,), classes=5)}, "5 classes apart, the student 4"),
        ({"teacher": lambda: net((4,), size=16)}, r"\(16, 16, 3\)"),
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


# ---- several devices ----

MIRRORED = """
import sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
from tests import test_distiller as t
results = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        d = t.distiller(student=t.student(batch_norm=False, regularizer="l2"), teacher=t.teacher())
    # 14 samples in batches of 6: the last batch has one sample on each replica.
    history = d.fit(t.X, t.Y, batch_size=6, epochs=2, shuffle=False, validation_data=(t.X, t.Y), verbose=0).history
    results.append((t.values(d.trainable_variables), history))
(a, one), (b, two) = results
t.assert_equal(a, b, rtol=1e-5, atol=1e-6)
for name in one:
    np.testing.assert_allclose(one[name], two[name], rtol=1e-4, err_msg=name)
print("equal")
"""


def test_two_replicas_do_as_one():
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", MIRRORED, str(root)], capture_output=True, text=True, cwd=root)
    assert done.stdout.endswith("equal\n"), done.stderr[-3000:]
