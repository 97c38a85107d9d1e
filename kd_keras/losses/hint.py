"""Hints: the student's feature maps, projected, imitate the teacher's."""

from typing import Any, Literal

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses.features import FeatureLoss, FeatureProjector, mean_over_features
from kd_keras.schedules import ScheduleLike

DIRECTIONS = ("student_to_teacher", "teacher_to_student")


@keras.saving.register_keras_serializable(package="kd_keras", name="Hint")
class Hint(FeatureLoss):
    """Σ over pairs of mean (r(F_s) − F_t)², r a trained 1×1 projector for each pair.

    Args:
        weight: factor in the total, applied by the Distiller; 100 in the CIFAR-100 benchmarks, whose regressors have
            batch norm and ReLU; without these 100 diverges.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default all stages, matched from the last.
        direction: ``'student_to_teacher'`` projects the student's map (FitNets). ``'teacher_to_student'`` projects
            the teacher's map: the target is then trained itself and can collapse to a constant.
        batch_norm: whether batch norm follows the projection.
        relu: whether a ReLU follows the projection.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the projected maps are equal. The projected map is resized to the other map's grid.

    Raises:
        InputError: the direction is unknown, a tap does not exist, or is neither a map nor a vector.

    Reference: FitNets, arXiv:1412.6550, equation 3.
    """

    reads_labels = False
    takes = ("map", "vector")

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        pairs: str | None = None,
        direction: Literal["student_to_teacher", "teacher_to_student"] = "student_to_teacher",
        batch_norm: bool = False,
        relu: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        if direction not in DIRECTIONS:
            raise InputError(f"{self.name}(direction={direction!r}): known are {', '.join(DIRECTIONS)}")
        self.direction = direction
        self.batch_norm, self.relu = self._switch("batch_norm", batch_norm), self._switch("relu", relu)

    def adapter(self, source, target, name):
        if self.direction == "teacher_to_student":
            source, target = target, source
        grid = target[1:3] if len(target) == 4 else None
        projector = FeatureProjector(target[-1], grid, self.batch_norm, self.relu, name=name)
        projector.build(source)
        return projector

    def compare(self, student, teacher, adapter, training):
        source, target = (student, teacher) if self.direction == "student_to_teacher" else (teacher, student)
        return mean_over_features(ops.square(adapter(source, training=training) - target))

    def get_config(self):
        options = {"direction": self.direction, "batch_norm": self.batch_norm, "relu": self.relu}
        return {**super().get_config(), **options}
