"""Pruning, clustering and quantisation-aware training, alone and one after the other, on a student of two kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kd_keras import Distiller, compress, losses, spec
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.models import cnn

SHAPE, STEPS, BATCH = (8, 8, 1), 20, 16
KERNELS = ("stage1_conv1", "stage2_conv1", "logits")


def student():
    keras.utils.set_random_seed(0)
    return cnn.CNN(4, SHAPE, filters=(6, 12), dense=())


def data():
    """Bars in one of four places: learnable within a few steps."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, STEPS * BATCH)
    images = rng.uniform(0, 60, (len(labels), *SHAPE))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    return images.astype("float32"), labels


def step(text):
    return spec.build("kd_keras.compress", spec.parse(text))


def fit(model, epochs=1, rate=0.01):
    distiller = Distiller(student=model, losses=[losses.CE()])
    distiller.compile(keras.optimizers.Adam(rate), metrics=["accuracy"])
    distiller.fit(*data(), batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)
    return distiller


def through(*texts, epochs=2, model=None):
    """The student after some ways, and what the last one was prepared as."""
    model, before, made = model or student(), (), None
    for text in texts:
        made = compress.prepare(model, step(text), steps=epochs * STEPS, before=before)
        fit(made.model, epochs)
        assert made.finish() is model
        before += (made.step,)
    return model, made.wrapped


def kernel(model, name):
    return model.get_layer(name).get_weights()[0]


@pytest.fixture(scope="module")
def learnt():
    model = student()
    fit(model, epochs=3)
    return model.get_weights()


def from_learnt(learnt):
    model = student()
    model.set_weights(learnt)
    return model


def accuracy(model):
    distiller = Distiller(student=model, losses=[losses.CE()])
    distiller.compile(metrics=["accuracy"])
    return distiller.evaluate(*data(), verbose=0, return_dict=True)["accuracy"]


@pytest.mark.slow
def test_a_file_does_not_depend_on_what_the_process_made_before():
    contents = []
    for _ in range(2):
        wrapped = compress.prepare(student(), step("qat()"), steps=STEPS).model.wrapped()
        wrapped(np.zeros((1, *SHAPE), "float32"), training=True)
        contents.append(tflite.convert_quantised(wrapped, "int8"))
    assert contents[0] == contents[1]


# ---- pruning ----


@pytest.mark.slow
def test_pruning_leaves_the_share_that_is_asked_for(learnt):
    model, _ = through("prune(sparsity=0.75, frequency=3)", model=from_learnt(learnt))
    for name in KERNELS:
        weights = kernel(model, name)
        # tfmot rounds the number of weights that stay.
        assert abs(np.mean(weights == 0) - 0.75) <= 1 / weights.size, name
    assert accuracy(model) > 0.5


@pytest.mark.parametrize("every", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sparsity_follows_the_papers_schedule(every):
    # Equation 1, with s_i 0, t_0 4, n Δt 20: pruned at steps 4 to 24, which are counted from 1.
    made = compress.prepare(student(), step(f"prune(sparsity=0.8, start=0.1, end=0.6, frequency={every})"), steps=40)
    assert made.step.settled(40) == 24
    distiller = Distiller(student=made.model, losses=[losses.CE()])
    distiller.compile(keras.optimizers.SGD(0.0))
    weights = made.wrapped.get_layer("prune_low_magnitude_stage2_conv1").layer.kernel
    images, labels = data()
    for done in range(1, 28):
        distiller.train_on_batch(images[:4], labels[:4])
        pruned_at = min(done - done % every, 24)
        expected = 0.8 * (1 - (1 - np.clip((pruned_at - 4) / 20, 0, 1)) ** 3)
        assert abs(np.mean(weights.numpy() == 0) - expected) <= 1 / weights.shape.num_elements(), done


@pytest.mark.slow
def test_the_smallest_fall_and_what_is_left_out_stays_dense(learnt):
    model = from_learnt(learnt)
    before = {name: kernel(model, name) for name in KERNELS}
    made = compress.prepare(model, step("prune(sparsity=0.5, end=0.1, frequency=1, skip='logits')"), steps=STEPS)
    # No learning: what falls is decided by the magnitudes that were there.
    fit(made.model, rate=0.0)
    made.finish()
    for name in KERNELS[:2]:
        fallen = kernel(model, name) == 0
        assert np.abs(before[name][fallen]).max() <= np.abs(before[name][~fallen]).min(), name
        np.testing.assert_array_equal(kernel(model, name)[~fallen], before[name][~fallen])
    np.testing.assert_array_equal(kernel(model, "logits"), before["logits"])


@pytest.mark.parametrize(
    ("steps", "first", "last"), [(100, 0, 60), (7, 0, 4), (1, 0, 1), (95, 0, 50)], ids=lambda value: str(value)
)
def test_the_last_pruning_is_not_left_out(steps, first, last):
    way = step("prune(frequency=10)")
    begin, end, every = way._schedule(steps)
    assert (begin, end) == (first, last) and (end - begin) % every == 0 and way.settled(steps) == end


# ---- clustering ----


@pytest.mark.slow
def test_clustering_leaves_so_many_values(learnt):
    model, _ = through("cluster(clusters=5)", model=from_learnt(learnt))
    for name in KERNELS:
        assert len(np.unique(kernel(model, name))) <= 5, name
    assert accuracy(model) > 0.6


@pytest.mark.parametrize(
    "chain",
    [("cluster(clusters=4)",), pytest.param(("cluster(clusters=4)", "qat()"), marks=pytest.mark.slow)],
    ids=len,
)
def test_a_centroid_moves_by_the_mean_of_its_weights_gradients(learnt, chain):
    model, images, labels = from_learnt(learnt), *(part[:BATCH] for part in data())
    *before, way = map(step, chain)
    for one in before:
        compress.prepare(model, one, steps=STEPS).finish()
    made = compress.prepare(model, way, steps=STEPS, before=tuple(before))
    layer = next(one for one in made.wrapped.layers if getattr(getattr(one, "layer", None), "name", "") == "logits")
    if before:
        (variables,) = [kept for _, _, kept in layer._weight_vars]
        centroids = variables["cluster_centroids_tf"]
    else:
        centroids = layer.cluster_centroids["kernel"]
        made.finish()

    def gradients(network, variable):
        with tf.GradientTape() as tape:
            values = keras.losses.sparse_categorical_crossentropy(labels, network(images, training=True), True)
            loss = tf.reduce_mean(values)
        return tape.gradient(loss, variable)

    moved = gradients(made.wrapped, centroids)
    weights = kernel(model, "logits")
    slopes = keras.ops.convert_to_numpy(gradients(model, model.get_layer("logits").kernel.value))
    means = [slopes[weights == value].mean() for value in np.unique(weights)]
    # Where it is quantised too, the rest of the network rounds.
    near = {"rtol": 1e-4, "atol": 1e-6} if not before else {"rtol": 0.2, "atol": 0.1 * np.abs(means).max()}
    np.testing.assert_allclose(moved.numpy()[np.argsort(centroids.numpy())], means, **near)


@pytest.mark.slow
def test_clusters_keep_zeros_of_small_kernels_too(learnt):
    model, _ = through("prune(sparsity=0.8, frequency=3)", "cluster(clusters=16)", model=from_learnt(learnt))
    for name in KERNELS:
        weights = kernel(model, name)
        assert np.mean(weights == 0) >= 0.79, name
        assert len(np.unique(weights)) <= 16, name


# ---- quantisation-aware training ----


def fake(wrapped, images):
    return wrapped(images, training=False).numpy()


@pytest.mark.slow
def test_the_file_does_what_training_has_seen(learnt):
    _, wrapped = through("qat()", model=from_learnt(learnt))
    images, labels = data()
    expected = fake(wrapped, images)
    got = tflite.load(tflite.convert_quantised(wrapped)).predict(images)
    # Another rounding at the edge of a step is all that may differ.
    assert np.mean(got.argmax(1) == expected.argmax(1)) > 0.98
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    assert np.mean(got.argmax(1) == labels) > 0.8


@pytest.mark.parametrize("before", [(), ("prune(sparsity=0.5)",), ("cluster(clusters=4)",)])
def test_ranges_begin_where_the_float_model_has_them(learnt, before):
    """Of activations at the mean over batches of their ends, with zero between; of the input at the ends of all."""
    model, images = from_learnt(learnt), data()[0][:96]
    compress.imitate(model, tuple(map(step, before)))
    made = compress.prepare(model, step("qat()"), steps=1, before=tuple(map(step, before)), images=images)
    ranges = {v.name.partition(":")[0]: float(v) for v in made.wrapped.variables if v.shape == ()}
    assert ranges["quantize_layer/quantize_layer_min"] == 0
    assert ranges["quantize_layer/quantize_layer_max"] == images.max()
    # The classifier's logits, which no activation follows.
    batches = [from_float(model, images[start : start + 32]) for start in range(0, 96, 32)]
    low = np.mean([min(batch.min(), 0) for batch in batches])
    high = np.mean([max(batch.max(), 0) for batch in batches])
    np.testing.assert_allclose(ranges["quant_logits/post_activation_min"], low, rtol=1e-4)
    np.testing.assert_allclose(ranges["quant_logits/post_activation_max"], high, rtol=1e-4)
    others = [value for name, value in ranges.items() if name.endswith(("activation_min", "activation_max"))]
    assert others and not {6.0, -6.0} & set(others)


def test_a_pruned_student_of_a_strategy_runs_outside_of_its_scope():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = student()
        made = compress.prepare(model, step("prune()"), steps=1)
    images = data()[0][:4]
    np.testing.assert_allclose(made.model(images), from_float(model, images), rtol=1e-4, atol=1e-5)
    assert set(made.model.taps(images)) >= {"stage1", "logits"}


def from_float(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False)).astype("float64")


def an_image():
    keras.utils.set_random_seed(0)
    return keras.Input((8, 8, 3))


def classifier(image, x):
    return keras.Model(image, keras.layers.Dense(3, name="logits")(keras.layers.Flatten()(x)))


def assert_the_file_does_what_was_wrapped(model, text="qat()"):
    """Gives the file; the ranges are those of a few batches, still close to the ±6 that they begin with."""
    images = np.random.default_rng(0).uniform(-6, 6, (16, *model.input_shape[1:])).astype(np.float32)
    made = compress.prepare(model, step(text), steps=1)
    for _ in range(20):
        made.wrapped(images, training=True)
    expected = fake(made.wrapped, images)
    content = tflite.convert_quantised(made.wrapped)
    assert np.abs(tflite.load(content).predict(images) - expected).max() < 0.1 * np.abs(expected).max()
    return content


@pytest.mark.slow
def test_a_batch_norm_whose_convolution_is_read_twice_is_not_folded():
    # As in a DenseNet: its first block's layers all read the stem.
    image = an_image()
    stem = keras.layers.Conv2D(4, 3, name="stem")(image)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(stem))
    x = keras.layers.Concatenate()([stem, keras.layers.Conv2D(4, 3, padding="same", name="grown")(x)])
    assert_the_file_does_what_was_wrapped(classifier(image, x))


@pytest.mark.slow
def test_an_average_pool_that_feeds_a_concatenation_has_one_scale():
    # As between a DenseNet's blocks.
    image = an_image()
    pooled = keras.layers.AveragePooling2D(2)(keras.layers.Conv2D(4, 3, padding="same", name="before")(image))
    grown = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="grown")(pooled)
    assert_the_file_does_what_was_wrapped(classifier(image, keras.layers.Concatenate()([pooled, grown])))


@pytest.mark.parametrize(
    ("text", "kernels"), [("qat()", 3), pytest.param("qat(keep_float='gated')", 2, marks=pytest.mark.slow)]
)
def test_activations_that_tf_keras_has_not_are_quantised_too(text, kernels):
    # As in MobileNetV3: its blocks' activation, and the gate of its squeeze-and-excitation.
    image = an_image()
    x = keras.layers.Activation("hard_silu", name="swish")(keras.layers.Conv2D(4, 3, name="conv")(image))
    x = keras.layers.Conv2D(4, 3, activation="hard_sigmoid", name="gated")(x)
    content = assert_the_file_does_what_was_wrapped(classifier(image, x), text)
    assert len(int8_kernels(content)) == kernels


def test_a_tap_is_behind_the_activation_that_stands_by_itself():
    image = an_image()
    model = classifier(image, keras.layers.Conv2D(4, 3, name="conv", activation="hard_sigmoid")(image))
    images = np.random.default_rng(0).uniform(-9, 9, (4, 8, 8, 3)).astype(np.float32)
    made = compress.prepare(model, step("prune(sparsity=0.5, start=0.9, end=1.0)"), steps=100)
    expected = keras.Model(model.input, model.get_layer("conv").output)(images)
    np.testing.assert_allclose(made.model.taps(images)["conv"], expected, rtol=1e-5, atol=1e-6)


def int8_kernels(content):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    tensors = model.subgraphs[0].tensors
    found = []
    for tensor in tensors:
        if (
            tensor.type == schema.TensorType.INT8
            and len(tensor.shape) in (2, 4)
            and model.buffers[tensor.buffer].data is not None
        ):
            found.append(np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8).reshape(tensor.shape))
    return found


@pytest.mark.parametrize(
    ("kept", "joined"),
    [
        ("stage2_conv1", False),
        *(
            pytest.param(*rest, marks=pytest.mark.slow)
            for rest in [
                ("", False),
                ("logits", False),
                ("stage1_conv1", False),
                ("left", True),
                ("right", True),
                ("left,right", True),
            ]
        ),
    ],
)
def test_kernels_are_integers_but_those_that_are_kept(kept, joined):
    def branches():
        image = an_image()
        left = keras.layers.Conv2D(8, 3, padding="same", name="left")(image)
        right = keras.layers.Conv2D(4, 1, name="right")(keras.layers.ReLU()(keras.layers.BatchNormalization()(image)))
        return classifier(image, keras.layers.Conv2D(6, 3, name="next")(keras.layers.Concatenate()([left, right])))

    model = branches() if joined else student()
    content = assert_the_file_does_what_was_wrapped(model, f"qat(keep_float='{kept}')")
    expected = [
        layer.kernel.shape
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)) and layer.name not in kept.split(",")
    ]
    # TFLite puts a kernel's outputs first.
    assert sorted(one.size for one in int8_kernels(content)) == sorted(int(np.prod(shape)) for shape in expected)


@pytest.mark.parametrize(("text", "left"), [("qat()", []), ("qat(keep_float='logits')", ["logits"])])
def test_what_stays_in_float_is_told(learnt, text, left):
    made = compress.prepare(from_learnt(learnt), step(text), steps=STEPS)
    assert made.step.left_out(made.wrapped) == left


@pytest.mark.slow
@pytest.mark.parametrize("chain", [("prune",), ("prune", "cluster")], ids=lambda names: "-".join(names))
def test_zeros_and_clusters_stay_in_the_file(learnt, chain):
    texts = {"prune": "prune(sparsity=0.8, frequency=3)", "cluster": "cluster(clusters=8)"}
    model, wrapped = through(*(texts[name] for name in chain), "qat()", model=from_learnt(learnt))
    kernels = int8_kernels(tflite.convert_quantised(wrapped))
    assert len(kernels) == 3
    for weights in kernels:
        assert np.mean(weights == 0) >= 0.75, weights.shape
        if "cluster" in chain:
            # A scale for each filter, so the clusters are counted filter by filter.
            assert max(len(np.unique(one)) for one in weights) <= 8
    assert accuracy(model) > 0.3


@pytest.mark.slow
def test_a_layer_without_zeros_does_not_cost_the_others_theirs(learnt):
    texts = ("prune(sparsity=0.8, frequency=3, skip='stage1_conv1')", "cluster(clusters=8)", "qat()")
    _, wrapped = through(*texts, model=from_learnt(learnt), epochs=1)
    zeros = sorted(np.mean(weights == 0) for weights in int8_kernels(tflite.convert_quantised(wrapped)))
    assert zeros[1] >= 0.75


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prune(sparsity=1.0)", "sparsity=1.0 is not in"),
        ("prune(start=0.5, end=0.5)", "start=0.5 and end=0.5"),
        ("prune(frequency=0)", "frequency=0 is not a positive"),
        ("cluster(clusters=2)", "clusters=2 is not a whole number of at least 3"),
        ("qat(keep_float=('a',))", "is not text"),
        ("qat(epochs=0)", "qat's epochs=0: give a whole number"),
        ("prune(learning_rate=-1.0)", "prune's learning_rate=-1.0 reaches -1"),
    ],
)
def test_bad_values_are_refused(text, told):
    with pytest.raises(InputError, match=told):
        step(text)


@pytest.mark.parametrize("text", ["prune(skip='nix')", "cluster(skip='nix')", "qat(keep_float='nix')"])
def test_layers_that_are_not_there_are_named(text):
    with pytest.raises(InputError, match=r"'nix', which the student does not have: its layers are .*stage1_conv1"):
        compress.prepare(student(), step(text), steps=10)
