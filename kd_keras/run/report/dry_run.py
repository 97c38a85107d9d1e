"""What ``--dry_run`` prints: the stages of a plan, the disk they take, and their time where that is known."""

import time

import keras
import tensorflow as tf
from rich import box
from rich.table import Table
from rich.text import Text

from kd_keras.distillation.taps import Taps
from kd_keras.evaluate import cost
from kd_keras.run.building import architecture
from kd_keras.run.report.tables import count_text, size_text
from kd_keras.run.timings import likeness, read_timings
from kd_keras.schemes.plan import Build, Cache, Export, Measure, Stage, Train

# Bytes of a weight in each kind of file.
_WEIGHT_BYTES = {"float32": 4, "float16": 2}


class DryRun:
    """Prints a plan, and writes nothing.

    Args:
        runner: of the plan; it is checked, so that a plan that can't work is refused.
    """

    def __init__(self, runner):
        self.runner, self.session, self.plan = runner, runner.session, runner.plan
        self.facts, self.store = runner.session.facts, runner.store
        self._costs: dict[str, tuple[int, int]] = {}

    def print(self, timed: bool = False) -> None:
        """Prints the table and what it takes.

        Args:
            timed: whether two steps of each training that is not done are timed.
        """
        self.runner.check()
        console, stages = self.session.console, [stage for stage in self.plan.stages if stage.name]
        done = {stage.key for stage in stages if self.store.record(stage) is not None}
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
        for head in ("stage", "model", "params", "MACs", "taught by", "starts from", "epochs", "file", "done"):
            is_narrow = head not in ("model", "starts from")
            table.add_column(
                head,
                justify="right" if head in ("params", "MACs", "epochs") else "left",
                no_wrap=is_narrow,
                # Specs are broken at their spaces, not within a word, and 120 columns are enough.
                min_width=24 if head == "model" else None,
                max_width=20 if head == "starts from" else None,
                overflow="fold",
            )
        for stage in stages:
            if self._is_listed(stage):
                table.add_row(*(Text(cell) for cell in (*self._cells(stage), "yes" if stage.key in done else "no")))
        console.print(table)
        todo = [stage for stage in stages if stage.key not in done]
        measured = sum(isinstance(stage, Measure) for stage in todo)
        console.print(f"plan     {len(todo)} of {len(stages)} stages to run, {measured} of them measurements")
        console.print(f"disk     {size_text(sum(map(self._disk, todo)))} in {self.store.root}")
        self._print_time([stage for stage in todo if isinstance(stage, Train)], timed)

    def _print_time(self, trainings, timed) -> None:
        console, timings, total, unknown = self.session.console, read_timings(), 0.0, []
        for stage in trainings:
            step = self._time_step(stage) if timed else timings.get(likeness(self.session, stage))
            if step is None:
                unknown.append(stage.name)
                continue
            steps = stage.recipe.epochs * self.runner.trainer.steps_per_epoch(stage)
            total += step * steps
            console.print(
                f"time     {stage.name}: {steps} steps of {1000 * step:.3g} ms, {_duration(step * steps)}",
            )
        if total:
            console.print(f"time     {_duration(total)} of training in all")
        if unknown:
            advice = "this machine has not trained them; --dry_run=time times two steps of each"
            console.print(f"time     unknown for {', '.join(unknown)}: {advice}")

    def _is_listed(self, stage: Stage) -> bool:
        """Whether a stage has a line: not what only fills the table, nor a compression step apart from its result."""
        if isinstance(stage, Measure):
            return stage.what not in ("quality", "size", "latency")
        return not (isinstance(stage, Train) and stage.is_wrapped)

    def _cells(self, stage: Stage) -> tuple[str, ...]:
        if isinstance(stage, Cache):
            text = f"{stage.views[0]} views: {stage.tap} of {stage.teacher.name}"
            return (stage.name, text, "", "", "", stage.teacher.name, "", "")
        if isinstance(stage, Measure):
            text = f"measures {stage.what.replace('_', ' ')}"
            return (stage.name, text, "", "", "", _name(stage.of), "", ".csv" if stage.what == "layers" else "")
        if isinstance(stage, Export):
            return (stage.name, stage.variant, "", "", "", _name(stage.model), "", ".tflite")
        parameters, macs = self._cost(stage)
        costs = (count_text(parameters), count_text(macs))
        if isinstance(stage, Build) and stage.what.name == "strip":
            training = stage.of[0]
            taught = "" if training.teacher is None else training.teacher.name
            text, epochs = str(stage.what.kwargs["step"]), str(training.recipe.epochs)
            return (stage.name, text, *costs, taught, _name(stage.of[1]), epochs, ".keras")
        if isinstance(stage, Build):
            of = ", ".join(map(_name, stage.of)) or _origin(stage)
            text = f"{len(stage.of)} models joined" if stage.what.name == "join" else stage.architecture
            return (stage.name, text, *costs, "", of, "", ".keras")
        inside = sorted({part for term in stage.terms for part, _ in term.teachers if part.startswith("student")})
        taught = ", ".join(inside) if stage.teacher is None else stage.teacher.name
        start = _name(stage.after or stage.model)
        file = "" if stage.pretraining else ".keras"
        return (stage.name, stage.architecture, *costs, taught, start, str(stage.recipe.epochs), file)

    def _cost(self, stage) -> tuple[int, int]:
        """Parameters and multiply-accumulates of a model; of one in a compression step's wrappers, without them."""
        while isinstance(stage, Train) or (stage.what.name in ("wrap", "strip") and stage.of):
            stage = stage.model if isinstance(stage, Train) else stage.of[-1]
        name = architecture(stage)
        if name not in self._costs:
            model = Taps(self.facts.model(stage), "model").logits_model()
            self._costs[name] = cost.parameters(model), cost.macs(model)
        return self._costs[name]

    def _disk(self, stage) -> int:
        """Bytes that a stage leaves; models and files twice, in the store and for people."""
        if isinstance(stage, Cache):
            return self.runner.trainer.cache((stage,), self.facts.model(stage.teacher), None).nbytes
        if isinstance(stage, Export):
            return 2 * _WEIGHT_BYTES.get(stage.variant, 1) * self._cost(stage.model)[0]
        if isinstance(stage, Measure):
            test = self.session.splits.test
            return 4 * len(test) * self.session.splits.num_classes if stage.what == "quality" else 1000
        return 2 * 4 * self._cost(stage)[0]

    def _time_step(self, stage: Train) -> float:
        """Seconds of a step, after one that traces."""
        trainer = self.runner.trainer
        model, teacher = self.facts.pair(stage)
        dtype = stage.computes_in if not isinstance(stage.computes_in, Measure) else None
        distiller = trainer.distiller(stage, model, teacher, dtype)
        cache = _Zeros(trainer.cache(stage.answers, teacher, dtype), teacher) if stage.answers else None
        stream = trainer.stream(stage, distiller, cache)
        train = distiller.pretrain if stage.pretraining else distiller.fit
        if stage.after is not None:
            distiller.pretrain(stream, epochs=1, steps_per_epoch=1, verbose=0, shuffle=False)
        train(stream, epochs=1, steps_per_epoch=1, verbose=0, shuffle=False)
        start = time.perf_counter()
        train(stream, epochs=1, steps_per_epoch=2, verbose=0, shuffle=False)
        return (time.perf_counter() - start) / 2


class _Zeros:
    """Stands for a teacher cache that is not filled."""

    def __init__(self, cache, teacher: keras.Model):
        self.views, self.taps = cache.views, cache.taps
        self._shapes = Taps(teacher, "teacher").shapes(cache.taps)

    def read(self, view, index):
        """Zeros (B, …) of every tap."""
        del view
        count = tf.shape(index)[:1]
        return {tap: tf.zeros(tf.concat([count, shape[1:]], 0)) for tap, shape in self._shapes.items()}


def _name(stage) -> str:
    if stage.name:
        # A compression step has one line, with the name of its result.
        return stage.name.removesuffix("-training")
    if isinstance(stage, Build) and stage.of:
        return f"{stage.what.name}({', '.join(map(_name, stage.of))})"
    return _origin(stage)


def _origin(build: Build) -> str:
    """Where the weights of a model come from that is not made of others."""
    if build.weights is None:
        return "new weights"
    return "published weights" if build.weights.startswith("published") else "a saved model"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
