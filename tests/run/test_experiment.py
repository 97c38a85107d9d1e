"""What an experiment hands to a scheme follows its flags and the device."""

import keras
import pytest

from kd_keras import data
from kd_keras.errors import InputError
from kd_keras.run import config, hardware, teaching, training
from kd_keras.run.experiment import Experiment


@pytest.fixture
def made(tmp_path):
    policy = keras.config.dtype_policy()

    def make(*flags):
        flags = ("--data=digits()", "--student=cnn(filters=(4,))", f"--workdir={tmp_path / 'w'}", *flags)
        one = Experiment(config.read(["kd_keras", *flags]))
        return one, one.distiller(one.model(one.config.student), one.config.baseline_loss, epochs=1)

    yield make
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--student=cnn(filtres=(4,))", "filtres"),
        ("--teacher=cnn() + resnet(deep=8)", "deep"),
        ("--loss=ce() + kd(temp=4)", "temp"),
        ("--teacher_loss=ce(smoothing=0.1)", "smoothing"),
        ("--baseline_loss=ce(smoothing=0.1)", "smoothing"),
    ],
)
def test_unknown_keys_are_told_before_the_data_are_read(made, flag, key):
    with pytest.raises(InputError, match=f"has no key '{key}'"):
        made("--data=folder(path='no/such')", flag)


def test_compile_settings_are_the_devices_unless_named(made):
    _, plain = made()
    assert (plain.jit_compile, plain.steps_per_execution) == (False, 1)
    # 1 168 images are 19 batches of 64.
    _, named = made("--jit_compile=true", "--steps_per_execution=19")
    assert (named.jit_compile, named.steps_per_execution) == (True, 19)
    with pytest.raises(
        InputError, match="--steps_per_execution=3 does not divide the 19 steps of an epoch: give 1, 19"
    ):
        made("--steps_per_execution=3")


def test_the_devices_choices_are_asked_for(made, monkeypatch):
    monkeypatch.setattr(hardware, "jit_compile", lambda strategy: True)
    monkeypatch.setattr(hardware, "steps_per_execution", lambda *_: 5)
    monkeypatch.setattr(hardware, "precision", lambda: "mixed_bfloat16")
    _, distiller = made("--precision=auto")
    assert (distiller.jit_compile, distiller.steps_per_execution) == (True, 5)
    assert distiller.student.get_layer("pooled").compute_dtype == "bfloat16"
    assert distiller.student.output.dtype == "float32"
    _, named = made("--jit_compile=false", "--steps_per_execution=1", "--precision=float32")
    assert (named.jit_compile, named.steps_per_execution) == (False, 1)
    assert named.student.get_layer("pooled").compute_dtype == "float32"


def test_views_are_made_where_a_cache_is_asked_for(made):
    assert made()[0].views is None
    experiment, distiller = made("--cache_views=3", "--augment=flip()", "--cache_seed=7", "--teacher=cnn()")
    assert (experiment.views.count, experiment.views.seed, len(experiment.views)) == (
        3,
        7,
        len(experiment.splits.train),
    )
    assert teaching.cache(experiment, distiller) is None  # its losses read no teacher
    teacher = experiment.model(experiment.config.teacher[0])
    student = experiment.distiller(distiller.student, experiment.config.loss, teacher=teacher, epochs=1)
    assert teaching.cache(experiment, student).taps == ("logits",)


def test_several_steps_a_call_are_whole_epochs(made, tmp_path):
    experiment, distiller = made("--train_examples=384", "--steps_per_execution=3", "--batch_size=64")
    splits = experiment.splits
    stream = lambda first: data.batches(splits.train, 64, training=True, epochs=4, initial_epoch=first)  # noqa: E731
    options = {"epochs": 4, "steps_per_epoch": 6, "checkpoint": tmp_path / "c.npz"}
    history = training.fit(distiller, stream, data.batches(splits.val, 64), **options)
    assert history.epochs == 4 and int(keras.ops.convert_to_numpy(distiller.step)) == 24


def test_the_student_without_a_teacher_sees_the_same_views(made, monkeypatch):
    experiment, distiller = made("--cache_views=2", "--augment=flip()", "--teacher=cnn()", "--tracking=none")
    seen = {}
    monkeypatch.setattr(training, "fit", lambda *args, **kwargs: seen.update(stream=args[1]) or training.History())
    losses = experiment.config.baseline_loss
    for recipe in (None, experiment.teacher_recipe):
        experiment._fit("baseline", distiller.student, losses, None, 3, recipe)
        images = next(iter(seen["stream"](2)))[0].numpy()
        own = data.batches(
            experiment.splits.train,
            64,
            training=True,
            epochs=3,
            initial_epoch=2,
            augment=experiment.augment,
            views=experiment.views if recipe is None else None,
        )
        assert (images == next(iter(own))[0].numpy()).all()
