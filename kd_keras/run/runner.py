"""Runs a plan: every stage is checked, then each one that is not whole in the store is run."""

import contextlib
import functools
import pathlib
import shutil
import zlib
from collections.abc import Sequence

import keras
from absl import logging

from kd_keras import spec
from kd_keras._compat import distribute
from kd_keras.compress import Prepared
from kd_keras.errors import InputError, naming
from kd_keras.evaluate import multilabel
from kd_keras.export import metadata, tflite
from kd_keras.models.saved import load as load_model
from kd_keras.run import training
from kd_keras.run.building import prepared
from kd_keras.run.measure import Measurer
from kd_keras.run.progress import Work
from kd_keras.run.report import results
from kd_keras.run.store import Store
from kd_keras.run.tracking.base import NullWriter
from kd_keras.run.trainer import Trainer, content_of, siblings_of
from kd_keras.run.workdir import SETTINGS, changes, read_json
from kd_keras.schemes import additions
from kd_keras.schemes.plan import Build, Cache, Export, Measure, Plan, Stage, Train


def plan_of(config, facts) -> Plan:
    """The scheme's plan, with everything that the other settings add.

    Raises:
        InputError: the settings contradict each other or the data.
    """
    scheme = spec.builder("kd_keras.schemes", config.training.scheme.name)
    values = spec.bind(scheme, config.training.scheme, ("config", "facts"))
    with naming(f"--scheme={config.training.scheme}", only=config.training.scheme.name):
        plan = spec.check_kind(config.training.scheme, scheme(config, facts, **values), Plan)
    return additions.complete(plan, config, facts)


class Runner:
    """Runs the stages of one plan.

    Args:
        plan: the stages.
        session: the machine and the data.
        store: where finished stages are kept.
        tracker: is told of the trainings' epochs.
    """

    def __init__(self, plan: Plan, session, store: Store, tracker: NullWriter | None = None):
        self.plan, self.session, self.store = plan, session, store
        self._lent_from = session.config.student.baseline_from
        self.trainer = Trainer(session, store, self.load, tracker or NullWriter())
        self.measurer = Measurer(session, store, functools.partial(self.load, in_scope=False))

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage need not be run; of several workers all are given the chief's answer."""
        done = self.store.record(stage) is not None if self.session.is_chief else False
        return bool(distribute.gather(self.session.strategy, int(done))[0])

    @property
    def open_stages(self) -> list[Stage]:
        """The stages that have to be run."""
        return [stage for stage in self.plan.stages if stage.name and self.store.record(stage) is None]

    def check(self) -> None:
        """Builds everything that will be trained, and trains nothing.

        Raises:
            InputError: something can't work.
        """
        for stage in self.plan.stages:
            if isinstance(stage, Train) and not self.is_done(stage):
                if self._is_lent(stage) and self._lender.record(stage) is None:
                    raise self._nothing_lent()
                self.trainer.check(stage)

    def run(self, stages: Sequence[Stage] | None = None) -> None:
        """Makes whatever is not whole of the plan's stages, or of those given."""
        named = [stage for stage in (self.plan.stages if stages is None else stages) if stage.name]
        works = {stage.key: self._work_of(stage) for stage in named if not self.is_done(stage)}
        with self.session.progress.run(list(works.values())):
            for stage in named:
                self._compare_keys(stage)
                # Another process may have made it since.
                if not self.is_done(stage):
                    with self.session.progress.stage(works.get(stage.key) or self._work_of(stage)):
                        self._make(stage)
                    if stage.name == "baseline" and self.session.is_chief:
                        self._compare_with_teacher(stage)

    def _work_of(self, stage: Stage) -> Work:
        """A stage as progress shows it."""
        if isinstance(stage, Train):
            return self.trainer.work_of(stage)
        if isinstance(stage, Cache):
            images = stage.views[0] * len(self.session.facts.source(stage.images))
            return Work("cache", "cache", images)
        if isinstance(stage, Measure):
            return Work(f"measuring {stage.of.name}", stage.what)
        return Work(f"exporting {stage.name}" if isinstance(stage, Export) else stage.name, type(stage).__name__)

    def _compare_with_teacher(self, baseline) -> None:
        """Warns, before a student is trained, of a teacher that is no better than the baseline, unless on purpose."""
        teacher = self.plan.reference
        if not isinstance(teacher, Train) or teacher.recipe.stop is not None or teacher.key == baseline.key:
            return
        scores = [best_score(self.store.record(stage))[0] for stage in (teacher, baseline)]
        if scores[0] <= scores[1]:
            logging.warning(
                "the %s does not beat the baseline on validation data (%.2f%% against %.2f%%): no student gains by its "
                "accuracy; train it longer, or take a larger one",
                *(teacher.role, *(100 * score for score in scores)),
            )

    def _compare_keys(self, stage) -> None:
        strategy = self.session.strategy
        if len(set(distribute.gather(strategy, int(stage.key[:7], 16)))) > 1:
            raise InputError(
                f"the workers' data or settings differ ({stage.name} has another key on each): start all with the same "
                "command, and share or copy the data"
            )

    def _make(self, stage) -> None:
        store, session = self.store, self.session

        def tell(owner):
            session.console.print(f"{stage.name:<8} is made by {owner}: waiting")

        with store.leased(stage, tell):
            # Another process may have made it while this one waited.
            if not self.is_done(stage):
                if self._is_lent(stage):
                    # The lender was whole when this run began, which may be hours ago.
                    if session.is_chief and not store.adopt(stage, self._lender):
                        raise self._nothing_lent()
                    session.console.print(f"baseline taken from {self._lender.root}")
                elif session.is_chief:
                    self._tell(stage, store.write(stage, functools.partial(self._work, stage)))
                    store.checkpoint(stage).unlink(missing_ok=True)
                elif isinstance(stage, Train):
                    self._work(stage, None)
        distribute.gather(session.strategy, 1)
        distribute.wait_for(store.folder(stage) / "record.json")

    def _is_lent(self, stage) -> bool:
        return stage.name == "baseline" and self._lent_from is not None

    @functools.cached_property
    def _lender(self) -> Store:
        """The store of the run that lends its baseline, or the store that is named itself."""
        for root in (self._lent_from / "store", self._lent_from):
            if (root / "train").is_dir():
                return Store(root)
        raise InputError(
            f"--baseline_from={self._lent_from} holds no store with a trained model: give a workdir or a --store"
        )

    def _nothing_lent(self) -> InputError:
        """Says that the lender has no such baseline, and which settings differ where the lender is a workdir."""
        path = self._lent_from / SETTINGS
        before = read_json(path, "--baseline_from") if path.exists() else {}
        changed = changes(before, self.session.config.affecting("baseline"))
        difference = f" ({'; '.join(changed)})" if changed else ""
        return InputError(
            f"--baseline_from={self._lent_from} holds no finished baseline with these settings and data{difference}: "
            "train it here, or name another run"
        )

    def _work(self, stage: Stage, folder: pathlib.Path | None) -> dict:
        """Does what a stage says; the files go into a folder."""
        if isinstance(stage, Train):
            return self._train(stage, folder)
        if isinstance(stage, Build):
            return self._build(stage, folder)
        if isinstance(stage, Cache):
            return self.trainer.fill(stage, siblings_of(stage, self.plan.stages))
        if isinstance(stage, Export):
            return self._export(stage, folder)
        return self.measurer.measure(stage, folder)

    # ---- models ----

    def load(self, model: Build | Train, in_scope: bool = False) -> keras.Model:
        """A model as it is after its stage: from its file, or built again where it has none.

        Args:
            model: the stage.
            in_scope: whether its variables are made in the strategy's scope, for training.
        """
        file = self.store.folder(model) / "model.keras"
        if model.name and file.exists():
            with self.session.strategy.scope() if in_scope else contextlib.nullcontext():
                return load_model(file, allow_code=_may_run_code(model))
        if isinstance(model, Build):
            return self.session.build(model, [self.load(part, in_scope) for part in model.of])
        trained = self.load(model.model, in_scope)
        training.read_variables(trained, self.store.folder(model) / "variables.npz")
        return trained

    def _train(self, stage, folder) -> dict:
        if stage.is_wrapped and self.session.is_chief:
            self._tell_left_out(stage)
        return self.trainer.train(stage, folder)

    def _tell_left_out(self, stage) -> None:
        step = self.session.facts.step(stage.model.what.kwargs["step"])
        left = step.left_out(self.session.facts.model(stage.model).wrapped())
        if left:
            what = "stays in float32" if step.quantises else "is left as it is"
            self.session.console.print(f"{stage.name:<8} {', '.join(left)}: {what}")

    def _build(self, stage, folder) -> dict:
        """Makes a model of others, or takes one as it comes."""
        record = {}
        if stage.what.name == "strip":
            compressed = self._trained_in_wrappers(*stage.of)
            model, record["shortfalls"] = compressed.finish(), compressed.shortfalls
        else:
            model = self.load(stage)
        path = pathlib.Path(str(stage.what.kwargs.get("path", ""))).expanduser()
        if stage.what.name == "saved" and path.suffix == ".keras" and "model" not in stage.what.kwargs:
            shutil.copyfile(path, folder / "model.keras")
        else:
            model.save(folder / "model.keras")
        return {**record, "content": content_of(model)}

    def _trained_in_wrappers(self, trained: Train, before: Build | Train) -> Prepared:
        """A compressed student in its wrappers, as its training has left it."""
        wrapped = prepared(trained.model, self.load(before))
        training.read_variables(wrapped.model, self.store.folder(trained) / "variables.npz")
        return wrapped

    # ---- files ----

    def _export(self, stage, folder) -> dict:
        """Writes a TFLite file; a model that can't be converted is reported, and the run goes on."""
        session, model = self.session, stage.model
        keras_model = self.load(model)
        with session.timed("export"):
            try:
                if isinstance(model, Train) and model.is_wrapped:
                    content = tflite.convert_quantised(keras_model.wrapped(), stage.variant)
                else:
                    images = None
                    if stage.calibration is not None:
                        images = session.representative(*stage.calibration)
                    output = self.measurer.output_of(keras_model, model)
                    content = tflite.convert(keras_model, stage.variant, images, stage.keep_float, output)
            except InputError as error:
                logging.warning("%s", error)
                return {"refused": str(error), "content": "refused"}
            more = {"variant": stage.variant, "architecture": stage.architecture}
            if stage.thresholds_on is not None:
                source = session.facts.source(stage.thresholds_on)
                limits = multilabel.thresholds(self.measurer.logits_of_file(content, source), source.labels)
                more["thresholds"] = dict(zip(stage.classes, limits.tolist(), strict=True))
            content = metadata.attach(content, stage.classes, **more)
            (folder / "model.tflite").write_bytes(content)
        operators = ", ".join(metadata.read(folder / "model.tflite")["operators"])
        session.console.print(f"edge     {stage.name}.tflite: {operators}")
        agreement = self.measurer.file_agreement(folder / "model.tflite", keras_model, model)
        if doubt := results.doubt_about(stage, agreement):
            logging.warning("%s", doubt)
        return {**agreement, "figures": {"bytes": len(content), "zip_bytes": len(zlib.compress(content, level=9))}}

    def _tell(self, stage, record) -> None:
        """One line for each model that was made."""
        if isinstance(stage, Measure | Cache | Export) or (isinstance(stage, Train) and stage.pretraining):
            return
        text = f"{stage.architecture}: "
        if "series" in record:
            score, name = best_score(record)
            epochs = len(record["series"]["loss"])
            text += f"validation {name} {score:.4f} in epoch {record['best_epoch'] + 1} of {epochs}, "
            text += f"{record['seconds']:.0f} s"
        else:
            text += "made of " + ", ".join(part.name for part in stage.of) if stage.of else "loaded"
        self.session.console.print(f"{stage.name:<8} {text}")


def best_score(record: dict) -> tuple[float, str]:
    """What a training's best epoch reached on validation data, and what that is called."""
    series = record["series"]
    score, name = ("val_map", "mAP") if "val_map" in series else ("val_accuracy", "accuracy")
    return series[score][record["best_epoch"]], name


def _may_run_code(stage: Stage) -> bool:
    """Whether a model was made of a file that may run code, by ``--allow_code_in``."""
    allowed = isinstance(stage, Build) and stage.what.kwargs.get("allow_code", False)
    return allowed or any(map(_may_run_code, stage.inputs))
