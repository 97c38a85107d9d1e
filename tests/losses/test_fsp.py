import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

SIZES = {"stage1": (4, 4, 3), "stage2": (4, 4, 5), "stage3": (4, 4, 2)}
STUDENT = {name: ref.features(i, *size) for i, (name, size) in enumerate(SIZES.items())}
TEACHER = {name: ref.features(10 + i, *size) for i, (name, size) in enumerate(SIZES.items())}


def value(student=STUDENT, teacher=TEACHER, **kwargs):
    return losses.FSP(**kwargs)(student, teacher, ref.classes()).numpy()


def flow(first, second):
    """Equation 1: G_ij = Σ over the grid of F1_i · F2_j / (h·w), a sample."""
    h, w = first.shape[1:3]
    total = np.zeros((len(first), first.shape[-1], second.shape[-1]))
    for y in range(h):
        for x in range(w):
            total += np.float64(first[:, y, x, :, None]) * second[:, y, x, None, :]
    return total / (h * w)


def test_golden():
    expected = 0
    for a, b in (("stage1", "stage2"), ("stage2", "stage3")):
        difference = flow(STUDENT[a], STUDENT[b]) - flow(TEACHER[a], TEACHER[b])
        expected = expected + np.square(difference).mean(axis=(1, 2))
    np.testing.assert_allclose(value(), expected, rtol=1e-5)


def test_pairs_choose_the_stages():
    difference = flow(STUDENT["stage1"], STUDENT["stage3"]) - flow(TEACHER["stage1"], TEACHER["stage3"])
    actual = value(pairs="stage1:stage1,stage3:stage3")
    np.testing.assert_allclose(actual, np.square(difference).mean(axis=(1, 2)), rtol=1e-5)


def test_a_larger_map_goes_on_the_smaller_grid():
    """A map that is constant goes there without a change."""
    flat = np.broadcast_to(ref.features(5, 1, 1, 5), (ref.BATCH, 2, 2, 5))
    wide = np.broadcast_to(flat[:, :1, :1], (ref.BATCH, 4, 4, 5))
    a = value({**STUDENT, "stage2": flat[:]}, pairs="stage2:stage2,stage2:stage2")
    b = value({**STUDENT, "stage2": wide[:]}, pairs="stage2:stage2,stage2:stage2")
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_is_0_where_both_are_equal():
    np.testing.assert_array_equal(value(TEACHER, TEACHER), 0)


def test_refuses_other_widths_and_a_single_stage():
    with pytest.raises(InputError, match=r"fsp cannot match stage1 of 3 channels with stage1 of 4: .* equal widths"):
        value(teacher={**TEACHER, "stage1": ref.features(0, 4, 4, 4)})
    with pytest.raises(InputError, match="fsp needs two pairs of stages or more"):
        value(pairs="stage1:stage1")
