"""One model's training: what is kept, what goes on, what stops."""

import json
import pathlib
import tempfile

import keras
import numpy as np
import pytest

from kd_keras import Distiller, data, losses, schedules, spec
from kd_keras.errors import InputError
from kd_keras.models import cnn
from kd_keras.run import training

EPOCHS = 4


@pytest.fixture(scope="module")
def splits():
    from kd_keras.data import digits

    splits = digits.Digits()
    return data.take(splits.train, 200, 0), splits.val


def make(optimizer="adam", **kwargs):
    keras.utils.set_random_seed(1)
    student = cnn.CNN(10, (8, 8, 1), **{"filters": (4,), "dense": (16,), "dropout": 0.3, **kwargs})
    distiller = Distiller(student=student, losses=[losses.CE()])
    distiller.compile(optimizer=optimizer, metrics=["accuracy"])
    return distiller


def fit(distiller, splits, checkpoint, **kwargs):
    train, val = splits

    def stream(initial_epoch):
        return data.batches(train, 64, training=True, epochs=EPOCHS, initial_epoch=initial_epoch)

    steps = data.steps_per_epoch(len(train), 64)
    arguments = {"epochs": EPOCHS, "steps_per_epoch": steps, "checkpoint": checkpoint, **kwargs}
    return training.fit(distiller, stream, data.batches(val, 64), **arguments)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(splits, tmp_path):
    whole = make()
    history = fit(whole, splits, tmp_path / "whole.npz")
    with pytest.raises(KeyboardInterrupt):
        fit(make(), splits, tmp_path / "c.npz", callbacks=[Stop()])
    resumed = make()
    # Another generator state: dropout has to be taken from the checkpoint, not from the fresh model.
    for variable in resumed.variables:
        if "seed_generator" in variable.path:
            variable.assign(np.array([7, 7], "uint32"))
    again = fit(resumed, splits, tmp_path / "c.npz")
    assert again.series == history.series and again.best_epoch == history.best_epoch
    for a, b in zip(whole.student.weights, resumed.student.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_best_epoch_is_kept_and_is_what_validation_says(splits, tmp_path):
    distiller = make(optimizer=keras.optimizers.SGD(schedule()))
    history = fit(distiller, splits, tmp_path / "c.npz")
    accuracy = history.series["val_accuracy"]
    assert history.best_epoch == int(np.argmax(accuracy)) < EPOCHS - 1
    seen = distiller.evaluate(data.batches(splits[1], 64), return_dict=True, verbose=0)
    assert seen["accuracy"] == pytest.approx(accuracy[history.best_epoch])


def test_a_training_ends_where_it_has_not_got_better(splits, tmp_path):
    """The rate explodes in the third epoch; the second is the best, and is what is left."""

    def forgetful():
        return make(keras.optimizers.SGD(schedule()))

    whole = fit(forgetful(), splits, tmp_path / "whole.npz")
    assert whole.best_epoch == 1 and whole.epochs == EPOCHS == 4
    patient = forgetful()
    history = fit(patient, splits, tmp_path / "c.npz", patience=1)
    assert history.epochs == 3 and history.best_epoch == 1
    assert history.series["val_loss"] == whole.series["val_loss"][:3]
    seen = patient.evaluate(data.batches(splits[1], 64), return_dict=True, verbose=0)
    assert seen["accuracy"] == pytest.approx(history.series["val_accuracy"][1])
    # Begun again, it is over; with more patience it goes on.
    assert fit(forgetful(), splits, tmp_path / "c.npz", patience=1).epochs == 3
    assert fit(forgetful(), splits, tmp_path / "c.npz", patience=2).series["val_loss"] == whole.series["val_loss"]


def averaging():
    return make(keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.8))


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def test_moving_averages_are_validated_and_kept(splits, tmp_path):
    """ā ← 0.8 ā + 0.2 w after each step, from the first step's weights."""
    steps, epochs = [], []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights = values(self.model.student.trainable_variables)
            before = steps[-1] if steps else weights
            steps.append([0.8 * a + 0.2 * w for a, w in zip(before, weights, strict=True)])

        def on_epoch_end(self, epoch, logs=None):
            epochs.append((steps[-1], values(self.model.student.weights)))

    distiller = averaging()
    history = fit(distiller, splits, tmp_path / "c.npz", callbacks=[Seen()])
    averages, raw = epochs[history.best_epoch]
    kept = values(distiller.student.trainable_variables)
    for a, b in zip(kept, averages, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(values(distiller.student.weights), raw, strict=True))
    seen = distiller.evaluate(data.batches(splits[1], 64), return_dict=True, verbose=0)
    assert seen["loss"] == pytest.approx(history.series["val_loss"][history.best_epoch], rel=1e-5)


def test_moving_averages_change_no_training_and_outlive_an_interruption(splits, tmp_path):
    plain = fit(make(keras.optimizers.SGD(0.05, momentum=0.9)), splits, tmp_path / "plain.npz")
    whole = averaging()
    history = fit(whole, splits, tmp_path / "whole.npz")
    assert history.series["loss"] == plain.series["loss"] and history.series["val_loss"] != plain.series["val_loss"]
    with pytest.raises(KeyboardInterrupt):
        fit(averaging(), splits, tmp_path / "c.npz", callbacks=[Stop()])
    resumed = averaging()
    assert fit(resumed, splits, tmp_path / "c.npz").series == history.series
    for a, b in zip(values(whole.student.weights), values(resumed.student.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def schedule():
    """Learns, then forgets: the best epoch is not the last."""
    return keras.optimizers.schedules.PiecewiseConstantDecay([4, 8], [0.05, 0.05, 30.0])


def quick():
    """Learns within the 4 steps of an epoch."""
    return make(keras.optimizers.Adam(0.01))


@pytest.fixture(scope="module")
def halfway(splits):
    """(step, accuracy): one in the middle of an epoch but the first, where validation accuracy is as high as never."""
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            seen.append(float(logs["accuracy"]))

    with tempfile.TemporaryDirectory() as folder:
        fit(quick(), splits, pathlib.Path(folder, "c.npz"), callbacks=[Seen()], stop=training.Stop(1.0, 2))
    # Steps 2, 4 (the epoch's end), 6, 8 …
    assert len(seen) == 2 * EPOCHS
    return next((2 * i + 2, seen[i]) for i in (2, 4, 6) if seen[i] > max(seen[:i]))


def test_a_training_ends_at_the_step_that_reaches_the_accuracy(splits, halfway, tmp_path):
    step, accuracy = halfway
    distiller = quick()
    history = fit(distiller, splits, tmp_path / "c.npz", stop=training.Stop(accuracy, 2))
    assert history.stop == {"step": step, "val_accuracy": accuracy}
    assert int(keras.ops.convert_to_numpy(distiller.step)) == step
    # The epoch that it ends in is the last and the kept one, with these weights.
    assert history.epochs == step // 4 + 1 and history.best_epoch == step // 4
    assert history.series["val_accuracy"][-1] == accuracy
    seen = distiller.evaluate(data.batches(splits[1], 64), return_dict=True, verbose=0)
    assert seen["accuracy"] == pytest.approx(accuracy)


def test_the_end_of_an_epoch_is_a_check(splits, halfway, tmp_path):
    history = fit(quick(), splits, tmp_path / "c.npz", stop=training.Stop(halfway[1] - 0.05, 1000))
    assert history.stop["step"] % 4 == 0 and history.stop["val_accuracy"] >= halfway[1] - 0.05
    assert history.epochs == history.stop["step"] // 4


def test_checks_change_nothing_where_the_accuracy_is_not_reached(splits, tmp_path):
    plain = fit(quick(), splits, tmp_path / "a.npz")
    checked = fit(quick(), splits, tmp_path / "b.npz", stop=training.Stop(1.0, 1))
    assert checked.series == plain.series and checked.stop is None


@pytest.mark.slow
def test_a_stopped_training_that_was_interrupted_ends_in_the_same_step(splits, halfway, tmp_path):
    step, stop = halfway[0], training.Stop(halfway[1], 2)
    whole = quick()
    fit(whole, splits, tmp_path / "whole.npz", stop=stop)

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(keras.ops.convert_to_numpy(self.model.step)) == step - 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(quick(), splits, tmp_path / "c.npz", callbacks=[Interrupt()], stop=stop)
    for name in ("c.npz", "whole.npz"):
        # The second time it is found ended, whatever epochs are left.
        resumed = quick()
        history = fit(resumed, splits, tmp_path / name, stop=stop)
        assert history.stop["step"] == step and history.epochs == step // 4 + 1
        for a, b in zip(whole.student.weights, resumed.student.weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_history_prefers_accuracy_then_loss():
    history = training.History()
    assert history.add({"loss": 1, "val_accuracy": 0.5, "val_loss": 1.0})
    assert not history.add({"loss": 1, "val_accuracy": 0.4, "val_loss": 0.1})
    assert history.add({"loss": 1, "val_accuracy": 0.5, "val_loss": 0.9})
    assert not history.add({"loss": 1, "val_accuracy": 0.5, "val_loss": 0.9})
    assert history.best_epoch == 2 and history.epochs == 4


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(splits, tmp_path):
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([6], [0.01, 1e30])
    path = tmp_path / "c.npz"
    with pytest.raises(InputError, match=r"at step \d+ of epoch 3, learning rate 1e\+30, in ce"):
        fit(make(keras.optimizers.SGD(rate)), splits, path)
    with np.load(path) as file:
        stored = json.loads(str(file["history"]))
        kept = [file[name] for name in file.files if name != "history"]
    assert len(stored["series"]["loss"]) == 2
    assert all(np.isfinite(value).all() for value in kept)


def test_checkpoints_that_do_not_fit_are_refused(splits, tmp_path):
    path = tmp_path / "c.npz"
    fit(make(), splits, path)
    with pytest.raises(InputError, match="another model"):
        fit(make(filters=(8,)), splits, path)
    path.write_bytes(b"PK half a file")
    with pytest.raises(InputError, match="can't be read"):
        fit(make(), splits, path)


def test_optimizers_are_keras_own(tmp_path):
    made = training.optimizer(
        spec.parse("sgd(momentum=0.9, nesterov=True, global_clipnorm=1.0)"),
        schedules.get("cosine(start=0.1)"),
        epochs=10,
        steps_per_epoch=5,
    )
    assert isinstance(made, keras.optimizers.SGD) and made.momentum == 0.9 and made.global_clipnorm == 1.0
    assert float(made._learning_rate(25)) == pytest.approx(0.05)
    adamw = training.optimizer(spec.Spec("AdamW"), schedules.get(0.1), epochs=1, steps_per_epoch=1)
    assert isinstance(adamw, keras.optimizers.AdamW)


@pytest.mark.parametrize(
    ("text", "message"),
    [("lamm()", "did you mean 'lamb'"), ("sgd(learning_rate=1)", "learning_rate"), ("sgd(momentum=2.0)", "momentum")],
)
def test_optimizers_that_can_not_be_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        training.optimizer(spec.parse(text), schedules.get(0.1), epochs=1, steps_per_epoch=1)
