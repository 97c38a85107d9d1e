"""The base of losses that compare how samples relate to each other."""

from kd_keras._compat import replicas
from kd_keras.errors import InputError
from kd_keras.losses.features import FeatureLoss, Pairs, flatten, match_from_end


class RelationalLoss(FeatureLoss):
    """A loss on the relations among the samples of a batch, rather than on their features.

    A subclass defines what is computed of a batch's features (`relation`), and how two of these differ (`distance`).
    Student and teacher may have features of any size; a map counts as the vector of its values. With several replicas
    the features of all of them are compared.
    """

    compares_samples = True

    def default_pairs(self, student: list[str], teacher: list[str]) -> Pairs:
        """The pooled features of both."""
        return (("pooled", "pooled"),)

    def stages(self, student: list[str], teacher: list[str]) -> Pairs:
        """All stages, matched from the last."""
        return match_from_end(student, teacher, self.ending)

    def relation(self, features):
        """What is compared, computed of features (B, D)."""
        raise NotImplementedError

    def distance(self, student, teacher):
        """How two relations differ, a scalar."""
        raise NotImplementedError

    def _check(self, s, source, t, target):
        for name, shape in ((s, source), (t, target)):
            if len(shape) not in (2, 4):
                raise InputError(f"{self.name} cannot compare by {name} {shape}: a map (B, H, W, C) or a vector (B, D)")

    def compare(self, student, teacher, adapter, training):
        relations = (self.relation(replicas.gather(flatten(features))) for features in (student, teacher))
        return self.distance(*relations)
