import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from kd_keras import losses
from kd_keras.errors import InputError
from kd_keras.losses import features as _features
from tests.losses import reference as ref

LABELS = ref.classes()
STUDENT = {"stage1": ref.features(0, 8, 6, 3), "stage2": ref.features(1, 4, 3, 5), "pooled": ref.features(2, 7)}
TEACHER = {"stage1": ref.features(3, 8, 6, 4), "stage2": ref.features(4, 4, 3, 6), "pooled": ref.features(5, 9)}


def resized(maps, height, width):
    """Pillow's bilinear filter, channel by channel: it, too, widens with the factor when shrinking."""
    planes = np.moveaxis(maps, -1, 1).reshape(-1, *maps.shape[1:3])
    size = (width, height)
    planes = [PIL.Image.fromarray(plane).resize(size, PIL.Image.Resampling.BILINEAR) for plane in planes]
    return np.moveaxis(np.reshape(planes, (*maps.shape[:1], maps.shape[-1], height, width)), 1, -1).astype("float64")


def projected(term, number, maps):
    """What the term's projector has to make of maps (B, …, C), without batch norm."""
    kernel, *bias = (np.float64(weight) for weight in term.adapters[number].projection.get_weights())
    return np.float64(maps) @ kernel.reshape(kernel.shape[-2:]) + sum(bias)


def mean_square(difference):
    return np.square(difference).reshape(len(difference), -1).mean(axis=-1)


def set_identity(term):
    for projector in term.adapters:
        kernel = projector.projection.kernel
        kernel.assign(np.eye(kernel.shape[-1]).reshape(kernel.shape))


@pytest.mark.parametrize("weight", [1.0, 100.0])
@pytest.mark.parametrize("direction", ["student_to_teacher", "teacher_to_student"])
def test_golden(direction, weight):
    term = losses.Hint(direction=direction, weight=weight)
    actual = term(STUDENT, TEACHER, LABELS)
    expected = 0
    for number, name in enumerate(("stage1", "stage2")):
        source, target = STUDENT[name], TEACHER[name]
        if direction == "teacher_to_student":
            source, target = target, source
        expected = expected + mean_square(projected(term, number, source) - target)
    assert actual.shape == (ref.BATCH,)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_by_hand():
    term = losses.Hint(pairs="stage1:stage1")
    student, teacher = ({"stage1": np.full((1, 2, 2, 1), x, "float32")} for x in (1.0, 3.0))
    term(student, teacher, LABELS[:1])
    set_identity(term)
    np.testing.assert_allclose(term(student, teacher, LABELS[:1]), [4.0])


@pytest.mark.parametrize("direction", ["student_to_teacher", "teacher_to_student"])
def test_is_0_where_projected_maps_are_equal(direction):
    term = losses.Hint(direction=direction)
    assert np.all(term(STUDENT, STUDENT, LABELS) > 0)
    set_identity(term)
    np.testing.assert_array_equal(term(STUDENT, STUDENT, LABELS), 0)
    other = {name: x + 0.5 for name, x in STUDENT.items()}
    np.testing.assert_allclose(term(STUDENT, other, LABELS), 2 * 0.25, rtol=1e-5)


def test_vectors():
    term = losses.Hint(pairs="pooled:pooled")
    actual = term(STUDENT, TEACHER, LABELS)
    np.testing.assert_allclose(
        actual, mean_square(projected(term, 0, STUDENT["pooled"]) - TEACHER["pooled"]), rtol=1e-5
    )
    assert term.adapters[0].projection.kernel.shape == (7, 9)


@pytest.mark.parametrize("grid", [(4, 3), (16, 12), (5, 9), (1, 1), (8, 3), (3, 8)], ids=str)
def test_other_grids(grid):
    teacher = {"stage1": ref.features(6, *grid, 4)}
    term = losses.Hint(pairs="stage1:stage1")
    actual = term(STUDENT, teacher, LABELS)
    expected = mean_square(projected(term, 0, resized(STUDENT["stage1"], *grid)) - teacher["stage1"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_teacher_to_student_resizes_the_teachers_map():
    teacher = {"stage1": ref.features(6, 4, 12, 5)}
    term = losses.Hint(pairs="stage1:stage1", direction="teacher_to_student")
    actual = term(STUDENT, teacher, LABELS)
    expected = mean_square(projected(term, 0, resized(teacher["stage1"], 8, 6)) - STUDENT["stage1"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("sizes", [((8, 8), (4, 4)), ((7, 5), (3, 9)), ((2, 3), (8, 5)), ((4, 4), (4, 4))], ids=str)
def test_resize_keeps_a_constant_and_equals_tensorflows(sizes):
    (h, w), grid = sizes
    maps = ref.features(7, h, w, 2)
    np.testing.assert_allclose(_features.resize(np.full_like(maps, 3), grid), 3, rtol=1e-6)
    expected = tf.image.resize(maps, grid, antialias=True)
    np.testing.assert_allclose(_features.resize(tf.constant(maps), grid), expected, rtol=1e-4, atol=1e-5)


def test_other_grids_compile():
    """TensorFlow's own antialiased resizing does not, and Keras compiles by default on a GPU."""
    teacher = {"stage1": ref.features(6, 3, 4, 4)}
    term = losses.Hint(pairs="stage1:stage1")
    eager = term(STUDENT, teacher, LABELS)
    compiled = tf.function(lambda s, t: term(s, t, LABELS), jit_compile=True)
    np.testing.assert_allclose(compiled({"stage1": STUDENT["stage1"]}, teacher), eager, rtol=1e-5)


def test_batch_norm_and_relu():
    term = losses.Hint(pairs="stage1:stage1", batch_norm=True, relu=True)
    actual = term(STUDENT, TEACHER, LABELS, training=True)
    x = projected(term, 0, STUDENT["stage1"])
    axes = (0, 1, 2)
    x = np.maximum((x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5), 0)
    np.testing.assert_allclose(actual, mean_square(x - TEACHER["stage1"]), rtol=1e-4)
    moved = [weight.numpy() for weight in term.non_trainable_weights]
    term(STUDENT, TEACHER, LABELS, training=False)
    for weight, before in zip(term.non_trainable_weights, moved, strict=True):
        np.testing.assert_array_equal(weight, before)
    assert any(np.any(mean) for mean in moved)
    plain = losses.Hint(pairs="stage1:stage1")
    plain(STUDENT, TEACHER, LABELS)
    # Kernel, gamma and beta; kernel and bias.
    assert (len(term.trainable_weights), len(plain.trainable_weights)) == (3, 2)


def test_relu_alone():
    term = losses.Hint(pairs="stage1:stage1", relu=True)
    actual = term(STUDENT, TEACHER, LABELS)
    expected = mean_square(np.maximum(projected(term, 0, STUDENT["stage1"]), 0) - TEACHER["stage1"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage1:stage3", (("stage1", "stage3"),)),
        (" stage1 : stage1 , stage2:stage4 ", (("stage1", "stage1"), ("stage2", "stage4"))),
        ("a:pooled,a:logits", (("a", "pooled"), ("a", "logits"))),
    ],
)
def test_pairs(text, expected):
    assert _features.parse_pairs(text) == expected
    assert losses.Hint(pairs=text).pairs == expected


@pytest.mark.parametrize("text", ["", "stage1", "stage1:", ":stage1", "a:b:c", "a:b,", "a:b;c:d:e", 3])
def test_pairs_that_cannot_be_read(text):
    with pytest.raises(InputError, match="write 'stage1:stage1,stage2:stage3'"):
        losses.Hint(pairs=text)


def test_pairs_decide_who_meets_whom():
    term = losses.Hint(pairs="stage2:stage1")
    actual = term(STUDENT, TEACHER, LABELS)
    expected = mean_square(projected(term, 0, resized(STUDENT["stage2"], 8, 6)) - TEACHER["stage1"])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (2, 2, [(1, 1), (2, 2)]),
        (2, 4, [(1, 3), (2, 4)]),
        (3, 1, [(3, 1)]),
        (11, 2, [(10, 1), (11, 2)]),
        (2, 12, [(1, 11), (2, 12)]),
    ],
)
def test_default_pairs_match_from_the_end(student, teacher, expected):
    # As dicts of taps come: in alphabetical order, stage10 before stage2.
    offered = [
        sorted([*(f"stage{i + 1}" for i in range(n)), "stage1_pre", "logits", "pooled"]) for n in (student, teacher)
    ]
    term = losses.Hint()
    read = term.taps(*offered)
    assert term.pairs == tuple((f"stage{s}", f"stage{t}") for s, t in expected)
    assert read == tuple(tuple(f"stage{pair[side]}" for pair in expected) for side in (0, 1))


def test_default_pairs_wait_for_the_teacher():
    term = losses.Hint()
    assert term.taps(["stage1"], None) == ((), ())
    assert term.pairs is None
    assert losses.Hint(pairs="stage1:pooled").taps(["stage1"], None) == (("stage1",), ("pooled",))


def test_a_tap_read_twice_is_asked_for_once():
    names = ["stage1", "stage2"]
    assert losses.Hint(pairs="stage1:stage1,stage1:stage2").taps(names, names) == (("stage1",), ("stage1", "stage2"))


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_names_an_unknown_tap_and_what_is_offered(whose):
    pairs = {"student": "stage9:stage1", "teacher": "stage1:stage9"}[whose]
    with pytest.raises(InputError, match=f"the {whose} has no tap 'stage9': it offers stage1, stage2, pooled"):
        losses.Hint(pairs=pairs)(STUDENT, TEACHER, LABELS)


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_says_who_offers_no_stages(whose):
    offered = {"student": ["stage1"], "teacher": ["stage1"], whose: ["logits", "stage1_pre"]}
    with pytest.raises(InputError, match=f"the {whose} offers no stages.*pairs="):
        losses.Hint().taps(offered["student"], offered["teacher"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("pooled:stage1", r"hint cannot match pooled \(6, 7\) with stage1 \(6, 8, 6, 4\)"),
        ("stage1:pooled", r"cannot match stage1 \(6, 8, 6, 3\) with pooled \(6, 9\)"),
    ],
)
def test_refuses_a_map_beside_a_vector(pairs, message):
    with pytest.raises(InputError, match=message):
        losses.Hint(pairs=pairs)(STUDENT, TEACHER, LABELS)


def test_refuses_sequences_and_unknown_sizes():
    with pytest.raises(InputError, match=r"cannot match a .* with a "):
        losses.Hint(pairs="a:a").build({"a": (None, 4, 3)}, {"a": (None, 4, 3)})
    with pytest.raises(InputError, match="needs to know the sizes of a"):
        losses.Hint(pairs="a:a").build({"a": (None, None, None, 3)}, {"a": (None, 4, 4, 3)})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"direction": "both"}, r"hint\(direction='both'\): known are student_to_teacher, teacher_to_student"),
        ({"batch_norm": "yes"}, "hint's batch_norm='yes': write True or False"),
        ({"relu": 1}, "hint's relu=1: write True or False"),
    ],
)
def test_refuses(kwargs, message):
    with pytest.raises(InputError, match=message):
        losses.Hint(**kwargs)


@pytest.mark.parametrize("direction", ["student_to_teacher", "teacher_to_student"])
def test_learns_a_linear_map(direction):
    """A teacher that is a 1×1 convolution of the student can be hit exactly, by the projector alone."""
    mix = np.array([[1.0, -0.5, 0.3], [0.2, 1.0, 0.4], [-0.3, 0.6, 1.2]], "float32")
    teacher = {"stage1": STUDENT["stage1"] @ mix}
    term = losses.Hint(pairs="stage1:stage1", direction=direction)
    first = np.mean(term(STUDENT, teacher, LABELS))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(term({"stage1": STUDENT["stage1"]}, teacher, LABELS))
        for weight, slope in zip(term.trainable_weights, tape.gradient(loss, term.trainable_weights), strict=True):
            weight.assign_sub(0.5 * slope)
        return loss

    for _ in range(300):
        last = step()
    assert last < 1e-4 < first
