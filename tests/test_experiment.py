"""What an experiment hands to a scheme follows its flags and the device."""

import keras
import pytest

from kd_keras import config, device
from kd_keras.experiment import Experiment


@pytest.fixture
def made(tmp_path):
    policy = keras.config.dtype_policy()

    def make(*flags):
        flags = ("--data=digits()", "--student=cnn(filters=(4,))", f"--workdir={tmp_path / 'w'}", *flags)
        one = Experiment(config.read(["kd_keras", *flags]))
        return one, one.distiller(one.model(one.config.student), one.config.baseline_loss, epochs=1)

    yield make
    keras.config.set_dtype_policy(policy)


def test_compile_settings_are_the_devices_unless_named(made):
    _, plain = made()
    assert (plain.jit_compile, plain.steps_per_execution) == (False, 1)
    _, named = made("--jit_compile=true", "--steps_per_execution=3")
    assert (named.jit_compile, named.steps_per_execution) == (True, 3)


def test_the_devices_choices_are_asked_for(made, monkeypatch):
    monkeypatch.setattr(device, "jit_compile", lambda strategy: True)
    monkeypatch.setattr(device, "steps_per_execution", lambda: 5)
    monkeypatch.setattr(device, "precision", lambda: "mixed_bfloat16")
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
    assert experiment.cache(distiller) is None  # its losses read no teacher
    teacher = experiment.model(experiment.config.teacher)
    student = experiment.distiller(distiller.student, experiment.config.loss, teacher=teacher, epochs=1)
    assert experiment.cache(student).taps == ("logits",)
