"""How a teacher cache stores a tap: as it is, or logits in fewer bytes."""

import dataclasses

import numpy as np
from keras import ops

from kd_keras.errors import InputError


@dataclasses.dataclass(frozen=True)
class TapStorage:
    """Encodes a tap for a file, and decodes it.

    Logits in float16 are stored as their difference from the row's largest logit, which is stored in float32: the
    likeliest classes are the most exact. With ``top_k`` only the largest k are stored, and the probability mass of all
    others at temperature 1, which is divided among them evenly.

    Attributes:
        tap: its name.
        shape: of a sample.
        dtype: ``'float16'`` or ``'float32'``.
        top_k: number of logits to store; None stores all.
    """

    tap: str
    shape: tuple[int, ...]
    dtype: str
    top_k: int | None = None

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The arrays that store the tap: part → (shape of a sample, dtype)."""
        # teacher1.logits are those of a classifier joined in the teacher.
        is_logits = self.tap.rpartition(".")[2] == "logits"
        if not is_logits or (self.dtype == "float32" and self.top_k is None):
            return {"values": (self.shape, self.dtype)}
        if self.top_k is None:
            return {"values": (self.shape, "float16"), "largest": ((), "float32")}
        index = "int16" if self.shape[-1] <= 1 << 15 else "int32"
        k = (self.top_k,)
        return {"values": (k, self.dtype), "largest": ((), "float32"), "index": (k, index), "rest": ((), "float32")}

    @property
    def nbytes(self) -> int:
        """Bytes of a sample."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.arrays.values())

    def encode(self, value) -> dict[str, np.ndarray]:
        """The arrays that store a batch of the tap (B, …), by part.

        Raises:
            InputError: a value is not finite, or too large for float16.
        """
        value = np.asarray(value, np.float32)
        arrays, parts = self.arrays, {"values": value}
        if "largest" in arrays:
            largest = value.max(axis=-1)
            below = value - largest[:, None]
            parts = {"values": below, "largest": largest}
            if self.top_k is not None:
                index = np.argpartition(-below, self.top_k - 1, axis=-1)[:, : self.top_k]
                others = below.astype(np.float64)
                np.put_along_axis(others, index, -np.inf, axis=-1)
                # The logit that gives the others, if each has it, the probability mass that they have together.
                with np.errstate(divide="ignore"):
                    rest = np.log(np.exp(others).sum(axis=-1) / (value.shape[-1] - self.top_k))
                parts = {"values": np.take_along_axis(below, index, axis=-1), "largest": largest, "index": index}
                # -inf for a mass of 0, and all below what float32 can tell from it, become a finite logit.
                parts["rest"] = np.maximum(rest, -1e4)
        if not np.isfinite(parts["values"]).all():
            raise InputError(
                f"the teacher's {self.tap} is not finite: nothing can be learned from it; check the teacher"
            )
        with np.errstate(over="ignore"):
            stored = parts["values"].astype(arrays["values"][1])
        if not np.isfinite(stored).all():
            raise InputError(f"the teacher's {self.tap} is too large for float16: store the cache in dtype='float32'")
        return {**parts, "values": stored}

    def decode(self, parts):
        """The tap (B, …) in float32 of its parts, float32 but for the int32 index."""
        values = parts["values"]
        if "index" in parts:
            count = ops.shape(values)[0]
            rows = ops.repeat(ops.arange(count, dtype="int32"), self.top_k)
            positions = ops.stack([rows, ops.reshape(parts["index"], (-1,))], axis=-1)
            rest = ops.repeat(parts["rest"][:, None], self.shape[-1], axis=1)
            values = ops.scatter_update(rest, positions, ops.reshape(values, (-1,)))
        return values + parts["largest"][:, None] if "largest" in parts else values
