"""A student in the wrappers of a compression step, while it is trained."""

import dataclasses
from collections.abc import Iterable

import keras

from kd_keras.compress import bridge as _bridge
from kd_keras.compress.base import Step
from kd_keras.errors import needs


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A student in a way's wrappers.

    Attributes:
        student: the Keras 3 model that it was made of, untouched until `finish`.
        way: how it is compressed.
        model: the Keras 3 model to be trained in its place; it has the student's taps, and gives logits.
    """

    student: keras.Model
    way: Step
    model: keras.Model

    @property
    def wrapped(self):
        """The tf_keras model inside; of `qat`, what `export.tflite.convert_quantised` takes."""
        return self.model.wrapped()

    def finish(self) -> keras.Model:
        """Gives the student the compressed weights, and returns it."""
        with self.model.distribute_strategy.scope():
            _bridge.weights_back(self.way.strip(self.wrapped), self.student)
        return self.student


def imitate(student: keras.Model, ways: Iterable[Step]) -> None:
    """Gives an untrained student the zeros and clusters that ways would leave, so that what follows can be tried."""
    for name, layer in _bridge.named_layers(student):
        if type(layer) in (keras.layers.Conv2D, keras.layers.Dense):
            kernel, *others = layer.get_weights()
            for way in ways:
                kernel = kernel if name in way.skip else way.imitate(kernel)
            layer.set_weights([kernel, *others])


def prepare(student: keras.Model, way: Step, *, steps: int, before: tuple[Step, ...] = ()) -> Prepared:
    """Puts a student into the wrappers of a way of compression, for a training to come.

    Args:
        student: functional or Sequential, of stock layers, with an input of known size.
        way: from ``qat.QAT()``, ``prune.Prune()``, ``cluster.Cluster()``.
        steps: optimizer steps of the training.
        before: ways that the student has been through, whose zeros and clusters are kept.

    Raises:
        InputError: the student has no twin in tf_keras, or a layer that the way can't take, or
            tensorflow-model-optimization is not installed.
    """
    with needs("tensorflow-model-optimization", "qat", "compression"):
        import tensorflow_model_optimization  # noqa: F401
        import tf_keras  # noqa: F401
    kept = frozenset().union(*(one.leaves for one in before))
    copied = _bridge.twin(student)
    what = f"--compress can't put {student.name} into the wrappers of {type(way).__name__}"
    with _bridge.generators(), _bridge.told(what):
        wrapped = way.wrap(copied, kept, steps)
        return Prepared(student, way, _bridge.trainable(wrapped, student))
