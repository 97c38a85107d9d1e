"""Each check of `kd_keras.testing` finds a part that breaks it, and says so."""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kd_keras import losses, models, testing
from kd_keras.data import ArraySource, Splits
from tests.conftest import ROOT

register = keras.saving.register_keras_serializable("test_testing")


@register
class Good(losses.Loss):
    """(B,) mean squared differences of the logits."""

    def call(self, student, teacher, labels):
        return ops.mean(ops.square(student["logits"] - teacher["logits"]), axis=-1)


@register
class UnknownTap(Good):
    def taps(self, student, teacher):
        return ("logits", "nowhere"), ("logits",)


@register
class TapTwice(Good):
    def taps(self, student, teacher):
        return ("logits", "logits"), ("logits",)


@register
class OtherSignature(Good):
    def call(self, student, teacher):
        return 0.0


@register
class Matrix(Good):
    def call(self, student, teacher, labels):
        return ops.square(student["logits"] - teacher["logits"])


@register
class Zero(Good):
    def call(self, student, teacher, labels):
        return 0.0 * super().call(student, teacher, labels)


@register
class Infinite(Good):
    def call(self, student, teacher, labels):
        return super().call(student, teacher, labels) / 0.0


@register
class Half(Good):
    def call(self, student, teacher, labels):
        return ops.cast(super().call(student, teacher, labels), "float16")


@register
class Weighted(Good):
    def call(self, student, teacher, labels):
        return self.now(self.weight) * super().call(student, teacher, labels)


@register
class FirstSample(Good):
    def call(self, student, teacher, labels):
        return super().call(student, teacher, labels) + student["logits"][0, 0]


@register
class Classes(Good):
    def call(self, student, teacher, labels):
        return super().call(student, teacher, labels) + ops.cast(ops.reshape(labels, (-1,))[:6], "float32")


@register
class Exponential(Good):
    def call(self, student, teacher, labels):
        return ops.sum(ops.exp(student["logits"]), axis=-1)


@register
class Root(losses.FeatureLoss):
    def compare(self, student, teacher, adapter, training):
        return ops.sqrt(ops.mean(ops.square(student[..., :1] - teacher[..., :1]), axis=(1, 2, 3)))


@register
class NumPy(Good):
    def call(self, student, teacher, labels):
        return super().call(student, teacher, labels) + float(np.mean(student["logits"]))


@register
class OtherInGraph(Good):
    def call(self, student, teacher, labels):
        return super().call(student, teacher, labels) * (1.0 if tf.executing_eagerly() else 2.0)


@register
class HalfLayer(Good):
    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        self.dense = keras.layers.Dense(5)
        self.dense.build((None, 5))
        self.built = True

    def call(self, student, teacher, labels):
        return ops.mean(ops.cast(self.dense(student["logits"]), "float32") ** 2, axis=-1)


@register
class Rounds(Good):
    def call(self, student, teacher, labels):
        if keras.config.dtype_policy().name == "mixed_float16":
            student = {"logits": ops.cast(ops.cast(student["logits"], "float16"), "float32") * 1.01}
        return super().call(student, teacher, labels)


@register
class NoGradient(Good):
    def call(self, student, teacher, labels):
        return super().call({"logits": ops.stop_gradient(student["logits"])}, teacher, labels)


@register
class IdleWeight(Good):
    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        self.idle = self.add_weight(name="idle", shape=())
        self.built = True


class NotRegistered(Good):
    pass


@register
class ForgetsAnArgument(Good):
    def __init__(self, *, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, student, teacher, labels):
        return self.factor * super().call(student, teacher, labels)


@register
class ForgetsItsWeight(Good):
    def __init__(self, *, weight=1.0, **kwargs):
        super().__init__(**kwargs)


@register
class LosesAWeight(Good):
    def build(self, student_shape=None, teacher_shape=None, labels_shape=None):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")
        self.built = True

    def call(self, student, teacher, labels):
        return self.factor * super().call(student, teacher, labels)

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


def test_good_parts_pass():
    loss = Good()
    testing.check_loss(loss)
    testing.check_loss(losses.KD(temperature=2.0))
    assert not loss.built, "the loss itself is left as it is"
    testing.check_model(lambda num_classes, input_shape: models.CNN(num_classes, input_shape, filters=(4,), dense=()))
    testing.check_data(splits())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (UnknownTap, "names taps that the student does not offer.*nowhere"),
        (TapTwice, "names a tap twice"),
        (OtherSignature, "fails when it is called as call"),
        (Matrix, r"returns shape \(6, 5\): a loss returns \(B,\), or a scalar"),
        (Zero, "is 0 where student and teacher differ"),
        (Infinite, "not finite"),
        (Half, "returns float16: a loss computes in float32"),
        (Weighted, "applies its weight itself"),
        (FirstSample, "depends on the order of the samples"),
        (Classes, r"does not take labels float32 \(6, 5\)"),
        (Exponential, "logits of ±10000 a value or a gradient"),
        (lambda: Root(pairs="stage2:stage2"), "features times 0 a value or a gradient"),
        (NumPy, "cannot be compiled into a graph"),
        (OtherInGraph, "another value when compiled"),
        (HalfLayer, "computes in float16 under a mixed policy: make it with"),
        (Rounds, "rounds float32 taps|computes in float16 under a mixed policy: cast"),
        (NoGradient, "gives the tap logits no gradient"),
        (IdleWeight, "gives its weight .*idle no gradient"),
        (NotRegistered, "needs @keras.saving.register_keras_serializable"),
        (ForgetsAnArgument, r"get_config\(\) lacks \['factor'\]"),
        (ForgetsItsWeight, "does not hand its weight to Loss.__init__"),
        (LosesAWeight, "is not restored from a file"),
        (lambda: keras.layers.ReLU(), "is no kd_keras.losses.Loss"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_loss_that_breaks_the_contract_is_told_so(loss, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_loss(loss())


# ---- models ----


def net(num_classes, input_shape, *, stage="stage1", pre=None, pooled="pooled", tail=None, conv="conv", **logits):
    image = keras.Input(input_shape, name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="rescale")(image)
    x = keras.layers.Conv2D(4, 3, name=conv)(x)
    x = keras.layers.ReLU(name=pre)(x) if pre else x
    x = keras.layers.ReLU(name=stage)(x)
    x = keras.layers.GlobalAveragePooling2D(name=pooled)(x)
    x = tail(x) if tail else x
    logits = keras.layers.Dense(num_classes, name="logits", **{"dtype": "float32", **logits})
    return keras.Model(image, logits(x), name="net")


@register
class BatchMean(keras.layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=0)


class NotSaved(keras.layers.Layer):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "softmax"}, "look like a softmax: a model returns logits"),
        ({"dtype": None}, "logits are float16 under a mixed policy"),
        ({"stage": "map"}, "has no layer named stage1"),
        ({"stage": "stage2", "conv": "stage1", "pre": "stage1_pre"}, "has some of the taps stage1_pre"),
        ({"conv": "stage3"}, "skips a stage"),
        ({"pooled": "average"}, "has no layer named pooled"),
        ({"pre": "stage1_pre"}, "stage1_pre is stage1 itself"),
        ({"tail": NotSaved()}, "cannot be saved and loaded"),
        ({"tail": BatchMean()}, "predict differs from a call"),
        ({"conv": None}, "named differently each time"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_breaks_the_contract_is_told_so(change, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_model(functools.partial(net, **change))


def test_a_builder_that_does_something_else_is_told_so():
    with pytest.raises(AssertionError, match=r"returns a keras.Model, not tuple"):
        testing.check_model(lambda **shape: ())
    with pytest.raises(AssertionError, match=r"a builder keeps to its input_shape"):
        testing.check_model(lambda num_classes, input_shape: net(num_classes, (16, 16, 3)))
    with pytest.raises(AssertionError, match=r"not \(B, 7\)"):
        testing.check_model(lambda num_classes, input_shape: net(3, input_shape))


def test_a_weight_without_gradient_and_a_weight_of_its_own_seed_are_found():
    model = net(3, (8, 8, 3))
    model.get_layer("conv").bias.assign([-1e3] * 4)  # every ReLU is dead
    with pytest.raises(AssertionError, match="gets no gradient"):
        testing.check_model(model)
    seeds = iter(range(100))

    def build(num_classes, input_shape):
        model = net(num_classes, input_shape)
        model.get_layer("conv").bias.assign([next(seeds)] * 4)
        return model

    with pytest.raises(AssertionError, match="bias differs under the same seed"):
        testing.check_model(build)


# ---- data ----


def source(count, seed, kind=ArraySource):
    rng = np.random.default_rng(seed)
    return kind(rng.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8), np.arange(count) % 3)


def splits(**changes):
    kinds = {"train": source(9, 0), "val": source(6, 1), "test": source(6, 2)}
    return Splits(**{**kinds, "class_names": ("a", "b", "c"), "image_shape": (4, 5, 3), **changes})


class FloatImages(ArraySource):
    def read(self, indices):
        images, labels = super().read(indices)
        return tf.cast(images, tf.float32), labels


class OtherLabels(ArraySource):
    def read(self, indices):
        images, labels = super().read(indices)
        return images, labels * 0


class Random(ArraySource):
    def read(self, indices):
        images, labels = super().read(indices)
        return images + tf.cast(tf.random.uniform(images.shape, 0, 3, tf.int32), tf.uint8), labels


class EagerOnly(ArraySource):
    def read(self, indices):
        return super().read(np.asarray(indices))


class WideLabels(ArraySource):
    def __init__(self, images, labels):
        super().__init__(images, labels)
        self.labels = self.labels.astype("int64")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val": np.zeros(3)}, "val is ndarray: a split is a kd_keras.data.Source"),
        ({"test": ArraySource(np.zeros((0, 4, 5, 3), np.uint8), [])}, "test holds no sample"),
        ({"image_shape": (4, 4, 3)}, r"train has images \(4, 5, 3\), and the splits say \(4, 4, 3\)"),
        ({"class_names": ("a", "b")}, "has labels from 0 to 2: they are -1 to 1"),
        ({"train": source(9, 0, WideLabels)}, "train's labels are int64"),
        ({"train": source(9, 0, FloatImages)}, "train.read returns images float32"),
        ({"train": source(9, 0, OtherLabels)}, "other labels than train.labels"),
        ({"train": source(9, 0, Random)}, "returns different images for one index"),
        ({"train": source(9, 0, EagerOnly)}, "fails inside Dataset.map|does not work inside Dataset.map"),
        ({"test": source(6, 1)}, "different splits have one fingerprint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_breaks_the_contract_is_told_so(changes, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_data(splits(**changes))


def test_data_that_are_no_splits_are_told_so():
    with pytest.raises(AssertionError, match=r"returns kd_keras\.data\.Splits, not tuple"):
        testing.check_data(())


@pytest.mark.slow
def test_the_checks_need_no_test_runner():
    code = "import sys; from kd_keras import losses, testing; testing.check_loss(losses.KD()); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert process.returncode == 0 and "pytest" not in process.stdout.split(), process.stderr
