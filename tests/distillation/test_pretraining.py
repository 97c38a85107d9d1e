"""Pretraining that some losses need, and losses that read each sample's index."""

import keras
import numpy as np
import pytest

from kd_keras import Distiller, data, losses
from kd_keras.errors import InputError
from kd_keras.models import cnn
from kd_keras.run import training
from tests.schemes.tiny import checked, records, trained, weights

SHAPE, CLASSES, COUNT = (8, 8, 1), 4, 20
RNG = np.random.default_rng(0)
SOURCE = data.ArraySource(RNG.integers(0, 256, (COUNT, *SHAPE), "uint8"), RNG.integers(0, CLASSES, COUNT))
A = "cnn(filters=(4,), dense=())"
FT = [f"--teacher={A}", "--nobaseline", "--loss=ce() + ft()", "--pretrain_epochs=2", "--epochs=2"]


def distiller(*terms, filters=(6, 8)):
    keras.utils.set_random_seed(0)
    teacher, student = (cnn.CNN(CLASSES, SHAPE, filters=each, dense=()) for each in (filters, (3, 4)))
    d = Distiller(student=student, teacher=teacher, losses=terms)
    d.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    return d


def batches(epochs, **kwargs):
    return data.batches(SOURCE, 10, training=True, epochs=epochs, **kwargs)


def assert_same_runs(run, expected):
    series, wanted = ({name: left["series"] for name, left in records(each).items()} for each in (run, expected))
    assert series == wanted
    assert all(map(np.array_equal, weights(run, "student"), weights(expected, "student")))


def moved(variables, train):
    """Which variables a training moves, by path."""
    before = {v.path: keras.ops.convert_to_numpy(v) for v in variables}
    train()
    return {v.path for v in variables if (keras.ops.convert_to_numpy(v) != before[v.path]).any()}


@pytest.mark.slow
def test_ft_trains_its_paraphraser_ahead_and_never_again():
    d = distiller(losses.CE(), losses.FT())
    teacher = [np.array(w) for w in d.teacher.weights]
    ahead = moved(d.variables, lambda: d.pretrain(batches(3), epochs=3, steps_per_epoch=2, verbose=0))
    assert ahead and all("encoder" in path or "decoder" in path or path.endswith("steps") for path in ahead)
    assert (int(d.epoch), int(d.step), int(d.optimizer.iterations)) == (0, 0, 0)
    then = moved(d.variables, lambda: d.fit(batches(1), epochs=1, steps_per_epoch=2, verbose=0))
    assert not any("encoder" in path or "decoder" in path for path in then)
    assert any("translator" in path for path in then) and any("stage1_conv1" in path for path in then)
    assert all(np.array_equal(a, b) for a, b in zip(teacher, d.teacher.weights, strict=True))


def test_ahead_of_everything_the_loss_falls():
    history = distiller(losses.FT()).pretrain(batches(30), epochs=30, steps_per_epoch=2, verbose=0).history
    assert set(history) == {"loss", "ft"} and history["loss"][-1] < 0.8 * history["loss"][0]


@pytest.mark.parametrize("name", ["ab", "fsp", "ft"])
def test_maps_in_half_precision_are_read_in_float32(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    d = distiller({"ab": losses.AB, "fsp": losses.FSP, "ft": losses.FT}[name](weight=0.0), filters=(3, 4))
    d.teacher_dtype = "bfloat16"
    seen = []
    (term,) = d.terms
    pretrain = term.pretrain

    def noted(student, teacher, labels):
        seen.extend(value.dtype.name for value in (*student.values(), *teacher.values()))
        return pretrain(student, teacher, labels)

    term.pretrain = noted
    d.pretrain(batches(1), epochs=1, steps_per_epoch=2, verbose=0)
    assert set(seen) == {"float32"}


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_the_student_is_trained_by_the_term_alone_whatever_its_weight(name):
    d = distiller(losses.CE(), losses.AB(weight=0.0) if name == "ab" else losses.FSP(weight=0.0), filters=(3, 4))
    ahead = moved(
        d.student.trainable_variables,
        lambda: d.pretrain(batches(2), epochs=2, steps_per_epoch=2, verbose=0),
    )
    assert any("stage2_conv1" in path for path in ahead) and not any(path.startswith("logits") for path in ahead)


def test_nothing_to_train_ahead_is_told(tmp_path):
    with pytest.raises(InputError, match="no loss needs pretraining"):
        distiller(losses.CE(), losses.KD()).pretrain(batches(1))
    with pytest.raises(InputError, match="--pretrain_epochs=1 but no loss of --loss needs pretraining here: ft, ab"):
        checked(tmp_path, f"--teacher={A}", "--pretrain_epochs=1")


@pytest.mark.slow
def test_a_run_that_was_killed_after_what_is_ahead_does_not_repeat_it(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", *FT)
    asked = []
    pretrain, fit = Distiller.pretrain, Distiller.fit

    def killed(self, *args, **kwargs):
        asked.append("pretrain")
        pretrain(self, *args, **kwargs)
        raise KeyboardInterrupt

    # Once before its result is stored, and once after it.
    monkeypatch.setattr(Distiller, "pretrain", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *FT)
    monkeypatch.setattr(Distiller, "pretrain", lambda *a, **k: asked.append("again") or pretrain(*a, **k))

    def stopped(self, *args, **kwargs):
        if not self.is_pretraining:
            raise KeyboardInterrupt
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(Distiller, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *FT)
    monkeypatch.setattr(Distiller, "fit", fit)
    again = trained(tmp_path, *FT)
    assert asked == ["pretrain", "again"]
    assert_same_runs(again, whole)


def test_ft_is_refused_where_nothing_trains_it_ahead(tmp_path):
    d = distiller(losses.CE(), losses.FT())
    with pytest.raises(InputError, match=r"ft needs pretraining first: call distiller.pretrain"):
        d.fit(batches(1), epochs=1, steps_per_epoch=2, verbose=0)
    with pytest.raises(InputError, match="--loss has ft, which needs pretraining: give --pretrain_epochs"):
        checked(tmp_path, f"--teacher={A}", "--loss=ce() + ft()")
    with pytest.raises(InputError, match=r"ft takes one whole teacher.*offline"):
        checked(tmp_path, "--teacher=none", f"--scheme=mutual(peers={A})", "--loss=ce() + ft()")


def test_weights_are_refused_beside_what_compares_samples():
    d = distiller(losses.CE(), losses.SP(), losses.DIST())
    images, classes = SOURCE.read(np.arange(COUNT))
    images = np.float32(images)
    with pytest.raises(InputError, match="don't support sample weights: sp, dist"):
        d.fit(images, np.array(classes), class_weight={0: 2.0}, verbose=0)
    with pytest.raises(InputError, match="leave out sample_weight"):
        d.fit(images, np.array(classes), sample_weight=np.ones(COUNT), verbose=0)
    distiller(losses.CE(), losses.KD()).fit(images, np.array(classes), sample_weight=np.ones(COUNT), verbose=0)


@pytest.mark.slow
def test_crd_needs_batches_that_number_the_samples():
    d = distiller(losses.CE(), losses.CRD(samples=COUNT, negatives=8, size=4))
    assert d.needs_index
    with pytest.raises(InputError, match=r"reads each sample's index.*with_index=True"):
        d.fit(batches(1), epochs=1, steps_per_epoch=2, verbose=0)
    # In any of the forms that a batch has.
    images, classes = SOURCE.read(np.arange(COUNT))
    whole = {"image": np.float32(images), "index": np.arange(COUNT)}
    d.fit(whole, np.array(classes), verbose=0)
    d = distiller(losses.CE(), losses.CRD(samples=COUNT, negatives=8, size=4))
    (bank,) = (v for v in d.variables if v.path.endswith("student_bank"))
    before = np.array(bank)
    seen = [int(i) for batch in batches(1, with_index=True).take(1) for i in batch["index"]]
    d.fit(batches(1, with_index=True).take(1), epochs=1, steps_per_epoch=1, verbose=0)
    rows = {int(i) for i in np.unique(np.nonzero((np.array(bank) != before).any(axis=1))[0])}
    assert rows == set(seen)
    np.testing.assert_allclose(np.linalg.norm(np.array(bank)[seen], axis=1), 1, rtol=1e-5)


@pytest.mark.slow
def test_a_run_numbers_its_samples_and_its_bank_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    flags = [f"--teacher={A}", "--nobaseline", "--loss=ce() + crd(negatives=8, size=4)", "--epochs=2"]
    whole = trained(tmp_path / "whole", *flags)
    begin = training.StopAtNaN.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 1 and "crd" in self.model.term_names:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.StopAtNaN, "on_epoch_begin", on_epoch_begin)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *flags)
    monkeypatch.undo()
    assert_same_runs(trained(tmp_path, *flags), whole)
