"""Keras callbacks of a run: stop where the loss is not finite, progress, timing, tracking."""

import math
import time

import keras

from kd_keras.errors import InputError

# What a bar shows of a step, and a log of an epoch.
_SHOWN = ("loss", "accuracy", "map")
_LOGGED = (*_SHOWN, "val_loss", "val_accuracy", "val_map")


class StopAtNaN(keras.callbacks.Callback):
    """Stops at the first loss that is not finite, with an `InputError` that names step, learning rate and term.

    The loss is read on a thread of Keras', so that a GPU need not wait for it: the training may be a few steps further
    before it stops, at the latest at the end of the epoch.
    """

    async_safe = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if math.isfinite(float(logs["loss"])):
            return
        model = self.model
        bad = [name for name in model.term_names if not math.isfinite(float(logs.get(name, 0)))]
        rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        raise InputError(
            f"the loss is no longer finite at step {batch + 1} of epoch {self.epoch + 1}, learning rate {rate:g}, "
            f"in {', '.join(bad) or 'the regularisation losses'}: lower --learning_rate or clip gradients, "
            "--optimizer='adam(global_clipnorm=1.0)'; the last epoch's checkpoint is kept"
        )


class ShowProgress(keras.callbacks.Callback):
    """Tells a run's `Progress` each step and each epoch.

    Args:
        progress: what shows it.
        epochs: of the training in all.
    """

    async_safe = True

    def __init__(self, progress, epochs: int):
        super().__init__()
        self.progress, self.epochs = progress, epochs

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.begun, self.first = epoch, time.perf_counter(), epoch * self.params["steps"]
        self.progress.update(self.first, lambda: f"epoch {epoch + 1}/{self.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self.progress.update(self.first + batch + 1, lambda: self._figures(batch + 1, logs))

    def on_epoch_end(self, epoch, logs=None):
        self.progress.update(self.first + self.params["steps"], lambda: self._figures(self.params["steps"], logs))
        figures = (f"{name} {float(logs[name]):.4f}" for name in _LOGGED if name in logs)
        seconds = time.perf_counter() - self.begun
        self.progress.epoch(f"epoch {epoch + 1}/{self.epochs}  {'  '.join(figures)}  {seconds:.1f} s")

    def _figures(self, steps, logs):
        rate = steps / (time.perf_counter() - self.begun)
        shown = "  ".join(f"{name} {float(logs[name]):.3f}" for name in _SHOWN if name in logs)
        return f"epoch {self.epoch + 1}/{self.epochs}  {rate:.1f} steps/s  {shown}"


class Laps(keras.callbacks.Callback):
    """Counts the seconds of training and of validation; those between epochs are neither.

    Args:
        seconds: a counter, by what the seconds went into.
    """

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.lap = time.perf_counter()

    def on_test_begin(self, logs=None):
        self._count("training")

    def on_test_end(self, logs=None):
        self._count("evaluation")

    def _count(self, what):
        before, self.lap = self.lap, time.perf_counter()
        self.seconds[what] += self.lap - before


class Track(keras.callbacks.Callback):
    """Tells a tracker each epoch's figures; epochs are counted from 1.

    Args:
        tracker: a `kd_keras.run.tracking.base.NullWriter`.
        stage: what is trained.
    """

    def __init__(self, tracker, stage: str):
        super().__init__()
        self.tracker, self.stage = tracker, stage

    def on_epoch_end(self, epoch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.tracker.epoch(self.stage, epoch + 1, {**logs, "learning_rate": float(rate)})
