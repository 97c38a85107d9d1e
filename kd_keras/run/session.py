"""The machine and the data of one run: strategy, precision, console, splits."""

import collections
import contextlib
import functools
import importlib.metadata
import pathlib
import platform
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from rich.console import Console

from kd_keras import data as datasets
from kd_keras import losses as loss_terms
from kd_keras import spec
from kd_keras._compat import distribute
from kd_keras.compress import Step
from kd_keras.errors import InputError, naming
from kd_keras.evaluate import cost
from kd_keras.run import building, hardware
from kd_keras.run import facts as planning
from kd_keras.run.config import Config
from kd_keras.run.progress import Progress
from kd_keras.run.report import tables
from kd_keras.run.rules import DATA_OPTIONS
from kd_keras.run.settings import Follows, declared
from kd_keras.run.training import optimizer
from kd_keras.run.workdir import read_state
from kd_keras.schemes.plan import Build

# Training images that calibrate the ranges of integer activations.
_REPRESENTATIVE = 256
_PACKAGES = ("tensorflow", "keras")


class Session:
    """What a run works with.

    Args:
        config: the settings.
        console: where progress is printed.
        precision: what ``auto`` was resolved to when the run was begun, or None.
        splits: the data, where they are not what ``--data`` names.
        tells_doubts: whether what is doubtful in the data is warned of.

    Attributes:
        progress: shows how far the run is.
        splits: the data set, before ``--train_examples``.
        precision: the dtype policy that ``auto`` stands for.
        worker: (number of this worker, number of workers): worker 0 alone writes and prints.

    Raises:
        InputError: the data or the machine can't be used as asked.
    """

    def __init__(
        self,
        config: Config,
        console: Console | None = None,
        precision: str | None = None,
        splits=None,
        tells_doubts=True,
    ):
        self.config = config
        settings = config.hardware
        if settings.threads is not None:
            hardware.limit_threads(settings.threads)
        # Early, since machines can only be joined before TensorFlow has computed anything.
        self.strategy = distribute.strategy(settings.strategy, timeout=settings.worker_timeout)
        self.worker = distribute.worker(self.strategy)
        self.is_chief = self.worker[0] == 0
        if not self.is_chief:
            logging.set_verbosity(logging.ERROR)
        # A pipe or a log has no width of its own; Rich would take 80 columns, which is narrow for the table.
        width = None if sys.stdout.isatty() else tables.PIPED_WIDTH
        self.console = console or Console(
            soft_wrap=True, width=width, quiet=not self.is_chief, markup=False, highlight=False
        )
        self.progress = Progress(self.console, config.run.progress if self.is_chief else "none")
        self.precision = precision or hardware.precision()
        keras.config.set_dtype_policy(self.policy(settings.precision))
        keras.config.disable_interactive_logging()
        if settings.deterministic:
            keras.utils.set_random_seed(config.training.seed)
            tf.config.experimental.enable_op_determinism()
        _check_parts(config)
        self.splits = splits or _read_data(config)
        for sentence in datasets.doubts(self.splits) if tells_doubts else ():
            logging.warning("%s", sentence)
        #: Seconds of this process by what they went into.
        self.seconds = collections.Counter()

    def policy(self, precision: str) -> str:
        """A dtype policy, ``auto`` resolved."""
        return self.precision if precision == "auto" else precision

    @functools.cached_property
    def facts(self) -> "planning.Facts":
        """What schemes may ask."""
        return planning.Facts(self)

    @property
    def machine(self) -> str:
        """What latency is measured on."""
        runtime = importlib.metadata.version("ai-edge-litert")
        return f"{processor()}, {cost.cores()} cores, TensorFlow {tf.__version__}, LiteRT {runtime}"

    @property
    def made_by(self) -> dict:
        """What is recorded of the machine beside each stage."""
        versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
        return {**versions, "processor": processor(), "replicas": self.strategy.num_replicas_in_sync}

    def data_record(self) -> dict:
        """What the data are, as a workdir keeps it; the training split is without ``--train_examples``."""
        splits = self.splits
        prints = {f"{name} split": getattr(splits, name).fingerprint for name in ("train", "val", "test")}
        if splits.unlabelled is not None:
            prints["unlabelled images"] = splits.unlabelled.fingerprint
        return {**prints, "classes": list(splits.class_names), "image_shape": list(splits.image_shape)}

    def build(self, build: Build, inner: list[keras.Model], trial: bool = False) -> keras.Model:
        """Makes the model of a `Build`; a new one has the same initial weights each time."""
        if build.seed is not None:
            keras.utils.set_random_seed(build.seed)
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(build.precision)
        try:
            with self.strategy.scope():
                return building.make(build, inner, self.splits, trial)
        finally:
            keras.config.set_dtype_policy(policy)

    def batches(self, source, reader=None):
        """A split once, in order, as (image, label) batches, with images of the shape that their reader takes."""
        return datasets.batches(self.as_input(source, reader), self.config.training.batch_size)

    def as_input(self, source, reader):
        """A split with images of the shape that its reader takes: a model, a TFLite file, or None for the split's."""
        return source.at(shape_for(reader, source))

    def lent_teacher(self, given: spec.Spec, folders: tuple[pathlib.Path, ...], number: int) -> pathlib.Path:
        """The file of the teacher that another run lends; see ``--teacher_from``.

        Args:
            given: the teacher's spec.
            folders: one for each teacher.
            number: of this teacher.

        Raises:
            InputError: that run has no such teacher, has other data, or would lend one teacher twice.
        """
        folder, flag = folders[number], f"--teacher_from={folders[number]}"
        state = read_state(folder, "--teacher_from")
        record = self.data_record()
        differing = [
            name for name in record if name != "train split" and state.get("data", {}).get(name) != record[name]
        ]
        if differing:
            raise InputError(f"{flag} has other data (another {', another '.join(differing)}): name another folder")
        names = [
            name
            for name, model in state.get("models", {}).items()
            if name.startswith("teacher") and model["architecture"] == str(given)
        ]
        if not names:
            raise InputError(f"{flag} holds no finished teacher {given}: name another folder")
        # An ensemble that names one folder for several teachers of one spec takes them in their order.
        specs = [model for model, where in zip(self.config.teacher.models, folders, strict=True) if where == folder]
        place = [str(model) for model in specs[: len([f for f in folders[:number] if f == folder])]].count(str(given))
        if place >= len(names):
            raise InputError(f"{flag} would give the same teacher twice: both would be identical; name another folder")
        return folder / f"{names[place]}.keras"

    def representative(self, data: str, seed: int) -> np.ndarray:
        """Images of a split for the ranges of integer activations, drawn by a seed; ``data`` is its content hash."""
        source = self.facts.source(data)
        count = min(_REPRESENTATIVE, len(source))
        chosen = np.sort(np.random.default_rng(seed).choice(len(source), count, replace=False))
        return source.read(tf.constant(chosen))[0].numpy()

    @contextlib.contextmanager
    def timed(self, what: str):
        """Counts the seconds inside as ``what``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    def print_seconds(self, start: float) -> None:
        """Prints what the time of the process went into.

        Args:
            start: when it began, by `time.perf_counter`.
        """
        total = time.perf_counter() - start
        seconds = {**self.seconds, "other": total - sum(self.seconds.values())}
        shares = ", ".join(f"{what} {value / total:.1%}" for what, value in seconds.items())
        self.console.print(f"time     {total:.1f} s: {shares}", highlight=False)


def image_shape(reader) -> tuple | None:
    """(H, W, C) of what a model or a TFLite file takes, a side None where it takes any; None if not known."""
    shape = getattr(reader, "input_shape", None)
    return tuple(shape)[-3:] if isinstance(shape, tuple) and len(shape) in (3, 4) else None


def shape_for(reader, source) -> tuple[int, int, int]:
    """(H, W, C) of a source's images as its reader takes them."""
    sides = zip(image_shape(reader) or source.image_shape, source.image_shape, strict=True)
    return tuple(own if side is None else side for side, own in sides)


def processor() -> str:
    """The name of the CPU."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check_parts(config: Config) -> None:
    """Refuses unknown keys and wrong values before the data are read, which of many photographs takes minutes.

    Raises:
        InputError: the message names the flag.
    """
    for flag, setting in declared(Config).items():
        if isinstance(setting.default, Follows) and config[flag] == config.default(flag):
            continue  # as the flag that it follows
        for package, part in setting.kind.parts(config[flag]):
            with naming(f"--{flag}={setting.kind.text(config[flag])}"):
                if package == "kd_keras.losses":
                    loss_terms.from_spec(part, samples=1)
                elif package == "kd_keras.compress":
                    spec.check_kind(part, spec.build(package, part), Step)
                elif package == "kd_keras.data.augment":
                    datasets.augmentations([part])
                elif package == "kd_keras.optimizers":
                    optimizer(part, config.training.learning_rate, epochs=1, steps_per_epoch=1)
                else:
                    spec.check(package, part, ("num_classes", "input_shape", "config", "facts"))


def _read_data(config: Config):
    """The data set; a mistake names the flag that it comes from.

    Raises:
        InputError: the data can't be read as asked.
    """
    given = [flag for flag in DATA_OPTIONS if config[flag] != config.default(flag)]
    options = [f"--{flag}={declared(Config)[flag].kind.text(config[flag])}" for flag in given]
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(f"--data={config.data.source}"))
        for option in options:
            stack.enter_context(naming(option, only=option[2:].partition("=")[0]))
        given = config.data.source
        return spec.check_kind(given, spec.build("kd_keras.data", given), datasets.Splits)
