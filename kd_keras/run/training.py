"""Training of one model, which can be killed at any moment and resumes with the same numbers.

A checkpoint is a single file, replaced atomically at the end of each epoch: every variable of the Distiller (the states
of dropout's generators among them), those of the optimizer, the best student so far and the history. Order and
augmentation are functions of (seed, epoch, index), so nothing else is needed to resume exactly. With several workers,
each holds the state in memory and the chief writes it.
"""

import dataclasses
import inspect
import json
import math
import pathlib
import time
import zipfile

import keras
import numpy as np

from kd_keras import files, schedules, spec
from kd_keras._compat import distribute
from kd_keras._compat import keras as graph
from kd_keras.distillation.distiller import Distiller
from kd_keras.errors import InputError, is_count
from kd_keras.run.callbacks import StopAtNaN


def optimizer_class(name: str) -> type[keras.optimizers.Optimizer]:
    """The Keras optimizer of a name, in any case.

    Raises:
        InputError: there is none.
    """
    if ":" in name:
        return spec.foreign(name)
    base = keras.optimizers.Optimizer
    classes = {
        key.lower(): value
        for key, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if name.lower() not in classes:
        raise InputError(spec.unknown(name, "optimizers", sorted(classes)))
    return classes[name.lower()]


def optimizer(optimizer_spec: spec.Spec, learning_rate: schedules.Schedule, *, epochs: int, steps_per_epoch: int):
    """A Keras optimizer, such as ``sgd(momentum=0.9, nesterov=True)``.

    Raises:
        InputError: an unknown optimizer or key, or a value that Keras refuses.
    """
    build = optimizer_class(optimizer_spec.name)
    values = spec.bind(build, optimizer_spec, ("learning_rate", "name"))
    # Keras refuses 0 where it wants 0.0.
    floats = {p.name for p in inspect.signature(build).parameters.values() if isinstance(p.default, float)}
    values = {key: float(value) if key in floats and is_count(value, 0) else value for key, value in values.items()}
    rate = schedules.to_keras(learning_rate, epochs=max(epochs, 1), steps_per_epoch=steps_per_epoch)
    try:
        return spec.check_kind(optimizer_spec, build(learning_rate=rate, **values), keras.optimizers.Optimizer)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{optimizer_spec}: {' '.join(str(error).split())}") from error


@dataclasses.dataclass
class History:
    """The values of every logged figure, one for each epoch, and the best epoch (from 0)."""

    series: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_epoch: int | None = None
    best_score: tuple[float, float] = (-math.inf, -math.inf)
    seconds: float = 0.0
    #: The step (from 1) and validation accuracy at which a `Stop` ended the training, or None.
    stop: dict[str, float] | None = None

    @property
    def epochs(self) -> int:
        return len(self.series.get("loss", ()))

    def has_waited(self, patience: int | None) -> bool:
        """Whether the last ``patience`` epochs were none better than the best."""
        return patience is not None and self.best_epoch is not None and self.epochs > self.best_epoch + patience

    def add(self, logs: dict[str, float], may_be_best: bool = True) -> bool:
        """Adds an epoch; returns whether it is the best so far by validation accuracy, then by validation loss.

        Of several labels for an image it is the mean average precision in place of the accuracy.
        """
        for name, value in logs.items():
            self.series.setdefault(name, []).append(float(value))
        score = (float(logs["val_map" if "val_map" in logs else "val_accuracy"]), -float(logs["val_loss"]))
        if not may_be_best or score <= self.best_score:
            return False
        self.best_score, self.best_epoch = score, self.epochs - 1
        return True


@dataclasses.dataclass(frozen=True)
class Stop:
    """Ends a training early, on purpose, once validation accuracy is at least ``val_accuracy``.

    Attributes:
        val_accuracy: in [0, 1].
        check_steps: steps between checks; the end of an epoch is a check too.
    """

    val_accuracy: float
    check_steps: int


def fit(
    distiller: Distiller,
    train,
    val,
    *,
    epochs,
    steps_per_epoch,
    checkpoint,
    callbacks=(),
    stop=None,
    keep_from=0,
    patience=None,
):
    """Trains to the end, from the checkpoint if there is one, and leaves the best epoch's weights in the student.

    With an optimizer whose ``use_ema`` is set, validation and the best weights are those of the moving averages.

    Args:
        distiller: compiled.
        train: ``train(initial_epoch)`` gives the stream of batches from that epoch to the last.
        val: data set of the validation split.
        epochs: epochs in all.
        steps_per_epoch: batches in an epoch.
        checkpoint: path of the checkpoint's file.
        callbacks: further Keras callbacks.
        stop: a `Stop`, or None. The weights at which it ends the training are returned: no earlier check passed.
        keep_from: first epoch (from 0) whose weights may be returned as the best.
        patience: epochs without a better one that end the training, or None.

    Returns:
        The `History`.

    Raises:
        InputError: the loss is no longer finite, the checkpoint is of another model, or not all workers see it.
    """
    strategy = distiller.distribute_strategy
    with strategy.scope():
        distiller.optimizer.build(distiller.trainable_variables)
    keeper = _Keeper(pathlib.Path(checkpoint), keep_from, patience, writes=distribute.worker(strategy)[0] == 0)
    keeper.restore(distiller)
    first_epoch = keeper.history.epochs
    epochs_seen = distribute.gather(strategy, first_epoch)
    if len(set(epochs_seen)) > 1:
        raise InputError(
            f"the workers see checkpoints of {', '.join(map(str, epochs_seen))} epochs at {checkpoint}: "
            "put --workdir where all machines share it"
        )
    if first_epoch < epochs and keeper.history.stop is None and not keeper.history.has_waited(patience):
        callbacks = [_Averaged(), *callbacks]
        stopper = [] if stop is None else [_Stopper(stop, keeper.history, val, steps_per_epoch, callbacks)]
        distiller.fit(
            train(first_epoch),
            validation_data=val,
            epochs=epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps_per_epoch,
            verbose=0,
            shuffle=False,
            # StopAtNaN comes before the keeper: the weights of an epoch that ends in NaN are not written.
            callbacks=[StopAtNaN(), *callbacks, *stopper, keeper],
        )
    keeper.restore_best(distiller)
    return keeper.history


class _Keeper(keras.callbacks.Callback):
    """Writes the checkpoint at the end of each epoch, and ends a training that no longer gets better."""

    def __init__(self, path, keep_from, patience=None, writes=True):
        super().__init__()
        self.path, self.keep_from, self.patience, self.writes = path, keep_from, patience, writes
        self.start = time.perf_counter()
        self.history, self.best_weights = History(), None

    @staticmethod
    def _variables(distiller):
        return [*distiller.variables, *distiller.optimizer.variables]

    def restore(self, distiller):
        if not self.path.exists():
            return
        try:
            with np.load(self.path) as file:
                history = json.loads(str(file["history"]))
                state = [file[f"state{i}"] for i in range(history.pop("states"))]
                self.best_weights = [file[f"best{i}"] for i in range(history.pop("bests"))] or None
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} can't be read ({error}): remove it to train this model again") from error
        variables = self._variables(distiller)
        if [v.shape for v in variables] != [value.shape for value in state]:
            raise InputError(f"{self.path} is the checkpoint of another model: remove it to train this model again")
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        self.history = History(**{**history, "best_score": tuple(history["best_score"])})

    def on_epoch_end(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if self.history.add({**logs, "learning_rate": rate}, may_be_best=epoch >= self.keep_from):
            averages = {id(variable): average for variable, average in graph.averages(self.model.optimizer)}
            self.best_weights = _values(averages.get(id(weight), weight) for weight in self.model.student.weights)
        if self.history.has_waited(self.patience):
            self.model.stop_training = True
        now = time.perf_counter()
        self.history.seconds, self.start = self.history.seconds + now - self.start, now
        state, best = _values(self._variables(self.model)), self.best_weights or []
        history = {**dataclasses.asdict(self.history), "states": len(state), "bests": len(best)}
        arrays = {f"state{i}": value for i, value in enumerate(state)}
        arrays |= {f"best{i}": value for i, value in enumerate(best)}
        if self.writes:
            files.write(self.path, lambda file: np.savez(file, history=np.array(json.dumps(history)), **arrays))

    def restore_best(self, distiller):
        if self.best_weights is not None:
            for variable, value in zip(distiller.student.weights, self.best_weights, strict=True):
                variable.assign(value)


class _Averaged(keras.callbacks.Callback):
    """Validates by the moving averages of the weights, where the optimizer keeps them; the weights are put back.

    Keras' `SwapEMAWeights` swaps by sums and differences, which changes the weights by rounding.
    """

    def on_test_begin(self, logs=None):
        self.pairs = graph.averages(self.model.optimizer)
        self.weights = _values(weight for weight, _ in self.pairs)
        for weight, average in self.pairs:
            weight.assign(average)

    def on_test_end(self, logs=None):
        for (weight, _), value in zip(self.pairs, self.weights, strict=True):
            weight.assign(value)


class _Stopper(keras.callbacks.Callback):
    """Checks for a `Stop`; comes before the keeper, which writes what it leaves in the history."""

    def __init__(self, stop, history, val, steps_per_epoch, callbacks):
        super().__init__()
        self.stop, self.history, self.val, self.steps_per_epoch = stop, history, val, steps_per_epoch
        # Called for the validation of a check as for any other.
        self.callbacks = list(callbacks)

    def on_epoch_begin(self, epoch, logs=None):
        self.first = self.step = epoch * self.steps_per_epoch

    def on_train_batch_end(self, batch, logs=None):
        # Several steps may have passed since the last call.
        before, self.step = self.step, self.first + batch + 1
        every = self.stop.check_steps
        if self.step // every > before // every and batch + 1 < self.steps_per_epoch:
            self._check(self._val_accuracy())

    def on_epoch_end(self, epoch, logs=None):
        if self.history.stop is None:
            self._check(float(logs["val_accuracy"]))

    def _check(self, accuracy):
        if accuracy >= self.stop.val_accuracy:
            self.history.stop = {"step": self.step, "val_accuracy": accuracy}
            self.model.stop_training = True

    def _val_accuracy(self) -> float:
        # The figures of the epoch continue after the check as if there had been none.
        variables = [variable for metric in self.model.metrics for variable in metric.variables]
        before = _values(variables)
        logs = self.model.evaluate(self.val, verbose=0, return_dict=True, callbacks=self.callbacks)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        return float(logs["accuracy"])


def _values(variables) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def write_variables(model: keras.Model, path: pathlib.Path) -> None:
    """Writes every variable of a model, the states of dropout's generators among them, to a file."""
    arrays = {f"state{i}": value for i, value in enumerate(_values(model.variables))}
    files.write(path, lambda file: np.savez(file, **arrays))


def read_variables(model: keras.Model, path: pathlib.Path) -> None:
    """Sets every variable to what `write_variables` wrote."""
    with np.load(path) as file:
        for i, variable in enumerate(model.variables):
            variable.assign(file[f"state{i}"])
