import numpy as np
import pytest

from kd_keras import losses
from kd_keras.errors import InputError
from tests.losses import reference as ref

STUDENT, TEACHER = ref.features(0, 4, 4, 3), ref.features(10, 4, 4, 5)


def made(**kwargs):
    term = losses.AB(**kwargs)
    term.build({"stage1_pre": (None, 4, 4, 3)}, {"stage1_pre": (None, 4, 4, 5)})
    return term


def value(term, teacher=TEACHER):
    return term({"stage1_pre": STUDENT}, {"stage1_pre": teacher}, ref.classes()).numpy()


@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_golden(margin):
    term = made(margin=margin)
    kernel = np.float64(term.adapters[0].projection.get_weights()[0])
    # A batch norm that is not training, at its start, divides by √(1 + 1e-5).
    s = (np.float64(STUDENT) @ kernel[0, 0]) / np.sqrt(1.00001)
    expected = np.where(TEACHER > 0, np.maximum(0, margin - s) ** 2, np.maximum(0, margin + s) ** 2)
    np.testing.assert_allclose(value(term), expected.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_is_0_beyond_the_margin_on_the_teachers_side():
    term = made(margin=0.5)
    s = term.adapters[0](STUDENT).numpy()
    far = np.abs(s) > 0.5
    per_neuron = np.where(far, 0, np.square(0.5 - np.abs(s)))
    np.testing.assert_allclose(value(term, teacher=np.sign(s)), per_neuron.mean(axis=(1, 2, 3)), rtol=1e-5)


def test_how_active_the_teacher_is_does_not_matter():
    term = made()
    np.testing.assert_array_equal(value(term, teacher=100 * TEACHER), value(term))


def test_reads_the_stages_before_their_activation():
    offered = ["stage1", "stage1_pre", "stage2", "stage2_pre", "logits"]
    assert losses.AB().taps(offered, offered) == (("stage1_pre", "stage2_pre"),) * 2
    with pytest.raises(InputError, match=r"the student offers no stages \(stage1_pre, stage2_pre …\)"):
        losses.AB().taps(["stage1", "logits"], offered)
