import numpy as np

from kd_keras import losses
from kd_keras.losses import review_kd
from tests.losses import reference as ref

STUDENT = {"stage1": ref.features(0, 8, 8, 3), "stage2": ref.features(1, 4, 4, 6)}
TEACHER = {"stage1": ref.features(10, 8, 8, 5), "stage2": ref.features(11, 4, 4, 7)}


def made(student=STUDENT, teacher=TEACHER, **kwargs):
    term = losses.ReviewKD(**kwargs)
    term(student, teacher, ref.classes())
    return term


def pooled(x, size):
    step = x.shape[1] // size
    return x.reshape(len(x), size, step, size, step, -1).mean(axis=(2, 4))


def hcl(a, b):
    """Section 3.4 for maps whose side is a multiple of 4."""
    total, weights, factor = np.square(a - b).mean(axis=(1, 2, 3)), 1.0, 1.0
    for size in (4, 2, 1):
        if size < a.shape[1]:
            factor /= 2
            total = total + factor * np.square(pooled(a, size) - pooled(b, size)).mean(axis=(1, 2, 3))
            weights += factor
    return total / weights


def pointwise(x, layer):
    kernel, *bias = (np.float64(w) for w in layer.get_weights())
    return x @ kernel[0, 0] + (bias[0] if bias else 0)


def wide(x, layer):
    kernel = np.float64(layer.get_weights()[0])
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return sum(padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j] for i in range(3) for j in range(3))


def test_golden():
    term = made()
    one, two = term.adapters
    norm = np.sqrt(1.00001)  # of a batch norm at its start that is not training
    last = pointwise(np.float64(STUDENT["stage2"]), two.enter) / norm
    first = pointwise(np.float64(STUDENT["stage1"]), one.enter) / norm
    behind = np.repeat(np.repeat(last, 2, axis=1), 2, axis=2)
    attention = 1 / (1 + np.exp(-pointwise(np.concatenate([first, behind], -1), one.attend)))
    fused = first * attention[..., :1] + behind * attention[..., 1:]
    expected = hcl(wide(last, two.leave) / norm, np.float64(TEACHER["stage2"]))
    expected = expected + hcl(wide(fused, one.leave) / norm, np.float64(TEACHER["stage1"]))
    np.testing.assert_allclose(term(STUDENT, TEACHER, ref.classes()), expected, rtol=1e-5)


def test_the_fused_maps_have_as_many_channels_as_the_last_stage_up_to_a_limit():
    assert [fusion.width for fusion in made().adapters] == [6, 6]
    assert [fusion.width for fusion in made(width=4).adapters] == [4, 4]


def test_hcl_of_each_size():
    for side in (1, 2, 4, 8):
        a, b = (np.float64(ref.features(seed, side, side, 3)) for seed in (1, 2))
        np.testing.assert_allclose(review_kd.hcl(a.astype("float32"), b.astype("float32")), hcl(a, b), rtol=1e-5)


def test_hcl_of_a_side_that_is_no_multiple():
    """Pixel i of n is the mean from floor(i·side / n) up to ceil((i + 1)·side / n)."""
    a, b = ref.features(1, 5, 5, 2), ref.features(2, 5, 5, 2)
    total, weights, factor = np.square(np.float64(a) - b).mean(axis=(1, 2, 3)), 1.0, 1.0
    for size in (4, 2, 1):
        factor /= 2
        cells = np.zeros((ref.BATCH, size, size, 2))
        for i in range(size):
            for j in range(size):
                rows, columns = (slice(k * 5 // size, int(np.ceil((k + 1) * 5 / size))) for k in (i, j))
                cells[:, i, j] = (np.float64(a) - b)[:, rows, columns].mean(axis=(1, 2))
        total, weights = total + factor * np.square(cells).mean(axis=(1, 2, 3)), weights + factor
    np.testing.assert_allclose(review_kd.hcl(a, b), total / weights, rtol=1e-5)


def test_pooled_features_are_a_map_of_one_pixel():
    student = {**STUDENT, "pooled": ref.features(2, 6)}
    teacher = {**TEACHER, "pooled": ref.features(12, 7)}
    term = made(student, teacher, pairs="stage2:stage2,pooled:pooled")
    assert [fusion.grid for fusion in term.adapters] == [(4, 4), (1, 1)]
    assert np.all(np.isfinite(term(student, teacher, ref.classes())))
