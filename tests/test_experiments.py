"""Every shipped flagfile is read, its parts are built, and it is run, shrunk."""

import pathlib

import pytest

from kd_keras import config, run, spec

FLAGFILES = sorted((pathlib.Path(__file__).parent.parent / "experiments").glob("*.flags"))
#: What each data set gives, so that its models can be built where it can't be downloaded.
SHAPES = {"digits": (10, (8, 8, 1)), "cifar10": (10, (32, 32, 3)), "cifar100": (100, (32, 32, 3))}
SHAPES["fashion_mnist"] = (10, (28, 28, 1))


def test_there_are_flagfiles():
    assert {"digits", "cifar_resnet", "fashion_mnist"} <= {path.stem for path in FLAGFILES}


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_its_parts_are_built(path):
    from kd_keras import Distiller, training

    settings = config.read(["kd_keras", f"--flagfile={path}"])
    spec.check("kd_keras.data", settings.data)
    num_classes, input_shape = SHAPES[settings.data.name]
    given = {"num_classes": num_classes, "input_shape": input_shape}
    teacher = spec.build("kd_keras.models", settings.teacher[0], **given)
    student = spec.build("kd_keras.models", settings.student, **given)
    assert student.count_params() < teacher.count_params()
    losses = [spec.build("kd_keras.losses", one) for one in settings.loss]
    Distiller(student=student, teacher=teacher, losses=losses)
    training.optimizer(settings.optimizer, settings.learning_rate, epochs=settings.epochs, steps_per_epoch=10)
    for one in settings.augment:
        spec.build("kd_keras.data._augment", one)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_its_header_tells_how_and_what(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Command:", "Hardware:", "Time:", "Result:"):
        assert any(word in line for line in header), word


@pytest.mark.slow
@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_it_runs_shrunk(path, tmp_path):
    flags = ["--data=digits()", "--epochs=1", "--teacher_epochs=1", "--train_examples=128", f"--workdir={tmp_path}"]
    assert run.main(["kd_keras", f"--flagfile={path}", *flags]) == 0
    assert (tmp_path / "student_int8.tflite").exists()
