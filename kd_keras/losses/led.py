"""Label-wise embedding distillation: what the features say of each label, compared between images and labels."""

from typing import Any

import keras
from keras import ops

from kd_keras._compat import replicas
from kd_keras.errors import InputError
from kd_keras.losses import labels as label_forms
from kd_keras.losses.features import FeatureLoss
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="LED")
class LED(FeatureLoss):
    """classes·Σ_k D(e_k of the images with label k) + instances·D(e_i of an image's labels) + the encoders' own loss.

    D = Σ over pairs of L(d_t, d_s) / n compares the distances among n embeddings, student and teacher, with L the Huber
    loss (δ = 1) and d = ‖e − e'‖ divided by the mean of those above 0. Only labels that are 1 count.

    The embedding of label k is Σ_j softmax_j(F_j·q_k / √C)·F_j, j the positions of a map. The queries q, and a linear
    classifier of each embedding, are trained beside the student, for either model: their loss is the binary
    cross-entropy with the teacher's probabilities. The student's features are trained by it too.

    Args:
        weight: factor in the total, applied by the Distiller.
        classes: factor of the term over images, for each label.
        instances: factor of the term over labels, for each image.
        pairs: ``'stage3:stage3'``, student:teacher, one pair; by default the last stage of each.
        **kwargs: see `Loss`.

    Call arguments:
        labels: (B, K) of 0 and 1, −1 where one is not known.

    Returns:
        (B,) values. Each contains the term over images, a statistic of the (global) batch.

    Raises:
        InputError: a factor is below 0, or several pairs are given.

    Reference: Yang et al., arXiv:2308.06453, equations 5 to 9, with the normalisation of its code. There a transformer
    decoder that is part of both models makes the embeddings, and the last term is summed over the batch, not averaged.
    """

    heads = frozenset({"multilabel"})
    reads_labels = True
    compares_samples = True

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        classes: float = 1.0,
        instances: float = 1.0,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.classes, self.instances = self._factor("classes", classes), self._factor("instances", instances)
        if self.pairs is not None and len(self.pairs) > 1:
            raise InputError(f"{self.name} compares one pair of maps, and {len(self.pairs)} are given: give one")

    def default_pairs(self, student, teacher):
        return super().default_pairs(student, teacher)[-1:]

    def _tap_names(self):
        student, teacher = super()._tap_names()
        return student, (*teacher, "logits")

    def build(self, student_shape, teacher_shape, labels_shape=None):
        self._num_labels = teacher_shape["logits"][-1]
        super().build(student_shape, teacher_shape)
        self._shapes[1]["logits"] = teacher_shape["logits"]

    def adapter(self, source, target, name):
        encoders = LabelEncoders(self._num_labels, name=name)
        encoders.build(source, target)
        return encoders

    def call(self, student, teacher, labels):
        ((s, t),), (encoders,) = self.pairs, self.adapters
        (e_s, z_s), (e_t, z_t) = encoders(student[s], teacher[t])
        e_t, has = ops.stop_gradient(e_t), ops.cast(ops.cast(labels, "float32") > 0.5, "float32")
        soft = ops.sigmoid(teacher["logits"])
        own = label_forms.binary_cross_entropy(soft, z_s) + label_forms.binary_cross_entropy(soft, z_t)
        of_images = (ops.swapaxes(replicas.gather(x), 0, 1) for x in (e_s, e_t, has))
        classes = self.classes * ops.sum(structure(*of_images))
        return classes + self.instances * structure(e_s, e_t, has) + own

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "instances": self.instances}


@keras.saving.register_keras_serializable(package="kd_keras", name="LabelEncoders")
class LabelEncoders(keras.layers.Layer):
    """Embeddings (B, K, C) and logits (B, K) of each label, from a map of the student and from one of the teacher.

    Args:
        num_labels: K.
    """

    def __init__(self, num_labels, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.num_labels = num_labels

    def build(self, student_shape, teacher_shape):
        self.parts = []
        for role, shape in (("student", student_shape), ("teacher", teacher_shape)):
            sizes = {"queries": (self.num_labels, shape[-1]), "kernel": (self.num_labels, shape[-1])}
            weights = [self.add_weight(name=f"{role}_{name}", shape=size) for name, size in sizes.items()]
            bias = self.add_weight(name=f"{role}_bias", shape=(self.num_labels,), initializer="zeros")
            self.parts.append((*weights, bias))
        self.built = True

    def call(self, student, teacher):
        return tuple(
            self._encoded(features, *part) for features, part in zip((student, teacher), self.parts, strict=True)
        )

    def _encoded(self, features, queries, kernel, bias):
        features = ops.reshape(features, (ops.shape(features)[0], -1, features.shape[-1]))
        scores = ops.einsum("bjc,kc->bkj", features, queries) / features.shape[-1] ** 0.5
        embeddings = ops.einsum("bkj,bjc->bkc", ops.softmax(scores), features)
        return embeddings, ops.einsum("bkc,kc->bk", embeddings, kernel) + bias

    def get_config(self):
        return {**super().get_config(), "num_labels": self.num_labels}


def structure(student, teacher, counts):
    """How distances among embeddings differ, (G,), for G groups of n embeddings (G, n, D), where ``counts`` is 1."""
    pairs = counts[:, :, None] * counts[:, None] * (1 - ops.eye(counts.shape[1] or ops.shape(counts)[1]))
    size = ops.abs(_distances(student, pairs) - _distances(teacher, pairs))
    huber = ops.where(size < 1, 0.5 * ops.square(size), size - 0.5)
    return ops.sum(huber * pairs, axis=(1, 2)) / ops.maximum(ops.sum(counts, axis=1), 1.0)


def _distances(embeddings, pairs):
    """Distances (G, n, n) divided by the mean of the group's pairs that are apart."""
    norms = ops.sum(ops.square(embeddings), axis=-1)
    square = norms[:, :, None] + norms[:, None] - 2 * ops.einsum("gid,gjd->gij", embeddings, embeddings)
    # What float32 leaves of the distance of equal embeddings; the square root has no gradient at 0.
    apart = ops.logical_and(pairs > 0, square > 1e-6 * (norms[:, :, None] + norms[:, None]) + 1e-12)
    distance = ops.where(apart, ops.sqrt(ops.where(apart, square, 1.0)), 0.0)
    count = ops.maximum(ops.sum(ops.cast(apart, "float32"), axis=(1, 2), keepdims=True), 1.0)
    return distance / ops.maximum(ops.sum(distance, axis=(1, 2), keepdims=True) / count, 1e-12)
