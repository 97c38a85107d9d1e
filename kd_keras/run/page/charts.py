"""Charts as plain data: the template draws them as SVG, in the page's own colours and fonts."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 40, 14, 46
# Markers nearer to each other than this share a label.
_NEAR = 13
# The width of a label's character, and its height.
_CHARACTER, _LINE = 6.5, 13
_DIGITS = 1


@dataclasses.dataclass(frozen=True)
class Axis:
    """A direction of a chart.

    Attributes:
        title: what is shown, with its unit.
        low, high: the ends, in data.
        ticks: (value, text).
        start, end: the ends, in the drawing's units.
        log: whether equal factors are equally far apart.
    """

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value is in the drawing."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return round(self.start + share * (self.end - self.start), _DIGITS)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """(place, text) of the ticks."""
        return [(self.at(value), text) for value, text in self.ticks]


@dataclasses.dataclass
class Chart:
    """A chart: axes and what is in them, all places in the drawing's units.

    Attributes:
        title: its name, for a screen reader.
        text: what it shows, in words.
        x, y: axes.
        lines: (points, colour, dashed).
        spans: (x, y from, y to, colour): vertical intervals.
        dots: (x, y, radius, classes).
        labels: (x, y, text).
        bars: (x, y, width, height, colour).
    """

    title: str
    text: str
    x: Axis
    y: Axis
    lines: list[tuple] = dataclasses.field(default_factory=list)
    spans: list[tuple] = dataclasses.field(default_factory=list)
    dots: list[tuple] = dataclasses.field(default_factory=list)
    labels: list[tuple] = dataclasses.field(default_factory=list)
    bars: list[tuple] = dataclasses.field(default_factory=list)

    width, height = WIDTH, HEIGHT

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: int | str, dashed: bool = False) -> None:
        """Adds a line through points; a value that is not finite interrupts it."""
        pieces, piece = [], []
        for x, y in zip(xs, ys, strict=True):
            if y is None or not math.isfinite(y):
                pieces.append(piece)
                piece = []
            else:
                piece.append(f"{self.x.at(x)},{self.y.at(y)}")
        for points in (*pieces, piece):
            if len(points) == 1:
                self.dots.append((*points[0].split(","), 3, f"f{colour}"))
            elif points:
                self.lines.append((" ".join(points), colour, dashed))

    def span(self, x: float, low: float, high: float, colour: int | str) -> None:
        """Adds a vertical interval."""
        self.spans.append((self.x.at(x), self.y.at(low), self.y.at(high), colour))

    def label(self, places: list[tuple[float, float, str]], beside: bool = False) -> None:
        """Adds labels at points in data; points that are near each other share a label.

        Args:
            places: (x, y, text).
            beside: to the right of the points, as of lines that end there; else where there is room around them.
        """
        clusters = []
        for x, y, text in ((self.x.at(x), self.y.at(y), text) for x, y, text in places):
            near = next((c for c in clusters if math.hypot(c[0] - x, c[1] - y) < _NEAR), None)
            if near and text not in near[2]:
                near[2].append(text)
            elif not near:
                clusters.append((x, y, [text]))
        for x, y, texts in clusters:
            # The end of a line has room for two.
            text = ", ".join(texts[:2] if beside else texts) + " …" * (beside and len(texts) > 2)
            width = _CHARACTER * len(text)
            around = [(x + 8, y - 7), (x + 8, y + 16), (x - 8 - width, y - 7), (x - 8 - width, y + 16)]
            around = [
                (left, low) for left, low in around if left + width < WIDTH and not self._is_taken(left, low, width)
            ]
            self.labels.append((x + 6, y + 4, text) if beside else (*(around or [(x + 8, y - 7)])[0], text))

    def _is_taken(self, left: float, low: float, width: float) -> bool:
        """Whether another label is in a place."""
        return any(
            left < x + _CHARACTER * len(text) and x < left + width and abs(low - y) < _LINE
            for x, y, text in self.labels
        )


def linear(title: str, values: Sequence[float], vertical: bool = False, bounds: tuple | None = None) -> Axis:
    """An axis that holds all values, a little wider than they are; ``bounds`` are not passed."""
    low, high = (min(values), max(values)) if len(values) else (0, 1)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1
    low, high = low - margin, high + margin
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    step = _nice((high - low) / 5)
    digits = max(0, -math.floor(math.log10(step)))
    ticks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return _axis(title, low, high, tuple((float(v), f"{v:.{digits}f}") for v in ticks), vertical)


def epochs(last: int) -> Axis:
    """An axis of epochs, from 1."""
    step = max(1, math.ceil(_nice(last / 6)))
    ticks = tuple((float(v), str(v)) for v in sorted({1, *range(step, last + 1, step)} - ({1} if step == 2 else set())))
    return _axis("epoch", 1, max(last, 2), ticks, False)


def logarithmic(title: str, values: Sequence[float], text) -> Axis:
    """A logarithmic axis with ticks at round numbers, at most six; ``text`` writes a value."""
    low, high = min(values) / 1.35, max(values) * 1.35
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (range(1, 10), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= 6:
            break
    return _axis(title, low, high, tuple((v, text(v)) for v in ticks), False, log=True)


def fixed(title: str, ticks: Sequence[float], vertical: bool, text) -> Axis:
    """An axis from its first tick to its last."""
    return _axis(title, ticks[0], ticks[-1], tuple((v, text(v)) for v in ticks), vertical)


def _axis(title, low, high, ticks, vertical, log=False) -> Axis:
    ends = (HEIGHT - _BOTTOM, _TOP) if vertical else (_LEFT, WIDTH - _RIGHT)
    return Axis(title, low, high, ticks, *ends, log)


def _nice(value: float) -> float:
    """The next of 1, 2, 5 and their tenfolds."""
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= value * (1 - 1e-9))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one beats: which costs at most as much and scores at least as high, one of them better.

    Args:
        points: (cost, score).

    Returns:
        Their indices, by cost.
    """

    def is_beaten(i):
        cost, score = points[i]
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    return sorted((i for i in range(len(points)) if not is_beaten(i)), key=lambda i: points[i])
