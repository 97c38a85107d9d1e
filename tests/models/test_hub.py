import sys

import keras
import numpy as np
import pytest

from kd_keras import spec
from kd_keras.distillation import fast_teacher as frozen
from kd_keras.errors import InputError
from kd_keras.models import hub, saved
from tests.models import presets

SHAPE = (20, 24, 3)
slow = pytest.mark.slow
KINDS = ["resnet", pytest.param("densenet", marks=slow), pytest.param("mobilenet", marks=slow), "vit", "clip"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Writes the preset of a kind once: (its folder, its backbone, its image converter)."""
    written = {}

    def get(kind):
        if kind not in written:
            folder = tmp_path_factory.mktemp(kind)
            written[kind] = (str(folder), *presets.write(kind, folder))
        return written[kind]

    return get


def pixels(shape=SHAPE, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, *shape)).astype("float32")


def pooled(model, x):
    return keras.ops.convert_to_numpy(keras.Model(model.input, model.get_layer("pooled").output)(x))


def by_hub(kind, backbone, converter, x):
    """The pooled features as KerasHub itself makes them."""
    x = converter(x)
    if kind == "clip":
        return keras.ops.convert_to_numpy(backbone.get_vision_embeddings(x))
    features = keras.ops.convert_to_numpy(backbone(x))
    return features[:, 0] if kind == "vit" else features.mean((1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_keras_hub_before_and_after_a_file(preset, kind, tmp_path):
    folder, backbone, converter = preset(kind)
    model = hub.Hub(5, SHAPE, preset=folder)
    x = pixels()
    np.testing.assert_allclose(pooled(model, x), by_hub(kind, backbone, converter, x), rtol=1e-4, atol=1e-6)
    assert model(x).shape == (2, 5)
    assert model(x).dtype == "float32"
    assert all(layer.trainable for layer in model.layers)
    model.save(tmp_path / "hub.keras")
    again = saved.Saved(5, SHAPE, tmp_path / "hub.keras")
    np.testing.assert_array_equal(again(x), model(x))


@pytest.mark.parametrize("kind", ["resnet", "clip"])
def test_a_frozen_copy_is_the_same(preset, kind):
    model = hub.Hub(5, SHAPE, preset=preset(kind)[0])
    np.testing.assert_allclose(frozen.fast_copy(model, "float32")(pixels()), model(pixels()), rtol=1e-4, atol=1e-5)


def test_a_backbone_that_cannot_be_rebuilt_is_not_frozen(preset):
    model = hub.Hub(5, SHAPE, preset=preset("vit")[0])
    assert not frozen.can_be_copied(model)
    with pytest.raises(InputError, match="whose layers can all be rebuilt"):
        frozen.fast_copy(model, "float32")


@pytest.mark.parametrize(
    ("kind", "shapes"), [("resnet", [(4, 4, 64), (2, 2, 16)]), pytest.param("densenet", None, marks=slow)]
)
def test_levels_of_the_pyramid_are_taps(preset, kind, shapes):
    folder, backbone, converter = preset(kind)
    model = hub.Hub(5, SHAPE, preset=folder)
    x = pixels()
    levels = keras.Model(backbone.input, list(backbone.pyramid_outputs.values()))(converter(x))
    for i, level in enumerate(levels, start=1):
        tap = model.get_layer(f"stage{i}").output
        np.testing.assert_allclose(keras.Model(model.input, tap)(x), level, rtol=1e-4, atol=1e-5)
        assert shapes is None or tap.shape[1:] == shapes[i - 1]
    assert f"stage{len(levels) + 1}" not in [layer.name for layer in model.layers]


def test_layers_of_clip_have_the_same_names_every_time(preset):
    one, two = (hub.Hub(5, SHAPE, preset=preset("clip")[0]) for _ in range(2))
    assert [x.name for x in one.layers] == [x.name for x in two.layers]
    assert one.get_layer("encoder_block_1").output.shape == (None, 5, 8)


def test_grey_images_are_repeated(preset):
    folder, backbone, converter = preset("resnet")
    x = pixels((20, 24, 1))
    expected = by_hub("resnet", backbone, converter, np.repeat(x, 3, axis=-1))
    np.testing.assert_allclose(pooled(hub.Hub(5, (20, 24, 1), preset=folder), x), expected, rtol=1e-4, atol=1e-6)


def test_without_resizing(preset):
    folder, backbone, _ = preset("resnet")
    x = pixels()
    scaled = x * presets.PREPROCESSING["scale"] + presets.PREPROCESSING["offset"]
    expected = keras.ops.convert_to_numpy(backbone(scaled)).mean((1, 2))
    model = hub.Hub(5, SHAPE, preset=folder, resize=False)
    np.testing.assert_allclose(pooled(model, x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InputError, match=r"takes images of shape \(16, 16, 3\), these have \(20, 24, 3\): leave resize"
    ):
        hub.Hub(5, SHAPE, preset=preset("vit")[0], resize=False)


@pytest.mark.parametrize("training", [None, False])
def test_batch_norm_after_resizing_is_at_rest_unless_trained(preset, training):
    model = hub.Hub(5, SHAPE, preset=preset("resnet")[0])
    x = pixels()
    at_rest = keras.ops.convert_to_numpy(model(x, training=training))
    np.testing.assert_allclose(at_rest, model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
    assert not np.allclose(at_rest, model(x, training=True), rtol=1e-2)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} == {0.9}


def test_mean_of_the_tokens(preset):
    folder, backbone, converter = preset("vit")
    x = pixels()
    expected = keras.ops.convert_to_numpy(backbone(converter(x))).mean(1)
    model = hub.Hub(5, SHAPE, preset=folder, pool="mean", dropout=0.5)
    np.testing.assert_allclose(pooled(model, x), expected, rtol=1e-4, atol=1e-6)
    assert model.get_layer("dropout").rate == 0.5


def test_zero_shot_gives_the_logits_of_clip(preset):
    folder, clip, converter = preset("clip")
    import keras_hub

    names = ("cat", "zebra", "ship")
    model = hub.Hub(3, SHAPE, preset=folder, head="zero_shot", class_names=names, template="this is a {}")
    x = pixels()
    tokens = presets.clip_preprocessor(keras_hub, converter)(
        {"images": None, "prompts": [f"this is a {name}" for name in names]}
    )["token_ids"]
    expected = keras.ops.convert_to_numpy(clip({"images": converter(x), "token_ids": tokens})["vision_logits"])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "policy"), [("vit", "mixed_float16"), ("clip", "mixed_bfloat16")])
def test_mixed_precision(preset, kind, policy):
    folder = preset(kind)[0]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = hub.Hub(5, SHAPE, preset=folder)
    finally:
        keras.config.set_dtype_policy(before)
    inside = (
        model.get_layer("backbone").get_layer("vit_encoder") if kind == "vit" else model.get_layer("encoder_block_0")
    )
    for layer in (inside, model.get_layer("pooled")):
        assert layer.compute_dtype == policy.removeprefix("mixed_")
    assert model(pixels()).dtype == "float32"
    assert np.isfinite(model(pixels())).all()


@pytest.mark.slow
def test_the_backbone_learns_too(preset):
    keras.utils.set_random_seed(0)
    model = hub.Hub(2, SHAPE, preset=preset("resnet")[0])
    x, y = pixels(n=32), np.arange(32) % 2
    x[y == 1] = x[y == 1] // 4
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    before = model.get_layer("conv1_conv").get_weights()
    model.fit(x, y, batch_size=8, epochs=8, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.9
    assert not np.array_equal(before, model.get_layer("conv1_conv").get_weights())


def refusal(preset, num_classes=3, input_shape=SHAPE, **keys) -> str:
    with pytest.raises(InputError) as error:
        hub.Hub(num_classes, input_shape, preset=preset, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_preset_and_no_network(tmp_path):
    pytest.importorskip("keras_hub")
    assert "'no_such_preset' cannot be had (ValueError: Unknown preset identifier" in refusal("no_such_preset")
    assert f"the backbone of preset '{tmp_path}' cannot be had (ValueError: Preset" in refusal(str(tmp_path))


def test_preset_without_preprocessing(tmp_path):
    presets.write("resnet", tmp_path, converter=False)
    assert "the image preprocessing of preset" in refusal(str(tmp_path))


def test_without_keras_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    assert "pip install 'kd_keras[hub]'" in refusal("resnet_50_imagenet")


def test_saved_model_without_keras_hub(preset, monkeypatch, tmp_path):
    hub.Hub(5, SHAPE, preset=preset("vit")[0]).save(tmp_path / "vit.keras")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(InputError, match=r"pip install 'kd_keras\[hub\]'"):
        saved.Saved(5, SHAPE, tmp_path / "vit.keras")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preset": 5}, "preset=5 is not text"),
        ({"head": "linear"}, "head='linear' is unknown: choose one of 'fresh', 'zero_shot'"),
        ({"pool": "max"}, "pool='max' is unknown: choose one of 'token', 'mean', or None"),
        ({"resize": 1}, "resize=1: write True or False"),
        ({"dropout": 1}, "dropout=1 is not"),
        ({"class_names": ("a", "b", "c")}, "class_names is for head='zero_shot'"),
        ({"head": "zero_shot"}, "class_names=None is not a tuple of text"),
        ({"head": "zero_shot", "class_names": ("a", 1, "c")}, "is not a tuple of text"),
        ({"head": "zero_shot", "class_names": ("a", "b")}, "has 2 names, the data have 3 classes"),
        (
            {"head": "zero_shot", "class_names": ("a", "b", "c"), "template": "photo"},
            "template='photo' has no single {}",
        ),
    ],
    ids=str,
)
def test_refuses(keys, message):
    assert message in refusal(**{"preset": "resnet_50_imagenet", **keys})


def test_refuses_what_does_not_fit_the_preset(preset):
    names = {"head": "zero_shot", "class_names": ("a", "b", "c")}
    assert "needs a CLIP preset" in refusal(preset("resnet")[0], **names)
    assert "pool='mean' is not for CLIP" in refusal(preset("clip")[0], pool="mean")
    assert "has 4 channels" in refusal(preset("resnet")[0], input_shape=(20, 24, 4))


def test_from_a_spec(preset):
    text = f"hub(preset={preset('resnet')[0]!r}, dropout=0.1)"
    model = spec.build("kd_keras.models", spec.parse(text), num_classes=4, input_shape=(32, 32, 1))
    assert model.output_shape == (None, 4)
