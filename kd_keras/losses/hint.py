"""Hints: the student's feature maps, projected, imitate the teacher's."""

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses import _base, _features

DIRECTIONS = ("student_to_teacher", "teacher_to_student")


@keras.saving.register_keras_serializable(package="kd_keras", name="Hint")
class Hint(_base.DistillationLoss):
    """Σ over pairs of mean (r(F_s) − F_t)², r a trained 1×1 projector a pair.

    Args:
        weight: factor in the total, applied by the Distiller; 100 in the CIFAR-100 benchmarks.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher; by default all stages, matched from the last.
        direction: ``'student_to_teacher'`` projects the student's map (FitNets). ``'teacher_to_student'`` projects
            the teacher's: a target that is itself trained, and so can collapse to a constant.
        batch_norm: batch norm after the projection.
        relu: ReLU after the projection.
        **kwargs: see `DistillationLoss`.

    Returns:
        (B,) values, 0 where the projected maps are equal. Where the grids differ, the projected map is resized to
        the other's.

    Raises:
        InputError: an unknown direction, a tap that does not exist, or one that is no map or vector.

    Source: FitNets, arXiv:1412.6550, equation 3.
    """

    def __init__(
        self, *, weight=1.0, pairs=None, direction="student_to_teacher", batch_norm=False, relu=False, **kwargs
    ):
        super().__init__(weight=weight, **kwargs)
        if direction not in DIRECTIONS:
            raise InputError(f"{self.name}(direction={direction!r}): known are {', '.join(DIRECTIONS)}")
        self.pairs = None if pairs is None else _features.parse_pairs(pairs)
        self.direction = direction
        self.batch_norm, self.relu = self._switch("batch_norm", batch_norm), self._switch("relu", relu)

    def taps(self, student, teacher):
        if self.pairs is None:
            if teacher is None:
                return (), ()
            self.pairs = _features.match_from_end(student, teacher)
        for name, _ in self.pairs:
            _features.require("student", name, student)
        for _, name in self.pairs:
            if teacher is not None:
                _features.require("teacher", name, teacher)
        return tuple(dict.fromkeys(s for s, _ in self.pairs)), tuple(dict.fromkeys(t for _, t in self.pairs))

    def build(self, student_shape, teacher_shape, labels_shape=None):
        self.taps(list(student_shape), list(teacher_shape))
        self._shapes = ({s: student_shape[s] for s, _ in self.pairs}, {t: teacher_shape[t] for _, t in self.pairs})
        self.projectors = []
        for s, t in self.pairs:
            source, target = tuple(student_shape[s]), tuple(teacher_shape[t])
            if self.direction == "teacher_to_student":
                source, target = target, source
            if len(source) != len(target) or len(source) not in (2, 4):
                raise InputError(
                    f"{self.name} cannot match {s} {tuple(student_shape[s])} with {t} {tuple(teacher_shape[t])}: "
                    "both have to be maps (B, H, W, C), or both vectors (B, D)"
                )
            if None in source[1:] or None in target[1:]:
                raise InputError(
                    f"{self.name} needs to know the sizes of {s} {source} and {t} {target}: fix the input's"
                )
            projector = _features.FeatureProjector(
                target[-1], target[1:3] if len(target) == 4 else None, self.batch_norm, self.relu, name=f"{s}_{t}"
            )
            projector.build(source)
            self.projectors.append(projector)
        self.built = True

    def call(self, student, teacher, labels, training=None):
        total = 0.0
        for (s, t), projector in zip(self.pairs, self.projectors, strict=True):
            source, target = student[s], teacher[t]
            if self.direction == "teacher_to_student":
                source, target = target, source
            difference = ops.square(projector(source, training=training) - target)
            total += ops.mean(difference, axis=tuple(range(1, len(difference.shape))))
        return total

    def get_config(self):
        pairs = None if self.pairs is None else ",".join(f"{s}:{t}" for s, t in self.pairs)
        own = {"pairs": pairs, "direction": self.direction, "batch_norm": self.batch_norm, "relu": self.relu}
        return {**super().get_config(), **own}


build = Hint
