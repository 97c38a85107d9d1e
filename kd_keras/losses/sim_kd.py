"""SimKD: the student takes over the teacher's classifier and learns the features that it expects."""

from typing import Any

import keras
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError
from kd_keras.losses.features import FeatureLoss, batch_norm_layer, mean_over_features, on_one_grid, require_tap
from kd_keras.schedules import ScheduleLike

_TAP = "sim_kd"


@keras.saving.register_keras_serializable(package="kd_keras", name="SimKD")
class SimKD(FeatureLoss):
    """mean (projector(F_s) − F_t)² of the last stages' maps, used without cross-entropy and soft targets.

    The student *changes*: its backbone, the projector (1×1, 3×3, 1×1 convolutions with batch norm and ReLU) and the
    teacher's classifier, which is frozen, become one model. That model is trained, evaluated and exported:
    `Distiller.student`.

    Args:
        weight: factor in the total, applied by the Distiller; 1, alone.
        factor: the teacher's channels divided by those inside the projector.
        pairs: ``'stage3:stage3'``, student:teacher, one pair; by default the last stage of each.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the projected map is the teacher's. Both are brought to the smaller grid: the student's map
        by average pooling, the teacher's by resizing.

    Raises:
        InputError: there is no teacher when the Distiller is made, a model is not functional, the classifier does not
            take maps of the student's grid, or several pairs are given.

    Reference: Chen et al., arXiv:2203.14001, equation 2 and section 3.2.
    """

    reads_labels = False

    def __init__(self, *, weight: ScheduleLike = 1.0, factor: int = 2, pairs: str | None = None, **kwargs: Any) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.factor = self._count("factor", factor)
        if self.pairs is not None and len(self.pairs) > 1:
            raise InputError(f"{self.name} projects one pair of maps, and {len(self.pairs)} are given: give one")

    def default_pairs(self, student, teacher):
        return super().default_pairs(student, teacher)[-1:]

    def taps(self, student, teacher):
        if self.pairs is None and teacher is not None:
            self.pairs = self.default_pairs(student, teacher)
        if _TAP not in student or self.pairs is None:
            return (), ()
        if teacher is not None:
            require_tap("teacher", self.pairs[0][1], teacher)
        return (_TAP,), (self.pairs[0][1],)

    def build(self, student_shape, teacher_shape, labels_shape=None):
        self.taps(list(student_shape), list(teacher_shape))
        self._shapes = student_shape, teacher_shape
        self.built = True

    def call(self, student, teacher, labels, training=None):
        s, t = on_one_grid(student[_TAP], teacher[self.pairs[0][1]])
        return mean_over_features(ops.square(s - t))

    def adapted(self, student, teacher):
        if graph.is_graph(student) and any(layer.name == _TAP for layer in student.layers):
            return student
        if teacher is None:
            raise InputError(f"{self.name} puts the teacher's classifier on the student: give Distiller the teacher")
        names = []
        for whose, model in (("student", student), ("teacher", teacher)):
            if not graph.is_graph(model) or len(model.outputs) != 1:
                raise InputError(f"{self.name} needs a functional {whose}: its layers are taken apart")
            names.append([layer.name for layer in model.layers])
        if self.pairs is None:
            self.pairs = self.default_pairs(*names)
        s, t = self.pairs[0]
        require_tap("student", s, names[0])
        require_tap("teacher", t, names[1])
        features, target = student.get_layer(s).output, teacher.get_layer(t).output
        self._check(s, tuple(features.shape), t, tuple(target.shape))
        if any(map(graph.is_channels_first, (features, target))):
            raise InputError(
                f"{self.name} puts layers on maps (B, H, W, C), and a model has data_format channels_first"
            )
        x = self._projected(features, target)
        logits = _classifier(self.name, teacher, target, x)
        return keras.Model(student.inputs[0], logits, name=student.name)

    def _projected(self, features, target):
        channels = target.shape[-1]
        grid = tuple(min(sizes) for sizes in zip(features.shape[1:3], target.shape[1:3], strict=True))
        x = features
        if tuple(x.shape[1:3]) != grid:
            # Average pooling, a stock layer that edge devices run; they do not run antialiased resizing.
            sides = list(zip(x.shape[1:3], grid, strict=True))
            if any(size % target for size, target in sides):
                raise InputError(
                    f"{self.name}: the student's grid {tuple(x.shape[1:3])} is no multiple of the teacher's {grid}: "
                    "name maps by pairs='…:…' whose grids are"
                )
            pool = tuple(size // target for size, target in sides)
            x = keras.layers.AveragePooling2D(pool, name=f"{_TAP}_pool")(x)
        inside = max(1, channels // self.factor)
        for i, (filters, size) in enumerate(((inside, 1), (inside, 3), (channels, 1))):
            last = i == 2
            x = keras.layers.Conv2D(filters, size, padding="same", use_bias=False, name=f"{_TAP}_conv{i + 1}")(x)
            x = batch_norm_layer(name=f"{_TAP}_bn{i + 1}", dtype=None)(x)
            x = keras.layers.ReLU(name=_TAP if last else f"{_TAP}_relu{i + 1}")(x)
        return x

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def _classifier(name, teacher, target, x):
    """The teacher's layers that follow the map ``target``, copied, frozen and applied to ``x``."""
    try:
        head = keras.Model(target, teacher.outputs[0], name="classifier")
    except ValueError as error:  # Keras' error where the output depends on other inputs too
        raise InputError(
            f"{name}: the teacher's classifier reads more than that map, as of a transformer its class token: take a "
            "teacher that pools its map, such as vit(pool='mean')"
        ) from error
    try:
        copy = keras.models.clone_model(head, input_tensors=keras.Input(x.shape[1:], name="map"))
    # A layer's own code may raise anything for a shape that it does not take.
    except Exception as error:
        raise InputError(
            f"{name}: the teacher's classifier takes maps of {tuple(target.shape[1:])}, not of {tuple(x.shape[1:])}: "
            "it has to pool over the grid, or the student's map has to be as large"
        ) from error
    copy.set_weights(head.get_weights())
    copy.trainable = False
    return copy(x)
