import keras
import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.models import vit

SMALL = {"depth": 2, "heads": 2, "width": 16}


def values(model, name, x):
    return keras.ops.convert_to_numpy(keras.Model(model.input, model.get_layer(name).output)(x))


def pixels(shape, n=2):
    return np.random.default_rng(0).integers(0, 256, (n, *shape)).astype("float32")


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize(("depth", "after"), [(1, [1]), (3, [1, 2, 3]), (6, [2, 3, 4, 6])], ids=str)
def test_stages_are_equal_parts_of_the_depth(pool, depth, after):
    model = vit.ViT(10, (8, 12, 1), patch=4, depth=depth, heads=1, width=4, pool=pool)
    x = pixels((8, 12, 1))
    stages = [layer.name for layer in model.layers if layer.name in {f"stage{i}" for i in range(1, 13)}]
    assert stages == [f"stage{i}" for i in range(1, len(after) + 1)]
    for stage, block in zip(stages, after, strict=True):
        assert model.get_layer(stage).output.shape == (None, 2, 3, 4)
        tokens = values(model, f"block{block}_add2", x)[:, pool == "token" :]
        np.testing.assert_allclose(values(model, stage, x).reshape(2, 6, 4), tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_taps_leave_the_tokens_as_they_are(pool):
    model = vit.ViT(10, (8, 8, 1), **{**SMALL, "depth": 4}, pool=pool)
    x = pixels((8, 8, 1))
    for block in (1, 2, 3):
        before, after = f"block{block}_add2", model.get_layer(f"block{block + 1}_norm1")
        given = keras.ops.convert_to_numpy(keras.Model(model.input, after.input)(x))
        np.testing.assert_allclose(given, values(model, before, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_embedding_is_a_projection_of_each_patch_and_a_weight_of_its_place(pool):
    model = vit.ViT(10, (8, 12, 3), **SMALL, pool=pool)
    x = pixels((8, 12, 3))
    kernel, places = (keras.ops.convert_to_numpy(w) for w in model.get_layer("embedding").weights)
    patches = [x[:, i : i + 4, j : j + 4] / 127.5 - 1 for i in (0, 4) for j in (0, 4, 8)]
    expected = np.stack([p.reshape(2, -1) @ kernel for p in patches], axis=1)
    if pool == "token":
        expected = np.concatenate([np.zeros((2, 1, 16)), expected], axis=1)
    assert places.shape == expected.shape[1:]
    np.testing.assert_allclose(values(model, "embedding", x), expected + places, rtol=1e-4, atol=1e-4)


def test_pooled_is_the_class_token_or_the_mean():
    x = pixels((8, 8, 1))
    token, mean = (vit.ViT(10, (8, 8, 1), **SMALL, pool=pool) for pool in ("token", "mean"))
    np.testing.assert_allclose(values(token, "pooled", x), values(token, "norm", x)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(values(mean, "pooled", x), values(mean, "norm", x).mean(1), rtol=1e-4, atol=1e-6)


def test_dropout_is_everywhere_or_nowhere():
    names = [x.name for x in vit.ViT(10, (8, 8, 1), **SMALL).layers if isinstance(x, keras.layers.Dropout)]
    assert names == []
    model = vit.ViT(10, (8, 8, 1), **SMALL, dropout=0.2)
    dropped = [x.name for x in model.layers if isinstance(x, keras.layers.Dropout)]
    parts = [f"block{i}_{part}_dropout" for i in (1, 2) for part in ("attention", "dense1", "dense2")]
    assert dropped == ["embedding_dropout", *parts]


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        (
            (30, 30, 3),
            4,
            "patch=4 does not divide the sides of a 30x30 image: .*--image_size=28 or 32, or give patch=2, 3",
        ),
        ((28, 28, 1), 8, "28x28 image: read the images with --image_size=24 or 32, or give patch=2, 4, 7, 14"),
        ((31, 31, 1), 8, "--image_size=24 or 32, or give patch=31"),
        ((2, 2, 1), 4, "--image_size=4, or give patch=2"),
        ((32, 30, 3), 4, "32x30 image"),
    ],
    ids=str,
)
def test_refuses_images_that_the_patches_do_not_cover(shape, patch, message):
    with pytest.raises(InputError, match=message) as error:
        vit.ViT(10, shape, patch=patch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"patch": 0}, "patch=0 is not a positive whole number"),
        ({"depth": 1.5}, "depth=1.5 is not"),
        ({"heads": True}, "heads=True is not"),
        ({"width": "64"}, "width='64' is not"),
        ({"heads": 5}, "heads=5 does not divide width=192"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 .*give"),
        ({"mlp_ratio": None}, "mlp_ratio=None .*give"),
        ({"pool": "max"}, "pool='max' is unknown: choose one of 'token', 'mean'"),
        ({"dropout": -0.1}, "dropout=-0.1 .*give"),
    ],
)
def test_refuses(keys, message):
    with pytest.raises(InputError, match=message) as error:
        vit.ViT(10, (32, 32, 3), **keys)
    assert "\n" not in str(error.value)
