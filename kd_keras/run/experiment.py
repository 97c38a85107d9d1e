"""One experiment under one folder: what a scheme trains with.

Every stage is done once: it leaves ``state/<stage>.json`` when it has ended, and the same command, run again, goes on
behind the last one.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from rich.console import Console

from kd_keras import data as datasets
from kd_keras import losses as loss_terms
from kd_keras import schedules, spec
from kd_keras._compat import distribute
from kd_keras._compat import keras as compat
from kd_keras.distillation import ensemble as joined
from kd_keras.distillation.distiller import Distiller
from kd_keras.errors import InputError
from kd_keras.evaluate import quality
from kd_keras.models import saved
from kd_keras.run import hardware, other_runs, teaching, training
from kd_keras.run.config import OF_THE_FILES, Config
from kd_keras.run.report import tables
from kd_keras.run.tracking import environment
from kd_keras.run.tracking import mlflow as tracking
from kd_keras.spec import Spec


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage's model.

    Attributes:
        stage: its name, and that of ``<stage>.keras`` in the workdir.
        role: what the table calls it.
        architecture: the spec that built it.
        path: the saved model.
        series: figure → value an epoch; empty where nothing was trained.
        best_epoch: the epoch (from 0) whose weights were kept, or None.
        stop: of a teacher whose training was to end early: the validation accuracy that was asked for, and the step
            and accuracy it ended at, None where it was never reached.
        teacher: whose model taught it, or None.
        adapt: what the scheme made of its loss terms; see `Experiment.train`.
    """

    stage: str
    role: str
    architecture: str
    path: pathlib.Path
    series: dict[str, list[float]]
    best_epoch: int | None = None
    stop: dict | None = None
    teacher: "Trained | None" = None
    adapt: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What a scheme has checked that it can do: a student, by a teacher.

    Attributes:
        student: the model, with what its losses have built on it.
        teacher: the model that teaches.
        adapt: see `Experiment.train`.
    """

    student: keras.Model
    teacher: keras.Model
    adapt: Callable | None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained that is not the student.

    Attributes:
        optimizer: its spec.
        learning_rate: schedule over the training.
        stop: where it is to end early, or None.
        cached_views: whether it sees the views of the teacher cache, as the student does.
        keep_from: first epoch (from 0) whose weights may be kept as the best.
    """

    optimizer: Spec
    learning_rate: schedules.Schedule
    stop: training.Stop | None = None
    cached_views: bool = True
    keep_from: int = 0


class Experiment:
    """The tools that a scheme is handed.

    Args:
        config: the resolved flags.
        console: where progress is printed.

    Attributes:
        splits: the data set.
        views: those that a teacher cache holds; None where the teacher is run in each step.
        lesson: the last `Lesson` that the scheme has checked, which is its student's; None if it has no teacher.

    Raises:
        InputError: the data can't be used, is not what this workdir was begun with, or can't be cached for.
    """

    def __init__(self, config: Config, console: Console | None = None):
        self.config = config
        if config.threads is not None:
            hardware.limit_threads(config.threads)
        # Early, since machines can only be joined before TensorFlow has computed anything.
        self.strategy = distribute.strategy(config.strategy, timeout=config.worker_timeout)
        #: (number of this worker, number of workers): worker 0 alone writes and prints.
        self.worker = distribute.worker(self.strategy)
        self.chief = self.worker[0] == 0
        if not self.chief:
            logging.set_verbosity(logging.ERROR)
        # A pipe or a log has no width of its own; Rich would take 80 columns, which is narrow for the table.
        width = None if sys.stdout.isatty() else 120
        self.console = console or Console(soft_wrap=True, width=width, quiet=not self.chief)
        keras.config.set_dtype_policy(hardware.precision() if config.precision == "auto" else config.precision)
        keras.config.disable_interactive_logging()
        if config.deterministic:
            keras.utils.set_random_seed(config.seed)
            tf.config.experimental.enable_op_determinism()
        self.augment = datasets.augmentations(config.augment)
        _check_keys(config)
        self.splits = self._load()
        self.views = None
        if config.cache_views:
            self.views = datasets.Views(self.splits.train, config.cache_views, self.augment, config.cache_seed)
        self.lesson: Lesson | None = None
        self.tracker = tracking.NullWriter()
        #: Seconds of this process by what they went into.
        self.seconds = collections.Counter()

    def _load(self):
        config = self.config
        splits = spec.build("kd_keras.data", config.data)
        if config.train_examples is not None:
            splits = dataclasses.replace(splits, train=datasets.take(splits.train, config.train_examples, config.seed))
        return splits

    @property
    def data_record(self) -> dict:
        """What the data are, as ``state/data.json`` keeps it: images a split, the classes' names, an image's shape."""
        splits = self.splits
        sizes = {name: len(getattr(splits, name)) for name in ("train", "val", "test")}
        return {**sizes, "classes": list(splits.class_names), "image_shape": list(splits.image_shape)}

    # ---- state on disk ----

    @property
    def state(self) -> pathlib.Path:
        """Where finished stages leave their records."""
        return self.config.workdir / "state"

    def done(self, stage: str) -> dict | None:
        """What a finished stage left, or None."""
        path = self.state / f"{stage}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, stage: str, record: dict) -> dict:
        """Ends a stage; it is not done again."""
        if self.chief:
            tables.write_json(record, self.state / f"{stage}.json")
        return record

    @property
    def finished(self) -> bool:
        """Whether everything has been trained and measured, in the files that are asked for."""
        done = self.done("measured")
        # What was measured before these were kept was measured by the flags of then, which could not compress.
        return done is not None and done.get("files", {**self.files, "compress": "none"}) == self.files

    @property
    def files(self) -> dict:
        """The settings of the files that are made of finished models: these may change, and are measured again."""
        resolved = self.config.resolved()
        return {name: resolved[name] for name in (*OF_THE_FILES, "compress")}

    def begin(self) -> None:
        """Claims the data for this workdir and opens the tracking run.

        Raises:
            InputError: the workdir was begun with other data.
        """
        now = self.data_record
        before = self.done("data") or self.finish("data", now)
        if before != now:
            raise InputError(
                f"{self.config.workdir} was begun with other data ({before}, now {now}): name another --workdir"
            )
        counts = ", ".join(f"{now[name]} {name}" for name in ("train", "val", "test"))
        self.console.print(
            f"data     {self.config.data}: {counts}; {self.splits.num_classes} classes, "
            f"{'×'.join(map(str, self.splits.image_shape))}"
        )
        self._open_tracker()

    def _open_tracker(self) -> None:
        config = self.config
        if config.tracking == "none" or not self.chief:
            return
        uri = config.tracking_uri or tracking.local_store(config.workdir)
        runs = self.done("runs") or {}
        self.tracker = tracking.MLflowWriter(uri, config.experiment, config.workdir.name, run_id=runs.get("parent"))
        if runs.get("parent") != self.tracker.run_id:
            runs = {"parent": self.tracker.run_id}
        self.finish("runs", runs)
        self.tracker.params(config.resolved())
        found = environment.environment()
        tables.write_json(found, config.workdir / "environment.json")
        self.tracker.tags({"git_revision": found["git_revision"], "python": found["python"]})
        self.tracker.artifact(config.workdir / "environment.json")

    def child(self, stage: str):
        """The tracking run of a stage, the same one whenever it is asked for."""
        runs = self.done("runs") or {}
        child = self.tracker.child(stage, run_id=runs.get(stage))
        if child.run_id is not None and child.run_id != runs.get(stage):
            self.finish("runs", {**runs, stage: child.run_id})
        return child

    @contextlib.contextmanager
    def timed(self, what: str):
        """Counts the seconds inside as ``what``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    # ---- training ----

    def model(self, one: Spec, variant: int = 0) -> keras.Model:
        """Builds a model for this data; the same spec and variant have the same initial weights each time.

        Args:
            one: its spec.
            variant: added to the seed, for models of one spec that have to differ.
        """
        keras.utils.set_random_seed(self.config.seed + variant)
        with self.strategy.scope():
            shape = {"num_classes": self.splits.num_classes, "input_shape": self.splits.image_shape}
            return spec.build("kd_keras.models", one, **shape)

    @property
    def teacher_recipe(self) -> Recipe:
        """How teachers are trained."""
        config, stop = self.config, None
        if config.teacher_stop_at_val_accuracy is not None:
            stop = training.Stop(config.teacher_stop_at_val_accuracy, config.teacher_stop_check_steps)
        return Recipe(config.teacher_optimizer, config.teacher_learning_rate, stop, cached_views=False)

    def distiller(
        self,
        student: keras.Model,
        losses,
        *,
        teacher=None,
        teacher_dtype=None,
        epochs,
        recipe: Recipe | None = None,
        adapt=None,
    ) -> Distiller:
        """A compiled `Distiller` of ``student``; see `train`."""
        config = self.config
        recipe = recipe or Recipe(config.optimizer, config.learning_rate)
        jit = hardware.jit_compile(self.strategy) if config.jit_compile == "auto" else config.jit_compile == "true"
        with self.strategy.scope():
            terms = [self.term(one) for one in losses]
            distiller = Distiller(
                student=student,
                teacher=teacher,
                losses=terms if adapt is None else adapt(terms, student),
                teacher_dtype=teacher_dtype,
            )
            optimizer = training.optimizer(
                recipe.optimizer,
                recipe.learning_rate,
                epochs=epochs,
                steps_per_epoch=self.steps_per_epoch,
            )
            distiller.compile(
                optimizer=optimizer,
                metrics=["accuracy"],
                steps_per_execution=self._steps_per_execution(),
                jit_compile=jit,
            )
        self._check_last_batch(distiller)
        return distiller

    def term(self, one: Spec):
        """Builds a loss term; one that keeps something of each training sample is told how many there are."""
        return loss_terms.from_spec(one, samples=len(self.splits.train))

    def _check_last_batch(self, distiller) -> None:
        """Refuses batches of which a replica gets nothing, where that changes what is learnt.

        It is given a blank image instead, which no loss counts but batch norm does, the student's or a projector's.
        """
        count, size, replicas = len(self.splits.train), self.config.batch_size, self.strategy.num_replicas_in_sync
        if size < replicas:
            raise InputError(f"--batch_size={size} is less than the {replicas} replicas: it is the global batch size")
        left = count % size
        counts = any(isinstance(layer, keras.layers.BatchNormalization) for layer in compat.all_layers(distiller))
        if 0 < left < replicas and counts:
            fitting = (n for n in range(size - 1, replicas - 1, -1) if count % n == 0 or count % n >= replicas)
            advice = next((f"give another --batch_size, such as {n}" for n in fitting), "train on fewer replicas")
            raise InputError(
                f"the last of {count} images in batches of {size} are {left}, fewer than the {replicas} replicas, and "
                f"batch norm would count blank images: {advice}"
            )

    def _steps_per_execution(self) -> int:
        asked, steps = self.config.steps_per_execution, self.steps_per_epoch
        if asked is None:
            return hardware.steps_per_execution(self.strategy, steps)
        if steps % asked:
            fits = ", ".join(str(n) for n in range(1, min(steps, 64) + 1) if steps % n == 0)
            raise InputError(
                f"--steps_per_execution={asked} does not divide the {steps} steps of an epoch: give {fits}"
            )
        return asked

    @property
    def steps_per_epoch(self) -> int:
        return datasets.steps_per_epoch(len(self.splits.train), self.config.batch_size)

    def teacher_epochs(self, teacher: Spec) -> int:
        """Epochs of a teacher: as asked for; else none for a model that comes trained, and the student's."""
        config = self.config
        if config.teacher_epochs is not None:
            return config.teacher_epochs
        module = spec.builder("kd_keras.models", teacher.name).__globals__
        return 0 if module.get("TRAINED", False) else config.epochs

    @functools.cached_property
    def sources(self) -> dict[str, other_runs.Source]:
        """What is still to be taken from other runs, by stage; see `other_runs.sources`."""
        done = [stage for stage in (*self.config.teachers, "baseline") if self.done(stage) is not None]
        return other_runs.sources(self.config, self.data_record, done)

    def train(
        self,
        stage: str,
        role: str,
        one: Spec | str,
        losses,
        *,
        teacher: Trained | None = None,
        epochs: int | None = None,
        recipe: Recipe | None = None,
        variant: int = 0,
        make: Callable[[], keras.Model] | None = None,
        adapt: Callable[[list, keras.Model], list] | None = None,
        strip: Callable[[keras.Model], keras.Model] | None = None,
    ) -> Trained:
        """Trains a model, or goes on with it, or finds it finished, here or in another run.

        Args:
            stage: name of the stage and of the file ``<stage>.keras``.
            role: what the table calls it.
            one: spec of the model, or with ``make`` what its architecture is called.
            losses: specs of its loss terms.
            teacher: whose model teaches.
            epochs: by default the student's.
            recipe: by default the student's; what its losses train ahead is for the student alone.
            variant: see `model`.
            make: builds the model, where a scheme makes it of several or adds to it.
            adapt: what the scheme makes of the terms once they are built, for this student.
            strip: makes what is saved of what was trained.
        """
        config, path = self.config, self.config.workdir / f"{stage}.keras"
        epochs = config.epochs if epochs is None else epochs
        done = self.done(stage)
        # All have looked before one of them may write, and all do the same: making a model takes every worker.
        if len(set(distribute.gather(self.strategy, int(done is not None)))) > 1:
            raise InputError(f"not all workers find the stage {stage!r} finished: put --workdir where all share it")
        if done is None and stage in self.sources:
            done = self._adopt(stage)
        if done is None:
            model = self.model(one, variant) if make is None else make()
            history = training.History()
            if epochs:
                history, model = self._fit(stage, model, losses, teacher, epochs, recipe, adapt)
            else:
                self._check_class_order(model)
            if self.chief:
                save_model(model if strip is None else strip(model), path)
            record = {
                "architecture": str(one),
                "taught_by": None if teacher is None else teacher.stage,
                "series": history.series,
                "best_epoch": history.best_epoch,
            }
            if recipe is not None and recipe.stop is not None:
                record["stop"] = self._stop_record(stage, history)
            done = self.finish(stage, {**record, "seconds": round(history.seconds, 1)})
            if self.chief:
                for left in (self._checkpoint(stage), self._ahead(stage)):
                    left.unlink(missing_ok=True)
            distribute.gather(self.strategy, 1)
        distribute.wait_for(path)
        trained = Trained(
            *(stage, role, done["architecture"], path, done["series"], done["best_epoch"]),
            stop=done.get("stop"),
            teacher=teacher,
            adapt=adapt,
        )
        self.console.print(f"{stage:<8} {_summary(trained, done['seconds'])}")
        return trained

    def _adopt(self, stage) -> dict:
        """Takes a stage, and what was measured of it, from another run."""
        source, workdir = self.sources[stage], self.config.workdir
        self.by_chief(lambda: source.copy(workdir, stage), source.copies(workdir, stage).values())
        self.console.print(f"{stage:<8} taken from {source.folder}")
        return self.finish(stage, source.record)

    def _stop_record(self, stage, history) -> dict:
        asked = self.config.teacher_stop_at_val_accuracy
        if history.stop is None:
            best = max(history.series["val_accuracy"])
            logging.warning(
                "the %s never reached --teacher_stop_at_val_accuracy=%g (its best was %.4f): it was trained to the end",
                *(stage, asked, best),
            )
        return {"at_val_accuracy": asked, **(history.stop or {"step": None, "val_accuracy": None})}

    def join(self, stage: str, role: str, members: list[Trained], combine: str, weights=None, prefix="teacher"):
        """Makes one model of several trained ones, or finds it made; see `joined.join`.

        Returns:
            `Trained`, without series.
        """
        architecture = " + ".join(one.architecture for one in members)

        def make(*models):
            return joined.join(models, combine, weights, prefix)

        return self.derive(stage, role, architecture, members, make, combine=combine)

    def derive(self, stage: str, role: str, architecture: str, members: list[Trained], make: Callable, **record):
        """Makes a model of trained ones without training, or finds it made.

        Args:
            stage: name of the stage and of the file ``<stage>.keras``.
            role: what the table calls it.
            architecture: what it is, for the table.
            members: whose models it is made of.
            make: is handed their models, and returns the new one.
            **record: what ``state/<stage>.json`` keeps beside the members' stages.

        Returns:
            `Trained`, without series.
        """
        path = self.config.workdir / f"{stage}.keras"

        def work():
            if self.done(stage) is None:
                # Outside the strategy's scope: the chief alone makes variables here.
                models = [keras.models.load_model(one.path, compile=False) for one in members]
                save_model(make(*models), path)
                self.finish(stage, {"members": [one.stage for one in members], **record})

        self.by_chief(work, [path, self.state / f"{stage}.json"])
        return Trained(stage, role, architecture, path, {})

    def _checkpoint(self, stage: str) -> pathlib.Path:
        return self.state / f"{stage}.npz"

    def _ahead(self, stage: str) -> pathlib.Path:
        return self.state / f"{stage}-pretrain.npz"

    def _fit(self, stage, model, losses, trained, epochs, recipe, adapt=None):
        """The training's history, and the model that was trained, which a loss may have built on the one given."""
        config, splits = self.config, self.splits
        teacher = None if trained is None else self.load(trained)
        dtype = None if trained is None else teaching.dtype(self, trained.stage, teacher)
        distiller = self.distiller(
            model, losses, teacher=teacher, teacher_dtype=dtype, epochs=epochs, recipe=recipe, adapt=adapt
        )
        cache = teaching.cache(self, distiller)
        if cache is not None:
            teaching.fill(self, stage, cache)
        if config.pretrain_epochs and recipe is None and trained is not None:
            self._pretrain(stage, distiller, cache)
        # Dropout draws from the seed alone, whichever stage of whichever scheme is trained first.
        keras.utils.set_random_seed(config.seed)
        child = self.child(stage)
        child.params(
            {
                "stage": stage,
                "model": model.name,
                "losses": " + ".join(map(str, losses)),
                "taught_by": "none" if trained is None else trained.stage,
                "epochs": epochs,
                "teacher_computes_in": str(dtype),
                "teacher_cache": "none" if cache is None else f"{cache.views.count} views, {cache.nbytes} bytes",
            }
        )

        def stream(initial_epoch):
            return self._stream(distiller, cache, epochs, initial_epoch, recipe is None or recipe.cached_views)

        try:
            history = training.fit(
                distiller,
                stream,
                datasets.batches(splits.val, config.batch_size, shard=self.worker),
                epochs=epochs,
                steps_per_epoch=self.steps_per_epoch,
                checkpoint=self._checkpoint(stage),
                callbacks=[_Laps(self.seconds), _Track(child)],
                stop=recipe.stop if recipe else None,
                keep_from=recipe.keep_from if recipe else 0,
                progress=f"{stage:<8}" if config.progress == "auto" and self.chief else None,
            )
        except BaseException:
            child.close("FAILED")
            raise
        child.close()
        return history, distiller.student

    def _stream(self, distiller, cache, epochs, initial_epoch=0, cached_views=True):
        return datasets.batches(
            self.splits.train,
            self.config.batch_size,
            training=True,
            seed=self.config.seed,
            epochs=epochs,
            initial_epoch=initial_epoch,
            augment=self.augment,
            num_classes=self.splits.num_classes,
            cache=cache,
            with_index=distiller.needs_index,
            # The student without KD sees what the distilled one sees.
            views=self.views if cached_views else None,
            shard=self.worker,
        )

    def _pretrain(self, stage, distiller, cache) -> None:
        """What the losses train ahead of the student; one that was interrupted begins again, to the same weights."""
        epochs, name = self.config.pretrain_epochs, f"{stage}-pretrain"
        path = self._ahead(stage)
        if self.done(name) is None:
            keras.utils.set_random_seed(self.config.seed)
            stream = self._stream(distiller, cache, epochs)
            with self.timed("training"):
                history = distiller.pretrain(
                    stream,
                    epochs=epochs,
                    steps_per_epoch=self.steps_per_epoch,
                    callbacks=[training.StopAtNaN()],
                    shuffle=False,
                    verbose=0,
                )
            if self.chief:
                training.write_variables(distiller, path)
            self.finish(name, {"series": history.history})
            distribute.gather(self.strategy, 1)
            series = history.history["loss"]
            self.console.print(
                f"{stage:<8} trained ahead for {epochs} epochs: loss {series[0]:.4g} to {series[-1]:.4g}"
            )
        else:
            training.read_variables(distiller, path)

    def by_chief(self, work, paths) -> None:
        """Has the chief do some work that leaves files; the other workers go on when they see these."""
        if self.chief:
            work()
        distribute.gather(self.strategy, 1)
        for path in paths:
            distribute.wait_for(path)

    def leave_cluster(self) -> None:
        """What is built from now on is this worker's alone, so that the chief can measure by itself."""
        if self.worker[1] > 1:
            self.strategy = tf.distribute.get_strategy()

    def batches(self, source):
        """A split once, in order, as (image, label) batches."""
        return datasets.batches(source, self.config.batch_size)

    def load(self, trained: Trained) -> keras.Model:
        """A stage's saved model."""
        with self.strategy.scope():
            return saved.load(trained.path)

    def _check_class_order(self, model) -> None:
        """Refuses a ready-made teacher whose outputs mean other classes than the data's.

        A file says nothing of its class order, but the validation split does: a teacher that is right far more often
        once its outputs are renamed has them in another order.
        """
        from scipy.optimize import linear_sum_assignment

        predicted, labels = quality.predict(quality.logits(model), self.batches(self.splits.val))
        matrix = quality.confusion(predicted, labels, self.splits.num_classes)
        rows, columns = linear_sum_assignment(-matrix)
        right, renamed = np.trace(matrix) / matrix.sum(), matrix[rows, columns].sum() / matrix.sum()
        if renamed > right + 0.2:
            raise InputError(
                f"the teacher is right on {right:.1%} of the validation images, but on {renamed:.1%} with its classes "
                f"renamed: its class order is not the data's ({', '.join(self.splits.class_names[:10])} …)"
            )
        if right < 1.5 / self.splits.num_classes:
            logging.warning("the teacher is right on only %.1f %% of the validation images", 100 * right)

    # ---- what is left ----

    def results(self) -> tuple[list[dict], list[str]]:
        """The rows of a finished experiment's table, and what has to be known to read them."""
        done = self.done("measured")
        # An older version may have measured fewer figures.
        return [tables.row(**row) for row in done["rows"]], done["notes"]

    def print_seconds(self, start: float) -> None:
        """Prints what the process' time went into, and keeps it in ``state/seconds.json``.

        Args:
            start: when it began, by `time.perf_counter`.
        """
        total = time.perf_counter() - start
        seconds = {**self.seconds, "other": total - sum(self.seconds.values())}
        shares = ", ".join(f"{what} {value / total:.1%}" for what, value in seconds.items())
        self.console.print(f"time     {total:.1f} s: {shares}", highlight=False)
        self.finish("seconds", {"total": total, **seconds})

    def print_places(self) -> None:
        """Prints where things are and how to open them."""
        folder = self.config.workdir
        names = ", ".join(sorted(path.name for path in folder.glob("*.keras")))
        lines = {
            "table": f"{folder}/results.csv, results.json, results.txt",
            "figures": f"{folder}/curves.png, *_confusion.png, *_report.png",
            "models": f"{folder}/{names}",
        }
        if self.config.export or (self.config.compress and self.config.compress_export):
            lines["edge"] = f"{folder}/*.tflite"
        if self.config.tracking == "mlflow":
            uri = self.config.tracking_uri or tracking.local_store(folder)
            lines["compare"] = uri
            if not uri.startswith("http"):
                lines["compare"] = f"mlflow ui --backend-store-uri '{uri}', then open http://127.0.0.1:5000"
        for name, text in lines.items():
            self.console.print(f"{name:<8} {text}", highlight=False)


def _check_keys(config: Config) -> None:
    """Refuses unknown keys before the data are read, which of many photographs takes minutes."""
    for one in (*config.teacher, config.student):
        spec.check("kd_keras.models", one, ("num_classes", "input_shape"))
    for one in (*config.loss, *config.teacher_loss, *config.baseline_loss, *config.compress_loss):
        loss_terms.check(one)


class _Laps(keras.callbacks.Callback):
    """Counts the seconds of steps and of validation; those between the epochs are neither."""

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


class _Track(keras.callbacks.Callback):
    """Logs each epoch's figures to a tracking run, epochs counted from 1."""

    def __init__(self, writer):
        super().__init__()
        self.writer = writer

    def on_epoch_end(self, epoch, logs=None):
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.writer.metrics({**logs, "learning_rate": float(rate)}, epoch + 1)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a ``.keras`` file so that a reader never meets half of one."""
    partial = path.with_name(f"partial-{path.name}")
    model.save(partial)
    partial.replace(path)


def _summary(trained: Trained, seconds: float) -> str:
    if trained.best_epoch is None:
        return f"{trained.architecture}: loaded"
    best, series = trained.best_epoch, trained.series
    return (
        f"{trained.architecture}: validation accuracy {series['val_accuracy'][best]:.4f} in epoch {best + 1} of "
        f"{len(series['loss'])}, {time.strftime('%H:%M:%S', time.gmtime(seconds))}"
    )
