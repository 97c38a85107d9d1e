"""Every flag of the command line, every check across flags, and the frozen `Config` that they resolve to.

Flags come from absl, so ``--flagfile=experiments/digits.flags`` works, and what follows it replaces what it says.
No TensorFlow is imported here: ``--help`` has to answer at once.
"""

import csv
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence

from absl import flags

from kd_keras import files, schedules, spec
from kd_keras.errors import InputError
from kd_keras.export.variants import VARIANTS
from kd_keras.spec import Spec

# Flags of our own, so that those of other packages are neither shown nor taken.
FLAGS = flags.FlagValues()
_PACKAGES = {"data": "data", "student": "models", "scheme": "schemes"}
_COMMON_VARIANTS = ("float32", "float16", "dynamic", "int8")
_RECORD = "config.json"
#: Fields that change neither what is trained nor what is measured.
_BESIDE = (
    "workdir",
    "cache_folder",
    "cache_limit_gb",
    "tracking",
    "tracking_uri",
    "experiment",
    "progress",
    "flagfile",
    "worker_timeout",
)
#: What can be compressed beside the student.
CONTROLS = ("untaught", "baseline")
#: What becomes a TFLite file beside the student.
BESIDE_THE_STUDENT = ("teacher", "baseline")
#: Fields of the files that are made of finished models, which can be made again.
OF_THE_FILES = ("export", "export_beside", "keep_float", "layer_report", "compress_export", "max_accuracy_drop")


def _define(kind, name, default, text, **kwargs):
    getattr(flags, f"DEFINE_{kind}")(name, default, help=text, flag_values=FLAGS, **kwargs)


_define("string", "data", "digits()", "Data set: a spec such as cifar10(folder='…') or folder(path='…').")
_define(
    "string",
    "teacher",
    "none",
    "Teacher model: a spec such as resnet(depth=50) or saved(path='…'); for an ensemble several, joined by +.",
)
_define("string", "student", "cnn()", "Student model: a spec such as resnet(depth=18).")
_define("string", "loss", "ce(weight=0.1) + kd(weight=0.9, temperature=4.0)", "The student's losses, joined by +.")
_define("string", "teacher_loss", "ce()", "The teacher's losses.")
_define("string", "baseline_loss", "ce()", "The losses of the student trained without a teacher.")
_define("string", "scheme", "offline()", "Which models are trained in which order.")
_define("bool", "baseline", True, "Whether to train the same student without a teacher, for comparison.")
_define(
    "bool",
    "pretrained",
    True,
    "Off drops the key pretrained from every model's spec, for machines without a network.",
)
_define("integer", "epochs", 10, "Epochs of student and baseline.", lower_bound=1)
_define(
    "integer",
    "teacher_epochs",
    None,
    "Epochs of the teacher; by default as --epochs, or 0 for a saved model.",
    lower_bound=0,
)
_define(
    "integer",
    "pretrain_epochs",
    0,
    "Epochs of what the losses train ahead: ft's paraphraser, the student by ab or fsp alone.",
    lower_bound=0,
)
_define("integer", "batch_size", 64, "Global batch size, whatever the number of replicas.", lower_bound=1)
_define("string", "optimizer", "adam()", "A Keras optimizer: sgd(momentum=0.9, nesterov=True, weight_decay=5e-4).")
_define("string", "teacher_optimizer", None, "The teacher's; by default as --optimizer.")
_define("string", "learning_rate", "0.001", "A number or a schedule: warmup(to=cosine(start=0.1), over=5).")
_define("string", "teacher_learning_rate", None, "The teacher's; by default as --learning_rate.")
_define("string", "augment", "none", "Augmentation of the training split: pad_crop(4) + flip() + mixup(0.2) …")
_define("integer", "seed", 0, "Seed of initial weights, order, augmentation and dropout.", lower_bound=0)
_define(
    "integer", "train_examples", None, "Train on so many images only, drawn evenly over the classes.", lower_bound=1
)
_define("float", "val_fraction", None, "Share of the training split to validate on, where the data set has none.")
_define("string", "image_size", None, "Side of photographs in pixels, or height,width; none leaves them as they are.")
_define("bool", "skip_bad_images", False, "Leave out images that can't be read, naming them, instead of stopping.")
_define(
    "enum",
    "precision",
    "float32",
    "Keras' dtype policy; auto is what the machine trains fastest in.",
    enum_values=["auto", "float32", "mixed_float16", "mixed_bfloat16"],
)
_define(
    "enum",
    "teacher_dtype",
    "auto",
    "What a copy of the teacher, batch norm folded, computes in; auto is what the machine is fastest in, if it agrees "
    "with float32; none takes the teacher as it is.",
    enum_values=["auto", "none", "float32", "bfloat16", "float16"],
)
_define(
    "float",
    "teacher_stop_at_val_accuracy",
    None,
    "End the teacher's training once its validation accuracy is at least this; the weights of that step are kept.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_define(
    "integer",
    "teacher_stop_check_steps",
    50,
    "Steps between checks of --teacher_stop_at_val_accuracy; the end of an epoch is checked too.",
    lower_bound=1,
)
_define(
    "string",
    "teacher_from",
    None,
    "Other runs' workdirs, one a teacher, joined by commas: take their finished teachers, and what was measured.",
)
_define(
    "string",
    "baseline_from",
    None,
    "Another run's workdir: take its finished student without a teacher, and what was measured of it.",
)
_define(
    "integer",
    "cache_views",
    0,
    "Keep the teacher's outputs for so many augmented views of each image; 0 runs the teacher in each step.",
    lower_bound=0,
)
_define("list", "cache_taps", [], "Taps to keep beside those that the losses read, for other runs: pooled,stage3.")
_define("enum", "cache_dtype", "float16", "What the teacher's outputs are kept in.", enum_values=["float16", "float32"])
_define("integer", "cache_top_k", None, "Keep only the largest k logits, and the others' mass.", lower_bound=1)
_define("integer", "cache_seed", 0, "Seed of the views, so that runs of several seeds share a cache.", lower_bound=0)
_define("float", "cache_limit_gb", 20.0, "Gigabytes that the teacher cache may take.", lower_bound=0.0)
_define("string", "cache_folder", None, "The cache's root; by default in --workdir, or in --teacher_from if it is one.")
_define(
    "enum",
    "strategy",
    "auto",
    "One device, one replica on each local one, or the machines of TF_CONFIG; auto mirrors over several GPUs.",
    enum_values=["auto", "one", "mirrored", "multi_worker"],
)
_define("integer", "worker_timeout", 600, "Seconds to wait until all machines have started.", lower_bound=1)
_define("bool", "deterministic", False, "Make GPU operations repeat to the bit as well (slower; CPUs do anyway).")
_define(
    "enum",
    "jit_compile",
    "auto",
    "Whether XLA compiles the step; auto is yes on a GPU, no on a CPU or on several devices.",
    enum_values=["auto", "true", "false"],
)
_define(
    "integer", "steps_per_execution", None, "Steps in one compiled call; by default 1, on a GPU more.", lower_bound=1
)
_define("integer", "threads", None, "CPU threads; by default as many as there are cores.", lower_bound=1)
_define(
    "string", "export", ",".join(_COMMON_VARIANTS), f"TFLite files of the student, of {', '.join(VARIANTS)}; or none."
)
_define(
    "list",
    "export_beside",
    [],
    "Models that become a float32 TFLite file too, so that all run in one runtime: teacher, baseline.",
)
_define("list", "keep_float", [], "Layers that stay in float32 in the int8 file of --export: stage1,logits.")
_define("bool", "layer_report", False, "Measure what each layer of the student's int8 file loses: *_int8_layers.csv.")
_define(
    "string",
    "compress",
    "none",
    "Ways to make the student smaller as it learns on, chained by +, in the order prune(), cluster(), qat(); several "
    "chains are separated by ;.",
)
_define("string", "compress_loss", None, "The losses of a student that is compressed; by default as --loss.")
_define(
    "list",
    "compress_controls",
    [],
    "What is compressed beside it by --baseline_loss, to compare: the same student (untaught), the student that never "
    "had a teacher (baseline).",
)
_define("integer", "compress_epochs", None, "Epochs of each way; by default a fifth of --epochs.", lower_bound=1)
_define("string", "compress_optimizer", None, "The optimizer of each way; by default as --optimizer.")
_define("string", "compress_learning_rate", None, "Its learning rate; by default as --learning_rate.")
_define(
    "string",
    "compress_export",
    "int8",
    "TFLite files of a compressed student; one that ends in qat() is int8 or int8_io only.",
)
_define(
    "float",
    "max_accuracy_drop",
    0.02,
    "Mark a TFLite file whose test accuracy is lower than its Keras model's by more than this.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_define("string", "workdir", None, "Where everything goes; by default runs/<flagfile's name>-<hash of the flags>.")
_define("enum", "tracking", "mlflow", "Where metrics and artefacts are logged.", enum_values=["mlflow", "none"])
_define("string", "tracking_uri", None, "An MLflow server or store; by default sqlite under --workdir.")
_define("string", "experiment", "kd_keras", "MLflow experiment.")
_define("enum", "progress", "auto", "Live progress; auto shows it on a terminal.", enum_values=["auto", "none"])


@dataclasses.dataclass(frozen=True)
class Config:
    """The resolved flags: specs are parsed, and what the teacher shares with the student is filled in.

    See `FLAGS` (``--help``) for what each field means.
    """

    data: Spec
    teacher: tuple[Spec, ...]
    student: Spec
    loss: tuple[Spec, ...]
    teacher_loss: tuple[Spec, ...]
    baseline_loss: tuple[Spec, ...]
    scheme: Spec
    baseline: bool
    epochs: int
    teacher_epochs: int | None
    pretrain_epochs: int
    batch_size: int
    optimizer: Spec
    teacher_optimizer: Spec
    learning_rate: schedules.Schedule
    teacher_learning_rate: schedules.Schedule
    augment: tuple[Spec, ...]
    seed: int
    train_examples: int | None
    precision: str
    teacher_dtype: str | None
    teacher_stop_at_val_accuracy: float | None
    teacher_stop_check_steps: int
    teacher_from: tuple[pathlib.Path, ...]
    baseline_from: pathlib.Path | None
    cache_views: int
    cache_taps: tuple[str, ...]
    cache_dtype: str
    cache_top_k: int | None
    cache_seed: int
    cache_limit_gb: float
    cache_folder: pathlib.Path
    strategy: str
    worker_timeout: int
    deterministic: bool
    jit_compile: str
    steps_per_execution: int | None
    threads: int | None
    export: tuple[str, ...]
    export_beside: tuple[str, ...]
    keep_float: tuple[str, ...]
    layer_report: bool
    compress: tuple[tuple[Spec, ...], ...]
    compress_loss: tuple[Spec, ...]
    compress_controls: tuple[str, ...]
    compress_epochs: int
    compress_optimizer: Spec
    compress_learning_rate: schedules.Schedule
    compress_export: tuple[str, ...]
    max_accuracy_drop: float
    workdir: pathlib.Path
    tracking: str
    tracking_uri: str | None
    experiment: str
    progress: str
    flagfile: str | None

    @property
    def teachers(self) -> dict[str, Spec]:
        """The teachers by their stage: ``teacher``, or ``teacher1``, ``teacher2`` … where there are several."""
        if len(self.teacher) == 1:
            return {"teacher": self.teacher[0]}
        return {f"teacher{number}": one for number, one in enumerate(self.teacher, start=1)}

    def resolved(self) -> dict[str, str]:
        """Every field as text, such as a flag would take it."""
        return {field.name: _text(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def identity(self) -> dict[str, str]:
        """The fields that the trained models depend on."""
        return {
            key: value
            for key, value in self.resolved().items()
            if key not in (*_BESIDE, *OF_THE_FILES) and (self.compress or not key.startswith("compress"))
        }


def _text(value) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return "; ".join(map(_text, value))
    if isinstance(value, tuple):
        return (" + " if value and isinstance(value[0], Spec) else ",").join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def help_text() -> str:
    """What ``--help`` prints: every flag, and the known losses, models, data sets and schemes."""
    lines = [
        "Trains a teacher, a student and the same student without a teacher; measures, exports and tracks them.",
        "",
        "  python -m kd_keras.run --flagfile=experiments/digits.flags [--flag=value …]",
        "",
        "Flags:",
    ]
    for name in FLAGS:
        flag = FLAGS[name]
        default = "" if flag.default is None else f" [{flag.default}]"
        lines.append(f"  --{name}{default}\n      {flag.help}")
    lines.append("")
    for title, package in (
        ("Losses", "losses"),
        ("Models", "models"),
        ("Data sets", "data"),
        ("Schemes", "schemes"),
        ("Ways to compress", "compress"),
        ("Schedules", "schedules"),
    ):
        lines.append(f"{title}: {', '.join(spec.names(f'kd_keras.{package}'))}")
    return "\n".join(lines)


def read(argv: list[str]) -> Config:
    """Reads the command line.

    Args:
        argv: as `sys.argv`, the program's name first.

    Raises:
        InputError: an unknown flag, a value that can't be, a file that is not there, an unknown name.
    """
    FLAGS.unparse_flags()
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: every setting is a flag, --name=value")
    return _resolve(FLAGS.flag_values_dict(), _flagfile(argv))


def _flagfile(argv):
    files = [
        arg.partition("=")[2] or following
        for arg, following in zip(argv, [*argv[1:], ""], strict=True)
        if arg.lstrip("-").partition("=")[0] == "flagfile"
    ]
    return files[-1] if files else None


def _resolve(values: dict, flagfile: str | None) -> Config:
    for name, value in values.items():
        # It passes every check of a range, as no comparison with it is true.
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"--{name}={value}: give a number")
    known = {}
    for name in ("data", "student", "scheme"):
        known[name] = _one(name, values[name])
    known["teacher"] = _teachers(values["teacher"])
    if not values["pretrained"]:
        known |= {name: _without_pretrained(known[name]) for name in ("teacher", "student", "scheme")}
    for name in ("loss", "teacher_loss", "baseline_loss"):
        known[name] = _losses(name, values[name])
    own = values["compress_loss"]
    known["compress_loss"] = known["loss"] if own is None else _losses("compress_loss", own)
    known["data"] = _data_options(known["data"], values)
    known["augment"] = tuple(spec.parse_many(values["augment"]))
    for name in ("optimizer", "learning_rate"):
        text = values[name]
        parse = spec.parse if name == "optimizer" else _learning_rate
        known[name] = parse(text)
        for who in ("teacher", "compress"):
            own = values[f"{who}_{name}"]
            known[f"{who}_{name}"] = known[name] if own is None else parse(own)
    for name in ("cache_taps", "cache_dtype", "cache_top_k", "cache_seed"):
        if not values["cache_views"] and FLAGS[name].present:
            raise InputError(f"--{name} has no effect without --cache_views: give the number of views")
    known["export"] = _variants("export", values["export"])
    known["export_beside"] = _beside(values, known["teacher"])
    known["keep_float"] = _names(values["keep_float"])
    for name in ("keep_float", "layer_report"):
        if {**values, **known}[name] and "int8" not in known["export"]:
            raise InputError(f"--{name} is of the int8 file: add it to --export")
    known |= _compression(values)
    known["teacher_dtype"] = None if values["teacher_dtype"] == "none" else values["teacher_dtype"]
    known["cache_taps"] = _names(values["cache_taps"])
    known["teacher_from"] = _folders(values["teacher_from"], len(known["teacher"]))
    lender = values["baseline_from"]
    known["baseline_from"] = None if lender is None else pathlib.Path(lender).absolute()
    _check_teacher_flags(known, values)
    if lender is not None and not values["baseline"]:
        raise InputError(f"--baseline_from={lender} but --nobaseline: leave one of them out")
    same = {f.name: values[f.name] for f in dataclasses.fields(Config) if f.name in values and f.name not in known}
    config = Config(**known, **{**same, "workdir": None}, flagfile=flagfile)
    workdir = _workdir(values["workdir"], config)
    if values["cache_folder"] is None:
        # One run's teachers, or several runs' ensemble.
        lenders = set(known["teacher_from"])
        cache = (lenders.pop() if len(lenders) == 1 else workdir) / "teacher_cache"
    else:
        cache = pathlib.Path(values["cache_folder"]).absolute()
    return dataclasses.replace(config, workdir=workdir, cache_folder=cache)


def _check_teacher_flags(known: dict, values: dict) -> None:
    """Refuses flags of the teacher's that can have no effect, or do not fit each other."""
    if not known["teacher"]:
        for name in ("teacher_epochs", "teacher_from", "teacher_stop_at_val_accuracy"):
            if values[name]:
                raise InputError(f"--{name}={values[name]} but --teacher=none: name the teacher")
    count, given = len(known["teacher"]), len(known["teacher_from"])
    if given not in (0, count):
        raise InputError(f"--teacher_from names {given} folders for {count} teachers: give one a teacher, in its order")
    if values["teacher_stop_at_val_accuracy"] is None and FLAGS["teacher_stop_check_steps"].present:
        raise InputError(
            "--teacher_stop_check_steps has no effect without --teacher_stop_at_val_accuracy: give the accuracy"
        )


def _teachers(text: str) -> tuple[Spec, ...]:
    found = tuple(_parsed("teacher", text, spec.parse_many))
    for one in found:
        _known("models", one)
    return found


def folders_text(folders: Sequence[pathlib.Path]) -> str:
    """Folders as ``--teacher_from`` takes them: of several those whose names have commas are put in double quotes."""
    names = list(map(str, folders))
    return names[0] if len(names) == 1 else ",".join(f'"{name}"' if "," in name else name for name in names)


def _folders(text: str | None, count: int) -> tuple[pathlib.Path, ...]:
    """The inverse of `folders_text`, for so many teachers."""
    if text is None:
        return ()
    folders = [text] if count == 1 else next(csv.reader([text]))
    return tuple(pathlib.Path(folder).absolute() for folder in folders)


def _without_pretrained(value):
    """A spec, or several, without the key ``pretrained``, and those inside it without it too."""
    if isinstance(value, tuple):
        return tuple(map(_without_pretrained, value))
    if not isinstance(value, Spec):
        return value
    kept = {key: _without_pretrained(inner) for key, inner in value.kwargs.items() if key != "pretrained"}
    return dataclasses.replace(value, kwargs=kept, args=_without_pretrained(value.args))


def _one(flag: str, text: str) -> Spec:
    found = _parsed(flag, text, spec.parse)
    _known(_PACKAGES[flag], found)
    return found


def _parsed(flag: str, text: str, parse):
    try:
        return parse(text)
    except InputError as error:
        raise InputError(f"--{flag}: {error}") from error


def _known(package: str, one: Spec) -> None:
    names = spec.names(f"kd_keras.{package}")
    if one.name not in names:
        raise InputError(spec.unknown(one.name, package, names))


def _data_options(data: Spec, values: dict) -> Spec:
    """The data set's spec with the options that have a flag of their own."""
    extra = {}
    if values["val_fraction"] is not None:
        extra["val_fraction"] = values["val_fraction"]
    if values["skip_bad_images"]:
        extra["skip_bad_images"] = True
    if values["image_size"] not in (None, "none"):
        try:
            size = tuple(int(part) for part in values["image_size"].split(","))
        except ValueError as error:
            raise InputError(f"--image_size={values['image_size']!r}: give pixels, 64 or height,width") from error
        extra["image_size"] = size[0] if len(size) == 1 else size
    return dataclasses.replace(data, kwargs={**data.kwargs, **extra})


def _learning_rate(text: str) -> schedules.Schedule:
    try:
        value = float(text)
    except ValueError:
        value = text
    rate = schedules.get(value)
    # Checked before anything is read or made; 1 stands for the length of a training that is not known yet.
    schedules.check(rate, "learning_rate", total=1)
    return rate


def _losses(flag: str, text: str) -> tuple[Spec, ...]:
    found = tuple(spec.parse_many(text))
    if not found:
        raise InputError(f"--{flag} is empty: give at least one loss, such as ce()")
    for one in found:
        _known("losses", one)
    return found


def _names(values: list[str]) -> tuple[str, ...]:
    """What a list names, each once; ``none`` is nothing."""
    return () if values == ["none"] else tuple(dict.fromkeys(values))


def _beside(values: dict, teachers) -> tuple[str, ...]:
    names = _names(values["export_beside"])
    for name in names:
        if name not in BESIDE_THE_STUDENT:
            raise InputError(spec.unknown(name, "export_beside", list(BESIDE_THE_STUDENT)))
    if "teacher" in names and not teachers:
        raise InputError("--export_beside=teacher but --teacher=none: leave one of them out")
    if "baseline" in names and not values["baseline"]:
        raise InputError("--export_beside=baseline but --nobaseline: leave one of them out")
    return names


def _compression(values: dict) -> dict:
    """The fields of ``--compress`` and the flags that go with it."""
    text = values["compress"].strip()
    chains = () if text in ("", "none") else tuple(_chain(part) for part in text.split(";"))
    if not chains:
        for name in FLAGS:
            if name.startswith("compress_") and FLAGS[name].present:
                raise InputError(f"--{name} has no effect without --compress: give a way, such as qat()")
    if len(set(map(str, chains))) < len(chains):
        raise InputError(f"--compress={text} names a chain twice: give each once")
    controls = _names(values["compress_controls"])
    for one in controls:
        if one not in CONTROLS:
            raise InputError(spec.unknown(one, "compress_controls", list(CONTROLS)))
    if "baseline" in controls and not values["baseline"]:
        raise InputError("--compress_controls=baseline but --nobaseline: leave one of them out")
    epochs = values["compress_epochs"]
    return {
        "compress": chains,
        "compress_controls": controls,
        "compress_epochs": max(1, values["epochs"] // 5) if epochs is None else epochs,
        "compress_export": _variants("compress_export", values["compress_export"]),
    }


def _chain(text: str) -> tuple[Spec, ...]:
    chain = tuple(_parsed("compress", text, spec.parse_many))
    if not chain:
        raise InputError("--compress has an empty chain: leave out the ; at its place")
    for one in chain:
        _known("compress", one)
    return chain


def _variants(flag: str, text: str) -> tuple[str, ...]:
    if text.strip() in ("", "none"):
        return ()
    variants = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for variant in variants:
        if variant not in VARIANTS:
            raise InputError(spec.unknown(variant, flag, list(VARIANTS)))
    return variants


def _workdir(text: str | None, config: Config) -> pathlib.Path:
    if text is not None:
        return pathlib.Path(text).absolute()
    digest = hashlib.sha256(json.dumps(config.identity(), sort_keys=True).encode()).hexdigest()[:8]
    stem = pathlib.Path(config.flagfile).stem if config.flagfile else "run"
    return pathlib.Path("runs", f"{stem}-{digest}").absolute()


def check_workdir(config: Config) -> None:
    """Finds out, without writing, whether the workdir is free or holds this very experiment.

    Raises:
        InputError: it holds another experiment, or other files, or can't be read.
    """
    record = config.workdir / _RECORD
    try:
        if record.exists():
            _compare(dict(json.loads(record.read_text(encoding="utf-8"))), config)
        elif config.workdir.exists() and any(path.suffix != ".partial" for path in config.workdir.iterdir()):
            raise InputError(f"--workdir={config.workdir} is not empty and holds no experiment: name another folder")
    except OSError as error:
        raise InputError(f"--workdir={config.workdir} can't be used: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, TypeError) as error:  # no UTF-8, no JSON, no dict
        raise InputError(f"{record} can't be read: name another --workdir") from error


def claim_workdir(config: Config) -> None:
    """Makes the workdir this experiment's own; see `check_workdir`."""
    check_workdir(config)
    record = config.workdir / _RECORD
    try:
        files.write(record, json.dumps(config.identity(), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"--workdir={config.workdir} can't be written: {error.strerror}") from error


def _compare(before: dict[str, str], config: Config) -> None:
    now = config.identity()
    # Those of the files have no effect on the models; what was not compressed can be, afterwards.
    keys = [
        key
        for key in {**before, **now}
        if key not in OF_THE_FILES and ("compress" in before or not key.startswith("compress"))
    ]
    changed = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    if changed:
        raise InputError(
            f"--workdir={config.workdir} holds another experiment ({'; '.join(changed)}): name another --workdir"
        )
