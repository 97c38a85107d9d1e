"""What users of Keras expect of fit: the numbers of a loop written by hand, or one sentence before it starts."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, losses
from kd_keras.errors import InputError

N, K, T, RATE = 24, 3, 2.0, 0.1
RNG = np.random.default_rng(0)
X = RNG.random((N, 6, 6, 1)).astype("float32")
Y = RNG.integers(0, K, N).astype("int32")
WEIGHT = np.linspace(0, 2, N).astype("float32")
STEPS = "linear(start=1.0, end=13.0, over=12, per='step')"


def net(units=5, seed=0, norm=False):
    init = [keras.initializers.GlorotUniform(seed=seed + i) for i in (1, 2)]
    inner = [keras.layers.BatchNormalization(name="norm")] if norm else []
    first = keras.layers.Dense(units, activation="tanh", kernel_initializer=init[0], name="pooled")
    last = keras.layers.Dense(K, kernel_initializer=init[1], name="out")
    return keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), first, *inner, last])


def distiller(terms=None, student=None, teacher=None, optimizer=None, metrics=("accuracy",), **kwargs):
    terms = [losses.CE(), losses.KD(temperature=T)] if terms is None else terms
    d = Distiller(student=student or net(), teacher=teacher or net(8, 50), losses=terms)
    d.compile(optimizer or keras.optimizers.SGD(RATE), metrics=list(metrics), **kwargs)
    return d


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def by_hand(epochs, batch, temperature=lambda epoch, step: T, student=None, weight=None):
    """Weights after SGD on mean(w · (CE + KD)), the batches in order; the step counts from 0."""
    student, teacher, step = student or net(), net(8, 50), 0
    weight = np.ones(N, "float32") if weight is None else weight
    for epoch in epochs:
        for i in range(0, N, batch):
            x, y, w, t = X[i : i + batch], Y[i : i + batch], weight[i : i + batch], temperature(epoch, step)
            with tf.GradientTape() as tape:
                z_s, z_t = student(x, training=True), teacher(x)
                hard = tf.nn.sparse_softmax_cross_entropy_with_logits(y, z_s)
                p_t = tf.nn.softmax(z_t / t)
                soft = tf.reduce_sum(p_t * (tf.nn.log_softmax(z_t / t) - tf.nn.log_softmax(z_s / t)), -1)
                loss = tf.reduce_mean(w * (hard + t**2 * soft))
            variables = student.trainable_variables
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(RATE * gradient)
            step += 1
    return student.get_weights()


def assert_same(got, want, atol=3e-6):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


class Rows(keras.utils.PyDataset):
    """Batches of eight, each made by a function of the rows' slice."""

    def __init__(self, make, **kwargs):
        super().__init__(**kwargs)
        self.make = make

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.make(slice(8 * i, 8 * i + 8))


def generator(make, times=100):
    for _ in range(times):
        for i in range(3):
            yield make(slice(8 * i, 8 * i + 8))


def stream(make):
    """A data set of unknown length."""
    return tf.data.Dataset.from_generator(
        lambda: generator(make, 1), output_signature=tf.nest.map_structure(_spec, make(slice(0, 8)))
    )


def _spec(array):
    return tf.TensorSpec((None, *array.shape[1:]), array.dtype)


# ---- clocks ----


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 3}, {"steps_per_execution": 2}, {"run_eagerly": True}])
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_a_schedule_by_step_is_that_of_a_loop_by_hand(length, options):
    d = distiller([losses.CE(), losses.KD(temperature=STEPS)], **options)

    def make(part):
        return X[part], Y[part]

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8) if length == "known" else stream(make)
    d.fit(data, epochs=4, verbose=0)
    assert int(d.step) == 12 and int(d.epoch) == 3
    assert_same(d.student.get_weights(), by_hand(range(4), 8, lambda epoch, step: 1.0 + step))


def test_the_optimizer_counts_the_batches_of_data_of_unknown_length():
    d = distiller()
    d.fit(stream(lambda part: (X[part], Y[part])), epochs=3, verbose=0)
    assert int(d.optimizer.iterations) == 9


def test_fit_twice_begins_both_clocks_again():
    d = distiller([losses.CE(), losses.KD(temperature=STEPS)])
    for _ in range(2):
        d.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    student = net()
    by_hand(range(2), 8, lambda epoch, step: 1.0 + step, student=student)
    want = by_hand(range(2), 8, lambda epoch, step: 1.0 + step, student=student)
    assert_same(d.student.get_weights(), want)


def test_fit_in_parts_by_initial_epoch_is_one_fit():
    parts, whole = (distiller([losses.CE(), losses.KD(temperature=STEPS)]) for _ in range(2))
    for first in (0, 1, 2):
        data = stream(lambda part: (X[part], Y[part])) if first == 1 else (X, Y)
        x, y = data if first != 1 else (data, None)
        parts.fit(x, y, batch_size=8 if first != 1 else None, initial_epoch=first, epochs=first + 1, shuffle=False,
                  verbose=0)  # fmt: skip
    whole.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    assert_same(parts.student.get_weights(), whole.student.get_weights(), atol=1e-7)


def test_initial_epoch_of_new_weights_counts_the_steps_before_it_or_says_that_it_cannot():
    d = distiller([losses.KD(temperature=STEPS)])
    history = d.fit(X, Y, batch_size=8, initial_epoch=2, epochs=3, verbose=0).history
    assert history["kd_temperature"] == [9.0] and int(d.step) == 9  # steps 6, 7, 8
    d = distiller([losses.KD(temperature=STEPS)])
    with pytest.raises(InputError, match="a schedule counts steps"):
        d.fit(stream(lambda part: (X[part], Y[part])), initial_epoch=2, epochs=3, verbose=0)


def test_after_the_best_weights_were_restored_both_clocks_begin_again():
    d = distiller(
        [losses.KD(temperature=STEPS, name="a"), losses.KD(temperature=STEPS.replace("step", "epoch"), name="b")]
    )
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)
    d.fit(X, Y, batch_size=N, epochs=6, callbacks=stop, verbose=0)
    history = d.fit(X, Y, batch_size=N, epochs=2, verbose=0).history
    assert history["a_temperature"] == history["b_temperature"] == [1.0, 2.0]


@pytest.mark.parametrize("what", ["temperature", "weight"])
def test_schedules_are_looked_at_over_the_whole_training_before_it_starts(what):
    term = losses.KD(**{what: "exponential_decay(start=1.0, rate=1.5)"})
    distiller([term]).fit(X, Y, epochs=3, verbose=0)
    d = distiller([losses.KD(**{what: "exponential_decay(start=1.0, rate=1.5)"})])
    before = d.student.get_weights()
    with pytest.raises(InputError, match=rf"kd's {what}=.* in epoch \d+, step \d+"):
        d.fit(X, Y, epochs=300, verbose=0)
    assert_same(d.student.get_weights(), before, atol=0)


def test_a_schedule_by_step_of_data_of_unknown_length_is_looked_at_from_epoch_to_epoch():
    d = distiller([losses.KD(temperature="exponential_decay(start=1.0, rate=0.5, per='step')")])
    with pytest.raises(InputError, match="kd's temperature"):
        d.fit(stream(lambda part: (X[part], Y[part])), epochs=9, verbose=0)


# ---- weights ----

FORMS = {
    "arrays": lambda w: ((X, Y), {"sample_weight": w, "batch_size": 8}),
    "dict_of_arrays": lambda w: (({"image": X, "label": Y, "sample_weight": w},), {"batch_size": 8}),
    "beside_a_dict": lambda w: (({"image": X, "label": Y},), {"sample_weight": w, "batch_size": 8}),
    "dataset": lambda w: ((tf.data.Dataset.from_tensor_slices((X, Y, w)).batch(8),), {}),
    "dict_dataset": lambda w: ((stream(lambda p: {"image": X[p], "label": Y[p], "sample_weight": w[p]}),), {}),
    "pydataset": lambda w: ((Rows(lambda p: (X[p], Y[p], w[p])),), {}),
    "dict_pydataset": lambda w: ((Rows(lambda p: {"image": X[p], "label": Y[p], "sample_weight": w[p]}),), {}),
    "generator": lambda w: ((generator(lambda p: (X[p], Y[p], w[p])),), {"steps_per_epoch": 3}),
    "dict_generator": lambda w: (
        (generator(lambda p: {"image": X[p], "label": Y[p], "sample_weight": w[p]}),),
        {"steps_per_epoch": 3},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_sample_weights_count_by_every_road(form):
    data, options = FORMS[form](WEIGHT)
    d = distiller()
    d.fit(*data, shuffle=False, verbose=0, **options)
    assert_same(d.student.get_weights(), by_hand(range(1), 8, weight=WEIGHT))


def test_sample_weights_count_in_train_on_batch():
    d = distiller()
    d.train_on_batch(X, Y, sample_weight=WEIGHT)
    assert_same(d.student.get_weights(), by_hand(range(1), N, weight=WEIGHT))


BY_CLASS = {0: 0.5, 1: 2.0, 2: 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrays", "dict_of_arrays", "dataset", "dict_dataset", "pydataset", "dict_pydataset"])
def test_class_weights_count_by_every_road(form):
    data, options = {
        "arrays": ((X, Y), {"batch_size": 8}),
        "dict_of_arrays": (({"image": X, "label": Y},), {"batch_size": 8}),
        "dataset": ((tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),), {}),
        "dict_dataset": ((stream(lambda p: {"image": X[p], "label": Y[p]}),), {}),
        "pydataset": ((Rows(lambda p: (X[p], Y[p])),), {}),
        "dict_pydataset": ((Rows(lambda p: {"image": X[p], "label": Y[p]}),), {}),
    }[form]
    d = distiller()
    d.fit(*data, class_weight=BY_CLASS, shuffle=False, verbose=0, **options)
    weight = np.array([BY_CLASS[y] for y in Y], "float32")
    assert_same(d.student.get_weights(), by_hand(range(1), 8, weight=weight))


COMPARING = {
    "rkd": lambda: losses.RKD(),
    "sp": lambda: losses.SP(pairs="pooled:pooled"),
    "pkt": lambda: losses.PKT(),
    "cc": lambda: losses.CC(),
    "dist": lambda: losses.DIST(),
    "mlkd": lambda: losses.MLKD(),
}


@pytest.mark.parametrize("form", [*FORMS, "train_on_batch", "class_weight", "class_weight_on_batch"])
def test_losses_that_compare_samples_refuse_weights_by_every_road(form):
    name = "rkd"
    d = distiller([losses.CE(), COMPARING[name]()])
    before = d.get_weights()
    with pytest.raises(InputError, match=f"these losses don't support sample weights: {name}"):
        if form == "train_on_batch":
            d.train_on_batch(X, Y, sample_weight=WEIGHT)
        elif form == "class_weight_on_batch":
            d.train_on_batch(X, Y, class_weight=BY_CLASS)
        elif form == "class_weight":
            d.fit(X, Y, class_weight=BY_CLASS, verbose=0)
        else:
            data, options = FORMS[form](WEIGHT)
            d.fit(*data, verbose=0, **options)
    assert_same(d.get_weights(), before, atol=0)


@pytest.mark.parametrize("name", COMPARING)
def test_each_loss_that_compares_samples_refuses_weights(name):
    with pytest.raises(InputError, match=f"these losses don't support sample weights: {name}"):
        distiller([COMPARING[name]()]).train_on_batch(X, Y, sample_weight=WEIGHT)


@pytest.mark.parametrize("padding", ["rows", "numbers"])
def test_crd_leaves_out_samples_of_weight_0(padding):
    """Neither what they show, nor a number that another sample has too, changes anything."""
    keras.utils.set_random_seed(3)
    weight, seen = (np.arange(8) % 2).astype("float32"), []
    for other in (False, True):
        keras.utils.set_random_seed(3)
        shown, index = X[:8].copy(), np.arange(8)
        if other and padding == "rows":
            shown[weight == 0] = 1.0
        elif other:
            index = np.where(weight == 0, 1, index)
        term = losses.CRD(samples=N, negatives=8, size=4, temperature=0.5)
        d = distiller([losses.CE(), term], metrics=())
        for _ in range(3):
            d.train_on_batch({"image": shown, "index": index}, Y[:8], sample_weight=weight)
        seen.append(d.get_weights())
    assert_same(*seen, atol=1e-6)


def test_a_sample_beyond_the_number_of_crds_is_one_sentence():
    d = distiller([losses.CRD(samples=4, negatives=4, size=2)])
    with pytest.raises(InputError, match=r"^crd\(samples=4\) was given a sample of a higher number"):
        d.fit({"image": X, "label": Y, "index": np.arange(N)}, verbose=0)


# ---- losses, names, keys ----


LOSSES = {
    "hint": lambda: losses.Hint(pairs="pooled:pooled", batch_norm=True),
    "vid": lambda: losses.VID(pairs="pooled:pooled"),
    "crd": lambda: losses.CRD(samples=N, negatives=4, size=2),
}


def indexed():
    return {"image": X, "label": Y, "index": np.arange(N)}


@pytest.mark.parametrize("name", ["hint", "crd"])
def test_a_loss_in_use_is_made_again_for_another_distiller(name):
    term = LOSSES[name]()
    first = distiller([losses.CE(), term])
    second = distiller([losses.CE(), term], student=net(seed=9))
    assert first.terms[1] is term and second.terms[1] is not term
    before = second.get_weights()
    first.fit(indexed(), verbose=0)
    assert_same(second.get_weights(), before, atol=0)


def test_pairs_that_were_chosen_for_one_pair_of_models_are_chosen_anew_for_another():
    def conv(stages, seed):
        image = x = keras.Input((8, 8, 1))
        for i in range(1, stages + 1):
            x = keras.layers.Conv2D(2, 3, padding="same", name=f"stage{i}")(x)
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
        return keras.Model(image, keras.layers.Dense(K, name=f"out{seed}")(x))

    term = losses.Attention()
    Distiller(student=conv(1, 1), teacher=conv(2, 2), losses=[term])
    again = Distiller(student=conv(3, 3), teacher=conv(3, 4), losses=[term])
    assert len(again.terms[0].pairs) == 3 and len(term.pairs) == 1


def test_a_loss_that_cannot_be_made_again_and_one_that_is_given_twice_are_refused():
    class Scaled(losses.Loss):
        def __init__(self, scale=1.0, **kwargs):
            super().__init__(**kwargs)
            self.scale = scale

        def call(self, student, teacher, labels):
            return self.scale * keras.ops.mean(keras.ops.square(student["logits"] - teacher["logits"]), -1)

    term = Scaled(3.0)
    distiller([term])
    with pytest.raises(InputError, match=r"scaled is in use in another Distiller .* get_config leaves out scale"):
        distiller([term])
    term = losses.KD()
    with pytest.raises(InputError, match="the loss kd is given twice"):
        distiller([term, term])


TAKEN = ["loss", "ce", "kd", "kd_temperature", "val_accuracy", "val_loss"]


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("road", ["metrics", "weighted_metrics"])
def test_a_metric_of_a_name_that_the_logs_have_is_refused(name, road):
    terms = [losses.CE(), losses.KD(temperature="linear(start=1, end=2, over=3)")]
    with pytest.raises(InputError, match=f"a metric is named '{name}'"):
        distiller(terms, **{"metrics": [], road: [keras.metrics.Mean(name)]})


def test_two_metrics_or_losses_of_one_name_are_refused():
    with pytest.raises(InputError, match="a metric is named 'm'"):
        distiller(
            metrics=[keras.metrics.SparseCategoricalAccuracy("m"), keras.metrics.SparseCategoricalCrossentropy("m")]
        )
    with pytest.raises(InputError, match="a loss is named 'kd_2'"):
        distiller([losses.KD(), losses.KD(), losses.KD(name="kd_2")])
    with pytest.raises(InputError, match="Keras knows no 'brier'"):
        distiller(metrics=["brier"])


@pytest.mark.parametrize(
    "key, field",
    [
        ("weight", "sample_weight"), ("weights", "sample_weight"), ("sample_weights", "sample_weight"),
        ("labels", "label"), ("target", "label"), ("y", "label"), ("Label", "label"),
        ("teacher_logits", "teacher"), ("soft_targets", "teacher"), ("teacher_probs", "teacher"),
        ("images", "image"), ("idx", "index"), ("indices", "index"),
    ],
)  # fmt: skip
def test_a_key_that_stands_for_a_field_is_refused_by_name(key, field):
    with pytest.raises(InputError, match=f"a batch has a field '{key}', which nothing reads: is '{field}' meant"):
        distiller().fit({"image": X, "label": Y, key: Y}, verbose=0)


def test_other_keys_are_let_be():
    others = ("id", "file_name", "image_id", "label_name", "image_path", "source", "split", "patient")
    d = distiller()
    batch = {"image": X, "label": Y, **{key: np.arange(N) for key in others}}
    d.fit(batch, batch_size=8, shuffle=False, verbose=0)
    assert_same(d.student.get_weights(), by_hand(range(1), 8))


# ---- what can't be trained ----


@pytest.mark.parametrize("term", [lambda: losses.KD(), LOSSES["hint"]])
def test_a_frozen_student_is_one_sentence(term):
    student = net()
    student.trainable = False
    with pytest.raises(InputError, match=r"^nothing of the student is trainable"):
        distiller([term()], student=student).fit(X, Y, verbose=0)


EMPTY = {
    "arrays": lambda: ((X[:0], Y[:0]), {}),
    "dict_of_arrays": lambda: (({"image": X[:0], "label": Y[:0]},), {}),
    "dataset": lambda: ((tf.data.Dataset.from_tensor_slices((X[:0], Y[:0])).batch(8),), {}),
    "stream": lambda: ((stream(lambda p: (X[p], Y[p])).take(5).skip(5),), {}),
    "generator": lambda: ((iter([]),), {}),
    "epochs": lambda: ((X, Y), {"epochs": 0}),
}


@pytest.mark.parametrize("form", EMPTY)
def test_an_empty_fit_is_one_sentence(form):
    data, options = EMPTY[form]()
    # Of a generator Keras says so itself, before it is read.
    kind = ValueError if form == "generator" else InputError
    sentence = r"there is nothing to train on|fit is asked for no epoch|must yield at least one batch"
    with pytest.raises(kind, match=sentence) as error:
        distiller().fit(*data, verbose=0, **options)
    assert "\n" not in str(error.value)


# ---- teachers that change ----


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_teacher_whose_weights_change_after_it_was_given_teaches_what_it_says_now(dtype):
    teacher, other = net(8, 50, norm=True), net(8, 70, norm=True)
    other.get_layer("norm").set_weights([np.full(8, v, "float32") for v in (1.5, 0.2, 0.3, 2.0)])
    d = Distiller(student=net(), teacher=teacher, losses=[losses.KD(temperature=T)], teacher_dtype=dtype)
    d.compile(keras.optimizers.SGD(0.0))
    for model in (teacher, other):
        teacher.set_weights(model.get_weights())
        got = d.fit(X, Y, batch_size=N, verbose=0).history["loss"][0]
        z_s, z_t = (np.asarray(net_(X), "float64") / T for net_ in (d.student, model))
        want = T**2 * (np.exp(log_softmax(z_t)) * (log_softmax(z_t) - log_softmax(z_s))).sum(-1).mean()
        assert got == pytest.approx(want, rel=1e-4)


# ---- what one does with a model ----


def test_weights_are_saved_and_loaded(tmp_path):
    d = distiller([losses.CE(), LOSSES["hint"]()])
    d.fit(X, Y, verbose=0)
    d.save_weights(tmp_path / "d.weights.h5")
    again = distiller([losses.CE(), LOSSES["hint"]()], student=net(seed=9))
    again.load_weights(tmp_path / "d.weights.h5")
    assert_same(again.get_weights(), d.get_weights(), atol=0)


@pytest.mark.parametrize("softmax", [False, True])
def test_export_gives_the_students_logits(softmax, tmp_path):
    student = net()
    if softmax:
        student = keras.Sequential([*student.layers, keras.layers.Softmax()])
        student.build((None, 6, 6, 1))
    d = distiller(student=student)
    d.fit(X, Y, verbose=0)
    d.export(tmp_path / "m", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_allclose(loaded.serve(X), d.predict(X, verbose=0), atol=1e-5)


def test_a_distiller_is_saved_as_keras_alone(tmp_path):
    with pytest.raises(InputError, match=r"saved as \.keras"):
        distiller().save(tmp_path / "d.h5")


def test_a_list_of_callbacks_stays_as_it_was():
    d = distiller()
    seen = []
    mine = keras.callbacks.CallbackList(
        [keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(e))], model=d
    )
    before = list(mine.callbacks)
    d.fit(X, Y, epochs=2, callbacks=mine, verbose=0)
    assert mine.callbacks == before and seen == [0, 1]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_class_weights_of_minus_one_are_left_out(jit_compile):
    """As classes of −1 are: the mean of the cross-entropy and the accuracy are over the others."""
    known = np.arange(N) % 3 > 0
    y = np.where(known[:, None], np.eye(net().output_shape[-1], dtype="float32")[Y], -1)
    d = distiller(optimizer=keras.optimizers.SGD(0.0), jit_compile=jit_compile)
    logs = d.fit(tf.data.Dataset.from_tensor_slices((X, y)).batch(N), verbose=0).history
    z_s, z_t = (np.asarray(model(X), "float64") for model in (d.student, d.teacher))
    ce = -log_softmax(z_s)[np.arange(N), Y][known].mean()
    log_t, log_s = log_softmax(z_t / T), log_softmax(z_s / T)
    kd = T**2 * (np.exp(log_t) * (log_t - log_s)).sum(-1).mean()
    assert logs["ce"][0] == pytest.approx(ce, rel=1e-5) and logs["kd"][0] == pytest.approx(kd, rel=1e-5)
    assert logs["loss"][0] == pytest.approx(ce + kd, rel=1e-5)
    assert logs["accuracy"][0] == pytest.approx((z_s.argmax(-1) == Y)[known].mean())
