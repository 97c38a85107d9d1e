"""Hints: the student's feature maps, projected, imitate the teacher's."""

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses import features as _features

DIRECTIONS = ("student_to_teacher", "teacher_to_student")


@keras.saving.register_keras_serializable(package="kd_keras", name="Hint")
class Hint(_features.FeatureLoss):
    """Σ over pairs of mean (r(F_s) − F_t)², r a trained 1×1 projector a pair.

    Args:
        weight: factor in the total, applied by the Distiller; 100 in the CIFAR-100 benchmarks, whose regressors have
            batch norm and ReLU: without them that much diverges.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default all stages, matched from the last.
        direction: ``'student_to_teacher'`` projects the student's map (FitNets). ``'teacher_to_student'`` projects
            the teacher's: a target that is itself trained, and so can collapse to a constant.
        batch_norm: batch norm after the projection.
        relu: ReLU after the projection.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the projected maps are equal. Where the grids differ, the projected map is resized to
        the other's.

    Raises:
        InputError: an unknown direction, a tap that does not exist, or one that is no map or vector.

    Source: FitNets, arXiv:1412.6550, equation 3.
    """

    takes = ("map", "vector")

    def __init__(
        self, *, weight=1.0, pairs=None, direction="student_to_teacher", batch_norm=False, relu=False, **kwargs
    ):
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        if direction not in DIRECTIONS:
            raise InputError(f"{self.name}(direction={direction!r}): known are {', '.join(DIRECTIONS)}")
        self.direction = direction
        self.batch_norm, self.relu = self._switch("batch_norm", batch_norm), self._switch("relu", relu)

    def adapter(self, source, target, name):
        if self.direction == "teacher_to_student":
            source, target = target, source
        grid = target[1:3] if len(target) == 4 else None
        projector = _features.FeatureProjector(target[-1], grid, self.batch_norm, self.relu, name=name)
        projector.build(source)
        return projector

    def compare(self, student, teacher, adapter, training):
        source, target = (student, teacher) if self.direction == "student_to_teacher" else (teacher, student)
        return _features.mean_over_features(ops.square(adapter(source, training=training) - target))

    def get_config(self):
        own = {"direction": self.direction, "batch_norm": self.batch_norm, "relu": self.relu}
        return {**super().get_config(), **own}
