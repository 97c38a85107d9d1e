import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras.errors import InputError
from kd_keras.export import tflite


def net(policy="float32"):
    """A residual CNN with batch norm, depthwise and grouped parts; its head is read from class means in `trained`."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(3)
    image = keras.Input((16, 16, 3), dtype="float32")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    y = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    y = keras.layers.Conv2D(32, 1, activation="relu")(y)
    x = keras.layers.Add()([x, y])
    x = keras.layers.AveragePooling2D(4)(x)
    x = keras.layers.Dense(5, dtype="float32", name="logits")(keras.layers.Flatten()(x))
    keras.mixed_precision.set_dtype_policy(before)
    return keras.Model(image, x, name="small")


def pictures(count, seed):
    """Five classes of oriented stripes with noise: learnable by a linear head on random features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    u, v = np.mgrid[0:16, 0:16]
    angle = labels * np.pi / 5
    wave = np.sin(0.9 * (np.cos(angle)[:, None, None] * u + np.sin(angle)[:, None, None] * v))
    images = 127 + 70 * wave[..., None] * np.array([1.0, 0.7, -0.5]) + rng.normal(0, 20, (count, 16, 16, 3))
    return np.clip(images, 0, 255).astype("float32"), labels


@pytest.fixture(scope="module")
def trained():
    model = net()
    images, labels = pictures(400, seed=0)
    rng = np.random.default_rng(0)
    # Batch norm with statistics and scales of its own: folding it wrongly would show.
    model.get_layer("norm").set_weights(
        [rng.uniform(0.5, 1.5, 32), rng.normal(0, 0.3, 32), rng.normal(0, 0.1, 32), rng.uniform(0.2, 0.6, 32)]
    )
    features = keras.Model(model.input, model.layers[-2].output).predict(images, verbose=0)
    # The best linear head, in closed form: no training loop.
    design = np.c_[features, np.ones(len(features))]
    head = np.linalg.solve(design.T @ design + 10 * np.eye(design.shape[1]), design.T @ (8 * np.eye(5)[labels] - 4))
    model.layers[-1].set_weights([head[:-1], head[-1]])
    return model


@pytest.fixture(scope="module")
def files(trained):
    images = pictures(100, seed=1)[0]
    return {variant: tflite.convert(trained, variant, images) for variant in tflite.VARIANTS}


@pytest.fixture(scope="module")
def held_out():
    return pictures(200, seed=2)


def test_the_fixture_has_learnt_something(trained, held_out):
    images, labels = held_out
    assert np.mean(trained.predict(images, verbose=0).argmax(1) == labels) > 0.9


def test_float32_equals_keras(trained, files, held_out):
    expected = trained.predict(held_out[0], verbose=0)
    got = tflite.load(files["float32"]).predict(held_out[0])
    assert got.dtype == np.float32 and got.shape == (200, 5)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "tolerance"), [("float16", 0.05), ("dynamic", 0.5), ("int8", 1.0), ("int8_io", 1.0), ("int16x8", 0.5)]
)
def test_smaller_variants_agree_with_keras(trained, files, held_out, variant, tolerance):
    expected = trained.predict(held_out[0], verbose=0)
    got = tflite.load(files[variant]).predict(held_out[0])
    assert np.abs(got - expected).max() < tolerance
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.97
    assert np.abs(got - expected).max() > 0  # else the variant would be float32 under another name


@pytest.mark.slow
def test_sizes_fall_from_float32_to_float16_to_8_bits():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Dense(256, activation="relu")(keras.layers.Flatten()(image))
    model = keras.Model(image, keras.layers.Dense(10)(x))
    images = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3))
    sizes = {variant: len(tflite.convert(model, variant, images)) for variant in tflite.VARIANTS}
    weights = 192 * 256 + 2560
    assert 4 * weights < sizes["float32"] < 4 * weights + 8000
    assert 2 * weights < sizes["float16"] < 2 * weights + 8000
    assert weights < sizes["dynamic"] < weights + 8000
    assert weights < sizes["int8"] < weights + 8000


def test_every_variant_but_one_takes_a_float_image_and_gives_float_logits(files):
    from ai_edge_litert.interpreter import Interpreter

    for variant, content in files.items():
        runner = Interpreter(model_content=content)
        (taken,), (given,) = runner.get_input_details(), runner.get_output_details()
        assert taken["dtype"] == given["dtype"] == (np.int8 if variant == "int8_io" else np.float32), variant
        assert list(taken["shape"]) == [1, 16, 16, 3] and list(given["shape"]) == [1, 5]
        assert runner.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}


def test_int8_computes_in_integers(files):
    from ai_edge_litert.interpreter import Interpreter

    def kinds(content):
        runner = Interpreter(model_content=content)
        return [np.dtype(tensor["dtype"]).kind for tensor in runner.get_tensor_details()]

    # Only the two ends are float: the rest are int8 tensors and int32 biases.
    assert kinds(files["int8"]).count("f") == 2
    assert "f" in kinds(files["dynamic"]) and kinds(files["dynamic"]).count("f") > 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_mixed_policy_model_is_exported_in_float32(trained, held_out, policy):
    mixed = net(policy)
    mixed.set_weights(trained.get_weights())
    content = tflite.convert(mixed, "float32")
    expected = trained.predict(held_out[0], verbose=0)
    np.testing.assert_allclose(tflite.load(content).predict(held_out[0]), expected, atol=1e-4)
    assert mixed.layers[2].compute_dtype == policy.removeprefix("mixed_")  # the caller's own model is as it was


def test_conversion_prints_nothing_and_gives_the_screen_back(trained, capfd):
    tflite.convert(trained, "float32")
    print("after")
    out, err = capfd.readouterr()
    assert (out, err) == ("after\n", "")


def test_unknown_variant_lists_the_known_ones(trained):
    with pytest.raises(InputError, match="'int4'; known: float32, float16, dynamic, int8"):
        tflite.convert(trained, "int4")


@pytest.mark.parametrize("images", [None, [], np.zeros((2, 8, 8, 3)), np.zeros((16, 16, 3))])
def test_int8_without_fitting_images_is_refused(trained, images):
    with pytest.raises(InputError, match="representative images of shape"):
        tflite.convert(trained, "int8", images)


def test_a_model_of_open_size_is_refused():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(InputError, match="fixed size"):
        tflite.convert(model, "float32")


def test_an_operation_that_tflite_lacks_is_named_in_one_line():
    class Lacking(keras.layers.Layer):
        def call(self, x):
            return tf.math.erfinv(tf.reduce_mean(x, axis=(1, 2)) / 300)

    image = keras.Input((4, 4, 2))
    model = keras.Model(image, Lacking()(image), name="odd")
    with pytest.raises(InputError) as caught:
        tflite.convert(model, "float32")
    message = str(caught.value)
    assert "float32" in message and "odd" in message and "Erfinv" in message
    assert "\n" not in message and len(message) < 200


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<unknown>:0: error: loc(fused): 'tfl.average_pool_2d' op scales clash", "operator tfl.average_pool_2d"),
        ("Could not translate\n error: 'tf.Erf' op is custom", "operator tf.Erf: Could not translate"),
        ("shapes differ", "shapes differ"),
        ("", "ValueError"),
    ],
)
def test_the_converters_reason_is_one_line(text, reason):
    assert tflite._reason(ValueError(text)) == reason


def test_uint8_pixels_give_what_float_pixels_give(files, held_out):
    pixels = held_out[0][:5].astype(np.uint8)
    runner = tflite.load(files["float32"])
    np.testing.assert_array_equal(runner.predict(pixels), runner.predict(pixels.astype("float32")))


def test_files_with_integer_ends_are_used_alike(trained, held_out):
    """Files of other makers take and give int8."""
    images = pictures(60, seed=1)[0]
    converter = tf.lite.TFLiteConverter.from_keras_model(trained)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    got = tflite.load(converter.convert()).predict(held_out[0])
    expected = trained.predict(held_out[0], verbose=0)
    assert np.abs(got - expected).max() < 1.0
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.97


def test_images_of_another_shape_are_refused(files):
    with pytest.raises(InputError, match=r"shape \(N, \*\(16, 16, 3\)\): got \(2, 8, 8, 3\)"):
        tflite.load(files["float32"]).predict(np.zeros((2, 8, 8, 3)))


def test_latency_hands_a_working_call_and_names_to_the_measure(files):
    runner = tflite.load(files["int8"], threads=2)
    seen = {}

    def measure(call, **names):
        seen.update(names, logits=call())
        return "measured"

    image = pictures(1, seed=4)[0]
    assert runner.latency(image[0], measure) == "measured"
    np.testing.assert_array_equal(seen["logits"], runner.predict(image)[0])
    assert seen["threads"] == 2 and seen["runtime"].startswith("LiteRT ")


def test_a_file_predicts_as_its_bytes(files, tmp_path, held_out):
    path = tmp_path / "student.tflite"
    path.write_bytes(files["float32"])
    some = held_out[0][:3]
    np.testing.assert_array_equal(tflite.load(path).predict(some), tflite.load(files["float32"]).predict(some))


def test_what_is_no_tflite_file_is_refused(tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"not a flatbuffer at all")
    with pytest.raises(InputError, match="no TFLite file"):
        tflite.load(tmp_path / "x.tflite")
    with pytest.raises(InputError, match="cannot read"):
        tflite.load(tmp_path / "missing.tflite")


def test_a_model_that_has_diverged_is_refused_before_it_is_converted():
    """Its conversion to integers can end the process: "double free or corruption"."""
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)], name="m")
    model.layers[-1].kernel.assign(np.full((16, 3), 1e20))
    images = np.full((12, 4, 4, 1), 100, np.float32) + np.arange(12, dtype=np.float32)[:, None, None, None]
    with pytest.raises(InputError, match=r"TFLite int8 of m: its output reaches .* has diverged"):
        tflite.convert(model, "int8", images)
