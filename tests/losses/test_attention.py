import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

S1, S2 = ref.features(0, 6, 6, 3), ref.features(1, 4, 4, 6)
T1, T2 = ref.features(10, 6, 6, 5), ref.features(11, 4, 4, 9)


def value(student, teacher, **kwargs):
    return losses.Attention(**kwargs)(student, teacher, ref.classes()).numpy()


def attention(features):
    """Sum over the channels of F², as a vector of norm 1 (section 3.1)."""
    maps = np.square(np.float64(features)).mean(-1).reshape(ref.BATCH, -1)
    return maps / np.linalg.norm(maps, axis=-1, keepdims=True)


def test_golden_over_all_stages():
    expected = sum(np.square(attention(s) - attention(t)).mean(-1) for s, t in ((S1, T1), (S2, T2)))
    actual = value({"stage1": S1, "stage2": S2}, {"stage1": T1, "stage2": T2})
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_grids_of_different_size_meet_on_the_smaller():
    """A map that is constant in squares of 2×2 is its own mean over them."""
    coarse = ref.features(2, 3, 3, 4)
    fine = np.repeat(np.repeat(coarse, 2, axis=1), 2, axis=2)
    expected = np.square(attention(coarse) - attention(ref.features(3, 3, 3, 7))).mean(-1)
    for student, teacher in ((coarse, ref.features(3, 3, 3, 7)), (ref.features(3, 3, 3, 7), coarse)):
        np.testing.assert_allclose(value({"stage1": student}, {"stage1": teacher}), expected, rtol=1e-4)
    assert value({"stage1": fine}, {"stage1": coarse}).shape == (ref.BATCH,)


def test_is_0_where_the_maps_are_equal_up_to_scale_and_channels():
    np.testing.assert_allclose(value({"stage1": 3 * T1}, {"stage1": T1}), 0, atol=1e-12)
    doubled = np.concatenate([T1, -T1], axis=-1)
    np.testing.assert_allclose(value({"stage1": doubled}, {"stage1": T1}), 0, atol=1e-12)


def test_vectors_are_refused_by_name():
    with pytest.raises(InputError, match=r"attention cannot match pooled .* both have to be maps"):
        value({"pooled": ref.features(0, 8)}, {"pooled": ref.features(1, 8)}, pairs="pooled:pooled")
