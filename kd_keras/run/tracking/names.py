"""What a list of runs shows: a short name for each run, and its settings as numbers that can be sorted."""

import pathlib
from typing import Any

from kd_keras import signatures, spec
from kd_keras.run.config import Config
from kd_keras.run.kinds import Rate
from kd_keras.run.settings import Follows, declared
from kd_keras.spec import Spec

_KIND_OF = {package: kind for kind, package in signatures.KINDS.items()}
# What a name says by itself. Other flags are added to it where runs differ in them.
_IN_NAME = ("teacher", "student", "loss", "scheme", "compress", "seed")
_LONGEST_PART = 40
# Where a run is and what it tells changes no result.
_PLACES = ("run", "tracking")


def run_name(config: Config, varied: tuple[str, ...] = ()) -> str:
    """A run's name: ``resnet20→resnet8 · kd T4 · s0``, the teacher, the student, the loss and the seed.

    Args:
        config: the settings.
        varied: flags in which the runs of a study differ; those that the name would not show are added to it.
    """
    teachers = "+".join(map(label, config.teacher.models))
    parts = [f"{teachers}→{label(config.student.model)}" if teachers else label(config.student.model)]
    parts.append(_losses(config, is_varied="loss" in varied))
    for flag in ("scheme", "compress"):
        if config[flag] != config.default(flag):
            parts.append(_sum(config[flag]))
    parts += [f"{flag} {_varied(config, flag)}" for flag in varied if flag not in _IN_NAME]
    return " · ".join([*filter(None, parts), f"s{config.training.seed}"])


def _sum(value: Spec | tuple) -> str:
    if isinstance(value, Spec):
        return label(value)
    return ("," if any(isinstance(part, tuple) for part in value) else "+").join(map(_sum, value))


def _varied(config: Config, flag: str) -> str:
    """The value of a setting for a name; a learning rate that is constant is its number."""
    text = config.texts()[flag]
    parts = spec.parse_many(text) if "(" in text and not isinstance(config[flag], str) else []
    is_constant = len(parts) == 1 and parts[0].name == "constant"
    return _short(parts[0].kwargs["value"]) if is_constant else _sum(tuple(parts)) or text


def _losses(config: Config, is_varied: bool) -> str:
    """The student's losses without those that the baseline has as well."""
    common = {part.name for part in config.student.baseline_loss}
    losses = [part for part in config.student.loss if part.name not in common] or config.student.loss
    return "+".join(_loss(part, with_weight=is_varied) for part in losses)


def _loss(part: Spec, with_weight: bool) -> str:
    values = {**_defaults("kd_keras.losses", part.name), **_named("kd_keras.losses", part)}
    text = _family(part)
    if (temperature := values.get("temperature")) is not None:
        text += f" T{_short(temperature)}"
    if with_weight and "weight" in part.kwargs:
        text += f" w{_short(part.kwargs['weight'])}"
    others = {key: value for key, value in part.kwargs.items() if key not in ("temperature", "weight")}
    return text + "".join(f" {key}{_short(value)}" for key, value in others.items() if _is_number(value))


def label(part: Spec) -> str:
    """A part and the values that its spec names: ``resnet(depth=20)`` is ``resnet20``."""
    text = _family(part)
    for key, value in [*((None, value) for value in part.args), *part.kwargs.items()]:
        if isinstance(value, bool):
            text += f" {key}" if value else f" no {key}"
        elif _is_number(value):
            text += f"-{_short(value)}" if text[-1].isdigit() else _short(value)
        elif value not in (None, (), ""):
            text += f" {_short(value)}"
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 1]}…"


def _family(part: Spec) -> str:
    return part.name.rpartition(":")[2]


def _short(value: Any) -> str:
    if isinstance(value, Spec):
        return label(value)
    if isinstance(value, tuple):
        return ",".join(map(_short, value))
    if isinstance(value, str) and "/" in value and "(" not in value:
        return pathlib.PurePath(value).stem
    return f"{value:g}" if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def changed(config: Config) -> dict[str, str]:
    """The settings that are not at their default, by flag, without those of folders and tracking."""
    return {
        flag: setting.kind.text(config[flag])
        for flag, setting in declared(Config).items()
        if setting.section not in _PLACES and config[flag] != config.default(flag)
    }


def parameters(config: Config) -> dict[str, str]:
    """Every setting as text, and the values inside specs under names of their own: ``loss.kd.temperature`` is ``4``.

    A part's numbers are there whether its spec names them or not, so that runs can be sorted by them. A setting that
    follows another is left out.
    """
    params = {}
    for flag, setting in declared(Config).items():
        if isinstance(setting.default, Follows) and config[flag] == config.default(flag):
            continue
        params[flag] = setting.kind.text(config[flag])
        for name, (package, part) in _parts(config, flag, setting.kind).items():
            params |= _values(name, package, part)
    return params


def _parts(config: Config, flag: str, kind) -> dict[str, tuple[str | None, Spec]]:
    """A setting's specs with their packages: by the flag where it takes one, else also by the part's name."""
    value = config[flag]
    if flag == "teacher":
        return {name: ("kd_keras.models", part) for name, part in config.teacher.by_stage.items()}
    if isinstance(value, Spec):
        return {flag: next(kind.parts(value), (None, value))}
    if isinstance(kind, Rate):
        text = kind.text(value)
        return {flag: (None, spec.parse(text))} if "(" in text else {}
    parts, counts = {}, {}
    for package, part in kind.parts(value):
        name = _family(part)
        counts[name] = counts.get(name, 0) + 1
        parts[f"{flag}.{name}{counts[name] if counts[name] > 1 else ''}"] = (package, part)
    return parts


def _values(name: str, package: str | None, part: Spec) -> dict[str, str]:
    params = {}
    for key, value in {**_defaults(package, part.name), **_named(package, part)}.items():
        params[f"{name}.{key}"] = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, Spec):
            params |= _values(f"{name}.{key}", None, value)
    return params


def _defaults(package: str | None, name: str) -> dict[str, float]:
    """The numbers that a part of this package takes where its spec is silent."""
    arguments = _arguments(package, name)
    return {key: value for key, value in arguments.items() if _is_number(value)}


def _named(package: str | None, part: Spec) -> dict[str, Any]:
    """The values that a spec names, by key; those without a key that is known are numbered."""
    keys = [*_arguments(package, part.name), *(str(number) for number in range(1, len(part.args) + 1))]
    return {**dict(zip(keys, part.args, strict=False)), **part.kwargs}


def _arguments(package: str | None, name: str) -> dict[str, Any]:
    if package not in _KIND_OF or ":" in name:
        return {}
    return signatures.read(_KIND_OF[package], name).arguments
