"""The settings of a run: each one is declared here once, in the section of the part that reads it.

To add a setting, add a field. `settings` makes its flag, its check, its lines in ``--help`` and its place in records. A
rule that takes two settings is a function in `rules`. No TensorFlow is imported here: ``--help`` has to answer at once.

``affects`` names the stages whose keys a setting changes, and with them those of all stages that are made from these:
the trained models (``teacher``, ``baseline``, ``student``), the compressed students (``compress``), the teacher cache
(``cache``). ``data`` stands for all of them, by the content of the images; ``files`` for which files and further caches
are made and what is measured.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Literal

from kd_keras import spec
from kd_keras.run.rules import RULES
from kd_keras.run.settings import Follows, Section, Settings, follows, help_text, make, read_flags, setting
from kd_keras.schedules import Schedule
from kd_keras.spec import Spec

#: What makes an experiment: a workdir keeps to one value of each setting that affects one of these.
EXPERIMENT = ("teacher", "baseline", "student")
_STUDENTS = ("baseline", "student", "compress")
_TAUGHT = ("student", "compress")
# NumPy takes seeds of 32 bits, and models of an ensemble count up from theirs.
_LARGEST_SEED = 2**31 - 1

Variant = Literal["float32", "float16", "dynamic", "int8", "int8_io", "int16x8"]
section = dataclasses.dataclass(frozen=True)


@section
class Data(Section):
    """Data"""

    source: Spec = setting(
        "digits()",
        "Data set: a spec such as cifar10(folder='…') or folder(path='…').",
        flag="data",
        parts="data",
        affects=("data",),
    )
    train_examples: int | None = setting(
        None,
        "Number of training images to use, drawn evenly over the classes; by default all.",
        minimum=1,
        affects=("teacher", *_STUDENTS),
    )
    labelled_examples: int | None = setting(
        None,
        "Number of training images whose labels student and baseline use, drawn evenly over the classes; the others "
        "are used without. By default all.",
        minimum=1,
        affects=_STUDENTS,
    )
    teacher_labelled_examples: int | None = setting(
        None, "The same for the teacher; by default all.", minimum=1, needs="teacher", affects=("teacher",)
    )
    unlabelled_ratio: float | None = setting(
        None,
        "Images without a label for each one with a label, in every batch; by default as in the data.",
        affects=_TAUGHT,
    )
    # The next three are written into the spec of the data set (rule add_data_options).
    val_fraction: float | None = setting(
        None,
        "Share of the training split to validate on, where the data set has no validation split.",
        affects=("data",),
    )
    image_size: int | tuple[int, int] | None = setting(
        None, "Side of photographs in pixels, or height,width; by default as they are.", affects=("data",)
    )
    skip_bad_images: bool = setting(False, "Skip and list unreadable images instead of stopping.", affects=("data",))
    max_image_pixels: int | None = setting(
        None, "Most pixels of a photograph, by default 100 million; a file that says more is bad.", affects=("data",)
    )
    augment: tuple[Spec, ...] = setting(
        "none",
        "Augmentation of the training split: pad_crop(4) + flip() + mixup(0.2) …",
        parts="data.augment",
        affects=(*_STUDENTS, "cache"),
    )


@section
class Teacher(Section, prefix="teacher_"):
    """Teacher"""

    models: tuple[Spec, ...] = setting(
        "none",
        "Teacher model: a spec such as resnet(depth=50) or saved(path='…'); several, joined by +, are an ensemble.",
        flag="teacher",
        parts="models",
        affects=("teacher",),
    )
    loss: tuple[Spec, ...] = setting(
        "ce()",
        "Losses of the teacher; ce() is bce() where an image has several labels.",
        parts="losses",
        required=True,
        affects=("teacher",),
    )
    # None is --epochs, or 0 for a model that comes trained, which only the plan can tell.
    epochs: int | None = setting(
        None,
        "Epochs of the teacher; by default as --epochs, or 0 for a saved model.",
        minimum=0,
        needs="teacher",
        affects=("teacher",),
    )
    optimizer: Spec = setting(follows("optimizer"), "Optimizer.", parts="optimizers", affects=("teacher",))
    learning_rate: Schedule = setting(follows("learning_rate"), "Learning rate.", affects=("teacher",))
    patience: int | None = setting(
        follows("patience"), "Epochs without a better one that end the training.", minimum=1, affects=("teacher",)
    )
    batch_size: int = setting(follows("batch_size"), "Global batch size.", minimum=1, affects=("teacher",))
    augment: tuple[Spec, ...] = setting(follows("augment"), "Augmentation.", parts="data.augment", affects=("teacher",))
    seed: int = setting(follows("seed"), "Seed.", minimum=0, maximum=_LARGEST_SEED, affects=("teacher",))
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = setting(
        follows("precision"), "Keras' dtype policy.", affects=("teacher",)
    )
    stop_at_val_accuracy: float | None = setting(
        None,
        "Validation accuracy at which training ends; the weights of that step are kept.",
        minimum=0,
        maximum=1,
        needs="teacher",
        affects=("teacher",),
    )
    stop_check_steps: int = setting(
        50,
        "Steps between checks of --teacher_stop_at_val_accuracy; the end of an epoch is checked too.",
        minimum=1,
        needs="teacher_stop_at_val_accuracy",
        affects=("teacher",),
    )
    folders: tuple[pathlib.Path, ...] = setting(
        "none",
        "Workdirs of other runs, one for each teacher: use their trained teachers.",
        flag="teacher_from",
        needs="teacher",
        affects=("teacher",),
    )
    image_size: int | tuple[int, int] | None = setting(
        None,
        "Side of the teacher's images in pixels, or height,width; by default a saved teacher's own, else the data's.",
        needs="teacher",
        affects=("teacher",),
    )
    channels: int | None = setting(
        None,
        "1 for grey or 3 for colour; by default likewise.",
        minimum=1,
        maximum=3,
        needs="teacher",
        affects=("teacher",),
    )
    scaling: Literal["0..255", "0..1", "-1..1", "imagenet", "caffe", "auto"] | None = setting(
        None,
        "What pixels the teacher takes, where its scaling is not inside the model; auto is by the name of a network of "
        "keras.applications.",
        needs="teacher",
        affects=("teacher",),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = setting(
        "auto",
        "Dtype of the copy of the teacher (with batch norm folded) that teaches; auto is the fastest that agrees with "
        "float32; none uses the teacher itself.",
        affects=(*_TAUGHT, "cache"),
    )

    @property
    def by_stage(self) -> dict[str, Spec]:
        """The teachers by stage: ``teacher``, or ``teacher1``, ``teacher2`` … where there are several."""
        if len(self.models) == 1:
            return {"teacher": self.models[0]}
        return {f"teacher{number}": model for number, model in enumerate(self.models, start=1)}


@section
class Student(Section):
    """Student and baseline (the same student trained without a teacher)"""

    model: Spec = setting(
        "cnn()", "Student model: a spec such as resnet(depth=18).", flag="student", parts="models", affects=_STUDENTS
    )
    file: pathlib.Path | None = setting(
        None,
        "A trained student, FILE.keras, taken as it is: nothing is trained but what --compress adds.",
        flag="student_from",
        affects=_TAUGHT,
    )
    freeze: tuple[str, ...] = setting(
        "none",
        "Layers of student and baseline that are not trained, by name; * stands for any letters: stem*,stage1*.",
        affects=_STUDENTS,
    )
    loss: tuple[Spec, ...] = setting(
        "ce(weight=0.1) + kd(weight=0.9, temperature=4.0)",
        "Losses of the student, joined by +.",
        parts="losses",
        required=True,
        affects=_TAUGHT,
    )
    pretrain_epochs: int = setting(
        0, "Epochs of the pretraining that the losses ft, ab and fsp need.", minimum=0, affects=_TAUGHT
    )
    baseline: bool = setting(
        Follows(("student_from",), lambda file: file is None, "on, off with --student_from"),
        "Train the baseline, for comparison.",
        affects=("files",),
    )
    baseline_loss: tuple[Spec, ...] = setting(
        "ce()",
        "Losses of the baseline; ce() is bce() where an image has several labels.",
        parts="losses",
        required=True,
        affects=_STUDENTS,
    )
    baseline_from: pathlib.Path | None = setting(
        None, "Workdir or store of another run: use its baseline, trained with the same settings.", needs="baseline"
    )
    # Written into the specs of all models (rule drop_pretrained).
    pretrained: bool = setting(
        True,
        "Off drops the key pretrained from the spec of every model, for machines without a network.",
        affects=("teacher", *_STUDENTS),
    )


@section
class Training(Section):
    """Training of student and baseline"""

    scheme: Spec = setting("offline()", "Which models are trained, in which order.", parts="schemes", affects=_TAUGHT)
    epochs: int = setting(10, "Epochs.", minimum=1, affects=_STUDENTS, search="x0.5..x2")
    patience: int | None = setting(
        None,
        "Epochs without a better one, on validation data, that end a training; by default none does.",
        minimum=1,
        affects=_STUDENTS,
    )
    batch_size: int = setting(64, "Global batch size, whatever the number of replicas.", minimum=1, affects=_STUDENTS)
    optimizer: Spec = setting(
        "adam()",
        "A Keras optimizer: sgd(momentum=0.9, nesterov=True, weight_decay=5e-4).",
        parts="optimizers",
        affects=_STUDENTS,
    )
    # Written into the optimizers of all trainings (rule add_clipnorm).
    clipnorm: float | None = setting(
        None,
        "Largest norm of each weight's gradient, in all trainings; --optimizer='adam(global_clipnorm=1.0)' is that of "
        "all weights together.",
        affects=("teacher", *_STUDENTS),
    )
    learning_rate: Schedule = setting(
        "0.001",
        "A number or a schedule: warmup(to=cosine(start=0.1), over=5).",
        affects=_STUDENTS,
        search="x0.1..x10 log",
    )
    seed: int = setting(
        0,
        "Seed of initial weights, order, augmentation and dropout.",
        minimum=0,
        maximum=_LARGEST_SEED,
        affects=(*_STUDENTS, "files"),
    )


@section
class Cache(Section, prefix="cache_"):
    """Teacher cache"""

    views: int = setting(
        0,
        "Number of augmented views of each image for which the teacher's outputs are cached; 0 runs the teacher in "
        "every step.",
        minimum=0,
        affects=(*_STUDENTS, "cache"),
    )
    taps: tuple[str, ...] = setting(
        "none",
        "Taps to cache in addition to those that the losses read: pooled,stage3.",
        needs="cache_views",
        affects=("files",),
    )
    dtype: Literal["float16", "float32"] = setting(
        "float16", "Dtype of the cached outputs.", needs="cache_views", affects=(*_TAUGHT, "cache")
    )
    top_k: int | None = setting(
        None,
        "Cache only the k largest logits and the sum of the rest; by default all.",
        minimum=1,
        needs="cache_views",
        affects=(*_TAUGHT, "cache"),
    )
    seed: int = setting(
        0,
        "Seed of the views, so that runs with several seeds share a cache.",
        minimum=0,
        maximum=_LARGEST_SEED,
        needs="cache_views",
        affects=(*_STUDENTS, "cache"),
    )
    limit_gb: float = setting(20.0, "Gigabytes that the cache may take.", minimum=0)
    folder: pathlib.Path | None = setting(None, "Folder of the cache; by default in the store.")


@section
class Hardware(Section):
    """Hardware"""

    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = setting(
        "float32", "Keras' dtype policy; auto is the fastest on this machine.", affects=_STUDENTS
    )
    strategy: Literal["auto", "one", "mirrored", "multi_worker"] = setting(
        "auto",
        "One device, one replica on each local device, or the machines of TF_CONFIG; auto mirrors over several GPUs.",
    )
    worker_timeout: int = setting(600, "Seconds to wait until all machines have started.", minimum=1)
    deterministic: bool = setting(False, "Make GPU operations repeatable to the bit (slower; CPUs always are).")
    jit_compile: Literal["auto", "true", "false"] = setting(
        "auto", "Whether XLA compiles the step; auto is yes on one GPU, no on a CPU or on several devices."
    )
    steps_per_execution: int | None = setting(
        None, "Steps in one compiled call; by default 1, on a GPU more.", minimum=1
    )
    threads: int | None = setting(None, "CPU threads; by default one for each core.", minimum=1)


@section
class Export(Section):
    """Export to TFLite"""

    variants: tuple[Variant, ...] = setting(
        "float32,float16,dynamic,int8", "TFLite files of the student, or none.", flag="export", affects=("files",)
    )
    beside: tuple[Literal["teacher", "baseline"], ...] = setting(
        "none",
        "Other models to export in float32, so that all run in one runtime.",
        flag="export_beside",
        affects=("files",),
    )
    keep_float: tuple[str, ...] = setting(
        "none", "Layers that stay in float32 in the student's int8 file: stage1,logits.", affects=("files",)
    )
    layer_report: bool = setting(
        False, "Measure the error of each layer of the student's int8 file.", affects=("files",)
    )
    licence: str | None = setting(None, "Licence of the student that MODEL_CARD.md states.", flag="licence")
    max_accuracy_drop: float = setting(
        0.02,
        "Mark a TFLite file whose test accuracy is lower than its Keras model's by more than this.",
        minimum=0,
        maximum=1,
    )


@section
class Compress(Section, prefix="compress_"):
    """Compression"""

    pipelines: tuple[tuple[Spec, ...], ...] = setting(
        "none",
        "Compression steps joined by +, in the order prune(), cluster(), qat(); several pipelines are separated by ;.",
        flag="compress",
        parts="compress",
        affects=("compress",),
    )
    loss: tuple[Spec, ...] = setting(
        follows("loss"),
        "Losses of a student during compression.",
        parts="losses",
        required=True,
        needs="compress",
        affects=("compress",),
    )
    controls: tuple[Literal["untaught", "baseline"], ...] = setting(
        "none",
        "What else is compressed, with --baseline_loss, for comparison: the same student (untaught), the baseline "
        "(baseline).",
        needs="compress",
        affects=("files",),
    )
    epochs: int = setting(
        Follows(("epochs",), lambda epochs: max(1, epochs // 5), "a fifth of --epochs"),
        "Epochs of each step.",
        minimum=1,
        needs="compress",
        affects=("compress",),
    )
    optimizer: Spec = setting(
        follows("optimizer"), "Optimizer.", parts="optimizers", needs="compress", affects=("compress",)
    )
    learning_rate: Schedule = setting(
        follows("learning_rate"), "Learning rate.", needs="compress", affects=("compress",)
    )
    export: tuple[Variant, ...] = setting(
        "int8",
        "TFLite files of a compressed student; one that ends in qat() can be int8 or int8_io only.",
        needs="compress",
        affects=("files",),
    )


@section
class Tracking(Section, prefix="tracking_"):
    """Tracking"""

    tracker: Literal["mlflow", "tensorboard", "wandb", "none"] = setting(
        "mlflow", "Where settings, metrics and files are logged.", flag="tracking"
    )
    uri: str | None = setting(
        None,
        "MLflow server or store, by default an SQLite file in --workdir; TensorBoard's folder; server of Weights & "
        "Biases.",
    )
    experiment: str = setting("kd_keras", "The study: MLflow's experiment, the project.", flag="experiment")
    run_name: str | None = setting(
        None, "Name of the run; by default of teacher, student, losses and seed.", flag="run_name"
    )
    system_metrics: bool = setting(False, "Log the use of processors, memory and GPUs.")


@section
class Run(Section):
    """Run"""

    workdir: pathlib.Path | None = setting(
        None, "Folder of all files; by default runs/<flagfile's name>-<hash of the settings>."
    )
    store: pathlib.Path | None = setting(
        Follows(("workdir",), lambda workdir: workdir and workdir / "store", "store in --workdir"),
        "Folder of the finished stages; runs that share it train each model once.",
    )
    allow_code_in: tuple[pathlib.Path, ...] = setting(
        "none",
        "Files of models whose code may run, FILE,FILE: .keras with Python functions, .h5, a folder with a SavedModel.",
    )
    wait: bool = setting(False, "Wait while another run uses the workdir, instead of stopping.")
    dry_run: Literal["false", "true", "time"] = setting(
        "false", "Print the plan and train nothing; =time also times two steps of each training."
    )
    progress: Literal["auto", "none"] = setting(
        "auto", "Progress; auto shows bars on a terminal or in a notebook, and a line for each epoch in a log."
    )


@section
class Config(Settings):
    """All settings of a run. A part of kd_keras is handed its section, never the whole."""

    data: Data = dataclasses.field(default_factory=Data)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    student: Student = dataclasses.field(default_factory=Student)
    training: Training = dataclasses.field(default_factory=Training)
    cache: Cache = dataclasses.field(default_factory=Cache)
    hardware: Hardware = dataclasses.field(default_factory=Hardware)
    export: Export = dataclasses.field(default_factory=Export)
    compress: Compress = dataclasses.field(default_factory=Compress)
    tracking: Tracking = dataclasses.field(default_factory=Tracking)
    run: Run = dataclasses.field(default_factory=Run)

    rules = RULES


def read(argv: list[str]) -> Config:
    """Reads the command line.

    Args:
        argv: as `sys.argv`, the program's name first.

    Raises:
        InputError: an unknown flag, or a value that is not accepted; the message names the flag.
    """
    texts, flagfile = read_flags(Config, argv)
    _quote_folder(texts)
    config = make(Config, texts)
    if config.run.workdir is None:
        name = flagfile.stem if flagfile else "run"
        config = make(Config, {**texts, "workdir": f"runs/{name}-{digest(config)}"})
    return config


def digest(config: Config) -> str:
    """Returns eight hexadecimal digits that differ where the experiments do."""
    texts = config.affecting("data", *EXPERIMENT)
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:8]


def _quote_folder(texts: dict[str, str]) -> None:
    """Puts the folder of a single teacher in quotes, as a single one may have commas without them."""
    text = texts.get("teacher_from", "none").strip()
    if text not in ("", "none") and '"' not in text and len(spec.parse_many(texts.get("teacher", "none"))) == 1:
        texts["teacher_from"] = f'"{text}"'


def help_page() -> str:
    """Returns what ``--help`` prints: every flag by section, and the names of all parts."""
    packages = {
        "Losses": "losses",
        "Models": "models",
        "Data sets": "data",
        "Schemes": "schemes",
        "Compression steps": "compress",
        "Schedules": "schedules",
    }
    parts = [f"{title}: {', '.join(spec.names(f'kd_keras.{name}'))}" for title, name in packages.items()]
    return "\n".join(
        [
            "Trains a teacher, a student and a baseline; measures, exports and tracks them.",
            "",
            "  python -m kd_keras.run --flagfile=experiments/digits.flags [--flag=value …]",
            "",
            help_text(Config),
            "",
            *parts,
        ]
    )
