"""Parts of a tap that have names of their own: the mean of a map, the class token and the patches of a transformer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from keras import ops

# Tokens in front of the patches: a class token, none, a class token and four registers (arXiv:2309.16588).
_PREFIXES = (1, 0, 5)


@dataclasses.dataclass(frozen=True)
class View:
    """A part of a tap.

    Attributes:
        of: the tap's name.
        part: ``'pooled'``, ``'class'`` or ``'patches'``.
        shape: (None, …) of the part.
        prefix: tokens in front of the patches; None for a map.
    """

    of: str
    part: str
    shape: tuple
    prefix: int | None = None

    def read(self, value: Any) -> Any:
        """The part of the tap's value."""
        if self.prefix is None:
            return ops.mean(value, axis=(1, 2))
        if self.part == "class":
            return value[:, 0]
        patches = value[:, self.prefix :]
        if self.part == "pooled":
            return ops.mean(patches, axis=1)
        return ops.reshape(patches, (ops.shape(value)[0], *self.shape[1:]))


def views(shapes: Mapping[str, tuple]) -> dict[str, View]:
    """The parts of taps, by their names.

    Of a map (B, H, W, C) ``stage3[pooled]``, its mean (B, C). Of the tokens (B, T, D) of a vision transformer
    ``blocks[patches]`` (B, H, H, D), their mean ``blocks[pooled]`` (B, D) and, where there is a class token,
    ``blocks[class]`` (B, D). Tokens are those of a square image.

    Args:
        shapes: of the taps, (None, …), by name.
    """
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            found[f"{name}[pooled]"] = View(name, "pooled", (None, shape[-1]))
        elif len(shape) == 3 and None not in shape[1:] and (prefix := _prefix(shape[1])) is not None:
            side, width = math.isqrt(shape[1] - prefix), shape[2]
            found[f"{name}[pooled]"] = View(name, "pooled", (None, width), prefix)
            found[f"{name}[patches]"] = View(name, "patches", (None, side, side, width), prefix)
            if prefix:
                found[f"{name}[class]"] = View(name, "class", (None, width), prefix)
    return found


def _prefix(tokens: int) -> int | None:
    """How many tokens are in front of a square of patches."""
    sides = {prefix: math.isqrt(max(tokens - prefix, 0)) for prefix in _PREFIXES}
    return next((prefix for prefix, side in sides.items() if side > 1 and side**2 == tokens - prefix), None)
