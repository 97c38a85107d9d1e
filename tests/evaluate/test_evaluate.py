import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras.errors import InputError
from kd_keras.evaluate import cost, quality


def small_net():
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )


def one_layer(layer, shape):
    image = keras.Input(shape)
    return keras.Model(image, layer(image))


def test_predict_keeps_order_takes_an_uneven_last_batch_and_moves_no_state():
    model = small_net()
    images = np.random.default_rng(0).normal(5, 2, (10, 4, 4, 1)).astype("float32")
    labels = np.arange(10) % 3
    before = [weight.copy() for weight in model.get_weights()]
    states = [variable.numpy().copy() for variable in model.non_trainable_variables]
    logits, seen = quality.predict(model, tf.data.Dataset.from_tensor_slices((images, labels)).batch(4))
    # By hand: at evaluation dropout is nothing and fresh batch norm divides by sqrt(1 + 1e-3).
    kernel, bias = before[-2:] if before[-1].shape == (3,) else model.layers[-1].get_weights()
    expected = images.reshape(10, 16) / np.sqrt(1.001) @ kernel + bias
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_array_equal(seen, labels)
    assert logits.dtype == np.float32 and seen.dtype == np.int64
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(states, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_predict_gives_float32_for_a_half_precision_model():
    image = keras.Input((2, 2, 1))
    model = keras.Model(image, keras.layers.Dense(2, dtype="bfloat16")(keras.layers.Flatten()(image)))
    logits, _ = quality.predict(model, [(np.ones((3, 2, 2, 1), "float32"), np.zeros(3, int))])
    assert logits.dtype == np.float32 and logits.shape == (3, 2)


@pytest.mark.parametrize("labels", [np.eye(3, dtype="float32"), np.zeros(3, "float32"), np.zeros(2, int)])
def test_predict_refuses_labels_that_are_not_one_integer_an_image(labels):
    with pytest.raises(InputError, match="one integer label per image"):
        quality.predict(small_net(), [(np.zeros((3, 4, 4, 1), "float32"), labels)])


def test_predict_refuses_an_empty_dataset():
    with pytest.raises(InputError, match="nothing to evaluate"):
        quality.predict(small_net(), [])


def hand_logits(probabilities):
    return np.log(np.array(probabilities))


def test_metrics_by_hand():
    logits = hand_logits([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.75, 0.05], [0.95, 0.03, 0.02]])
    labels = [0, 1, 1, 0]
    got = quality.metrics(logits, labels)
    # Predicted 0 0 1 0. Class 0: precision 2/3, recall 1; class 1: precision 1, recall 1/2; class 2: nothing, so 0.
    assert got["accuracy"] == pytest.approx(3 / 4)
    assert got["precision"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert got["recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert got["f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    # 0.7 and 0.75 fall in (10/15, 11/15] and (11/15, 12/15], 0.6 in (8/15, 9/15], 0.95 in (14/15, 1]: four bins of one.
    assert got["ece"] == pytest.approx((0.3 + 0.6 + 0.25 + 0.05) / 4)
    assert list(got) == ["accuracy", "precision", "recall", "f1", "ece"]


def test_calibration_error_nets_differences_within_a_bin_only():
    # Both in (0.8, 0.8667]: right at 0.82, wrong at 0.84, so |0.18 - 0.84| / 2, not (0.18 + 0.84) / 2.
    logits = hand_logits([[0.82, 0.18], [0.84, 0.16]])
    assert quality.metrics(logits, [0, 1])["ece"] == pytest.approx(0.66 / 2)


def test_calibration_bins_are_closed_on_the_right():
    # A confidence of exactly 5/15 belongs with 0.3, in (4/15, 5/15].
    logits = hand_logits([[1 / 3, 1 / 3, 1 / 3, 1e-300, 1e-300], [0.3, 0.2, 0.2, 0.2, 0.1]])
    assert quality.metrics(logits, [0, 1])["ece"] == pytest.approx((2 / 3 - 0.3) / 2)


def test_calibration_error_against_a_direct_loop_over_bins():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(0, 3, (500, 7)), rng.integers(0, 7, 500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert quality.metrics(logits, labels)["ece"] == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_huge_logits_is_finite():
    assert quality.metrics(np.array([[1e4, -1e4], [1e4, -1e4]]), [0, 1])["ece"] == pytest.approx(0.5)


def test_agreement():
    a = np.array([[1, 0], [0, 1], [3, 2], [0, 5]])
    b = np.array([[9, 0], [2, 1], [3, 2], [0, 1]])
    assert quality.agreement(a, b) == 0.75
    with pytest.raises(ValueError, match="one shape"):
        quality.agreement(a, b[:2])


def test_class_report_and_confusion():
    logits = np.eye(4)[[0, 0, 1, 2, 2]]
    labels = [0, 1, 1, 2, 0]
    report = quality.class_report(logits, labels, ["a", "b", "c", "absent"])
    assert report["a"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1-score": 0.5, "support": 2})
    assert report["b"] == pytest.approx({"precision": 1, "recall": 0.5, "f1-score": 2 / 3, "support": 2})
    assert report["absent"]["support"] == 0
    assert report["accuracy"] == pytest.approx(0.6)
    assert report["macro avg"]["f1-score"] == pytest.approx(quality.metrics(logits, labels)["f1"])
    expected = [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(quality.confusion(logits, labels, 4), expected)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b"]])
def test_class_report_refuses_names_that_do_not_fit(names):
    with pytest.raises(InputError, match="3 different class names"):
        quality.class_report(np.eye(3), [0, 1, 2], names)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (keras.layers.Conv2D(8, 3, padding="same"), (10, 12, 5), 10 * 12 * 8 * 9 * 5),
        (keras.layers.Conv2D(8, 3, strides=2, padding="valid"), (10, 12, 5), 4 * 5 * 8 * 9 * 5),
        (keras.layers.Conv2D(8, 3, strides=2, padding="same"), (9, 9, 5), 5 * 5 * 8 * 9 * 5),
        (keras.layers.Conv2D(8, 3, groups=4, padding="same"), (6, 6, 4), 6 * 6 * 8 * 9 * 1),
        (keras.layers.DepthwiseConv2D((3, 5), padding="same"), (6, 8, 4), 6 * 8 * 4 * 15),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2, strides=2), (7, 7, 4), 3 * 3 * 8 * 9),
        (keras.layers.SeparableConv2D(8, 3, padding="same"), (6, 6, 4), 36 * 4 * 9 + 36 * 8 * 4),
        (keras.layers.Conv1D(7, 3, padding="same"), (11, 4), 11 * 7 * 3 * 4),
        (keras.layers.Dense(7, use_bias=True), (13,), 13 * 7),
        (keras.layers.Dense(7), (5, 13), 5 * 13 * 7),
        (keras.layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3)), (5, 8), 5 * 8 * 2 * 3),
        (keras.layers.ReLU(), (4, 4, 2), 0),
    ],
)
def test_macs_by_hand(layer, shape, expected):
    assert cost.macs(one_layer(layer, shape)) == expected


def test_macs_of_attention():
    image = keras.Input((6, 8))
    model = keras.Model(image, keras.layers.MultiHeadAttention(2, 5, flash_attention=False)(image, image))
    projections = 4 * 6 * 8 * 10
    assert cost.macs(model) == projections + 2 * (2 * 6 * 6 * 5)


def test_macs_of_an_einsum_with_an_ellipsis_and_of_transposed_matmul():
    class Products(keras.layers.Layer):
        def call(self, x):
            kernel = tf.ones((3, 4))
            return tf.einsum("...c,cd->...d", x, kernel) + tf.matmul(x, tf.ones((4, 3)), transpose_b=True)

    assert cost.macs(one_layer(Products(), (5, 6, 3))) == 2 * (5 * 6 * 3 * 4)


def test_macs_and_parameters_of_a_model_loaded_from_file(tmp_path):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    keras.Model(image, keras.layers.Dense(5)(x)).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert cost.macs(model) == 8 * 8 * 4 * 27 + 4 * 5
    # Batch norm trains scale and offset; its moving statistics do not count.
    assert cost.parameters(model) == 4 * 27 + 2 * 4 + 4 * 5 + 5
    model.trainable = False
    assert cost.parameters(model) == 0


def test_macs_refuses_a_model_of_open_size():
    with pytest.raises(InputError, match="known size"):
        cost.macs(one_layer(keras.layers.Conv2D(2, 3), (None, None, 3)))


def fake_clock(monkeypatch, durations):
    """Each call takes the next duration, in seconds."""
    now = [0.0]
    durations = iter(durations)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(durations)

    return call


def test_latency_is_the_median_and_the_interquartile_range_without_warm_up(monkeypatch):
    call = fake_clock(monkeypatch, [0.1, 0.1, 0.001, 0.002, 0.003, 0.004, 0.05])
    got = cost.latency(call, runs=5, warmup=2, runtime="here", threads=2)
    assert got.median_ms == pytest.approx(3)
    assert got.iqr_ms == pytest.approx(2)
    assert (got.runtime, got.threads, got.runs) == ("here", 2, 5)
    with pytest.raises(AttributeError):
        got.threads = 3


def test_latency_stops_when_its_time_is_over_but_times_three_calls(monkeypatch):
    slow = cost.latency(fake_clock(monkeypatch, itertools.repeat(10.0)), runtime="r", threads=1)
    assert slow.runs == 3 and slow.median_ms == pytest.approx(10_000)
    # 1/8 s a call: 0.75 s of warm-up at 3 s, then until 3 s are over.
    some = cost.latency(fake_clock(monkeypatch, itertools.repeat(0.125)), runtime="r", threads=1)
    assert 15 <= some.runs <= 20


def test_keras_latency_times_the_model_at_batch_one():
    shapes = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            shapes.append(tuple(x.shape))
            return tf.reduce_mean(x, axis=(1, 2))

    model = one_layer(Spy(), (4, 4, 2))
    shapes.clear()
    got = cost.keras_latency(model, runs=5, warmup=1)
    assert shapes == [(1, 4, 4, 2)]
    assert got.runs == 5 and 0 < got.median_ms < 1000 and got.iqr_ms >= 0
    assert got.runtime.startswith(f"TensorFlow {tf.__version__}, ") and got.threads >= 1
