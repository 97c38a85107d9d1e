"""Flow of solution procedure: how one stage's channels go with the next one's."""

import itertools

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses import features as _features


@keras.saving.register_keras_serializable(package="kd_keras", name="FSP")
class FSP(_features.FeatureLoss):
    """Σ over consecutive pairs of mean (G_s − G_t)², G = F₁ᵀF₂ / (H·W) between two stages' maps.

    Args:
        weight: factor in the total, applied by the Distiller; 50 in the CIFAR-100 benchmarks. The paper first trains by
            this term alone: `Distiller.pretrain`.
        pairs: ``'stage1:stage1,stage2:stage3'``, student:teacher, in the order of depth; by default all stages, matched
            from the last. Each G is between a pair's maps and the next pair's: n pairs give n − 1.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the matrices are equal. A stage's larger map goes on the smaller one's grid.

    Raises:
        InputError: fewer than two pairs; or student and teacher differ in channels, so that there is no G to compare.

    Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017, equations 1 and 2.
    """

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
            total += _features.mean_over_features(ops.square(difference))
        return total


def _flow(first, second):
    first, second = _features.on_one_grid(first, second)
    area = first.shape[1] * first.shape[2]
    return ops.einsum("bhwi,bhwj->bij", first, second) / area
