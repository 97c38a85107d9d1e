"""Runs of a scheme in a second or two: real training, nothing measured."""

from kd_keras import spec
from kd_keras.run import config
from kd_keras.run.experiment import Experiment

TINY = [
    *("--data=digits()", "--train_examples=100", "--epochs=1", "--student=cnn(filters=(2,), dense=())"),
    *("--loss=ce() + kd()", "--tracking=none", "--export=none", "--progress=none", "--teacher_dtype=float32"),
]


def checked(tmp_path, *flags):
    """(scheme, experiment), checked but not run."""
    experiment = Experiment(config.read(["kd_keras", *TINY, f"--workdir={tmp_path / 'w'}", *flags]))
    scheme = spec.build("kd_keras.schemes", experiment.config.scheme)
    scheme.check(experiment)
    return scheme, experiment


def trained(tmp_path, *flags):
    """What the scheme's ``run`` returns."""
    scheme, experiment = checked(tmp_path, *flags)
    config.claim_workdir(experiment.config)
    experiment.begin()
    return scheme.run(experiment)
