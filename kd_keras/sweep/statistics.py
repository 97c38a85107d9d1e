"""What differences over seeds decide: effects with intervals, verdicts, and the correction for several tests."""

import dataclasses
import math
from collections.abc import Sequence

from kd_keras.errors import InputError

#: Points within which two models are called equal.
MARGIN = 1.0


@dataclasses.dataclass(frozen=True)
class Effect:
    """The mean of paired differences, with its 95 % interval.

    Attributes:
        mean: of the differences, in their unit.
        low, high: the ends of the paired t interval; infinite for one difference alone.
        p: of the two-sided paired t test; 1 for one difference alone.
        n: number of differences.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    def verdict(self, margin: float = MARGIN) -> str:
        """``better`` or ``worse`` where the interval is on one side of 0, ``equal within ± margin`` where it is inside
        of the margin, else ``undecided at n = …``."""
        if self.low > 0:
            return "better"
        if self.high < 0:
            return "worse"
        return (
            f"equal within ± {margin:g}" if -margin < self.low and self.high < margin else f"undecided at n = {self.n}"
        )

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:+.2f} (n = 1, no interval)"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], n = {self.n}"


def effect(differences: Sequence[float]) -> Effect:
    """The effect that paired differences show.

    Args:
        differences: one for each seed, such as student minus baseline in points.

    Raises:
        InputError: there is none, or one is not finite.
    """
    from scipy import stats

    n = len(differences)
    if n == 0 or not all(map(math.isfinite, differences)):
        raise InputError(f"differences {list(differences)}: give finite numbers, one or more")
    mean = math.fsum(differences) / n
    if n == 1:
        return Effect(mean, -math.inf, math.inf, 1.0, n)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    if error == 0:
        return Effect(mean, mean, mean, float(mean == 0), n)
    half = stats.t.ppf(0.975, n - 1) * error
    return Effect(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, n - 1)), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's step-down method, in the order given: those below 0.05 hold together at that level.

    Reference: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = so_far
    return adjusted
