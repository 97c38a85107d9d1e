"""Uses every public name as a user's typed code does; checked by mypy in test_public_api.py, never run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, assert_type

import numpy as np

from kd_keras import (
    Distiller,
    InputError,
    Taps,
    TeacherCache,
    TeacherInputs,
    compress,
    data,
    distill,
    hinton,
    losses,
    models,
    recipes,
    schedules,
    teacher_outputs,
    testing,
    unpack_batch,
)


class MyLoss(losses.Loss):
    def __init__(self, *, scale: float = 1.0, weight: schedules.ScheduleLike = 1.0, name: str | None = None) -> None:
        super().__init__(weight=weight, name=name)
        self.scale = scale

    def call(self, student: Mapping[str, Any], teacher: Mapping[str, Any], labels: Any) -> Any:
        return self.scale * (student["logits"] - teacher["logits"])


class MySource(data.Source):
    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = np.asarray(labels, np.int32)
        self.image_shape = (8, 8, 1)


def every_loss() -> list[losses.Loss]:
    bases: list[type[losses.Loss]] = [losses.LogitLoss, losses.ResponseLoss, losses.FeatureLoss, losses.RelationalLoss]
    assert bases
    assert_type(losses.KD(temperature=4.0).weight, schedules.Schedule)
    assert_type(hinton(alpha=0.5), list[losses.Loss])
    return [
        *hinton(alpha=0.9, temperature=schedules.linear(start=4.0, end=1.0)),
        *losses.hinton(),
        MyLoss(weight="linear(start=1, end=0, over=3)"),
        losses.AB(margin=1.0),
        losses.Attention(weight=1000.0),
        losses.BCE(label_smoothing=0.1),
        losses.BinaryKD(temperature=2.0),
        losses.CC(gamma=0.4, order=2),
        losses.CE(label_smoothing=0.1),
        losses.CRD(samples=100, negatives=10),
        losses.DIST(beta=1.0, gamma=1.0),
        losses.DKD(alpha=1.0, beta=8.0),
        losses.FSP(pairs="stage1:stage1,stage2:stage2"),
        losses.FT(rate=0.5, power=1),
        losses.Hint(direction="student_to_teacher"),
        losses.KD(temperature=4.0, weight=0.9),
        losses.LED(classes=100.0, pairs="stage3:stage3"),
        losses.MLKD(temperatures=(2.0, 3.0)),
        losses.NKD(gamma=1.5),
        losses.NST(),
        losses.OFD(),
        losses.PKT(),
        losses.RKD(distance=25.0, angle=50.0),
        losses.ReviewKD(width=256),
        losses.SP(),
        losses.SimKD(factor=2),
        losses.SoftCE(temperature=1.0),
        losses.TeacherFree(kind="reg"),
        losses.VID(),
    ]


def every_model(splits: data.Splits) -> list[Any]:
    shape = splits.image_shape
    return [
        models.AlexNet(num_classes=10, input_shape=shape, width=0.5),
        models.CNN(num_classes=10, input_shape=shape, filters=(8, 16)),
        models.DenseNet(num_classes=10, input_shape=shape, depth=22),
        models.Hub(num_classes=10, input_shape=shape, preset="resnet_18_imagenet"),
        models.MobileNet(num_classes=10, input_shape=shape, version="v2"),
        models.ResNet(num_classes=10, input_shape=shape, depth=20),
        models.Saved(num_classes=10, input_shape=shape, path="teacher.keras"),
        models.ShuffleNet(num_classes=10, input_shape=shape),
        models.VGG(num_classes=10, input_shape=shape, depth=8),
        models.ViT(num_classes=10, input_shape=shape, patch=4),
        models.WideResNet(num_classes=10, input_shape=shape, depth=16, width=1),
    ]


def every_data_set() -> list[data.Splits]:
    images = np.zeros((10, 8, 8, 1), np.uint8)
    memory = data.ArraySource(images, np.arange(10))
    sources: list[data.Source] = [memory, data.FileSource(["a.png"], [0], (8, 8, 1)), data.take(memory, 5, seed=0)]
    assert sources
    few = data.keep_labels(memory, 10, seed=0)
    sources += [data.labelled(few), data.join(few, data.without_labels(memory))]
    data.batches(memory, 2, training=True, augment=data.augmentations("flip()"))
    assert_type(data.steps_per_epoch(len(memory), 2), int)
    data.Views(memory, 2)
    assert_type(data.Digits().num_classes, int)
    assert_type(data.doubts(data.Digits()), list[str])
    assert_type(data.lookalikes(data.Digits()), list[str])
    return [
        data.CIFAR10(),
        data.CIFAR100(coarse=True),
        data.ChestXray("folder"),
        data.DigitPairs(repeats=2),
        data.Digits(seed=1),
        data.FashionMNIST(),
        data.Folder("folder", image_size=64),
        data.MURA("folder"),
        data.MedMNIST("file.npz"),
        data.TFDS("mnist"),
        data.Splits(memory, memory, memory, class_names=("a",), image_shape=(8, 8, 1)),
    ]


def compressed(student: Any) -> Any:
    steps: list[compress.Step] = [compress.Prune(sparsity=0.8), compress.Cluster(clusters=16), compress.QAT()]
    compress.imitate(student, steps)
    prepared: compress.Prepared = compress.prepare(student, steps[0], steps=100)
    return prepared.finish()


def train(splits: data.Splits) -> None:
    teacher, student = every_model(splits)[:2]
    try:
        inputs = TeacherInputs(size=8, channels=1, scaling="-1..1")
        distiller = Distiller(student=student, teacher=teacher, losses=every_loss(), teacher_inputs=inputs)
    except InputError as error:
        raise SystemExit(str(error)) from error
    distiller.compile("adam")
    taps: Any = Taps
    cache: Any = TeacherCache
    outputs: np.ndarray = teacher_outputs(np.zeros((2, 3)), classes=3)[0]
    unpack_batch({"image": 1}), outputs, taps, cache, losses.check, losses.from_spec
    schedules.warmup(to=schedules.cosine(start=1.0, end=0.0), over=5)
    schedules.complement(schedules.exponential_decay(start=1.0, rate=0.9))
    schedules.constant(1.0)(epoch=0, step=0)
    result = distill(student, teacher, (np.zeros((9, 8, 8, 1), np.uint8), np.zeros(9, int)), epochs=2)
    assert_type(recipes.settings("few_labels", epochs=3), dict[str, Any])
    path: pathlib.Path = result.export("int8", "student.tflite")
    result.student.summary(), result.table[0], path


def check() -> None:
    testing.check_loss(MyLoss())
    testing.check_model(models.CNN, num_classes=3)
    testing.check_data(data.Digits())
