"""The contract of `kd_keras.losses.Loss`."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kd_keras import schedules
from kd_keras._compat import keras as compat
from kd_keras.losses.base import Loss
from kd_keras.testing import shared

_BATCH, _CLASSES = 6, 5

Taps = Mapping[str, Any]


def check_loss(loss: Loss, *, student: Taps | None = None, teacher: Taps | None = None) -> None:
    """Checks that a loss keeps the contract of `kd_keras.losses.Loss`.

    Args:
        loss: any loss. Copies of it are made by its ``get_config``; the object itself is left as it is.
        student: float32 taps by name for 6 samples of 5 classes; by default `example_taps` of 3 channels.
        teacher: the same of the teacher; by default of 5 channels.

    Raises:
        AssertionError: the loss breaks the contract.
    """
    assert isinstance(loss, Loss), f"{loss!r} is no kd_keras.losses.Loss: a loss extends Loss or one of its subclasses"
    case = LossCase(loss, student or example_taps(0, 3), teacher or example_taps(10, 5))
    for check in LOSS_CHECKS:
        check(case)


def example_taps(seed: int, channels: int) -> dict[str, np.ndarray]:
    """Random float32 taps of a model with two stages, for 6 samples of 5 classes.

    Args:
        seed: of the values.
        channels: of ``stage1``; ``stage2`` and ``pooled`` have twice as many. 3 give ``stage1`` a grid of 8×8, others
            one of 6×6.
    """

    def normal(offset, *shape, scale=1.0):
        return np.random.default_rng(seed + offset).normal(0, scale, (_BATCH, *shape)).astype("float32")

    side = 8 if channels == 3 else 6
    return {
        "logits": normal(0, _CLASSES, scale=3.0),
        "stage1": normal(1, side, side, channels),
        "stage2": normal(2, 4, 4, 2 * channels),
        "stage1_pre": normal(4, side, side, channels),
        "stage2_pre": normal(5, 4, 4, 2 * channels),
        "pooled": normal(3, 2 * channels),
    }


@dataclasses.dataclass(frozen=True)
class LossCase:
    """A loss, and taps to call it with.

    Attributes:
        loss: copied by `make`, never called itself.
        student: taps by name.
        teacher: taps by name.
    """

    loss: Loss
    student: Taps
    teacher: Taps
    index = np.arange(_BATCH) * 3

    @property
    def name(self) -> str:
        return self.loss.name

    @property
    def labels(self) -> np.ndarray:
        """Classes (B,), or for a loss that is for multi-label heads alone 0 and 1 (B, K)."""
        classes = (np.arange(_BATCH) * 2 + 1) % _CLASSES
        if "softmax" in self.loss.heads:
            return classes
        labels = np.eye(_CLASSES, dtype="int32")[classes] | np.eye(_CLASSES, dtype="int32")[classes[::-1]]
        labels[0] = 0
        return labels

    def make(self, **changes: Any) -> Loss:
        """A fresh copy of the loss, its weights the same each time."""
        keras.utils.set_random_seed(1)
        with shared.explained(
            f"{self.name} cannot be made from its own get_config(), which has to hold every argument"
        ):
            return type(self.loss).from_config({**self.loss.get_config(), **changes})

    def call(self, loss, student=None, teacher=None, labels=None, index=None, **kwargs):
        """The loss of these taps, or else of the case's."""
        if "index" in loss.needs:
            kwargs["index"] = self.index if index is None else index
        student, teacher = (
            {name: tf.convert_to_tensor(x) for name, x in taps.items()}
            for taps in (self.student if student is None else student, self.teacher if teacher is None else teacher)
        )
        return loss(student, teacher, self.labels if labels is None else labels, **kwargs)

    def gradients(self, loss, student, teacher):
        """The value, and its gradients by the student's taps that are read and by the loss's own weights."""
        student = {name: tf.convert_to_tensor(x) for name, x in student.items()}
        read = {name: student[name] for name in loss.taps(list(student), list(teacher))[0]}
        training = {"training": True} if "training" in loss.call.__code__.co_varnames else {}
        with tf.GradientTape() as tape:
            tape.watch(read)
            value = self.call(loss, read, teacher, **training)
            total = tf.reduce_sum(value)
        return value, *tape.gradient(total, (read, list(loss.trainable_weights)))


def reads_taps_on_offer(case: LossCase) -> None:
    """`taps` names taps that exist, each once."""
    offers = ("student", list(case.student)), ("teacher", list(case.teacher))
    for names, (whose, offered) in zip(case.make().taps(offers[0][1], offers[1][1]), offers, strict=True):
        unknown = set(names) - set(offered)
        assert not unknown, f"{case.name}.taps() names taps that the {whose} does not offer: {sorted(unknown)}"
        assert len(set(names)) == len(names), f"{case.name}.taps() names a tap twice: {names}"


def returns_a_value_per_sample(case: LossCase) -> None:
    """The value is (B,) or a scalar, float32, finite and not 0 everywhere."""
    with shared.explained(f"{case.name} fails when it is called as call(student, teacher, labels), with dicts of taps"):
        value = case.call(case.make())
    shape = tuple(value.shape)
    assert shape in ((_BATCH,), ()), f"{case.name} returns shape {shape}: a loss returns (B,), or a scalar"
    assert value.dtype == tf.float32, f"{case.name} returns {value.dtype.name}: a loss computes in float32"
    assert np.all(np.isfinite(value)), f"{case.name} returns values that are not finite: {np.array(value)}"
    assert np.any(value), f"{case.name} is 0 where student and teacher differ: it would teach nothing"


def leaves_its_weight_to_the_distiller(case: LossCase) -> None:
    """Called by itself, a loss is unweighted."""
    expected = case.call(case.make())
    for weight in (0.25, 0, "linear(start=0.1, end=0.2, over=3)"):
        shared.assert_equal(
            *(case.call(case.make(weight=weight)), expected),
            f"{case.name} applies its weight itself: the Distiller does, once",
        )


def follows_the_order_of_the_samples(case: LossCase) -> None:
    """Samples in another order give the same values in that order."""
    order = np.random.default_rng(0).permutation(_BATCH)
    student, teacher = ({name: x[order] for name, x in taps.items()} for taps in _numpy(case))
    expected = np.array(case.call(case.make()))
    expected = expected if expected.shape == () else expected[order]
    value = case.call(case.make(), student, teacher, case.labels[order], case.index[order])
    shared.assert_close(value, expected, f"{case.name} depends on the order of the samples in the batch", rtol=1e-4)


def takes_labels_in_every_form(case: LossCase) -> None:
    """Labels are classes (B,) or (B, 1) of any integer type, or class weights (B, K); 0 and 1 of any type."""
    expected = case.call(case.make())
    if "softmax" in case.loss.heads:
        weights = np.eye(_CLASSES, dtype="float32")[case.labels]
        forms = (case.labels[:, None], case.labels.astype("uint8"), weights, weights.astype("float16"))
    else:
        forms = [case.labels.astype(dtype) for dtype in ("uint8", "int64", "bool", "float32", "float16")]
    for labels in forms:
        what = f"{case.name} does not take labels {labels.dtype} {labels.shape} as it takes classes (B,)"
        with shared.explained(f"{what}; kd_keras.losses.labels converts them"):
            value = case.call(case.make(), labels=labels)
        shared.assert_close(value, expected, what)


def survives_extreme_logits(case: LossCase, dtype: str = "float32", wrap: Callable = lambda function: function) -> None:
    """Logits of ±10⁴ give a finite value and finite gradients.

    Args:
        case: the loss.
        dtype: of the taps.
        wrap: how the computation is run, such as `tf.function`.
    """
    extreme = np.where(np.random.default_rng(3).random((_BATCH, _CLASSES)) < 0.5, -1e4, 1e4)
    extreme[0], extreme[1] = 1e4, -1e4
    of_teacher = -extreme[:, ::-1]
    # A teacher that is sure and right, and one that is sure and wrong; the student is as sure of another class.
    for row, wrong in ((2, 0), (3, 1)):
        label = int(case.labels[row].argmax()) if case.labels.ndim == 2 else case.labels[row]
        of_teacher[row] = extreme[row] = -1e4
        of_teacher[row, (label + wrong) % _CLASSES] = 1e4
        extreme[row, (label + 2) % _CLASSES] = 1e4
    student, teacher = ({name: tf.cast(x, dtype) for name, x in taps.items()} for taps in _numpy(case))
    student["logits"], teacher["logits"] = tf.cast(extreme, dtype), tf.cast(of_teacher, dtype)
    _assert_finite(case, student, teacher, "logits of ±10000", wrap)


def survives_extreme_features(case: LossCase, scale: float | None = None) -> None:
    """Features of 0, and of 10⁴, give a finite value and finite gradients; ``scale`` is one of them, None both."""
    for factor in (0.0, 1e4) if scale is None else (scale,):
        scaled = ({name: factor * x if name != "logits" else x for name, x in taps.items()} for taps in _numpy(case))
        _assert_finite(case, *scaled, f"features times {factor:g}")


def is_the_same_when_compiled(case: LossCase, jit: bool = False) -> None:
    """`tf.function` (and XLA, with ``jit``) computes what eager code computes."""
    loss = case.make()
    expected = case.call(loss)

    @tf.function(jit_compile=jit)
    def compiled(student, teacher, labels, index):
        return case.call(loss, student, teacher, labels, index)

    with shared.explained(f"{case.name} cannot be compiled into a graph: it has to be written in keras.ops"):
        value = compiled(*_numpy(case), tf.constant(case.labels), tf.constant(case.index))
    shared.assert_close(value, expected, f"{case.name} gives another value when compiled", rtol=1e-4)


def computes_in_float32(case: LossCase, dtype: str = "float16") -> None:
    """Under a mixed policy a loss, and each layer in it, computes in float32."""
    halves = [{name: tf.cast(x, dtype) for name, x in taps.items()} for taps in _numpy(case)]
    rounded = [{name: tf.cast(x, "float32") for name, x in taps.items()} for taps in halves]
    expected = case.call(case.make(), *rounded)
    with shared.policy(f"mixed_{dtype}"):
        loss = case.make()
        value, not_rounded = case.call(loss, *halves), case.call(loss, *rounded)
    for layer in compat.all_layers(loss):
        assert layer.compute_dtype == layer.variable_dtype == "float32", (
            f"{layer.name} in {case.name} computes in {layer.compute_dtype} under a mixed policy: make it with "
            "dtype='float32'"
        )
    shared.assert_close(value, expected, f"{case.name} computes in {dtype} under a mixed policy: cast to float32 first")
    shared.assert_close(not_rounded, expected, f"{case.name} rounds float32 taps under a mixed policy")


def passes_gradients(case: LossCase) -> None:
    """Each tap of the student that is read, and each trainable weight, gets a gradient that is not 0."""
    loss = case.make()
    case.call(loss)
    _, by_taps, by_weights = case.gradients(loss, case.student, case.teacher)
    assert by_taps, f"{case.name} reads no tap of the student: it would teach nothing"
    for name, gradient in by_taps.items():
        assert gradient is not None and np.any(gradient), (
            f"{case.name} gives the tap {name} no gradient: use it, or leave it out of taps()"
        )
    for weight, gradient in zip(loss.trainable_weights, by_weights, strict=True):
        assert gradient is not None and np.any(np.abs(gradient) > 1e-6), (
            f"{case.name} gives its weight {weight.path} no gradient: use it, or make it with trainable=False"
        )


def is_restored_from_its_config(case: LossCase) -> None:
    """Serialised and deserialised by Keras, a loss has the same arguments, schedules and values."""
    changes = {"weight": schedules.complement(schedules.linear(start=0.9, end=0.1, over=7, per="step"))}
    if "temperature" in case.loss.get_config():
        changes["temperature"] = schedules.exponential_decay(start=6.0, rate=0.9, floor=1.5)
    loss = case.make(**changes)
    value = case.call(loss)
    parameters = inspect.signature(type(loss).__init__).parameters.values()
    missing = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - set(loss.get_config())
    assert not missing, f"{case.name}'s get_config() lacks {sorted(missing)}: it has to return every argument"
    with shared.explained(
        f"{case.name} cannot be restored: its class needs @keras.saving.register_keras_serializable()"
    ):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config(), (
        f"{case.name}'s get_config() does not survive being restored: it has to return every argument of __init__"
    )
    assert again.weight == loss.weight == changes["weight"], f"{case.name} does not hand its weight to Loss.__init__"
    assert again.schedules == loss.schedules, f"{case.name} forgets a schedule: read it by _schedule() in __init__"
    if not again.built:
        again.build_from_config(loss.get_build_config())
    again.set_weights(loss.get_weights())
    shared.assert_equal(case.call(again), value, f"{case.name} restored from its config gives another value")


def is_restored_from_a_file(case: LossCase) -> None:
    """Saved within a model, a loss has the same weights and values after loading."""

    def inputs(taps, role):
        return {name: keras.Input(x.shape[1:], name=f"{role}_{name}") for name, x in taps.items()}

    student, teacher = inputs(case.student, "student"), inputs(case.teacher, "teacher")
    labels = keras.Input(case.labels.shape[1:], dtype="int32", name="labels")
    index = keras.Input((), dtype="int32", name="index")
    loss = case.make(weight="linear(start=1, end=0, over=3)")
    needed = {"index": index} if "index" in loss.needs else {}
    with shared.explained(f"{case.name} cannot be part of a functional model: it has to be written in keras.ops"):
        model = keras.Model((student, teacher, labels, index), loss(student, teacher, labels, **needed))
    for weight in loss.weights:  # away from the values of a fresh one
        weight.assign_add(0.1 * tf.ones_like(weight))
    again = shared.save_and_load(model, case.name)
    for ours, loaded in zip(loss.weights, again.weights, strict=True):
        shared.assert_equal(loaded, ours, f"{case.name}'s weight {ours.path} is not restored from a file")
    batch = (*_numpy(case), case.labels.astype("int32"), case.index.astype("int32"))
    shared.assert_equal(again(batch), model(batch), f"{case.name} loaded from a file gives another value")


#: What `check_loss` checks, each a function of a `LossCase`.
LOSS_CHECKS = (
    reads_taps_on_offer,
    returns_a_value_per_sample,
    leaves_its_weight_to_the_distiller,
    follows_the_order_of_the_samples,
    takes_labels_in_every_form,
    survives_extreme_logits,
    survives_extreme_features,
    is_the_same_when_compiled,
    computes_in_float32,
    passes_gradients,
    is_restored_from_its_config,
    is_restored_from_a_file,
)


def _numpy(case):
    return dict(case.student), dict(case.teacher)


def _assert_finite(case, student, teacher, what, wrap=lambda function: function):
    loss = case.make()
    case.call(loss, student, teacher)  # builds it
    value, by_taps, by_weights = wrap(case.gradients)(loss, student, teacher)
    for name, x in (("its value", value), *by_taps.items(), *enumerate(by_weights)):
        # A tap that this value does not depend on has no gradient.
        finite = x is None or np.all(np.isfinite(tf.cast(x, "float32")))
        assert finite, f"{case.name} gives {what} a value or a gradient ({name}) that is not finite"
