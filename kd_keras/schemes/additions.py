"""What ``--compress``, ``--export``, ``--export_beside`` and measuring add to the plan of any scheme."""

import dataclasses
import math

from kd_keras.errors import InputError, naming
from kd_keras.export.variants import CALIBRATED, QUANTISED
from kd_keras.schemes import common
from kd_keras.schemes.plan import Build, Export, Measure, Model, Part, Plan, Row, Train


def complete(plan: Plan, config, facts) -> Plan:
    """The scheme's plan with everything that follows from its models.

    Raises:
        InputError: settings that the plan can't follow.
    """
    file = config.student.file
    if file is not None and plan.students[0].inputs:
        raise InputError(f"--scheme={config.training.scheme} trains its own student: leave out --student_from={file}")
    if config.student.pretrain_epochs and not any(getattr(model, "after", None) for model in _all(plan.models)):
        raise InputError(
            f"--pretrain_epochs={config.student.pretrain_epochs} but no loss of --loss needs pretraining here: ft, ab "
            "and fsp do, with a teacher"
        )
    if config.export.keep_float:
        facts.check_kept_float(plan.students[0], config.export.keep_float)
    adding = _Adding(plan, config, facts)
    for model in plan.models:
        adding.row(model)
    beside = {"teacher": plan.reference, "baseline": adding.baseline}
    for model in (model for name, model in beside.items() if name in config.export.beside and model is not None):
        adding.files(model, ("float32",), f"{model.role}, TFLite")
    for number, model in enumerate(plan.students):
        adding.files(model, config.export.variants, f"{model.role} TFLite" if number else "TFLite")
        if config.export.layer_report and "int8" in config.export.variants:
            adding.layer_report(model)
    adding.compress()
    adding.cached_taps()
    return dataclasses.replace(
        plan, compressed=tuple(adding.compressed), rows=tuple(adding.rows), extras=(*plan.extras, *adding.extras)
    )


def _all(models):
    """The models and those that they are made of."""
    for model in models:
        yield model
        yield from _all(stage for stage in model.inputs if isinstance(stage, Build | Train))


class _Adding:
    """Collects rows and stages for one plan."""

    def __init__(self, plan, config, facts):
        self.plan, self.config, self.facts, self.data = plan, config, facts, facts.student_data()
        self.rows, self.extras, self.compressed = [], [], []
        self.baseline = next((model for model in plan.models if model.name == "baseline"), None)

    def cached_taps(self) -> None:
        """The further taps of ``--cache_taps``, of the teacher that the student reads, for other runs."""
        config = self.config
        # A student that is taken as it is reads a teacher when it is compressed.
        trained = (*_all(self.plan.models), *(model.of[0] for model in self.compressed))
        answers = [stage.answers for stage in trained if isinstance(stage, Train) and stage.answers]
        if config.cache.views and not answers:
            raise InputError(f"--cache_views={config.cache.views} but no loss of --loss reads a teacher: leave it out")
        ours = [taps for taps in answers if taps[0].teacher == self.plan.teacher] or answers
        for tap in config.cache.taps:
            first = ours[0][0]
            name = f"{first.teacher.name}-cache-{tap}"
            with naming(f"--cache_taps={','.join(config.cache.taps)}"):
                self.facts.check_tap(first.teacher, tap)
            self.extras.append(dataclasses.replace(first, tap=tap, name=name))

    def row(self, stage, reference=None, size=None, **labels) -> None:
        """A row, with the measurements that fill it."""
        data = self.data
        splits = (data.test,) if isinstance(stage, Export) else (data.test, data.labelled, data.val)

        def measure(what, of, **fields):
            return Measure(name=f"{of.name}-{what}", of=of, what=what, **fields)

        sizes = measure("size", size or stage)
        quality, latency = measure("quality", stage, data=splits), measure("latency", stage, machine=self.facts.machine)
        self.rows.append(Row(stage, (quality, sizes, latency), reference))

    def files(self, model, variants, role: str, source=None, reference=None) -> None:
        """A row for each TFLite file of a model.

        Args:
            source: the stage that the file is made from, where it is not the model itself.
            reference: what the file is compared with; by default the model.
        """
        for variant in variants:
            kept = self.facts.kept_float(model, self.config.export.keep_float) if variant == "int8" else ()
            calibrated = variant in CALIBRATED and source is None
            file = Export(
                name=f"{model.name}_{variant}",
                role=f"{role} {variant}",
                architecture=model.architecture,
                model=source or model,
                variant=variant,
                keep_float=kept if source is None else (),
                calibration=(self.data.train, self.config.training.seed) if calibrated else None,
                classes=self.data.class_names,
                thresholds_on=self.data.val if self.data.multi_label else None,
            )
            self.row(file, reference or model, size=model)

    def layer_report(self, model) -> None:
        """The error of each layer of a model's int8 file."""
        data = (self.data.train, str(self.config.training.seed))
        self.extras.append(Measure(name=f"{model.name}_int8_layers", of=model, what="layers", data=data))

    def compress(self) -> None:
        """Every pipeline of ``--compress`` on the student, and on the controls of ``--compress_controls``."""
        config, student = self.config, self.plan.students[0]
        _check_pipelines(config, self.facts)
        same = config.compress.loss == config.student.loss
        flag = "--loss" if same else "--compress_loss"
        targets = [("student", student, config.compress.loss, self.plan.teacher, flag)]
        untaught = (config.student.baseline_loss, None, "--baseline_loss")
        if "untaught" in config.compress.controls:
            targets.append(("untaught", student, *untaught))
        if "baseline" in config.compress.controls:
            targets.append(("baseline", self.baseline, *untaught))
        names = _pipeline_names(config.compress.pipelines)
        for target, before, losses, teacher, flag in targets:
            for pipeline in config.compress.pipelines:
                model = before
                for number in range(1, len(pipeline) + 1):
                    steps = pipeline[:number]
                    labels = self._labels(f"{names[str(steps)]}-{target}", before, steps, target)
                    trained, model = self._step(labels, before, model, steps, losses, teacher, flag)
                    self.compressed.append(model)
                quantises = self.facts.step(pipeline[-1]).quantises
                if not quantises:
                    self.row(model, before)
                variants = [v for v in config.compress.export if not quantises or v in QUANTISED]
                source = trained if quantises else None
                self.files(model, variants, f"{model.role}, TFLite", source=source, reference=before)

    def _labels(self, name, before, steps, target) -> dict:
        text = " + ".join(map(str, steps))
        untaught = ", untaught" if target == "untaught" and self.plan.teacher is not None else ""
        role, architecture = f"{before.role}, {text}{untaught}", f"{before.architecture}, {text}"
        return {"name": name, "role": role, "architecture": architecture}

    def _step(self, labels, first: Model, before: Model, steps, losses, teacher, flag) -> tuple[Train, Build]:
        """One compression step: the model in its wrappers, trained; and the model taken out of them again."""
        config, facts = self.config, self.facts
        *earlier, step = facts.parts("compress", steps)
        asked, per_epoch = facts.step(steps[-1]), facts.steps_per_epoch(config.training.batch_size)
        epochs, learning_rate = asked.epochs or config.compress.epochs, asked.learning_rate
        settings = {"step": step, "steps": epochs * per_epoch, "before": tuple(earlier)}
        wrapped = Build(what=Part("wrap", settings), of=(before,))
        # A pruned student's best epoch is one at whose end it is as sparse as asked for.
        settled = max(1, math.ceil(asked.settled(epochs * per_epoch) / per_epoch))
        options = {} if learning_rate is None else {"learning_rate": learning_rate}
        recipe = common.recipe(facts, config.compress, epochs, keep_from=min(settled, epochs) - 1, **options)
        # What can't be compressed at all, or not here, is no fault of the losses.
        facts.taps(wrapped)
        try:
            terms = common.terms(losses, facts, wrapped, teacher, voices=self.plan.voices or common.WHOLE, flag=flag)
        except InputError as error:
            text = " + ".join(map(str, steps))
            raise InputError(
                f"{flag} can't train what {text} makes of the student ({error}): give --compress_loss"
            ) from error
        if needy := [term.loss.name for term in terms if facts.needs_pretraining(term.loss)]:
            raise InputError(
                f"{flag} has {', '.join(needy)}, which needs pretraining, and compression has none: give "
                "--compress_loss"
            )
        fields = common.taught_fields(config, facts, wrapped, terms, teacher)
        training = Train(**{**labels, "name": f"{labels['name']}-training"}, recipe=recipe, **fields)
        return training, Build(**labels, what=Part("strip", {"step": step}), of=(training, before))


def _check_pipelines(config, facts) -> None:
    """Raises InputError where a step of ``--compress`` comes in the wrong place, or its file is not asked for."""
    for pipeline in config.compress.pipelines:
        text, ranks = " + ".join(map(str, pipeline)), [facts.step(step).rank for step in pipeline]
        if ranks != sorted(set(ranks)):
            raise InputError(f"--compress={text}: each step once, prune() before cluster() before qat()")
        if facts.step(pipeline[-1]).quantises and not set(config.compress.export) & set(QUANTISED):
            raise InputError(
                f"--compress_export={','.join(config.compress.export) or 'none'} but {text} trains for integers: add "
                f"{' or '.join(QUANTISED)}"
            )


def _pipeline_names(pipelines) -> dict[str, str]:
    """A name for every beginning of every pipeline: its steps', numbered where another has it."""
    names: dict[str, str] = {}
    for beginning in [pipeline[:number] for pipeline in pipelines for number in range(1, len(pipeline) + 1)]:
        stem = name = "-".join(step.name.rpartition(":")[2] for step in beginning)
        number = 1
        while name in names.values() and str(beginning) not in names:
            number += 1
            name = f"{stem}{number}"
        names.setdefault(str(beginning), name)
    return names
