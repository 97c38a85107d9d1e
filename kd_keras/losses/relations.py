"""The base of losses that compare how samples relate to each other."""

from kd_keras.errors import InputError
from kd_keras.losses import base as _base
from kd_keras.losses import features as _features


class RelationalLoss(_features.FeatureLoss):
    """A `FeatureLoss` that compares how samples stand to each other, not what their features are.

    A subclass says what is taken of a batch's features (`relation`), and how two of those differ (`distance`). Sizes of
    student and teacher may differ; a map counts as the vector of its values.
    """

    compares_samples = True

    def default_pairs(self, student, teacher):
        """The pooled features of both."""
        return (("pooled", "pooled"),)

    def stages(self, student, teacher):
        """All stages, matched from the last."""
        return _features.match_from_end(student, teacher, self.ending)

    def relation(self, features):
        """What is compared, of features (B, D)."""
        raise NotImplementedError

    def distance(self, student, teacher):
        """How two relations differ: a scalar."""
        raise NotImplementedError

    def _check(self, s, source, t, target):
        for name, shape in ((s, source), (t, target)):
            if len(shape) not in (2, 4):
                raise InputError(f"{self.name} cannot compare by {name} {shape}: a map (B, H, W, C) or a vector (B, D)")

    def compare(self, student, teacher, adapter, training):
        relations = (self.relation(_base.gathered(_features.flat(features))) for features in (student, teacher))
        return self.distance(*relations)
