"""Contrastive representation distillation: embeddings of one sample are close, those of different samples are not."""

import math
from typing import Any

import keras
from keras import ops

from kd_keras import schedules
from kd_keras._compat import replicas
from kd_keras._compat.ops import backend
from kd_keras.errors import InputError
from kd_keras.losses.base import add_state, unit_norm
from kd_keras.losses.features import FeatureLoss, flatten
from kd_keras.schedules import ScheduleLike

_MOMENTUM = 0.5


@keras.saving.register_keras_serializable(package="kd_keras", name="CRD")
class CRD(FeatureLoss):
    """−log(P⁺ / (P⁺ + k·Pₙ)) − Σ log(k·Pₙ / (P⁻ + k·Pₙ)), of the student's embeddings and of the teacher's.

    An embedding v is the output of a dense layer on the features, with L2 norm 1. P = exp(v·m / temperature) / Z with m
    the *other* model's embedding in a memory bank: P⁺ of the sample itself, P⁻ of k other samples; Pₙ = 1 / N. Z is N
    times the mean at the first step, and constant from then on. The bank moves with a momentum of 0.5 towards each new
    embedding.

    The banks are weights that are not trained, N × size for each model: they are saved with a checkpoint and mirrored
    on every replica.

    Args:
        weight: factor in the total, applied by the Distiller; 0.8 in the CIFAR-100 benchmarks.
        samples: N, the size of the training split; a run fills it in.
        negatives: k; more than N are of no use.
        size: of an embedding.
        temperature: of the similarities, a number or a schedule; with a schedule Z is computed at each step.
        seed: of the initial bank and of the negatives.
        pairs: ``'pooled:pooled'``, student:teacher, one pair; by default the pooled features.
        **kwargs: see `Loss`.

    Call arguments:
        index: number of each sample in its split (B,), which batches have to contain.
        sample_weight: (B,) or None. Samples of weight 0 neither move the banks nor count in Z.

    Returns:
        (B,) values.

    Raises:
        InputError: ``samples`` is missing, several pairs are given, or a value is out of range.

    Reference: Tian et al., arXiv:1910.10699, equations 17 to 19 and section 3.4; defaults of its code. Negatives are
    drawn uniformly from all samples, once per step for the whole batch, not for each sample: k rows of the bank are
    read instead of B·k.
    """

    reads_labels = False
    needs = frozenset({"index", "samples", "sample_weight"})
    takes = ("vector", "map")
    compares_samples = True
    search = {**FeatureLoss.search, "temperature": "x0.25..x4 log"}

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        samples: int | None = None,
        negatives: int = 16384,
        size: int = 128,
        temperature: ScheduleLike = 0.07,
        seed: int = 0,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.samples = None if samples is None else self._count("samples", samples)
        self.negatives, self.size = self._count("negatives", negatives), self._count("size", size)
        self.temperature = self._schedule("temperature", temperature, positive=True)
        self.seed = self._count("seed", seed, least=0)

    def default_pairs(self, student, teacher):
        return (("pooled", "pooled"),)

    def build(self, student_shape, teacher_shape, labels_shape=None):
        if self.samples is None:
            raise InputError(f"{self.name} has no samples: give the size of the training split, crd(samples=50000)")
        super().build(student_shape, teacher_shape)
        if len(self.pairs) > 1:
            raise InputError(f"{self.name} embeds one pair of taps, and {len(self.pairs)} are given: give one")

    def adapter(self, source, target, name):
        contrast = Contrast(self.samples, self.size, self.seed, name=name)
        contrast.build(math.prod(source[1:]), math.prod(target[1:]))
        return contrast

    def call(self, student, teacher, labels, index=None, sample_weight=None, training=None):
        if index is None:
            raise InputError(
                f"{self.name} needs each sample's index: give batches with an 'index', as data.batches does"
            )
        (s, t), contrast = self.pairs[0], self.adapters[0]
        index = ops.cast(ops.reshape(index, (-1,)), "int32")
        too_high = f"{self.name}(samples={self.samples}) was given a sample of a higher number: give the split's size"
        index = backend().assert_below(index, self.samples, too_high)
        v_s, v_t = contrast.embed(student[s], teacher[t])
        counts = None
        if sample_weight is not None:
            counts = ops.cast(ops.reshape(sample_weight, (-1, 1)) != 0, "float32")
        drawn, temperature = self._draw(), self.now(self.temperature)
        # Another temperature gives similarities of another magnitude.
        is_fixed = isinstance(self.temperature, schedules.constant)
        value = 0.0
        for v, bank, constant in (
            (v_s, contrast.teacher_bank, "of_student"),
            (v_t, contrast.student_bank, "of_teacher"),
        ):
            positive = ops.exp(ops.sum(v * ops.take(bank, index, axis=0), axis=-1) / temperature)
            negative = ops.exp(v @ ops.transpose(ops.take(bank, drawn, axis=0)) / temperature)
            z = contrast.normaliser(constant, positive, negative, counts, training, is_fixed)
            noise = self.negatives / self.samples
            value += ops.log1p(noise * z / positive) + ops.sum(ops.log1p(negative / z / noise), axis=-1)
        if training:
            contrast.remember(index, v_s, v_t, counts)
        return value

    def _draw(self):
        """Numbers of k samples, the same on every replica, different at every step."""
        step = 0 if self.clock is None else self.clock()[1]
        return backend().random_integers(self.seed, step, self.negatives, self.samples)

    def get_config(self):
        options = {name: getattr(self, name) for name in ("samples", "negatives", "size", "seed")}
        return {**super().get_config(), **options}


@keras.saving.register_keras_serializable(package="kd_keras", name="CRDContrast")
class Contrast(keras.layers.Layer):
    """Two embeddings, their memory banks, and the constants Z that similarities are divided by.

    Args:
        samples: N.
        size: of an embedding.
        seed: of the initial banks.
    """

    def __init__(self, samples, size, seed, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.samples, self.size, self.seed = samples, size, seed

    def build(self, student, teacher):
        self.student_embedding, self.teacher_embedding = (
            keras.layers.Dense(self.size, name=name, dtype="float32") for name in ("student", "teacher")
        )
        self.student_embedding.build((None, student))
        self.teacher_embedding.build((None, teacher))
        limit = 1 / math.sqrt(self.size / 3)
        self.student_bank, self.teacher_bank = (
            add_state(
                *(self, f"{name}_bank", (self.samples, self.size)),
                keras.initializers.RandomUniform(-limit, limit, seed),
            )
            for name, seed in (("student", self.seed), ("teacher", self.seed + 1))
        )
        self.of_student, self.of_teacher = (add_state(self, f"z_{name}", ()) for name in ("student", "teacher"))
        self.built = True

    def embed(self, student, teacher):
        """Both embeddings (B, size), with L2 norm 1."""
        return (
            unit_norm(self.student_embedding(flatten(student)), axis=-1),
            unit_norm(self.teacher_embedding(flatten(teacher)), axis=-1),
        )

    def normaliser(self, name, positive, negative, counts, training, is_fixed):
        """Z: N times the mean over the global batch, that of the first step if ``is_fixed``.

        ``counts`` (B, 1) is 0 for samples that are left out; None where all count.
        """
        stored = getattr(self, name)
        size = ops.cast(ops.size(positive) + ops.size(negative), "float32")
        if counts is not None:
            size = ops.sum(counts) * (1 + negative.shape[1])
            positive, negative = positive * counts[:, 0], negative * counts
        total = replicas.total(ops.stop_gradient(ops.sum(positive) + ops.sum(negative)))
        count = ops.maximum(replicas.total(size), 1)
        z = total / count * self.samples
        if is_fixed:
            z = ops.where(stored > 0, stored, z)
        if training:
            stored.assign(z)
        return z

    def remember(self, index, student, teacher, counts):
        """Moves the banks halfway to the embeddings of the samples of all replicas, but for those left out."""
        index = replicas.gather(index)
        counts = None if counts is None else replicas.gather(counts)
        for bank, v in ((self.student_bank, student), (self.teacher_bank, teacher)):
            before = ops.take(bank, index, axis=0)
            moved = unit_norm(_MOMENTUM * before + (1 - _MOMENTUM) * replicas.gather(v), axis=-1)
            if counts is None:
                backend().scatter_rows(bank, index, ops.stop_gradient(moved))
            else:
                # Added, not overwritten: padding may have the number of a sample that counts.
                backend().add_to_rows(bank, index, ops.stop_gradient(counts * (moved - before)))

    def get_config(self):
        return {**super().get_config(), "samples": self.samples, "size": self.size, "seed": self.seed}
