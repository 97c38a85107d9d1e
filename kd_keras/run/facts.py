"""What a scheme may ask before anything is trained, answered from models that are built once and kept.

`Facts` is handed to `kd_keras.schemes`, whose functions see no weights, files or strategy.
"""

import dataclasses
import inspect
import pathlib

import keras

from kd_keras import data as datasets
from kd_keras import losses as loss_terms
from kd_keras import schedules, spec
from kd_keras.compress.base import Step, check_layers
from kd_keras.distillation import exits
from kd_keras.distillation.fast_teacher import can_be_copied
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError, naming
from kd_keras.losses.base import Loss
from kd_keras.models.saved import input_shape as saved_input_shape
from kd_keras.run import foreign
from kd_keras.run.building import architecture, file_content
from kd_keras.run.training import optimizer_class
from kd_keras.schemes.plan import Build, Model, Part, Train
from kd_keras.spec import Spec

# Arguments that a run adds to those of a spec.
_ADDED = {"models": ("num_classes", "input_shape"), "optimizers": ("learning_rate", "name")}
# Arguments of a model family that name weights: a file, a folder, or published ones by their name.
_WEIGHTS = ("path", "preset", "pretrained")


@dataclasses.dataclass(frozen=True)
class Data:
    """Content hashes of the splits, numbers of training images, the classes' names, and the kind of labels.

    Attributes:
        train: the training split, of which some samples may have no label.
        labelled: its samples that have one; equal to ``train`` where all have.
        images: its images alone.
        count, labels: numbers of its images, and of its labels.
    """

    train: str
    labelled: str
    images: str
    val: str
    test: str
    count: int
    labels: int
    class_names: tuple[str, ...]
    multi_label: bool = False


class Facts:
    """Facts of one config's data, of models and of losses.

    Args:
        session: the machine and the data of the run.
    """

    def __init__(self, session):
        self._session, self._splits = session, session.splits
        self._seed = session.config.training.seed
        self._sources = {source.fingerprint: source for source in (self._splits.val, self._splits.test)}
        self._data: dict[tuple, Data] = {}
        # Models by their architecture: each is built once.
        self._models: dict[str, keras.Model] = {}
        self._taps: dict[tuple, Taps] = {}
        self.machine = session.machine

    # ---- data ----

    def data(self, seed: int | None = None, labels: int | None = None, flag: str = "labelled_examples") -> Data:
        """The splits, with the training images that ``--train_examples`` and a seed draw.

        Args:
            seed: of the draws; by default ``--seed``.
            labels: number of labels that are drawn; the others are left out. By default all.
            flag: what asks for that number.

        Raises:
            InputError: there are fewer.
        """
        key = (self._seed if seed is None else seed, labels)
        if key not in self._data:
            splits, examples = self._splits, self._session.config.data.train_examples
            train = splits.train
            if examples is not None:
                with naming(f"--train_examples={examples}"):
                    train = datasets.take(train, examples, key[0])
            if labels is not None:
                with naming(f"--{flag}={labels}"):
                    train = datasets.keep_labels(train, labels, key[0])
            if splits.unlabelled is not None:
                train = datasets.join(train, splits.unlabelled)
            labelled = datasets.labelled(train)
            self._sources |= {source.fingerprint: source for source in (train, labelled)}
            # Whatever has these images: a teacher cache reads no labels.
            self._sources.setdefault(train.images_fingerprint, train)
            prints = (train.fingerprint, labelled.fingerprint, train.images_fingerprint)
            prints += splits.val.fingerprint, splits.test.fingerprint
            self._data[key] = Data(*prints, len(train), len(labelled), tuple(splits.class_names), splits.multi_label)
        return self._data[key]

    def student_data(self) -> Data:
        """The data that student and baseline are trained on."""
        return self.data(labels=self._session.config.data.labelled_examples)

    def source(self, fingerprint: str):
        """The split that has a content hash."""
        return self._sources[fingerprint]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Optimizer steps in an epoch."""
        return datasets.steps_per_epoch(self.data().count, batch_size)

    # ---- parts ----

    def part(self, package: str, given: Spec) -> Part:
        """A spec bound to its builder: named values, none at its default, specs inside likewise.

        Raises:
            InputError: an unknown name or argument.
        """
        is_optimizer = package == "optimizers"
        function = optimizer_class(given.name) if is_optimizer else spec.builder(f"kd_keras.{package}", given.name)
        needs_samples = "samples" in getattr(function, "needs", ())
        named = spec.bind(function, given, _ADDED.get(package, ("samples",) * needs_samples))
        parameters = inspect.signature(function).parameters
        values = {name: _value(value) for name, value in named.items()}
        values = {name: value for name, value in values.items() if not _same(value, _value(parameters[name].default))}
        places = tuple(name for name in values if name in _WEIGHTS and pathlib.Path(str(values[name])).exists())
        # Whether a file may run code is no part of what is in it.
        places += tuple(name for name in values if name == "allow_code")
        # Optimizers are named in any case.
        name = given.name.lower() if is_optimizer and ":" not in given.name else given.name
        return Part(name, dict(sorted(values.items())), version=foreign.version(given.name, function), places=places)

    def parts(self, package: str, given) -> tuple[Part, ...]:
        """The same for several specs."""
        return tuple(self.part(package, part_spec) for part_spec in given)

    # ---- models ----

    def precision(self, policy: str) -> str:
        """A dtype policy, ``auto`` resolved."""
        return self._session.precision if policy == "auto" else policy

    def comes_trained(self, given: Spec) -> bool:
        """Whether a family's models come with weights that need no training."""
        return spec.constant("kd_keras.models", given.name, "TRAINED")

    def weights(self, given: Spec) -> str | None:
        """The content hash of the weights that a model's spec comes with, or None for new ones."""
        values = spec.check("kd_keras.models", given, _ADDED["models"])
        names = [values[name] for name in _WEIGHTS if values.get(name) is not None]
        return file_content(names[0]) if names else None

    def saved(self, path: pathlib.Path) -> tuple[Part, str]:
        """The part and the content hash of a saved model."""
        if not path.exists():
            raise InputError(f"{path} is not there: give a file written by model.save('name.keras')")
        allowed = path.resolve() in [file.resolve() for file in self._session.config.run.allow_code_in]
        values = {"path": str(path), **({"allow_code": True} if allowed else {})}
        return Part("saved", values, places=("path", "allow_code")), file_content(path)

    def borrowed(self, given: Spec, folders, number: int, **labels) -> Build:
        """Another run's teacher: its content is its identity, whatever trained it."""
        path = self._session.lent_teacher(given, folders, number)
        what, weights = self.saved(path)
        return Build(**labels, what=what, weights=weights, image_shape=self._other_shape(saved_input_shape(path)))

    def teacher_shape(self, given: Spec) -> tuple[int, int, int] | None:
        """(H, W, C) of a teacher's images, None where it is the data's.

        By ``--teacher_image_size`` and ``--teacher_channels``, else a saved teacher's own.
        """
        settings, own = self._session.config.teacher, None
        if given.name == "saved":
            own = saved_input_shape(spec.check("kd_keras.models", given, _ADDED["models"])["path"])
        size = (settings.image_size,) * 2 if isinstance(settings.image_size, int) else settings.image_size
        return self._other_shape(own, (*(size or (None, None)), settings.channels))

    def _other_shape(self, own, asked=(None, None, None)) -> tuple[int, int, int] | None:
        shape = tuple(self._splits.image_shape)
        sides = zip(asked, own or (None, None, None), shape, strict=True)
        found = tuple(next(side for side in choices if side is not None) for choices in sides)
        return None if found == shape else found

    def pair(self, stage: Train) -> tuple[keras.Model, keras.Model | None]:
        """A training's model and teacher, two objects also where they are built alike."""
        if stage.teacher is None:
            return self.model(stage.model), None
        names = architecture(stage.model), architecture(stage.teacher)
        is_twin = names[0] in names[1] or names[1] in names[0]
        return self.model(stage.model), self.model(stage.teacher, is_twin)

    def model(self, model: Model, is_twin: bool = False) -> keras.Model:
        """The model as it is before any training.

        Args:
            model: the stage.
            is_twin: whether another object is wanted than for others that ask.

        Raises:
            InputError: it can't be built.
        """
        if isinstance(model, Train):
            return self.model(model.model, is_twin)
        name = architecture(model) + is_twin * " (twin)"
        if name not in self._models:
            inner = [self.model(part, is_twin) for part in model.of]
            try:
                self._models[name] = self._session.build(model, inner, trial=True)
            except InputError as error:
                if inner or not model.architecture:
                    raise
                raise InputError(f"{self._flag_of(model.architecture)}: {error}") from error
        return self._models[name]

    def _flag_of(self, architecture: str) -> str:
        """The flag that names a model, with the model."""
        config = self._session.config
        flags = {str(config.student.model): "student", **dict.fromkeys(map(str, config.teacher.models), "teacher")}
        return f"--{flags.get(architecture, 'scheme')}={architecture}"

    def taps(self, model: Model, features: bool = False) -> list[str]:
        """Names of the taps that a model offers.

        Args:
            model: the stage.
            features: whether it may have no classifier's head; see `Taps`.
        """
        return self._read(model, features).names

    def is_classifier(self, model: Model) -> bool:
        """Whether a model tells the data's classes apart."""
        return self._read(model, features=True).num_classes == self._splits.num_classes

    def _read(self, model, features) -> Taps:
        name = architecture(model), features
        if name not in self._taps:
            self._taps[name] = Taps(self.model(model), "model", features=features)
        return self._taps[name]

    def exit_stages(self, whole: Model, student: Model) -> list[str]:
        """Names of a student's stages; raises InputError where exits can't be put on them."""
        self.model(whole)
        return exits.stages_of(self.model(student))

    def check_dtype(self, teacher: Model, dtype: str | None) -> None:
        """Raises InputError where a teacher can't be copied to compute in a dtype."""
        if dtype not in (None, "auto") and not can_be_copied(self.model(teacher)):
            raise InputError(f"--teacher_dtype={dtype} takes a functional teacher: give auto or none")

    def check_tap(self, teacher: Model, tap: str) -> None:
        """Raises InputError where a teacher has no such tap."""
        self._read(teacher, features=True).require([tap])

    def kept_float(self, model: Model, names) -> tuple[str, ...]:
        """Those names that are a model's layers."""
        known = {layer.name for layer in self.model(model).layers} if names else ()
        return tuple(name for name in names if name in known)

    def check_kept_float(self, model: Model, names) -> None:
        """Raises InputError where a name of ``--keep_float`` is none of a model's layers."""
        check_layers(names, [layer.name for layer in self.model(model).layers], "--keep_float")

    # ---- losses and compression steps ----

    def loss(self, given: Spec) -> Loss:
        """A new loss."""
        return loss_terms.from_spec(given, samples=self.data().count)

    def losses(self, given, flag: str) -> tuple[Part, ...]:
        """The losses that a flag names, as parts.

        Of several labels for an image the teacher and the baseline learn by ``bce()`` where nothing else is asked for.

        Raises:
            InputError: a loss is for another kind of labels than the data's.
        """
        kind = "multilabel" if self._splits.multi_label else "softmax"
        if kind == "multilabel" and flag in ("--teacher_loss", "--baseline_loss") and list(map(str, given)) == ["ce()"]:
            given = (spec.parse("bce()"),)
        for loss in given:
            if kind not in getattr(spec.builder("kd_keras.losses", loss.name), "heads", (kind,)):
                labels = "several labels for an image" if kind == "multilabel" else "one class for each image"
                use = "bce, binary_kd" if kind == "multilabel" else "ce, kd"
                data = self._session.config.data.source
                raise InputError(
                    f"{flag} has {loss.name}, and --data={data} has {labels}: take {use} or losses on features"
                )
        return self.parts("losses", given)

    def reads(self, given: Spec, student: list[str], teacher: list[str] | None) -> tuple[str, ...]:
        """Which of the teacher's taps a loss reads."""
        # Asking a loss for its taps changes it, so a new loss is asked each time.
        if teacher is not None:
            if self.grafts(given):
                return ("sim_kd",)
            return self.loss(given).taps(list(student), list(teacher))[1]
        taps = self.loss(given).taps(list(student), None)
        # A loss that can't say before there is a teacher needs one.
        return ("?",) if taps == ((), ()) else taps[1]

    def teacher_taps(self, terms, student: Model, teacher: Model) -> tuple[str, ...]:
        """All the teacher's taps that terms read."""
        taps = []
        for term in terms:
            if not term.teachers:
                continue
            loss = self.loss(term.loss)
            reads = loss.taps(self.taps(student), self.taps(teacher, features=True))[1]
            parts = [part.removeprefix("teacher").removeprefix(".") for part, _ in term.teachers]
            taps += [f"{part}.{tap}" if part and tap == "logits" else tap for part in parts for tap in reads]
        return tuple(dict.fromkeys(taps))

    def grafts(self, given: Spec) -> bool:
        """Whether a loss puts layers of the teacher on the student."""
        return spec.builder("kd_keras.losses", given.name).adapted is not Loss.adapted

    def learns_without_labels(self, term) -> bool:
        """Whether a term means something for an image without a label."""
        reads = self.loss(term.loss).reads_labels
        # A loss of the user's that does not say it: one that hears a teacher can learn from it alone.
        return bool(term.teachers) if reads is None else not reads

    def needs_pretraining(self, given: Spec) -> bool:
        """Whether a loss means nothing before it is pretrained."""
        return self.loss(given).needs_pretraining

    def pretrains(self, given: Spec) -> bool:
        """Whether a loss has something to pretrain."""
        loss = self.loss(given)
        return loss.needs_pretraining or getattr(loss, "pretrains", False)

    def check_voices(self, given: Spec, reads, voices) -> None:
        """Raises InputError where a loss can't be split over parts of a teacher, or reads more than their logits."""
        parts = [part for _, heard in voices for part, _ in heard]
        if all(part == "teacher" for part in parts):
            return
        loss = self.loss(given)
        if self.grafts(given) or loss.needs_pretraining:
            raise InputError(f"{loss.name} takes one whole teacher: give --scheme=offline()")
        if all(part.startswith("teacher.") for part in parts) and tuple(reads) != ("logits",):
            raise InputError(
                f"{loss.name} reads the teacher's {', '.join(reads)}: with features beside them only ensemble("
                "combine='logits') has one teacher's logits"
            )

    def step(self, given: Spec):
        """A compression step."""
        return spec.check_kind(given, spec.build("kd_keras.compress", given), Step)


def _same(value, default) -> bool:
    # True is not 1 here.
    return value is default or (value == default and isinstance(value, bool) == isinstance(default, bool))


def _value(value):
    """A value of a part as a key holds it: nested schedules are bound to their defaults, a constant is its number."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_value, value))
    if not isinstance(value, Spec):
        return value
    if value.name not in schedules.__all__:
        version = foreign.version(value.name, spec.foreign(value.name)) if ":" in value.name else 1
        return Part(
            value.name, {key: _value(inner) for key, inner in value.kwargs.items()}, value.args, version=version
        )
    function = getattr(schedules, value.name)
    named = spec.bind(function, value)
    if value.name == "constant":
        return named["value"]
    defaults = {field.name: field.default for field in dataclasses.fields(function)}
    values = {name: _value(inner) for name, inner in named.items()}
    return Part(value.name, {name: inner for name, inner in values.items() if not _same(inner, defaults[name])})
