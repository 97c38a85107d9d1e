"""Factor transfer: the student imitates a paraphrase of the teacher's last map."""

import keras
from keras import ops

from kd_keras.errors import InputError
from kd_keras.losses import base as _base
from kd_keras.losses import features as _features


@keras.saving.register_keras_serializable(package="kd_keras", name="FT")
class FT(_features.FeatureLoss):
    """mean |f_t / ‖f_t‖ − f_s / ‖f_s‖|^p, f_t a paraphraser's factors of the teacher's map, f_s a translator's.

    The paraphraser is an autoencoder that is trained first, on the teacher's maps alone (`Distiller.pretrain`, or
    ``--pretrain_epochs``), and then stays as it is; the translator is trained with the student.

    Args:
        weight: factor in the total, applied by the Distiller; 200 in the CIFAR-100 benchmarks.
        rate: the factors' channels over the teacher's.
        power: p, 1 or 2.
        pairs: ``'stage3:stage3'``, student:teacher; by default the last stage of each.
        **kwargs: see `Loss`.

    Returns:
        (B,) values, 0 where the factors have one direction. Where the grids differ, the student's map goes on the
        teacher's.

    Raises:
        InputError: a value out of range; or, by `Distiller.fit`, a paraphraser that was never trained.

    Source: Kim et al., arXiv:1802.04977, equations 1 and 2; rate 0.5 and p = 1 as there. The norm is over all of a
    sample's factors, the mean over their entries.
    """

    needs_pretraining = True

    def __init__(self, *, weight=1.0, rate=0.5, power=1, pairs=None, **kwargs):
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
        both = Factors(factors, target[-1], target[1:3], name=name)
        both.build(source)
        return both

    def compare(self, student, teacher, adapter, training):
        f_t = ops.stop_gradient(adapter.paraphrase(teacher))
        f_s = adapter.translate(student, training=training)
        f_t, f_s = (_base.unit(f, axis=(1, 2, 3)) for f in (f_t, f_s))
        difference = ops.abs(f_t - f_s)
        return _features.mean_over_features(difference if self.power == 1 else ops.square(difference))

    def pretrain_taps(self):
        return None if self.pairs is None else ((), self._read()[1])

    def pretraining(self, on):
        for adapter in self.adapters:
            adapter.paraphrases(on)

    def pretrained(self):
        return all(ops.convert_to_numpy(adapter.steps) > 0 for adapter in self.adapters)

    def pretrain(self, student, teacher, labels):
        """(B,) mean squared errors of what the paraphraser makes of the teacher's maps."""
        for adapter in self.adapters:
            adapter.steps.assign(adapter.steps + 1)
        return sum(
            _features.mean_over_features(ops.square(adapter.restore(teacher[t]) - teacher[t]))
            for (_, t), adapter in zip(self.pairs, self.adapters, strict=True)
        )

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "power": self.power}


@keras.saving.register_keras_serializable(package="kd_keras", name="FTFactors")
class Factors(keras.layers.Layer):
    """Paraphraser (teacher's map → factors → the map again) and translator (student's map → factors).

    The paraphraser is trained ahead only.

    Args:
        factors: their channels.
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
        #: Of the paraphraser's training.
        self.steps = _base.kept(self, "steps", ())
        self.paraphrases(False)
        self.built = True

    def paraphrases(self, on):
        """Whether the paraphraser is trained."""
        self.encoder.trainable = self.decoder.trainable = on

    def paraphrase(self, teacher):
        return self.encoder(teacher, training=False)

    def restore(self, teacher):
        return self.decoder(self.encoder(teacher, training=True), training=True)

    def translate(self, student, training):
        return self.translator(_features.resize(student, self.grid), training=training)

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
            norm = _features.batch_norm_layer(name=f"norm{i + 1}")
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
