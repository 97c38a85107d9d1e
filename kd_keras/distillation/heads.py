"""What a model's output is, found out from its values on real images; and the logits behind it.

A head of one unit is a classifier of two classes: a sigmoid's p is the probability of class 1, and z its logit. Its
logits are (0, z), whose softmax is (1 − p, p) exactly, at every temperature.

Values decide, names of classes never do. The structure of a model only serves to find the true logits, without the loss
of taking the logarithm of rounded probabilities: a tensor of the graph is taken for the logits where its softmax (or
sigmoid) *is* the model's output on those images.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError

#: What an output can be: of a softmax classifier, or of independent labels.
KINDS = ("logits", "probabilities", "multilabel_logits", "multilabel_probabilities")
#: Images that are looked at.
ROWS = 32
# Of dtypes with 16 bits: the distance from 1 to the next number, and the largest number that is rounded to 0.
_COARSE = {"float16": (2.0**-10, 2.5e-7), "bfloat16": (2.0**-7, 1e-37)}
_FLOAT32 = (2.0**-23, 1e-37)
_TINY = float(np.finfo("float32").tiny)
# How far back from the output logits are looked for.
_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Head:
    """What a model's output is, and how logits are made of it.

    Attributes:
        kind: one of `KINDS`.
        way: ``'as it is'``; ``'before'``, the logits are a tensor of the model's graph; or ``'log'`` of the output.
        reason: for the log.
        logits: the symbolic logits, for ``'before'``.
    """

    kind: str
    way: str = "as it is"
    reason: str = ""
    logits: Any = None

    @property
    def is_multilabel(self) -> bool:
        """Whether the labels are independent of each other."""
        return self.kind.startswith("multilabel")

    @property
    def labels(self) -> str:
        """What the head is for, as losses declare it: ``'softmax'`` or ``'multilabel'``."""
        return "multilabel" if self.is_multilabel else "softmax"

    @property
    def gives_probabilities(self) -> bool:
        """Whether the model's own output is probabilities."""
        return self.kind.endswith("probabilities")

    def to_logits(self, values, floor: bool = False):
        """Float32 logits (B, K); of one unit (B, 1), those of two classes (B, 2).

        Args:
            values: the model's output, or its `logits`.
            floor: whether log 0 is −87, which has a gradient, instead of minus infinity, a class that is never named.
        """
        values, is_unit = ops.cast(values, "float32"), values.shape[-1] == 1
        if self.way == "log" and (self.is_multilabel or is_unit):
            values = ops.log(ops.maximum(values, _TINY)) - ops.log(ops.maximum(1 - values, _TINY))
        elif self.way == "log":
            values = ops.log(ops.maximum(values, _TINY) if floor else values)
        return ops.concatenate([ops.zeros_like(values), values], axis=-1) if is_unit else values

    def to_output(self, logits, units: int):
        """What the model itself gives, (B, units): the opposite of `to_logits`."""
        if units == 1:
            logits = logits[:, 1:] - logits[:, :1]
        if not self.gives_probabilities:
            return logits
        return ops.sigmoid(logits) if self.is_multilabel or units == 1 else ops.softmax(logits)


@keras.saving.register_keras_serializable(package="kd_keras", name="ToLogits")
class ToLogits(keras.layers.Layer):
    """The logits (B, K) of a model's output; see `Head.to_logits`.

    Args:
        kind: one of `KINDS`.
    """

    def __init__(self, kind: str = "probabilities", **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.kind = kind

    def call(self, output):
        head = Head(self.kind)
        return dataclasses.replace(head, way="log" if head.gives_probabilities else head.way).to_logits(output, True)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


def find(
    model: keras.Model, read: Callable, images: Any, role: str, given: str | None = None, is_multilabel: bool = False
) -> Head:
    """Finds out what a model's output is.

    Args:
        model: for its structure.
        read: takes images and symbolic tensors, and returns the model's output and the values of these tensors.
        images: of the real data; the first `ROWS` are looked at.
        role: what messages call the model.
        given: one of `KINDS`, where the user says what it is.
        is_multilabel: whether losses or labels say that labels are independent: no value tells such logits from those
            of a softmax.

    Raises:
        InputError: the output is no number, or decisions, or not what ``given`` says.
    """
    images = keras.tree.map_structure(lambda part: part[:ROWS], images)
    output = read(images, [])[0]
    epsilon, least = _precision(model, output)
    output = _numbers(output)
    shape = _shape(output, epsilon)
    where = f"on {len(output)} images"
    if shape == "no number":
        bad = int((~np.isfinite(output).all(axis=-1)).sum())
        raise InputError(
            f"the {role} gives no finite number (NaN or infinity) for {bad} of {len(output)} images: look at its "
            "weights and at the scale of its input"
        )
    if shape == "shares" and given is None:
        total = output.sum(axis=-1).mean()
        raise InputError(
            f"the {role} gives shares, not logits: {where} no value is negative and each row sums to {total:.4g}, as "
            f"percents or votes do; divide them by {total:.4g}, or say {role}_output='logits'"
        )

    def behind_activation(activation):
        return _behind(model, read, images, lambda logits: _is(output, logits, activation, epsilon, least))

    behind, is_unit = None, output.shape[-1] == 1
    if shape == "probabilities" and is_multilabel and given is None:
        behind = behind_activation(_sigmoid)
    if behind is not None:
        shape = "unit"  # the labels of every image sum to 1 by chance
    elif shape in ("probabilities", "unit") or (given or "").endswith("probabilities"):
        is_sigmoid = is_unit or given == "multilabel_probabilities" or (given is None and shape == "unit")
        behind = behind_activation(_sigmoid if is_sigmoid else _softmax)
    if shape == "unit" and given is None and behind is None and _may_be_logits(model, read, images, output):
        shape = "logits"
    of_unit = "probabilities" if is_unit else "multilabel_probabilities"
    kind = given or (of_unit if shape == "unit" else shape)
    if kind == "logits" and given is None and is_multilabel and not is_unit:
        kind = "multilabel_logits"
    if shape != "logits" and np.isin(output, (0, 1)).all() and behind is None and given is None:
        raise InputError(
            f"the {role} gives decisions, not probabilities: {where} each value is 0 or 1, which no temperature "
            f"softens; let it return what goes before, or say {role}_output={kind!r}"
        )
    if not kind.endswith("probabilities"):
        return Head(kind, reason=f"{kind} ({output.min():.3g} to {output.max():.3g} {where})")
    if output.min() < -1e-3 or output.max() > 1 + 2e-2:
        reach = f"{output.min():.3g} to {output.max():.3g}"
        raise InputError(f"{role}_output={kind!r}, and its values reach from {reach}: probabilities lie in 0 to 1")
    if behind is not None:
        return Head(kind, "before", f"{kind} {where}; its logits are what goes into {behind[1]!r}", behind[0])
    is_sigmoid = kind.startswith("multilabel") or is_unit
    saturated = float(((output <= 0) | ((output >= 1) & is_sigmoid)).mean())
    if saturated:
        logging.warning(
            "the %s's probabilities are exactly %s in %.0f %% of all places: %s",
            role,
            "0 or 1" if is_sigmoid else "0",
            100 * saturated,
            "their logits count as -87 or 87" if is_sigmoid else "a class there counts as never named",
        )
    return Head(kind, "log", f"{kind} {where}; their logarithm is taken for the logits")


def of_values(values: Any, role: str, given: str | None = None, is_multilabel: bool = False) -> Head:
    """What values (B, K) are that a batch brings in the place of a model's output."""
    return find(None, lambda images, tensors: (images, []), values, role, given, is_multilabel)


def noise(input_shape: tuple[int | None, ...]) -> np.ndarray:
    """Eight images of no data set, at the two usual scales, for a model whose data are not there yet."""
    drawn = np.random.default_rng(0).uniform(0, 1, (4, *(32 if size is None else size for size in input_shape)))
    return np.concatenate([drawn, 255 * drawn]).astype("float32")


# ---- values ----


def _numbers(value) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.cast(value, "float32")), "float64")


def _precision(model, output) -> tuple[float, float]:
    """Epsilon, and what is rounded to 0, of the coarsest dtype in a model."""
    dtypes = {keras.backend.standardize_dtype(output.dtype)}
    if model is not None:
        dtypes |= {layer.compute_dtype for layer in graph.all_layers(model)}
    return max((_COARSE[name] for name in dtypes if name in _COARSE), default=_FLOAT32)


def _shape(values, epsilon) -> str:
    """What values (n, K) look like.

    Returns:
        ``'logits'``, ``'probabilities'``, ``'unit'`` (in 0 to 1, of any sum), ``'shares'`` (of another sum, such as
        percents or votes), or ``'no number'``.
    """
    is_masked = values == -np.inf  # a class that is never named
    if not (np.isfinite(values) | is_masked).all() or is_masked.all(axis=-1).any():
        return "no number"
    if (values < 0).any():
        return "logits"
    if values.shape[-1] == 1:
        return "logits" if (values > 1).any() else "unit"
    # A few rows may sum to nearly 1 by chance; many don't. Rounding to 16 bits leaves up to 8e-3.
    tolerance = 1e-4 if len(values) < 8 and epsilon == _FLOAT32[0] else 2e-2
    sums = values.sum(axis=-1)
    if (np.abs(sums - 1) < tolerance).all():
        return "probabilities"
    if (values <= 1).all():
        return "unit"
    # Whole numbers are rounded; of others the sum over a thousand classes may be much the same by chance.
    spread = 5e-2 if (values == np.round(values)).all() else 1e-3
    # The values have to differ more than their sums: an untrained model's are all nearly the same.
    is_one_sum = np.ptp(sums) <= spread * sums.mean() and np.ptp(values, axis=0).max() > 4 * np.ptp(sums)
    return "shares" if is_one_sum and len(values) >= 4 else "logits"


def _may_be_logits(model, read, images, output) -> bool:
    """Whether an output in 0 to 1 leaves it on images of absurd contrast; sigmoids don't, small logits do."""
    # The same for every image, as from a head of zeros that is not trained yet: a sigmoid of zeros is ½.
    if len(output) > 1 and (output == output[:1]).all():
        return bool((output != 0.5).any())
    if model is None:
        return False

    def contrasts(part):
        part = ops.convert_to_tensor(part)
        is_float = keras.backend.is_float_dtype(part.dtype)
        return ops.concatenate([part * 50, part * -50, 50 - part * 50] if is_float else [part] * 3)

    wild = _numbers(read(keras.tree.map_structure(contrasts, images), [])[0])
    return bool(((wild < 0) | (wild > 1)).any())


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _sigmoid(logits):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def _is(output, logits, activation, epsilon, least) -> bool:
    """Whether an output is the activation of these logits.

    The bound is relative: an absolute one would take unmasked logits for masked ones where the model is sure.
    """
    if output.shape != logits.shape or not np.isfinite(logits).all():
        return False
    expected = activation(logits)
    return bool((np.abs(output - expected) <= max(1e-3, 16 * epsilon) * expected + least).all())


# ---- structure ----


class _Linear(keras.layers.Layer):
    """A layer without its activation, whatever the layer is: quantised, with adapters, a subclass."""

    def __init__(self, layer):
        super().__init__(dtype=layer.compute_dtype, name=f"{layer.name}_linear")
        self.layer = layer
        self.built = True

    def call(self, x):
        activation, self.layer.activation = self.layer.activation, keras.activations.linear
        try:
            return self.layer(x)
        finally:
            self.layer.activation = activation


def _behind(model, read, images, is_it) -> tuple | None:
    """The symbolic logits that ``is_it``, and the name of what reads them; None where there are none to be found."""
    if model is None or not graph.is_stock_graph(model):
        return None
    try:
        for tensor, reader in _candidates(model):
            if is_it(_numbers(read(images, [tensor])[1][0])):
                return tensor, reader
    # A layer that can't be called so, of anybody's making. The logarithm will do.
    except Exception as error:
        logging.info("no logits were found in the graph: %s", str(error)[:80])
    return None


def _candidates(model) -> list[tuple]:
    """What may be a model's logits, the nearest to the output first: symbolic tensors (B, K), and what reads each."""
    tensor, candidates = model.outputs[0], []
    size = math.prod(tensor.shape[1:])
    for _ in range(_DEPTH):
        operation, node = graph.made_by(tensor)
        # An array among the arguments may be a mask, which belongs to the logits.
        if len(node.input_tensors) != 1 or any(hasattr(value, "shape") for value in node.arguments.kwargs.values()):
            break
        (inner,) = node.input_tensors
        if isinstance(operation, keras.Model):
            if graph.is_stock_graph(operation):
                candidates += [(keras.Model(operation.inputs, t)(inner), name) for t, name in _candidates(operation)]
            break
        activation = getattr(operation, "activation", None)
        if hasattr(operation, "kernel") and callable(activation) and activation is not keras.activations.linear:
            candidates.append((_Linear(operation)(inner), operation.name))
        tensor = inner
        if math.prod(size or 0 for size in tensor.shape[1:]) == size:
            flat = tensor if len(tensor.shape) == 2 else keras.layers.Flatten()(tensor)
            candidates.append((flat, operation.name))
    return candidates
