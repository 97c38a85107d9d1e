"""Runs the `Train` and `Cache` stages of a plan, and tries beforehand whether they can run."""

import dataclasses
import hashlib
import pathlib

import keras
import numpy as np
from absl import logging

from kd_keras import data as datasets
from kd_keras._compat import keras as graph
from kd_keras.distillation.distiller import Distiller
from kd_keras.distillation.metrics import MeanAveragePrecision
from kd_keras.distillation.parts import OfTeachers, Within
from kd_keras.distillation.taps import Taps
from kd_keras.distillation.teacher_cache import TeacherCache
from kd_keras.distillation.teacher_inputs import TeacherInputs
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.losses.features import stages_in
from kd_keras.run import hardware, timings, training
from kd_keras.run.building import architecture, prepared
from kd_keras.run.callbacks import Laps, ShowProgress, Track
from kd_keras.run.progress import Work
from kd_keras.run.session import image_shape, shape_for
from kd_keras.schemes.plan import Cache, Measure, Train


class Trainer:
    """Trains what a plan asks for.

    Args:
        session: the machine and the data.
        store: where finished stages are.
        load: gives the model of a stage, as it is after that stage.
        tracker: is told of every epoch.
    """

    def __init__(self, session, store, load, tracker):
        self.session, self.config, self.facts = session, session.config, session.facts
        self.store, self.load, self.tracker = store, load, tracker
        # Architectures that a trial has converted: the student and its controls share theirs.
        self._converted: set[str] = set()

    def check(self, stage: Train) -> None:
        """Builds all that a training needs, and trains nothing.

        Raises:
            InputError: the models, losses, optimizer or batches don't fit each other.
        """
        if stage.recipe.stop is not None and self.session.splits.multi_label:
            raise InputError(
                "--teacher_stop_at_val_accuracy: several labels for an image have no accuracy; leave it out"
            )
        model, teacher = self.facts.pair(stage)
        dtype = None if isinstance(stage.computes_in, Measure) else stage.computes_in
        self.distiller(stage, model, teacher, dtype)
        if stage.answers:
            self.cache(stage.answers, teacher, dtype)
        if stage.is_wrapped:
            self._check_quantised(stage)

    def _check_quantised(self, stage) -> None:
        """Raises InputError where a student can't be converted after quantisation-aware training."""
        name = architecture(stage.model)
        if name in self._converted or not self.facts.step(stage.model.what.kwargs["step"]).quantises:
            return
        self._converted.add(name)
        wrapped = prepared(stage.model, self.facts.model(stage.model.of[0]), trial=True).wrapped
        # All ranges begin alike, and so hide which of them the converter can't bring together.
        noise = np.random.default_rng(0).uniform(0, 255, (2, *wrapped.input_shape[1:]))
        wrapped(noise.astype(np.float32), training=True)
        tflite.convert_quantised(wrapped, "int8_io" if "int8_io" in self.config.compress.export else "int8")

    # ---- what a training is made of ----

    def distiller(self, stage: Train, model, teacher, dtype: str | None) -> Distiller:
        """A compiled `Distiller` of a training."""
        asked, strategy = self.config.hardware.jit_compile, self.session.strategy
        jit = hardware.jit_compile(strategy) if asked == "auto" else asked == "true"
        steps, recipe, splits = self.steps_per_epoch(stage), stage.recipe, self.session.splits
        with strategy.scope():
            losses = self._losses(stage, model)
            distiller = Distiller(
                student=model, teacher=teacher, losses=losses, teacher_dtype=dtype, teacher_inputs=_inputs_of(teacher)
            )
            optimizer = training.optimizer(
                recipe.optimizer, recipe.learning_rate, epochs=recipe.epochs, steps_per_epoch=steps
            )
            distiller.compile(
                optimizer=optimizer,
                metrics=[MeanAveragePrecision(splits.num_classes) if splits.multi_label else "accuracy"],
                steps_per_execution=self._steps_per_execution(steps),
                jit_compile=jit,
            )
        self._check_last_batch(stage, distiller)
        return distiller

    def _losses(self, stage, model) -> list:
        """A training's terms as losses: a part of a model is read through a wrapper that renames its taps."""
        names, losses = Taps(model, "student").names, []
        for term in stage.terms:
            loss = self.facts.loss(term.loss)
            parts = [part for part, _ in term.teachers]
            # Several terms that stand for one loss are told apart by who teaches.
            teaches = parts[0].partition(".")[2] if len(parts) == 1 else ""
            name = f"{loss.name}_{teaches}" if teaches else loss.name
            if term.learner != "student":
                learner = term.learner.removeprefix("student.")
                taps = {"student": _taps_of(term.learner, names)}
                taps["teacher"] = _taps_of(parts[0], names) if parts else None
                loss = Within(term=loss, share=term.share, name=f"{learner}_{name}", **taps)
            elif any(part.startswith("teacher.") for part in parts):
                heard = {f"{part.removeprefix('teacher.')}.logits": weight for part, weight in term.teachers}
                loss = OfTeachers(term=loss, teachers=heard, share=term.share, name=name)
            losses.append(loss)
        return losses

    def steps_per_epoch(self, stage: Train) -> int:
        """Optimizer steps in an epoch of a training."""
        return datasets.steps_per_epoch(self._length(stage.samples), stage.samples.batch_size)

    def work_of(self, stage: Train) -> Work:
        """A training as progress shows it: its steps, and the time that others of its kind took on this machine."""
        steps = stage.recipe.epochs * self.steps_per_epoch(stage)
        step = timings.read_timings().get(timings.likeness(self.session, stage))
        return Work(stage.title, "train", steps, None if step is None else step * steps)

    def _length(self, samples) -> int:
        """Images in an epoch."""
        return samples.length or len(self.facts.source(samples.train))

    def _steps_per_execution(self, steps: int) -> int:
        asked = self.config.hardware.steps_per_execution
        if asked is None:
            return hardware.steps_per_execution(self.session.strategy, steps)
        if steps % asked:
            fits = ", ".join(str(n) for n in range(1, min(steps, 64) + 1) if steps % n == 0)
            raise InputError(
                f"--steps_per_execution={asked} does not divide the {steps} steps of an epoch: give {fits}"
            )
        return asked

    def _check_last_batch(self, stage, distiller) -> None:
        """Refuses batches of which a replica gets nothing, where that changes what is trained.

        Such a replica is given a blank image, which no loss counts but batch norm does, the student's or a projector's.
        """
        count, size = self._length(stage.samples), stage.samples.batch_size
        replicas = self.session.strategy.num_replicas_in_sync
        if size < replicas:
            raise InputError(f"--batch_size={size} is less than the {replicas} replicas: it is the global batch size")
        left = count % size
        normalises = any(isinstance(layer, keras.layers.BatchNormalization) for layer in graph.all_layers(distiller))
        if 0 < left < replicas and normalises:
            fitting = (n for n in range(size - 1, replicas - 1, -1) if count % n == 0 or count % n >= replicas)
            advice = next((f"give another --batch_size, such as {n}" for n in fitting), "train on fewer replicas")
            raise InputError(
                f"the last of {count} images in batches of {size} are {left}, fewer than the {replicas} replicas, and "
                f"batch norm would count blank images: {advice}"
            )

    def dtype(self, stage: Train | Cache) -> str | None:
        """What the teacher computes in: as asked for, or as measured."""
        if isinstance(stage.computes_in, Measure):
            return self.store.record(stage.computes_in)["dtype"]
        return stage.computes_in

    def cache(self, answers: tuple[Cache, ...], teacher, dtype: str | None) -> TeacherCache:
        """The cache of several taps, not filled.

        Raises:
            InputError: it would exceed ``--cache_limit_gb``, or a tap does not exist.
        """
        first = answers[0]
        return TeacherCache(
            self.store.cache_root,
            self._views(first.images, first.views, first.augment, teacher),
            teacher,
            tuple(dict.fromkeys(answer.tap for answer in answers)),
            dtype=first.dtype,
            top_k=first.top_k,
            teacher_dtype=dtype,
            limit_gb=self.config.cache.limit_gb,
        )

    def _views(self, images, views, augment, teacher=None):
        (count, seed), source = views, self.facts.source(images)
        shape = None if teacher is None else shape_for(teacher, source)
        return datasets.Views(source, count, datasets.augmentations(augment), seed, shape)

    def stream(self, stage, distiller, cache, initial_epoch=0):
        samples = stage.samples
        source = self.facts.source(samples.train)
        # A student without a teacher sees the views that a taught one sees.
        views = None if samples.views is None else self._views(samples.train, samples.views, samples.augment)
        shape = shape_for(distiller.student, source)
        reads_teacher = cache is None and distiller.teacher is not None
        teacher_shape = shape_for(distiller.teacher, source) if reads_teacher else shape
        return datasets.batches(
            source,
            samples.batch_size,
            training=True,
            seed=stage.seed,
            epochs=stage.recipe.epochs,
            initial_epoch=initial_epoch,
            augment=datasets.augmentations(samples.augment),
            num_classes=self.session.splits.num_classes,
            cache=cache,
            with_index=distiller.needs_index,
            views=views,
            length=samples.length,
            unlabelled_ratio=samples.unlabelled_ratio,
            image_shape=shape,
            teacher_shape=None if teacher_shape == shape else teacher_shape,
            shard=self.session.worker,
        )

    # ---- what the stages do ----

    def train(self, stage: Train, folder: pathlib.Path | None) -> dict:
        """Trains a model to its best epoch.

        Args:
            stage: the training.
            folder: where its files go; None on all workers but the chief.

        Returns:
            What the record holds.
        """
        # A model in a compression step's wrappers draws from the seed; a new one has a seed of its own.
        keras.utils.set_random_seed(stage.seed)
        model = self.load(stage.model, in_scope=True)
        teacher = None if stage.teacher is None else self.load(stage.teacher, in_scope=True)
        dtype = self.dtype(stage)
        distiller = self.distiller(stage, model, teacher, dtype)
        cache = self.cache(stage.answers, teacher, dtype) if stage.answers else None
        if stage.is_wrapped:
            step = self.facts.step(stage.model.what.kwargs["step"])
            step.calibrate(model.wrapped(), self.session.representative(stage.samples.train, stage.seed))
        if stage.after is not None:
            training.read_variables(distiller, self.store.folder(stage.after) / "variables.npz")
        # Dropout draws from the seed alone, whatever was built before.
        keras.utils.set_random_seed(stage.seed)
        if stage.pretraining:
            return self._pretrain(stage, distiller, cache, folder)
        recipe, name = stage.recipe, stage.title
        self.tracker.params({f"{name}.{key}": value for key, value in _parameters(stage, dtype, cache).items()})
        val = self.session.as_input(self.facts.source(stage.samples.val), distiller.student)
        history = training.fit(
            distiller,
            lambda epoch: self.stream(stage, distiller, cache, epoch),
            datasets.batches(val, stage.samples.batch_size, shard=self.session.worker),
            epochs=recipe.epochs,
            steps_per_epoch=self.steps_per_epoch(stage),
            checkpoint=self.store.checkpoint(stage),
            callbacks=[
                Laps(self.session.seconds),
                Track(self.tracker, name),
                ShowProgress(self.session.progress, recipe.epochs),
            ],
            stop=None if recipe.stop is None else training.Stop(*recipe.stop),
            keep_from=recipe.keep_from,
            patience=recipe.patience,
        )
        trained = distiller.student
        if folder is not None and stage.is_wrapped:
            training.write_variables(trained, folder / "variables.npz")
        elif folder is not None:
            trained.save(folder / "model.keras")
        record = {"series": history.series, "best_epoch": history.best_epoch, "seconds": round(history.seconds, 1)}
        steps = history.epochs * self.steps_per_epoch(stage)
        record["updates"] = steps if history.stop is None else int(history.stop["step"])
        # Of a short training, most of the time is tracing.
        if folder is not None and history.stop is None and steps >= 100:
            timings.keep_timing(self.session, stage, history.seconds / steps)
        if history.has_waited(recipe.patience):
            self.session.console.print(
                f"{name}: ended after {history.epochs} of {recipe.epochs} epochs, {recipe.patience} of them without a "
                f"better one than epoch {history.best_epoch + 1}"
            )
        if recipe.stop is not None:
            record["stop"] = self._stop_record(stage, history)
        return {**record, "content": content_of(trained)}

    def _pretrain(self, stage, distiller, cache, folder) -> dict:
        """Trains the parts of the losses that need it; a pretraining that was interrupted starts again."""
        with self.session.timed("training"):
            history = distiller.pretrain(
                self.stream(stage, distiller, cache),
                epochs=stage.recipe.epochs,
                steps_per_epoch=self.steps_per_epoch(stage),
                callbacks=[training.StopAtNaN(), ShowProgress(self.session.progress, stage.recipe.epochs)],
                shuffle=False,
                verbose=0,
            )
        if folder is not None:
            training.write_variables(distiller, folder / "variables.npz")
        series = history.history["loss"]
        self.session.console.print(
            f"{stage.name}: {stage.recipe.epochs} epochs, loss {series[0]:.4g} to {series[-1]:.4g}"
        )
        return {"series": history.history, "content": content_of(distiller)}

    def _stop_record(self, stage, history) -> dict:
        asked = stage.recipe.stop[0]
        if history.stop is None:
            best = max(history.series["val_accuracy"])
            logging.warning(
                "the %s never reached --teacher_stop_at_val_accuracy=%g (its best was %.4f): it was trained to the end",
                *(stage.name, asked, best),
            )
        return {"at_val_accuracy": asked, **(history.stop or {"step": None, "val_accuracy": None})}

    def fill(self, stage: Cache, siblings: tuple[Cache, ...]) -> dict:
        """Runs the teacher over what its cache lacks.

        Args:
            stage: the cache.
            siblings: it and the plan's other caches of the same views, which are filled in the same pass.

        Returns:
            What the record holds.
        """
        session = self.session
        cache = self.cache(siblings, self.load(stage.teacher), self.dtype(stage))
        cache.drop_damaged()
        session.console.print(
            f"cache    {cache.nbytes / 1e6:.1f} MB: {', '.join(cache.taps)} of {cache.views.count} views of "
            f"{len(cache.views)} images, in {cache.folder}",
        )
        with session.timed("teacher cache"):
            # A forward pass keeps a layer or two, a training step all of them.
            images = cache.fill(
                4 * self.config.training.batch_size,
                lambda count, total: session.progress.update(count, lambda: f"{count} of {total} images"),
            )
        text = f"the teacher ran on {images} images" if images else "the teacher's outputs are there already"
        session.console.print(f"cache    {text}")
        sums = cache.checksums(stage.tap)
        content = hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()
        return {"folder": cache.folder.name, "cached": sums, "images": images, "content": content}


def _inputs_of(teacher) -> TeacherInputs | None:
    """The teacher's own size and channels, which a run gives it."""
    if teacher is None or (shape := image_shape(teacher)) is None:
        return None
    height, width, channels = shape
    return TeacherInputs(None if None in (height, width) else (height, width), channels)


def siblings_of(stage: Cache, stages) -> tuple[Cache, ...]:
    """A plan's caches that differ from one in the tap alone, itself among them."""
    caches = (other for other in stages if isinstance(other, Cache))
    return tuple(other for other in caches if dataclasses.replace(other, tap=stage.tap).key == stage.key)


def content_of(model: keras.Model) -> str:
    """The hash of a model's variables; files hold times, and so are no measure."""
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return digest.hexdigest()


def _parameters(stage, dtype, cache) -> dict:
    return {
        "losses": " + ".join(str(term.loss) for term in stage.terms),
        "taught_by": "none" if stage.teacher is None else stage.teacher.name,
        "epochs": stage.recipe.epochs,
        "teacher_computes_in": str(dtype),
        "teacher_cache": "none" if cache is None else f"{cache.views.count} views, {cache.nbytes} bytes",
    }


def _taps_of(part: str, names) -> dict[str, str]:
    """A part's own names for its taps → the model's."""
    prefix = part.removeprefix("student").removeprefix(".")
    if not prefix:
        return {name: name for name in names if not name.startswith("exit")}
    if prefix.startswith("exit"):
        last = stages_in(names)[-1]
        return {"logits": f"{prefix}.logits", last: f"{prefix}.map", "pooled": f"{prefix}.pooled"}
    return {name.partition(".")[2]: name for name in names if name.startswith(f"{prefix}.")}
