"""Keras callbacks of a run: stop where the loss is not finite, a live line, timing, tracking."""

import math
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kd_keras.errors import InputError


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


class LiveLine(keras.callbacks.Callback):
    """One live line on the terminal: epoch, steps a second, loss, accuracy, time left. Silent elsewhere."""

    async_safe = True

    def __init__(self, title: str, epochs: int, console: Console | None = None):
        super().__init__()
        self.title, self.epochs = title, epochs
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self.progress.disable = not self.progress.console.is_terminal

    def on_train_begin(self, logs=None):
        self.progress.start()
        self.task = None

    def on_epoch_begin(self, epoch, logs=None):
        steps = self.params["steps"]
        if self.task is None:
            total = None if steps is None else steps * self.epochs
            self.task = self.progress.add_task(self.title, total=total, completed=(steps or 0) * epoch, figures="")
        self.epoch, self.begun, self.steps = epoch, time.perf_counter(), 0

    def on_train_batch_end(self, batch, logs=None):
        # Keras' threads may tell of two steps in either order.
        done = max(batch + 1 - self.steps, 0)
        self.steps += done
        rate = self.steps / (time.perf_counter() - self.begun)
        figures = f"epoch {self.epoch + 1}/{self.epochs}  {rate:.1f} steps/s  loss {float(logs['loss']):.3f}"
        for name, title in (("accuracy", "accuracy"), ("map", "mAP")):
            if name in logs:
                figures += f"  {title} {float(logs[name]):.3f}"
        self.progress.update(self.task, advance=done, figures=figures)

    def on_train_end(self, logs=None):
        self.progress.stop()


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
    """Logs each epoch's figures to a tracking run; epochs are counted from 1."""

    def __init__(self, writer):
        super().__init__()
        self.writer = writer

    def on_epoch_end(self, epoch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.writer.metrics({**logs, "learning_rate": float(rate)}, epoch + 1)
