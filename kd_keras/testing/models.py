"""The contract of models, as teachers and as students."""

import dataclasses
import itertools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kd_keras.testing import shared


def check_model(
    model: keras.Model | Callable[..., keras.Model],
    *,
    num_classes: int = 7,
    input_shape: tuple[int, int, int] = (32, 32, 3),
) -> None:
    """Checks that a model, or what a builder builds, can be a teacher and a student.

    Args:
        model: a `keras.Model`, or ``builder(num_classes=…, input_shape=…)``. Only of a builder is checked that names
            and weights repeat, and that logits stay float32 under mixed precision.
        num_classes: K that a builder is called with.
        input_shape: (H, W, C) that a builder is called with.

    Raises:
        AssertionError: the model breaks the contract.
    """
    if isinstance(model, keras.Model):
        case = ModelCase(lambda: model, model.output_shape[-1], model.input_shape[1:], is_builder=False)
    else:
        case = ModelCase(lambda: model(num_classes=num_classes, input_shape=input_shape), num_classes, input_shape)
    for check in MODEL_CHECKS:
        check(case)


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """A model, or how it is built.

    Attributes:
        build: returns a model.
        num_classes: K.
        input_shape: (H, W, C).
        is_builder: whether `build` builds a new model each time.
    """

    build: Callable[[], keras.Model]
    num_classes: int
    input_shape: tuple[int, ...]
    is_builder: bool = True

    def make(self, seed: int = 1) -> keras.Model:
        """A model, whose batch norm statistics have moved from their start."""
        keras.utils.set_random_seed(seed)
        model = self.build()
        assert isinstance(model, keras.Model), f"a builder returns a keras.Model, not {type(model).__name__}"
        assert model.input_shape == (None, *self.input_shape), (
            f"{model.name} takes {model.input_shape}, not images {self.input_shape}: a builder keeps to its input_shape"
        )
        if self.is_builder:
            model(self.pixels(), training=True)
        return model

    def pixels(self, count: int = 4) -> np.ndarray:
        """Images (count, H, W, C) of pixels in 0..255."""
        return np.random.default_rng(0).integers(0, 256, (count, *self.input_shape)).astype("float32")


def returns_float32_logits(case: ModelCase) -> None:
    """The output is (B, K) float32 logits of images with pixels in 0..255."""
    model = case.make()
    logits = model(case.pixels())
    assert logits.shape == (4, case.num_classes), f"{model.name} returns {logits.shape}, not (B, {case.num_classes})"
    assert logits.dtype == tf.float32, f"{model.name} returns {logits.dtype.name}: logits are float32"
    assert np.all(np.isfinite(logits)), f"{model.name} returns logits that are not finite for pixels in 0..255"
    assert not np.allclose(np.sum(logits, axis=-1), 1), (
        f"{model.name}'s outputs sum to 1 and look like a softmax: a model returns logits"
    )


def keeps_logits_float32_under_mixed_precision(case: ModelCase, dtype: str = "float16") -> None:
    """Under a mixed policy the logits are computed in float32."""
    if not case.is_builder:
        return
    with shared.policy(f"mixed_{dtype}"):
        logits = case.make()(case.pixels())
    assert logits.dtype == tf.float32, f"logits are {dtype} under a mixed policy: give the last layer dtype='float32'"
    assert np.all(np.isfinite(logits)), f"logits are not finite under mixed_{dtype}"


def offers_taps(case: ModelCase) -> None:
    """Layers are named ``stage1`` … ``stageN`` (after the activation), ``pooled``, and perhaps ``stage1_pre`` …"""
    model = case.make()
    names = {layer.name for layer in model.layers}
    stages = [name for name in (f"stage{i}" for i in range(1, len(names) + 1)) if name in names]
    assert stages, f"{model.name} has no layer named stage1: losses on features read stage1 … stageN and pooled"
    assert stages == [f"stage{i}" for i in range(1, len(stages) + 1)], f"{model.name} skips a stage: {stages}"
    assert "pooled" in names, f"{model.name} has no layer named pooled: the vector (B, D) that enters the classifier"
    before = [f"{name}_pre" for name in stages if f"{name}_pre" in names]
    assert len(before) in (0, len(stages)), f"{model.name} has some of the taps stage1_pre … stageN_pre: {before}"
    tapped = [*stages, *before, "pooled"]
    outputs = keras.Model(model.inputs, [model.get_layer(name).output for name in tapped])(case.pixels())
    taps = dict(zip(tapped, outputs, strict=True))
    assert len(taps["pooled"].shape) == 2, f"{model.name}'s pooled is {taps['pooled'].shape}, not a vector (B, D)"
    for first, second in itertools.pairwise(stages):
        grids = taps[first].shape[1:-1], taps[second].shape[1:-1]
        assert all(b <= a for a, b in zip(*grids, strict=True)), (
            f"{model.name}'s {second} has a larger grid than {first}: stages are numbered in the order of depth"
        )
    for name in before:  # the tap after the activation is what the activation makes of the tap before it
        stage = name.removesuffix("_pre")
        activated = model.get_layer(stage)(taps[name])
        shared.assert_close(activated, taps[stage], f"{model.name}'s {stage} is not the activation of {name}")
        assert np.min(taps[name]) < np.min(taps[stage]), f"{model.name}'s {name} is {stage} itself"


def repeats_names_and_weights(case: ModelCase) -> None:
    """The same arguments and seed give the same names of layers and the same weights."""
    if not case.is_builder:
        return
    first, second = case.make(seed=3), case.make(seed=3)
    names = [[layer.name for layer in model.layers] for model in (first, second)]
    # Keras numbers what is not named, and counts on: such a name differs in the second model.
    differing = [pair for pair in zip(*names, strict=True) if pair[0] != pair[1]]
    assert not differing and first.name == second.name, (
        f"layers are named differently each time, as {differing[:1]}: name all"
    )
    for a, b in zip(first.weights, second.weights, strict=True):
        shared.assert_equal(a, b, f"{a.path} differs under the same seed")


def is_restored_with_its_outputs(case: ModelCase) -> None:
    """Saved and loaded, the model returns the same logits."""
    model = case.make()
    shared.assert_equal(
        *(shared.save_and_load(model, model.name)(case.pixels()), model(case.pixels())),
        f"{model.name} loaded from a file returns other logits",
    )


def predicts_as_it_is_called(case: ModelCase) -> None:
    """`predict` on tf.data returns what calling the model returns."""
    model, images = case.make(), case.pixels(5)
    predicted = model.predict(tf.data.Dataset.from_tensor_slices(images).batch(2), verbose=0)
    what = f"{model.name}.predict differs from a call: a sample's logits may not depend on its batch"
    np.testing.assert_allclose(predicted, model(images), rtol=1e-3, atol=1e-4, err_msg=what)


def trains_every_weight(case: ModelCase) -> None:
    """Each trainable weight gets a finite gradient that is not 0."""
    model = case.make()
    with tf.GradientTape() as tape:
        logits = model(case.pixels(8), training=True)
        labels = np.arange(8) % case.num_classes
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, logits, True))
    gradients = tape.gradient(loss, model.trainable_variables)
    for weight, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None and np.any(gradient), f"{weight.path} gets no gradient: it is not used"
        assert np.all(np.isfinite(gradient)), f"{weight.path} gets a gradient that is not finite"


#: What `check_model` checks, each a function of a `ModelCase`.
MODEL_CHECKS = (
    returns_float32_logits,
    keeps_logits_float32_under_mixed_precision,
    offers_taps,
    repeats_names_and_weights,
    is_restored_with_its_outputs,
    predicts_as_it_is_called,
    trains_every_weight,
)
