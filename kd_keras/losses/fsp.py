"""Flow of solution procedure: how the channels of one stage relate to those of the next."""

import itertools

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses.features import FeatureLoss, mean_over_features, on_one_grid


@keras.saving.register_keras_serializable(package="kd_keras", name="FSP")
class FSP(FeatureLoss):
    """Σ over consecutive pairs of mean (G_s − G_t)², G = F₁ᵀF₂ / (H·W) between two stages' maps.

    Args:
        weight: factor in the total, applied by the Distiller; 50 in the CIFAR-100 benchmarks. The paper first pretrains
            by this loss alone: `Distiller.pretrain`.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher, in the order of depth; by default all stages, matched
            from the last. Each G is between the maps of a pair and of the next pair: n pairs give n − 1.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the matrices are equal. The larger map of two stages is resized to the smaller grid.

    Raises:
        InputError: there are fewer than two pairs, or student and teacher differ in channels, so that their matrices
            differ in size.

    Reference: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, equations 1 and 2.
    """

    reads_labels = False
    pretrains = True

    def build(self, student_shape, teacher_shape, labels_shape=None):
        super().build(student_shape, teacher_shape)
        if len(self.pairs) < 2:
            raise InputError(f"{self.name} needs two pairs of stages or more: it compares how one leads to the next")

    def _check(self, s, source, t, target):
        super()._check(s, source, t, target)
        if source[-1] != target[-1]:
            raise InputError(
                f"{self.name} cannot match {s} of {source[-1]} channels with {t} of {target[-1]}: its matrices have to "
                "be of one size; take models of equal widths, or another loss"
            )

    def call(self, student, teacher, labels, training=None):
        total = 0.0
        for (s1, t1), (s2, t2) in itertools.pairwise(self.pairs):
            difference = _flow(student[s1], student[s2]) - _flow(teacher[t1], teacher[t2])
            total += mean_over_features(ops.square(difference))
        return total


def _flow(first, second):
    first, second = on_one_grid(first, second)
    area = first.shape[1] * first.shape[2]
    return ops.einsum("bhwi,bhwj->bij", first, second) / area
