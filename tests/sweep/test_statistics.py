import math

import pytest

from kd_keras.errors import InputError
from kd_keras.sweep import statistics


def test_the_interval_is_students():
    # Differences 1, 2, 3: mean 2, standard error 1/sqrt(3); t(0.975, 2) = 4.302653, from a printed table.
    seen = statistics.effect([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert seen.mean == 2.0 and seen.n == 3
    assert seen.low == pytest.approx(2 - half, rel=1e-9) and seen.high == pytest.approx(2 + half, rel=1e-9)
    # t = 2 sqrt(3) on 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
    assert seen.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14), rel=1e-9)
    assert str(seen) == "+2.00 [-0.48, +4.48], n = 3"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([2.0, 2.1, 1.9], "better"),
        ([-2.0, -2.1, -1.9], "worse"),
        ([0.1, -0.1, 0.0], "equal within ± 1"),
        ([5.0, -4.0, 1.0], "undecided at n = 3"),
        ([5.0], "undecided at n = 1"),
        ([0.0, 0.0, 0.0], "equal within ± 1"),
        # A small lead that is sure is a lead.
        ([0.50, 0.51, 0.52], "better"),
    ],
)
def test_verdicts(differences, verdict):
    assert statistics.effect(differences).verdict() == verdict


def test_one_seed_has_no_interval():
    assert str(statistics.effect([5.0])) == "+5.00 (n = 1, no interval)"
    assert statistics.effect([5.0]).p == 1.0


@pytest.mark.parametrize("differences", [[], [1.0, float("nan")], [float("inf"), 1.0]])
def test_no_numbers_are_refused(differences):
    with pytest.raises(InputError, match="give finite numbers"):
        statistics.effect(differences)


def test_holms_correction():
    # 4 × 0.005, 3 × 0.01, then 0.03 × 2 and 0.04 × 1, which may not be below the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
