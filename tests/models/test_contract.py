"""What holds for every model family. A new file of kd_keras/models is tested here on arrival, at its defaults.

The contract itself is `kd_keras.testing`, which users call on models of their own.
A family whose default is deep or large is named in LARGE, and has a small case of the same code among CASES.
"""

import keras
import numpy as np
import pytest

from kd_keras import spec, testing
from kd_keras.distillation.fast_teacher import fast_copy
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.models import cnn
from tests.models import counts, presets

PACKAGE = "kd_keras.models"
CLASSES = 7
# Families that the slow tests see at their defaults.
LARGE = {
    "alexnet",
    "densenet",
    "mobilenet",
    "resnet",
    "shufflenet",
    "vgg",
    "vit",
    "wide_resnet",
}
# Beside its defaults, each family's small and unusual sides.
CASES = [
    *(pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in spec.names(PACKAGE)),
    "cnn(filters=(8, 12, 16), convs=(1, 2, 1), dense=(), batch_norm=False, pool='global')",
    pytest.param("cnn(filters=(8,), dense=(16,), pool='avg', dropout=0.25)", marks=pytest.mark.slow),
    "resnet(depth=8, width=0.5)",
    "resnet(depth=8, stem='imagenet', se_ratio=4)",
    "alexnet(width=0.125)",
    pytest.param("vgg(depth=8, width=0.125)", marks=pytest.mark.slow),
    "vgg(depth=8, width=0.125, batch_norm=False, stem='imagenet')",
    "densenet(depth=22, growth=8)",
    pytest.param("mobilenet(width=0.25)", marks=pytest.mark.slow),
    pytest.param("mobilenet(version='v3_small', width=0.25)", marks=pytest.mark.slow),
    pytest.param("mobilenet(version='v3_large')", marks=pytest.mark.slow),
    "shufflenet(width=0.5, units=(1, 2, 1))",
    pytest.param("shufflenet(version='v1', width=0.25, units=(1, 2, 1), stem='imagenet')", marks=pytest.mark.slow),
    "vit(depth=2, heads=2, width=16)",
    pytest.param("vit(depth=1, heads=2, width=8, pool='mean', dropout=0.1)", marks=pytest.mark.slow),
    "wide_resnet(depth=10, width=1, dropout=0.1)",
]
# Families whose smallest member has many layers.
DEEP = ("densenet", "shufflenet")
SHAPES = [(8, 8, 1), pytest.param((28, 28, 1), marks=pytest.mark.slow)]


def first_of_each(cases):
    """The cases, of which the fast tests see one a family: for what takes seconds a case."""
    seen, marked = set(), []
    for case in cases:
        case = case if hasattr(case, "marks") else pytest.param(case)
        family = spec.parse(case.values[0]).name
        is_slow = family in seen or family in DEEP
        marked.append(pytest.param(*case.values, marks=[*case.marks, *[pytest.mark.slow] * is_slow]))
        if not case.marks:
            seen.add(family)
    return marked


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Builds a case; ``saved`` and ``hub`` read what is written for them."""
    folder = tmp_path_factory.mktemp("written")

    def build(case: str, input_shape=(32, 32, 3), seed=1):
        parsed = spec.parse(case)
        if parsed.name == "saved":
            path = folder / f"{input_shape}.keras"
            if not path.exists():
                cnn.CNN(CLASSES, input_shape, filters=(8,), dense=(16,)).save(path)
            parsed = spec.Spec("saved", {"path": str(path)})
        if parsed.name == "hub":
            if not (folder / "hub").exists():
                presets.write("resnet", folder / "hub")
            parsed = spec.Spec("hub", {"preset": str(folder / "hub")})
        if seed is not None:
            keras.utils.set_random_seed(seed)
        return spec.build(PACKAGE, parsed, num_classes=CLASSES, input_shape=input_shape)

    return build


@pytest.fixture(scope="module")
def moved(make):
    """A case built once for all tests that leave it as it is, its batch norm statistics away from their start."""
    built = {}

    def get(case: str) -> keras.Model:
        if case not in built:
            built[case] = make(case)
            built[case](pixels(), training=True)
        return built[case]

    return get


def pixels(input_shape=(32, 32, 3), n=4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *input_shape)).astype("float32")


def assert_same_logits(found, expected) -> None:
    assert np.max(np.abs(found - expected)) <= 1e-4 * np.max(np.abs(expected))


def contract(make, case, shape=(32, 32, 3)):
    if case == "hub":
        make(case, shape)  # writes its preset, which draws weights of its own
    # A file keeps its weights, names and precision.
    return testing.ModelCase(lambda: make(case, shape, seed=None), CLASSES, shape, spec.parse(case).name != "saved")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("check", testing.MODEL_CHECKS, ids=lambda check: check.__name__)
def test_keeps_the_contract(make, case, check):
    check(contract(make, case))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gives_float32_logits_of_small_images(make, case, shape):
    try:
        make(case, shape)
    except InputError:  # a family may refuse small images, in words
        pytest.skip(f"{case} refuses {shape}")
    testing.models.returns_float32_logits(contract(make, case, shape))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_all_but_the_logits_follow_the_policy(make, case, policy):
    testing.models.keeps_logits_float32_under_mixed_precision(contract(make, case), policy)
    if spec.parse(case).name != "saved":
        keras.config.set_dtype_policy(f"mixed_{policy}")  # tests/conftest.py sets it back
        assert make(case).get_layer("stage1").compute_dtype == policy


@pytest.mark.parametrize("case", [case for case in CASES if case != pytest.param("hub", marks=[])])
def test_first_layer_scales_pixels(moved, case):  # but for hub, whose preset says how
    first = moved(case).layers[1]
    assert isinstance(first, keras.layers.Rescaling)
    assert first.name == "rescale"
    np.testing.assert_allclose(first(np.array([0.0, 127.5, 255.0], "float32")), [-1, 0, 1], atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_layers_are_stock(moved, case):
    for layer in moved(case).layers:
        assert type(layer).__module__.startswith("keras."), f"{layer.name} is not of Keras"
        assert not isinstance(layer, keras.layers.Lambda)


@pytest.mark.parametrize("case", CASES)
def test_frozen_copy_gives_the_same(moved, case):
    model = moved(case)
    assert_same_logits(fast_copy(model, "float32")(pixels()), model(pixels()))


@pytest.mark.parametrize("case", first_of_each(CASES))
def test_tflite_file_gives_what_keras_gives(moved, case):
    model = moved(case)
    assert_same_logits(tflite.load(tflite.convert(model, "float32")).predict(pixels()), model(pixels()))


@pytest.mark.parametrize("name", [name for name in spec.names(PACKAGE) if name != "saved"])
@pytest.mark.parametrize(
    ("num_classes", "input_shape", "message"),
    [
        (1, (32, 32, 3), "num_classes=1 "),
        (True, (32, 32, 3), "num_classes=True "),
        (10.0, (32, 32, 3), "num_classes=10.0 "),
        (10, (32, 32), r"input_shape=\(32, 32\) "),
        (10, (None, None, 3), r"input_shape=\(None, None, 3\) "),
        (10, (0, 32, 3), r"input_shape=\(0, 32, 3\) "),
        (10, 32, "input_shape=32 "),
    ],
)
def test_refuses_wrong_classes_and_shapes(name, num_classes, input_shape, message):
    with pytest.raises(InputError, match=message) as error:
        keys = {"preset": "none"} if name == "hub" else {}
        spec.build(PACKAGE, spec.Spec(name, keys), num_classes=num_classes, input_shape=input_shape)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "num_classes", "side", "weights"), counts.PUBLISHED)
def test_has_as_many_weights_as_published(case, num_classes, side, weights):
    assert counts.trainable(case, num_classes, side) == weights


def test_every_published_family_is_counted():
    """A CNN of one's own (test_cnn.py counts the studies'), a file and a preset have no published count."""
    counted = {spec.parse(row[0]).name for row in counts.PUBLISHED}
    assert counted == set(spec.names(PACKAGE)) - {"cnn", "saved", "hub"}
