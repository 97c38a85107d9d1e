"""Factor transfer: the student imitates a paraphrase of the teacher's last map."""

from typing import Any

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses.base import add_state, unit_norm
from kd_keras.losses.features import FeatureLoss, batch_norm_layer, mean_over_features, resize
from kd_keras.schedules import ScheduleLike


@keras.saving.register_keras_serializable(package="kd_keras", name="FT")
class FT(FeatureLoss):
    """mean |f_t / ‖f_t‖ − f_s / ‖f_s‖|^p, f_t a paraphraser's factors of the teacher's map, f_s a translator's.

    The paraphraser is an autoencoder that is pretrained on the teacher's maps alone (`Distiller.pretrain`, or
    ``--pretrain_epochs``) and then frozen; the translator is trained with the student.

    Args:
        weight: factor in the total, applied by the Distiller; 200 in the CIFAR-100 benchmarks.
        rate: number of channels of the factors, relative to the teacher's map.
        power: p, 1 or 2.
        pairs: ``'stage3:stage3'``, student:teacher; by default the last stage of each.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the factors have one direction. The student's map is resized to the teacher's grid.

    Raises:
        InputError: a value is out of range; or, by `Distiller.fit`, the paraphraser was not pretrained.

    Reference: Kim et al., arXiv:1802.04977, equations 1 and 2; rate 0.5 and p = 1 as there. The norm is over all of a
    sample's factors, the mean over their entries.
    """

    reads_labels = False
    needs_pretraining = True

    def __init__(
        self,
        *,
        weight: ScheduleLike = 1.0,
        rate: float = 0.5,
        power: int = 1,
        pairs: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(weight=weight, pairs=pairs, **kwargs)
        self.rate = self._factor("rate", rate)
        if self.rate == 0:
            raise InputError(f"{self.name}(rate=0): the factors need a channel or more: give for example 0.5")
        if power not in (1, 2):
            raise InputError(f"{self.name}(power={power!r}): the norm's power is 1 or 2")
        self.power = power

    def default_pairs(self, student, teacher):
        return super().default_pairs(student, teacher)[-1:]

    def adapter(self, source, target, name):
        factors = max(1, round(self.rate * target[-1]))
        layer = Factors(factors, target[-1], target[1:3], name=name)
        layer.build(source)
        return layer

    def compare(self, student, teacher, adapter, training):
        f_t = ops.stop_gradient(adapter.paraphrase(teacher))
        f_s = adapter.translate(student, training=training)
        f_t, f_s = (unit_norm(f, axis=(1, 2, 3)) for f in (f_t, f_s))
        difference = ops.abs(f_t - f_s)
        return mean_over_features(difference if self.power == 1 else ops.square(difference))

    def pretrain_taps(self):
        return None if self.pairs is None else ((), self._tap_names()[1])

    def pretraining(self, on):
        for adapter in self.adapters:
            adapter.train_paraphraser(on)

    def pretrained(self):
        return all(ops.convert_to_numpy(adapter.steps) > 0 for adapter in self.adapters)

    def pretrain(self, student, teacher, labels):
        """(B,) mean squared errors of the teacher's maps as the paraphraser reconstructs them."""
        for adapter in self.adapters:
            adapter.steps.assign(adapter.steps + 1)
        return sum(
            mean_over_features(ops.square(adapter.restore(teacher[t]) - teacher[t]))
            for (_, t), adapter in zip(self.pairs, self.adapters, strict=True)
        )

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "power": self.power}


@keras.saving.register_keras_serializable(package="kd_keras", name="FTFactors")
class Factors(keras.layers.Layer):
    """Paraphraser (teacher's map → factors → the map again) and translator (student's map → factors).

    Args:
        factors: channels of the factors.
        channels: of the teacher's map.
        grid: (height, width) of the teacher's map.
    """

    def __init__(self, factors, channels, grid, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.factors, self.channels, self.grid = factors, channels, tuple(grid)
        self.encoder, self.decoder = Convolutions(factors, name="encoder"), Convolutions(channels, name="decoder")
        self.translator = Convolutions(factors, name="translator")

    def build(self, shape):
        self.encoder.build((None, *self.grid, self.channels))
        self.decoder.build((None, *self.grid, self.factors))
        self.translator.build((None, *self.grid, shape[-1]))
        # Counts the steps of pretraining.
        self.steps = add_state(self, "steps", ())
        self.train_paraphraser(False)
        self.built = True

    def train_paraphraser(self, on):
        """Makes the paraphraser trainable, or freezes it."""
        self.encoder.trainable = self.decoder.trainable = on

    def paraphrase(self, teacher):
        return self.encoder(teacher, training=False)

    def restore(self, teacher):
        return self.decoder(self.encoder(teacher, training=True), training=True)

    def translate(self, student, training):
        return self.translator(resize(student, self.grid), training=training)

    def get_config(self):
        return {**super().get_config(), "factors": self.factors, "channels": self.channels, "grid": self.grid}


@keras.saving.register_keras_serializable(package="kd_keras", name="FTConvolutions")
class Convolutions(keras.layers.Layer):
    """Three 3×3 convolutions with batch norm and leaky ReLU (slope 0.1); the second changes the channels.

    Args:
        channels: of the output.
    """

    def __init__(self, channels, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.channels = channels

    def build(self, shape):
        self.convolutions, self.norms = [], []
        for i, filters in enumerate((shape[-1], self.channels, self.channels)):
            conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{i + 1}", dtype="float32")
            norm = batch_norm_layer(name=f"norm{i + 1}")
            conv.build(shape)
            shape = (*shape[:-1], filters)
            norm.build(shape)
            self.convolutions.append(conv)
            self.norms.append(norm)
        self.built = True

    def call(self, x, training=None):
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = ops.leaky_relu(norm(conv(x), training=training), 0.1)
        return x

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
