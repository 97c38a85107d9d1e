"""A student in the wrappers of a compression step, while it is trained."""

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from kd_keras.compress import bridge
from kd_keras.compress.base import Step
from kd_keras.errors import needs


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A student in the wrappers of a compression step.

    Attributes:
        student: the Keras 3 model, unchanged until `finish`.
        step: how it is compressed.
        model: the Keras 3 model to train in its place. It offers the student's taps and returns logits.
        shortfalls: after `finish`, what the training has not reached, a sentence each.
    """

    student: keras.Model
    step: Step
    model: keras.Model
    shortfalls: list[str] = dataclasses.field(default_factory=list)

    @property
    def wrapped(self) -> Any:
        """The tf_keras model inside; after `QAT`, what `export.tflite.convert_quantised` takes."""
        return self.model.wrapped()

    def finish(self) -> keras.Model:
        """Copies the compressed weights to the student and returns it.

        Warns where the training has not reached what the step was asked for.
        """
        with self.model.distribute_strategy.scope():
            wrapped = self.wrapped
            weights = self.step.strip(wrapped)
            bridge.set_weights(self.student, weights)
        if shortfall := self.step.shortfall(wrapped, weights):
            self.shortfalls.append(shortfall)
            warnings.warn(shortfall, stacklevel=1)
        return self.student


def imitate(student: keras.Model, steps: Iterable[Step]) -> None:
    """Gives an untrained student the zeros and clusters that steps would leave, to check the following steps."""
    for name, layer in bridge.named_layers(student):
        if type(layer) in (keras.layers.Conv2D, keras.layers.Dense):
            kernel, *others = layer.get_weights()
            for step in steps:
                kernel = kernel if name in step.skip else step.imitate(kernel)
            layer.set_weights([kernel, *others])


def prepare(
    student: keras.Model, step: Step, *, steps: int, before: tuple[Step, ...] = (), images: Any = None
) -> Prepared:
    """Puts a student into the wrappers of a compression step, to be trained.

    Args:
        student: functional or Sequential, of stock layers, with an input of known size.
        step: such as ``QAT()``, ``Prune()`` or ``Cluster()``.
        steps: optimizer steps of the training.
        before: earlier steps of the pipeline, whose zeros and clusters are kept.
        images: (n, H, W, C) of the training, a hundred or so: from which ``QAT()`` sets its ranges to begin with.

    Raises:
        InputError: the student has no equal in tf_keras, or a layer that the step can't take, or
            tensorflow-model-optimization is not installed.
    """
    with needs("tensorflow-model-optimization", "qat", "compression"):
        import tensorflow_model_optimization  # noqa: F401
        import tf_keras  # noqa: F401
    kept = frozenset().union(*(earlier.leaves for earlier in before))
    copied = bridge.to_tf_keras(student)
    what = f"--compress can't put {student.name} into the wrappers of {type(step).__name__}"
    with bridge.stateful_generators(), bridge.explain_errors(what):
        wrapped = step.wrap(copied, kept, steps)
        if images is not None:
            step.calibrate(wrapped, images)
        return Prepared(student, step, bridge.trainable(wrapped, student))
