"""Contrastive representation distillation: the same sample's embeddings are close, other samples' are not."""

import math

import keras
import tensorflow as tf
from keras import ops

from kd_keras import schedules
from kd_keras.errors import InputError
from kd_keras.losses import base as _base
from kd_keras.losses import features as _features

_MOMENTUM = 0.5


@keras.saving.register_keras_serializable(package="kd_keras", name="CRD")
class CRD(_features.FeatureLoss):
    """−log(P⁺ / (P⁺ + k·Pₙ)) − Σ log(k·Pₙ / (P⁻ + k·Pₙ)), of the student's embeddings and of the teacher's.

    An embedding v is a dense layer's output on the features, of L2 norm 1. P = exp(v·m / temperature) / Z with m the
    *other* model's embedding in a memory bank: P⁺ of the sample itself, P⁻ of k others; Pₙ = 1 / N, and Z is N times
    the mean at the first step, and stays. The bank moves by a momentum of 0.5 towards each embedding that it sees.

    The banks are weights that are not trained, N × size for either model: they are saved with a checkpoint, mirrored
    on every replica, and of one size from the start.

    Args:
        weight: factor in the total, applied by the Distiller; 0.8 in the CIFAR-100 benchmarks.
        samples: N, of the training split; a run fills it in.
        negatives: k; at most N are worth it.
        size: of an embedding.
        temperature: of the similarities, a number or a schedule; with a schedule Z is each step's own.
        seed: of the bank's start and of the negatives.
        pairs: ``'pooled:pooled'``, student:teacher, one pair; by default the pooled features.
        **kwargs: see `Loss`.

    Call arguments:
        index: number of each sample in its split (B,); batches have to bring it.

    Returns:
        (B,) values.

    Raises:
        InputError: no ``samples``, several pairs, or a value out of range.

    Source: Tian et al., arXiv:1910.10699, equations 17 to 19 and section 3.4; defaults of its code. Negatives are drawn
    from all samples, and by the step, not by the sample: one draw serves the batch, which makes k products with the
    bank of B·k, and leaves what each sample draws uniform.
    """

    needs = frozenset({"index", "samples"})
    takes = ("vector", "map")
    compares_samples = True

    def __init__(
        self,
        *,
        weight=1.0,
        samples=None,
        negatives=16384,
        size=128,
        temperature=0.07,
        seed=0,
        pairs=None,
        **kwargs,
    ):
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

    def call(self, student, teacher, labels, index=None, training=None):
        if index is None:
            raise InputError(
                f"{self.name} needs each sample's index: give batches with an 'index', as data.batches does"
            )
        (s, t), contrast = self.pairs[0], self.adapters[0]
        index = ops.cast(ops.reshape(index, (-1,)), "int32")
        told = f"{self.name}(samples={self.samples}) was given a sample of a higher number: give the split's size"
        tf.debugging.assert_less(index, self.samples, message=told)
        v_s, v_t = contrast.embed(student[s], teacher[t])
        drawn, temperature = self._draw(), self.now(self.temperature)
        # Similarities at another temperature are of another size.
        stays = isinstance(self.temperature, schedules.constant)
        value = 0.0
        for v, bank, constant in (
            (v_s, contrast.teacher_bank, "of_student"),
            (v_t, contrast.student_bank, "of_teacher"),
        ):
            alike = ops.exp(ops.sum(v * ops.take(bank, index, axis=0), axis=-1) / temperature)
            other = ops.exp(v @ ops.transpose(ops.take(bank, drawn, axis=0)) / temperature)
            z = contrast.normaliser(constant, alike, other, training, stays)
            noise = self.negatives / self.samples
            value += ops.log1p(noise * z / alike) + ops.sum(ops.log1p(other / z / noise), axis=-1)
        if training:
            contrast.remember(index, v_s, v_t)
        return value

    def _draw(self):
        """k numbers of samples, the same on every replica, others at every step."""
        step = 0 if self.clock is None else self.clock()[1]
        seed = tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])
        return tf.random.stateless_uniform((self.negatives,), seed, 0, self.samples, tf.int32)

    def get_config(self):
        own = {name: getattr(self, name) for name in ("samples", "negatives", "size", "seed")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="kd_keras", name="CRDContrast")
class Contrast(keras.layers.Layer):
    """Two embeddings, their banks, and the constants that similarities are divided by.

    Args:
        samples: N.
        size: of an embedding.
        seed: of the banks' start.
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
            _base.kept(
                *(self, f"{name}_bank", (self.samples, self.size)),
                keras.initializers.RandomUniform(-limit, limit, seed),
            )
            for name, seed in (("student", self.seed), ("teacher", self.seed + 1))
        )
        self.of_student, self.of_teacher = (_base.kept(self, f"z_{name}", ()) for name in ("student", "teacher"))
        self.built = True

    def embed(self, student, teacher):
        """Both embeddings (B, size), of L2 norm 1."""
        return (
            _base.unit(self.student_embedding(_features.flat(student)), axis=-1),
            _base.unit(self.teacher_embedding(_features.flat(teacher)), axis=-1),
        )

    def normaliser(self, name, alike, other, training, stays):
        """Z: N times the mean over the global batch, of the first step if it ``stays``."""
        kept = getattr(self, name)
        total = _base.summed(ops.stop_gradient(ops.sum(alike) + ops.sum(other)))
        count = _base.summed(ops.cast(ops.size(alike) + ops.size(other), "float32"))
        z = total / count * self.samples
        if stays:
            z = ops.where(kept > 0, kept, z)
        if training:
            kept.assign(z)
        return z

    def remember(self, index, student, teacher):
        """Moves the banks halfway to the embeddings of these samples, those of every replica."""
        index = _base.gathered(index)
        for bank, v in ((self.student_bank, student), (self.teacher_bank, teacher)):
            moved = _MOMENTUM * ops.take(bank, index, axis=0) + (1 - _MOMENTUM) * _base.gathered(v)
            bank.value.scatter_update(tf.IndexedSlices(ops.stop_gradient(_base.unit(moved, axis=-1)), index))

    def get_config(self):
        return {**super().get_config(), "samples": self.samples, "size": self.size, "seed": self.seed}
