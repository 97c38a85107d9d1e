"""Frozen copies: batch norm folded, dtypes, names and the original untouched."""

import keras
import numpy as np
import pytest

from kd_keras import Distiller, Taps, losses
from kd_keras._compat import tensorflow
from kd_keras.distillation import device
from kd_keras.distillation.fast_teacher import can_be_copied, fast_copy
from kd_keras.errors import InputError

L = keras.layers
X = np.random.default_rng(0).uniform(0, 1, (5, 8, 8, 3)).astype("float32")


def with_moved_norms(model):
    """Batch norm statistics and weights that are not those of initialisation."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if any(name in weight.path for name in ("norm", "bn")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def norms(model):
    return [layer.name for layer in model.layers if isinstance(layer, L.BatchNormalization)]


def chain(*layers, last=True):
    x = image = keras.Input((8, 8, 3))
    for layer in layers:
        x = layer(x)
    if last:
        x = L.Dense(4, name="logits")(L.GlobalAveragePooling2D(name="pooled")(x))
    return with_moved_norms(keras.Model(image, x))


BLOCKS = {
    "a convolution": lambda: [L.Conv2D(6, 3, use_bias=False, name="conv"), L.BatchNormalization(name="norm")],
    "with a bias": lambda: [
        L.Conv2D(6, 3, strides=2, bias_initializer="normal", name="conv"),
        L.BatchNormalization(name="norm"),
    ],
    "in groups": lambda: [L.Conv2D(6, 3, groups=3, name="conv"), L.BatchNormalization(name="norm")],
    "depthwise": lambda: [L.DepthwiseConv2D(3, depth_multiplier=2, name="conv"), L.BatchNormalization(name="norm")],
    "dense": lambda: [L.Dense(6, name="conv"), L.BatchNormalization(name="norm")],
    "without scale and centre": lambda: [
        L.Conv2D(6, 3, name="conv"),
        L.BatchNormalization(scale=False, center=False, epsilon=0.1, name="norm"),
    ],
}
NOT = {
    "an activation between": lambda: [
        L.Conv2D(6, 3, activation="relu", name="conv"),
        L.BatchNormalization(name="norm"),
    ],
    "a norm of the input": lambda: [L.BatchNormalization(name="norm"), L.Conv2D(6, 3, name="conv")],
    "a norm of rows": lambda: [L.Conv2D(6, 3, name="conv"), L.BatchNormalization(axis=1, name="norm")],
    "transposed": lambda: [L.Conv2DTranspose(6, 3, name="conv"), L.BatchNormalization(name="norm")],
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_batch_norm_is_folded_and_the_outputs_stay(block):
    model = chain(*BLOCKS[block](), L.ReLU(name="relu"))
    before = [w.copy() for w in model.get_weights()]
    copy = fast_copy(model, "float32")
    assert norms(copy) == [] and norms(model) == ["norm"]
    assert [layer.name for layer in copy.layers][1:] == [layer.name for layer in model.layers][1:]
    np.testing.assert_allclose(copy(X), model(X, training=False), rtol=1e-5, atol=1e-5)
    # Read by its name, the norm's place has the norm's output still.
    at = [Taps(m)(X, ("norm",), training=False)["norm"] for m in (copy, model)]
    np.testing.assert_allclose(*at, rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("block", NOT)
def test_what_cannot_be_folded_is_left(block):
    model = chain(*NOT[block]())
    copy = fast_copy(model, "float32")
    assert norms(copy) == ["norm"]
    np.testing.assert_allclose(copy(X), model(X, training=False), rtol=1e-6, atol=1e-6)


def test_a_layer_that_is_read_elsewhere_is_left():
    image = keras.Input((8, 8, 3))
    y = L.Conv2D(6, 3, name="conv")(image)
    x = L.Add(name="sum")([L.BatchNormalization(name="norm")(y), y])
    model = with_moved_norms(keras.Model(image, L.Dense(4, name="logits")(L.Flatten(name="flat")(x))))
    assert norms(fast_copy(model, "float32")) == ["norm"]
    two = keras.Model(image, [L.BatchNormalization(name="norm2")(y), y])
    assert norms(fast_copy(two, "float32")) == ["norm2"]


def test_a_layer_or_a_norm_that_is_used_twice_is_left():
    image = keras.Input((8, 8, 3))
    conv, norm = L.Conv2D(6, 3, name="conv"), L.BatchNormalization(name="norm")
    x = L.Add(name="sum")([norm(conv(image)), norm(L.Conv2D(6, 3, name="conv2")(image))])
    model = keras.Model(image, L.Dense(4, name="logits")(L.Flatten(name="flat")(x)))
    copy = fast_copy(with_moved_norms(model), "float32")
    assert norms(copy) == ["norm"]
    np.testing.assert_allclose(copy(X), model(X, training=False), rtol=1e-6, atol=1e-6)


def test_a_layer_whose_own_output_is_read_is_kept():
    model = chain(*BLOCKS["a convolution"]())
    copy = fast_copy(model, "float32", keep=("conv",))
    at = [Taps(m)(X, ("conv",), training=False)["conv"] for m in (copy, model)]
    np.testing.assert_allclose(*at, rtol=1e-6, atol=1e-6)
    student = chain(L.Conv2D(6, 3, name="conv"))
    terms = [losses.Hint(pairs="conv:conv")]
    d = Distiller(student=student, teacher=model, losses=terms, teacher_dtype="float32")
    read = d._teacher_taps.value(X, ("conv",), training=False)["conv"]
    np.testing.assert_allclose(read, at[1], rtol=1e-6, atol=1e-6)


def test_models_inside_models_are_frozen_too():
    inner = chain(*BLOCKS["a convolution"](), L.ReLU(name="relu"), last=False)
    image = keras.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D(name="pooled")(inner(L.Rescaling(0.5, name="scale")(image)))
    model = keras.Model(image, L.Softmax(name="p")(L.Dense(4, name="logits")(x)))
    half = fast_copy(model, "bfloat16")
    nested = next(layer for layer in half.layers if isinstance(layer, keras.Model))
    assert norms(nested) == [] and nested.get_layer("conv").compute_dtype == "bfloat16"
    # The tail, from the layer with the last weights on, gives the logits in float32.
    assert [half.get_layer(name).compute_dtype for name in ("logits", "p", "pooled")] == ["float32"] * 2 + ["bfloat16"]
    np.testing.assert_allclose(fast_copy(model, "float32")(X), model(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half(X), model(X), atol=0.02)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_sequential_model_in_another_dtype(dtype, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 3)), *BLOCKS["with a bias"](), L.Flatten(), L.Dense(4, name="logits")])
    model.save(tmp_path / "m.keras")
    model = with_moved_norms(keras.models.load_model(tmp_path / "m.keras"))
    copy = fast_copy(model, dtype)
    assert norms(copy) == [] and copy.get_layer("conv").compute_dtype == dtype
    out = copy(X)
    assert out.dtype == "float32"
    np.testing.assert_allclose(out, model(X, training=False), atol=0.05)


def test_a_model_that_ends_in_an_operation():
    image = keras.Input((8, 8, 3))
    x = L.Flatten(name="flat")(L.BatchNormalization(name="norm")(L.Conv2D(6, 3, name="conv")(image)))
    model = with_moved_norms(keras.Model(image, L.Dense(4, name="logits")(x) / 2.0))
    copy = fast_copy(model, "bfloat16")
    assert copy.get_layer("logits").compute_dtype == "float32" and norms(copy) == []
    np.testing.assert_allclose(copy(X), model(X), atol=0.05)


def test_a_graph_with_a_subclassed_model_inside_cannot_be_frozen():
    class Inner(keras.Model):
        def call(self, x):
            return x

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, L.Dense(4)(L.Flatten()(Inner()(image))))
    assert not can_be_copied(model) and can_be_copied(chain(L.Conv2D(4, 3)))
    with pytest.raises(InputError, match="functional or Sequential"):
        fast_copy(model, "float32")


def test_auto_is_what_the_machine_is_fastest_in():
    model = chain(*BLOCKS["a convolution"]())
    assert fast_copy(model, "auto").get_layer("conv").compute_dtype == device.teacher_dtype()


def test_bad_dtypes_and_models():
    with pytest.raises(InputError, match="teacher_dtype='int8': known are None, 'auto', 'float32'"):
        fast_copy(chain(*BLOCKS["dense"]()), "int8")

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(InputError, match="functional or Sequential"):
        fast_copy(Own(), "float32")


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_distiller_teaches_with_the_copy_and_by_default_with_the_model_itself(dtype):
    teacher, student = chain(*BLOCKS["a convolution"]()), chain(L.Conv2D(4, 3))
    plain = Distiller(student=student, teacher=teacher, losses=[losses.KD()])
    assert plain._teacher_taps.value.model is teacher
    d = Distiller(student=student, teacher=teacher, losses=[losses.KD()], teacher_dtype=dtype)
    assert d.teacher is teacher and norms(d._teacher_taps.value.model) == []
    got = d._teacher_taps.value(X, ("logits",), training=False)["logits"]
    np.testing.assert_allclose(got, teacher(X, training=False), atol=1e-5 if dtype == "float32" else 0.05)


# ---- the device ----


def test_the_features_of_a_cpu(tmp_path):
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("model name\t: A\nflags\t\t: fpu avx512_bf16 amx_tile\n\nflags\t\t: fpu\n", encoding="utf-8")
    arm.write_text("processor : 0\nFeatures\t: fp asimd bf16\n", encoding="utf-8")
    assert device.cpu_features(x86) == {"fpu", "avx512_bf16", "amx_tile"}
    assert "bf16" in device.cpu_features(arm)
    assert device.cpu_features(tmp_path / "none") == set()


@pytest.mark.parametrize(
    ("capability", "features", "dtype"),
    [
        (None, {"avx512_bf16"}, "bfloat16"),
        (None, {"avx2"}, "float32"),
        ((9, 0), set(), "bfloat16"),
        ((7, 5), set(), "float16"),
        ((6, 1), {"avx512_bf16"}, "float32"),
    ],
)
def test_the_dtype_of_the_teacher_follows_the_machine(monkeypatch, capability, features, dtype):
    # No such machine is at hand: what TensorFlow reports of one is replaced.
    monkeypatch.setattr(tensorflow, "gpu_capability", lambda: capability)
    monkeypatch.setattr(device, "cpu_features", lambda: features)
    assert device.teacher_dtype() == dtype
