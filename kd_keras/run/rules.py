"""What takes more than one setting: options that are written into specs, and settings that don't go together.

Each rule takes the `Config`. It returns the settings that it changes, by their flags, or raises InputError.
"""

import dataclasses
import os

from kd_keras.errors import InputError
from kd_keras.spec import Spec

#: Settings of the data that have a flag of their own.
DATA_OPTIONS = ("val_fraction", "skip_bad_images", "max_image_pixels", "image_size")


def add_data_options(config):
    """Writes the options of the data that have a flag of their own into the data set's spec."""
    options = {flag: config[flag] for flag in DATA_OPTIONS}
    given = {flag: value for flag, value in options.items() if value is not None and value is not False}
    source = config.data.source
    return {"data": dataclasses.replace(source, kwargs={**source.kwargs, **given})}


def add_clipnorm(config):
    """Writes ``--clipnorm`` into the optimizer of every training."""
    norm = config.training.clipnorm
    if norm is None:
        return {}
    if norm <= 0:
        raise InputError(f"--clipnorm={norm:g}: give a number above 0")

    def clipped(flag):
        given = config[flag]
        clips = {key: given.kwargs[key] for key in ("clipnorm", "global_clipnorm", "clipvalue") if key in given.kwargs}
        if clips not in ({}, {"clipnorm": norm}):
            raise InputError(f"--clipnorm={norm:g} but --{flag}={given} has {', '.join(clips)}: leave one of them out")
        return dataclasses.replace(given, kwargs={**given.kwargs, "clipnorm": norm})

    return {flag: clipped(flag) for flag in ("optimizer", "teacher_optimizer", "compress_optimizer")}


def drop_pretrained(config):
    """Drops the key ``pretrained`` from every model's spec, and from those inside a spec."""

    def without(model):
        return dataclasses.replace(model, kwargs={k: v for k, v in model.kwargs.items() if k != "pretrained"})

    return {} if config.student.pretrained else _change_models(config, without)


def allow_code(config):
    """Writes into the specs of saved models whether their files may run code, which ``--allow_code_in`` alone says."""
    allowed, read = set(map(os.path.realpath, config.run.allow_code_in)), set()
    if config.student.file is not None:
        read.add(os.path.realpath(config.student.file))
    read |= {path for path in allowed for folder in config.teacher.folders if path.startswith(os.path.realpath(folder))}

    def permit(model):
        if model.name != "saved":
            return model
        kwargs = {key: value for key, value in model.kwargs.items() if key != "allow_code"}
        path = os.path.realpath(os.path.expanduser(str(kwargs.get("path", *model.args[:1]))))
        read.add(path)
        return dataclasses.replace(model, kwargs={**kwargs, "allow_code": True} if path in allowed else kwargs)

    changed = _change_models(config, permit)
    if unread := allowed - read:
        raise InputError(
            f"--allow_code_in={', '.join(sorted(unread))} is no file that a model of this run is read from"
        )
    return changed


def _change_models(config, change):
    """The settings that name models, every spec in them changed, also those inside others."""

    def changed(value):
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        if not isinstance(value, Spec):
            return value
        kwargs = {key: changed(inner) for key, inner in value.kwargs.items()}
        return change(dataclasses.replace(value, kwargs=kwargs, args=changed(value.args)))

    return {flag: changed(config[flag]) for flag in ("teacher", "student", "scheme")}


def check_teacher_folders(config):
    """Each teacher has a folder, or none has."""
    models, folders = len(config.teacher.models), len(config.teacher.folders)
    if folders not in (0, models):
        raise InputError(f"--teacher_from names {folders} folders for {models} teachers: give one for each, in order")


def check_models_exist(config):
    """A model that is to be exported or compressed is part of the run."""
    for flag in ("export_beside", "compress_controls"):
        if "teacher" in config[flag] and not config.teacher.models:
            raise InputError(f"--{flag}=teacher but --teacher=none: leave one of them out")
        if "baseline" in config[flag] and not config.student.baseline:
            raise InputError(f"--{flag}=baseline but --nobaseline: leave one of them out")


def check_frozen(config):
    """Layers are frozen in a student that is built."""
    if config.student.freeze and config.student.file is not None:
        raise InputError(
            "--freeze is for a student that is trained, and --student_from takes one as it is: set trainable=False on "
            "its layers before it is saved"
        )


def check_int8(config):
    """What concerns the int8 file needs one."""
    for flag in ("keep_float", "layer_report"):
        if config[flag] and "int8" not in config.export.variants:
            raise InputError(f"--{flag} concerns the int8 file: add int8 to --export")


def check_system_metrics(config):
    """System metrics need a tracker that has them."""
    from kd_keras.run import tracking

    tracker = config.tracking.tracker
    if config.tracking.system_metrics and not tracking.has_system_metrics(tracker):
        raise InputError(f"--tracking_system_metrics: --tracking={tracker} has none: take mlflow or wandb")


RULES = (
    add_data_options,
    add_clipnorm,
    drop_pretrained,
    allow_code,
    check_teacher_folders,
    check_models_exist,
    check_frozen,
    check_int8,
    check_system_metrics,
)
