"""A run as data: the stages that make its models and files, what each is made from, and the key of each.

A stage holds the stages that it needs, so a plan is a graph of frozen values. Nothing in this file trains, reads a file
or imports TensorFlow. There are five kinds of stage:

    Build    makes a model without training: a new network, a joined ensemble, a student with exits, a part cut out
    Train    trains a model, with a teacher or without
    Cache    stores what a teacher answers for every view of every training image
    Export   writes one file for a device
    Measure  reads a model or a file and writes a record; a later stage may depend on it
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from kd_keras.schedules import Schedule
from kd_keras.spec import Spec


def unkeyed(**options):
    """A field that changes no result: it is left out of the key."""
    return dataclasses.field(metadata={"keyed": False}, **options)


@dataclasses.dataclass(frozen=True, repr=False)
class Part(Spec):
    """A spec that is bound to its builder: every value has its name, none is at its default.

    Attributes:
        version: raised when the part's numbers change; for a part from outside the package, the hash of its source.
        places: arguments that say where a file lies. They build the part and are not in its key: the content is.
    """

    version: int | str = 1
    places: tuple[str, ...] = ()

    __hash__ = Spec.__hash__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run.

    Attributes:
        name: of the stage and of its files; a `Build` without a name is made in memory where it is needed.
        role: what the table calls the model or file.
        architecture: the model's spec as the user wrote it, for the table.
    """

    #: Raised when the numbers that this kind of stage makes change.
    VERSION: ClassVar[int] = 1
    name: str = unkeyed(default="")
    role: str = unkeyed(default="")
    architecture: str = unkeyed(default="")

    @functools.cached_property
    def key(self) -> str:
        """The hash of everything that the stage's outputs depend on."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def content(self) -> Any:
        """What is hashed: the stage's fields, its inputs by their keys."""
        return _content(self)

    @property
    def inputs(self) -> tuple["Stage", ...]:
        """The stages that have to be finished before this one."""
        return tuple(_stages_in([getattr(self, field.name) for field in dataclasses.fields(self)]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build(Stage):
    """Makes a model without training.

    Attributes:
        what: a model family (``resnet(depth=20)``) or an operation on models: ``join``, ``member``, ``add_exits``,
            ``cut``, ``graft``, ``wrap``, ``strip``, ``scale``.
        of: the models that it is made from.
        seed: of new weights; None where there are none.
        weights: the content hash of the files that weights come from, where some do.
        precision: the dtype policy that new layers get.
        image_shape: (H, W, C) of its images, where it is not the data's.
    """

    what: Part
    of: tuple["Model", ...] = ()
    seed: int | None = None
    weights: str | None = None
    precision: str = "float32"
    image_shape: tuple[int, int, int] | None = None

    @property
    def is_one_from_elsewhere(self) -> bool:
        """Whether it is a single model that nothing here trains."""
        return len(self.of) < 2 and all(isinstance(model, Build) and model.is_one_from_elsewhere for model in self.of)


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss, who learns by it and who teaches.

    Attributes:
        loss: its spec.
        learner: the part of the trained model that learns: ``student``, ``student.peer2``, ``student.exit1``.
        teachers: (part, weight) of each model that teaches: none, one, or several whose softened probabilities are
            averaged. ``teacher`` is the stage's teacher, ``student.peer1`` a part of the trained model itself.
        share: factor of the loss, where several terms stand for one of ``--loss``.
    """

    loss: Part
    learner: str = "student"
    teachers: tuple[tuple[str, float], ...] = ()
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long a model is trained, and with what optimizer.

    Attributes:
        stop: (validation accuracy, steps between checks) at which training ends early.
        keep_from: the first epoch (from 0) whose weights may be kept as the best.
        patience: epochs without a better one after which training ends early.
    """

    epochs: int
    optimizer: Part
    learning_rate: Schedule
    stop: tuple[float, int] | None = None
    keep_from: int = 0
    patience: int | None = None


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a training sees. The data set, its image size, its subset and its labels are in the fingerprints.

    Attributes:
        train, val: content hashes of the splits.
        views: (number of views, their seed), where images are seen in cached views.
        length: images in an epoch, where that is not each image of ``train`` once.
        unlabelled_ratio: images without a label for each one with a label, in every batch; None for the data's.
        labelled, unlabelled: how many images of ``train`` have a label, and how many have none.
    """

    train: str
    val: str
    batch_size: int
    augment: tuple[Part, ...] = ()
    views: tuple[int, int] | None = None
    length: int | None = None
    unlabelled_ratio: float | None = None
    labelled: int = unkeyed(default=0)
    unlabelled: int = unkeyed(default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Trains a model. Its output is that model with all trained variables, adapters and ranges among them.

    Attributes:
        model: what is trained, as it is before training.
        teacher: the model that teaches, or None.
        computes_in: the teacher's dtype, the `Measure` that finds it out, or None for the teacher as it is.
        answers: the teacher's cached answers, one cache for each tap; none where it runs in every step.
        seed: of order, augmentation, dropout and adapters.
        after: the pretraining whose state (of model and adapters) this training starts from.
        pretraining: whether only those parts of the losses are trained that need it.
        verified: measurements that may refuse the teacher, and so come first.
    """

    model: "Model"
    terms: tuple[Term, ...]
    recipe: Recipe
    samples: Samples
    seed: int = 0
    after: "Train | None" = None
    teacher: "Model | None" = None
    computes_in: "Measure | str | None" = None
    answers: tuple["Cache", ...] = ()
    pretraining: bool = False
    verified: tuple["Measure", ...] = unkeyed(default=())

    @property
    def title(self) -> str:
        """What is trained, by the name that its row in the table has."""
        return self.name.removesuffix("-training")

    @property
    def is_wrapped(self) -> bool:
        """Whether the model is in the wrappers of a compression step."""
        return isinstance(self.model, Build) and self.model.what.name == "wrap"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache(Stage):
    """Stores one tap of the teacher for every view of every training image.

    Attributes:
        images: the content hash of the training images, without their labels.
        augment, views: what a view is, and (number of views, their seed).
    """

    teacher: "Model"
    tap: str
    images: str
    views: tuple[int, int]
    augment: tuple[Part, ...] = ()
    computes_in: "Measure | str | None" = None
    dtype: str = "float16"
    top_k: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Writes one TFLite file of a model. A model that can't be converted is reported, and the run goes on.

    Attributes:
        calibration: (content hash of the training split, seed of the images drawn), for integer activations.
        classes: the classes' names, which the file carries.
        thresholds_on: content hash of the validation split on which the file's thresholds are chosen, where labels are
            independent.
    """

    model: "Model"
    variant: str
    keep_float: tuple[str, ...] = ()
    calibration: tuple[str, int] | None = None
    classes: tuple[str, ...] = ()
    thresholds_on: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure(Stage):
    """Reads a model or a file, and writes a record.

    Attributes:
        what: ``quality``, ``size`` or ``latency``, which fill the table; ``layers``, the error of each layer of an int8
            file; ``class_order`` and ``agreement``, which may refuse or warn; ``dtype``, which chooses what the teacher
            computes in.
        data: content hashes of the splits that are read.
        machine: processor, threads and runtime, where the record is of one machine.
    """

    of: "Model | Export"
    what: str
    data: tuple[str, ...] = ()
    machine: str | None = None


Model = Build | Train


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        stage: the model or file.
        measures: whose figures the row holds.
        reference: the Keras model that a file or compressed student is compared with, or None.
    """

    stage: "Model | Export"
    measures: tuple[Measure, ...]
    reference: "Model | None" = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a scheme makes of a config.

    Attributes:
        models: every model with a row in the table, in the table's order; a stage's place is after its inputs.
        students: those that are exported, the distilled student first.
        reference: the model that agreement is measured with, or None.
        teacher: who teaches the student on while it is compressed, or None.
        voices: how losses on logits hear that teacher, see `common.terms`.
        compressed: the compressed students.
        rows: the table.
        extras: further stages that nothing else needs.
    """

    models: tuple[Model, ...]
    students: tuple[Model, ...]
    reference: Model | None = None
    teacher: Model | None = None
    voices: tuple = ()
    compressed: tuple[Model, ...] = ()
    rows: tuple[Row, ...] = ()
    extras: tuple[Stage, ...] = ()

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage once, each after its inputs, all trainings before the test split is read."""
        stages: dict[str, Stage] = {}

        def add(stage):
            if stage.key not in stages:
                for needed in stage.inputs:
                    add(needed)
                stages[stage.key] = stage

        for stage in self.roots:
            add(stage)
        return tuple(stages.values())

    @property
    def roots(self) -> tuple[Stage, ...]:
        """The stages that the user asked for. Two of them may have one key, and so be one stage with two names."""
        measures = (measure for row in self.rows for measure in (row.stage, *row.measures))
        return (*self.models, *self.compressed, *self.extras, *measures)


def _content(value: Any) -> Any:
    """What a value adds to a key, as JSON: a field at its default adds nothing, and 4.0 is 4."""
    if isinstance(value, Spec):
        version, places = getattr(value, "version", 1), getattr(value, "places", ())
        values = {name: _short(inner) for name, inner in value.kwargs.items() if name not in places}
        return [value.name, values, *map(_short, value.args), *([f"version {version}"] if version != 1 else [])]
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("keyed", True)]
        values = {f.name: _short(getattr(value, f.name)) for f in fields if getattr(value, f.name) != f.default}
        version = getattr(value, "VERSION", 1)
        return [type(value).__name__, values, *([f"version {version}"] if version != 1 else [])]
    if isinstance(value, (tuple, list)):
        return [_short(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(value: Any) -> Any:
    """The same, where a stage adds its own key."""
    return value.key if isinstance(value, Stage) else _content(value)


def _stages_in(value: Any) -> Iterator[Stage]:
    """The stages inside a field's value."""
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _stages_in(inner)
