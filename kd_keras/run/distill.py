"""Distillation from Python: the plan and the runner of the command line, with models and images in memory."""

import contextlib
import html
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from rich.console import Console

from kd_keras import data as datasets
from kd_keras import files
from kd_keras._compat.keras import all_layers
from kd_keras.data.carving import carve
from kd_keras.data.missing_labels import labelled_rows
from kd_keras.errors import InputError
from kd_keras.models.saved import load
from kd_keras.run import config as configuration
from kd_keras.run.report import figures, tables
from kd_keras.run.report.results import Results
from kd_keras.run.runner import Runner, plan_of
from kd_keras.run.session import Session
from kd_keras.run.settings import declared, make
from kd_keras.run.store import Store
from kd_keras.schemes.plan import Export

# What only a run of the command line has.
_FOREIGN = ("data", "val_fraction", "image_size", "skip_bad_images", "workdir", "wait", "dry_run", "progress")
_FOREIGN += ("tracking", "tracking_uri", "experiment", "allow_code_in")
_HELD_OUT = 0.1


def distill(
    student: keras.Model | str,
    teacher: keras.Model | str | None = None,
    train: Any = "digits()",
    val: Any = None,
    test: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    store: Any = None,
    verbose: bool = True,
    **settings: Any,
) -> "Result":
    """Trains a teacher, a student and a baseline (the student without a teacher), and measures them.

    It does what ``python -m kd_keras.run`` does with the same settings. The models that are given are left as they are:
    copies are trained. Keras' global seed is set.

        result = kd_keras.distill("cnn(filters=(4, 8))", "cnn()", (x, y), epochs=10, loss="ce() + kd(weight=9)")
        print(result)
        result.export("int8", "student.tflite")

    Args:
        student: a Keras model, whose weights training starts from; or a spec such as ``"resnet(depth=8)"``.
        teacher: a trained Keras model, or a spec; a model is trained only where ``teacher_epochs`` is given. None
            trains the student by its labels alone.
        train: images uint8 (N, H, W, C) in 0…255 and labels, (N,) classes or (N, K) of 0 and 1; −1 is no label. Or a
            `kd_keras.data.Source`, `kd_keras.data.Splits`, or the spec of a data set, which hold the other splits too.
        val, test: likewise, images to choose the best epoch by, and images that are read once, at the end. What is not
            given is a stratified tenth of ``train``, which is then not trained on.
        class_names: K names; by default 0, 1, 2 …
        store: folder of the finished stages: the same call again trains nothing that is there. By default a temporary
            folder, which is deleted with the result.
        verbose: whether a line is printed for each finished stage.
        **settings: any setting of ``python -m kd_keras.run --help`` by its flag's name, as text or in Python:
            ``epochs=20``, ``scheme="mutual()"``, ``compress="qat()"``.

    Raises:
        InputError: a setting is unknown or refused, or models and data do not fit; nothing was trained.
    """
    temporary = tempfile.TemporaryDirectory(prefix="kd_keras-")
    folder = pathlib.Path(temporary.name)
    models = {"student": student, **({} if teacher is None else {"teacher": teacher})}
    given = {role: model for role, model in models.items() if isinstance(model, keras.Model)}
    texts = _texts(settings)
    texts |= {role: _saved(role, model, folder) if role in given else str(model) for role, model in models.items()}
    names = {str(folder / f"{role}.keras"): model.name for role, model in given.items()}
    is_spec = isinstance(train, str)
    texts |= {"workdir": str(folder), "tracking": "none", "data": train if is_spec else f"{__name__}:in_memory()"}
    texts["store"] = str(pathlib.Path(store).expanduser().absolute() if store is not None else folder / "store")
    texts["allow_code_in"] = ",".join(f'"{folder / role}.keras"' for role in given) or "none"
    if teacher is None:
        texts.setdefault("loss", texts.get("baseline_loss", "ce()"))
        texts.setdefault("baseline", "false")
    splits = None if is_spec else _splits(train, val, test, class_names)
    if is_spec and (val is not None or test is not None):
        raise InputError(f"train={train!r} has splits of its own: leave val and test out")
    work = Work(texts, splits, verbose, _custom_classes(given.values()))
    work.run()
    return Result(work, names, temporary)


def in_memory() -> datasets.Splits:
    """Stands for data that are handed to `distill`."""
    raise InputError("images in memory are handed to kd_keras.distill, and are not read by the command line")


class Work:
    """One plan and what runs it.

    Args:
        texts: settings by flag.
        splits: the data, where they are not what ``data`` names.
        verbose: whether lines are printed.
        classes: of models and layers that Keras does not know, by name.
    """

    def __init__(
        self, texts: dict[str, str], splits=None, verbose: bool = True, classes: dict[str, type] | None = None
    ):
        self.texts, self.splits, self.verbose, self._classes = texts, splits, verbose, classes or {}
        self.config = make(configuration.Config, texts)
        with self.settled():
            self.session = Session(self.config, None if verbose else Console(quiet=True), splits=splits)
            self.splits = self.session.splits
            self.store = Store(self.config.run.store, self.config.cache.folder, self.session.made_by)
            self.plan = plan_of(self.config, self.session.facts)
            self.runner = Runner(self.plan, self.session, self.store)

    def run(self, stages=None) -> None:
        """Checks the plan, then makes what is not in the store."""
        with self.settled():
            self.runner.check()
            self.runner.run(stages)

    def load(self, stage) -> keras.Model:
        """The model of a finished stage."""
        with self.settled():
            return load(self.store.folder(stage) / "model.keras", allow_code=True)

    def again(self, **texts: str) -> "Work":
        """The same with other settings, on the same data and store."""
        return Work({**self.texts, **texts}, self.splits, self.verbose, self._classes)

    @contextlib.contextmanager
    def settled(self):
        """Leaves Keras' settings as they were; models' own classes are known inside."""
        policy, is_interactive = keras.config.dtype_policy(), keras.config.is_interactive_logging_enabled()
        try:
            with keras.saving.custom_object_scope(self._classes):
                yield
        finally:
            keras.config.set_dtype_policy(policy)
            if is_interactive:
                keras.config.enable_interactive_logging()


class Result:
    """What `distill` made.

    Attributes:
        table: a dict for each model, with the columns of results.json: ``role``, ``test_accuracy``, ``parameters``,
            ``latency_ms_median`` …
        notes: sentences that the table needs to be read, how much better the student is than the baseline first.
        history: each trained model's curves by its role, a list with a value for each epoch.
        names: of the models, for `model` and `export`.
    """

    def __init__(self, work: Work, names: dict[str, str], temporary: tempfile.TemporaryDirectory):
        self._work, self._temporary = work, temporary
        results = Results(work.plan, work.session, work.store)
        rows = results.rows()
        self.table = []
        for row in rows:
            text = row["architecture"]
            of_objects = [name for path, name in names.items() if path in text]
            self.table.append({**row, "architecture": of_objects[0] if of_objects else text})
        self.notes, self.history = results.notes(rows), results.series()
        self._stages = {stage.name: stage for stage in (*work.plan.models, *work.plan.compressed) if stage.name}
        self.names = tuple(self._stages)

    def model(self, name: str) -> keras.Model:
        """A trained model: ``student``, ``baseline``, ``teacher``, or another of `names`.

        Raises:
            InputError: there is none of that name.
        """
        return self._work.load(self._stage(name))

    @property
    def student(self) -> keras.Model:
        """The distilled student."""
        return self.model(self._work.plan.students[0].name)

    @property
    def baseline(self) -> keras.Model:
        """The student trained without a teacher."""
        return self.model("baseline")

    @property
    def teacher(self) -> keras.Model:
        """The teacher."""
        return self.model("teacher")

    def plot(self):
        """The curves of loss and accuracy, a `matplotlib.figure.Figure`."""
        return figures.curves_figure(self.history)

    def export(self, variant: str, path: Any, model: str | None = None) -> pathlib.Path:
        """Writes a TFLite file, as ``--export`` does.

        Args:
            variant: ``float32``, ``float16``, ``dynamic``, ``int8``, ``int8_io`` or ``int16x8``.
            path: the file.
            model: which of `names`; by default the student.

        Returns:
            The path.

        Raises:
            InputError: the model can't be converted, or is not one that a run exports.
        """
        stage = self._work.plan.students[0] if model is None else self._stage(model)
        texts = {"export": variant}
        if stage in self._work.plan.compressed:
            texts = {"compress_export": variant}
        elif stage.name in ("teacher", "baseline"):
            texts["export_beside"] = stage.name
        work = self._work.again(**texts)
        # By name: the file of a compressed model is made of the stage that trained it in its wrappers.
        found = [s for s in work.plan.stages if isinstance(s, Export) and s.name == f"{stage.name}_{variant}"]
        if not found:
            raise InputError(f"no {variant} file can be made of {stage.name}: name another of {', '.join(self.names)}")
        work.run(found)
        record = work.store.record(found[0])
        if "refused" in record:
            raise InputError(record["refused"])
        path = pathlib.Path(path).expanduser()
        files.copy(work.store.folder(found[0]) / "model.tflite", path)
        return path

    def _stage(self, name: str):
        if name not in self._stages:
            raise InputError(f"there is no model {name!r}: there are {', '.join(self.names)}")
        return self._stages[name]

    def __str__(self) -> str:
        console = Console(width=max(shutil.get_terminal_size().columns, tables.PIPED_WIDTH), color_system=None)
        with console.capture() as page:
            tables.print_table(self.table, console, caption="\n".join(self.notes))
        return page.get()

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        columns = [column for group in tables.columns(self.table) for column in group]
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading, _ in columns)
        rows = zip(*(cells for _, cells in columns), strict=True)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    """Settings by flag as texts, each checked."""
    known = {flag: setting for flag, setting in declared(configuration.Config).items() if flag not in _FOREIGN}
    texts = {"export": "none"}
    for flag, value in settings.items():
        if flag not in known:
            raise InputError(f"distill() has no setting {flag!r}: known are {', '.join(known)}")
        setting = known[flag]
        if value is None or isinstance(value, (str, bool, int, float)):
            value = str(value).lower() if value is None or isinstance(value, bool) else str(value)
        texts[flag] = setting.kind.text(setting.read(value))
    return texts


def _saved(role: str, model: keras.Model, folder: pathlib.Path) -> str:
    """The spec of a model, which is saved for it."""
    path = folder / f"{role}.keras"
    try:
        model.save(path)
        with keras.saving.custom_object_scope(_custom_classes([model])):
            load(path, allow_code=True)
    # Layers of the user's may raise anything when they are saved and read.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the {role} {model.name!r} can't be saved and read again, which distill() does to leave it as it is "
            f"({reason}): give its layers get_config(), or train with a kd_keras.Distiller"
        ) from error
    return f"saved(path={str(path)!r})"


def _custom_classes(models) -> dict[str, type]:
    """The classes of models and layers that are not Keras' own, by name."""
    layers = [layer for model in models for layer in all_layers(model)]
    return {type(layer).__name__: type(layer) for layer in layers if not type(layer).__module__.startswith("keras.")}


def _splits(train, val, test, class_names) -> datasets.Splits:
    """Data in memory as splits."""
    if isinstance(train, datasets.Splits):
        if val is not None or test is not None or class_names is not None:
            raise InputError("train is Splits, which have all splits and names: leave val, test and class_names out")
        return train
    sources = {name: _source(name, value) for name, value in (("train", train), ("val", val), ("test", test))}
    unlabelled = None
    if len(rows := labelled_rows(sources["train"])) < len(sources["train"]):
        whole = sources["train"]
        unlabelled = whole.subset(np.setdiff1d(np.arange(len(whole)), rows))
        sources["train"] = whole.subset(rows)
    count = len(sources["train"])
    for seed, name in enumerate(name for name, source in sources.items() if source is None):
        whole = sources["train"]
        kept, held_out = carve(whole.labels, _HELD_OUT * count / len(whole), seed)
        sources |= {"train": whole.subset(kept), name: whole.subset(held_out)}
    train = sources["train"]
    for name in ("val", "test"):
        source = sources[name]
        if source.image_shape != train.image_shape or source.labels.shape[1:] != train.labels.shape[1:]:
            raise InputError(
                f"{name} has images {source.image_shape} and labels {source.labels.shape}, train {train.image_shape} "
                f"and {train.labels.shape}: give splits of one form"
            )
    if train.labels.ndim == 2:
        count = train.labels.shape[1]
    else:
        count = int(max(source.labels.max() for source in sources.values())) + 1
    class_names = tuple(map(str, range(count))) if class_names is None else tuple(class_names)
    if len(class_names) < count:
        raise InputError(f"class_names has {len(class_names)} names, and the labels {count} classes: name each class")
    return datasets.Splits(**sources, class_names=class_names, image_shape=train.image_shape, unlabelled=unlabelled)


def _source(name: str, value: Any) -> datasets.Source | None:
    if value is None or isinstance(value, datasets.Source):
        return value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(
            f"{name} is {type(value).__name__}: give (images, labels) as arrays, a kd_keras.data.Source, or the spec "
            "of a data set"
        )
    images, labels = map(np.asarray, value)
    return datasets.ArraySource(images[..., None] if images.ndim == 3 else images, labels)
