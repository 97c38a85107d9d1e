"""Values inside of settings, by path: ``loss.kd.temperature`` is the key of a part of a flag's value."""

import dataclasses
from typing import Any

from kd_keras import signatures, spec
from kd_keras.errors import InputError
from kd_keras.run.config import Config
from kd_keras.run.kinds import Kind, Rate
from kd_keras.run.settings import declared
from kd_keras.schedules import constant
from kd_keras.spec import Spec

# Stages whose training a trial is judged by.
_JUDGED = {"teacher", "baseline", "student", "cache"}
EXAMPLE = "such as --search='loss.kd.temperature: 1..20 log'"


def value_at(config: Config, path: str) -> tuple[Any, Any]:
    """The value at a path and its default; `signatures.MISSING` where it is not known."""
    flag, *steps = path.split(".")
    settings = declared(Config)
    if flag not in settings:
        raise InputError(f"--search={path!r}: {spec.unknown(flag, 'flags', sorted(settings))}")
    affects = set(settings[flag].affects)
    if flag.endswith("seed"):
        raise InputError(f"--search={path!r}: a seed is no setting to choose; --confirm=3 takes new ones")
    if "data" in affects:
        raise InputError(f"--search={path!r}: its values would be compared on different images; search them apart")
    if not affects & _JUDGED:
        raise InputError(f"--search={path!r} changes nothing of the student's accuracy on validation data")
    value = config[flag]
    if not steps:
        return (value.value if isinstance(value, constant) else value), signatures.MISSING
    if len(steps) % 2:
        raise InputError(f"--search={path!r}: a path is a flag, or a flag, a part and a key, {EXAMPLE}")
    return _walk(_specs(path, config.texts()[flag]), steps, _package(flag), path)[0]


def replaced(path: str, text: str, value: Any) -> str:
    """A flag's text with a value at the path of a key; text stands for a literal."""
    flag, *steps = path.split(".")
    return " + ".join(map(str, _walk(_specs(path, text), steps, _package(flag), path, value)[1]))


def literal(text: str) -> Any:
    """The value that a text stands for inside of a spec."""
    return spec.parse(f"x(v={text})").kwargs["v"]


def _specs(path: str, text: str) -> tuple[Spec, ...]:
    try:
        return tuple(spec.parse_many(text))
    except InputError as error:
        raise InputError(f"--search={path!r}: {text!r} has no parts to search in; give values, a | b") from error


def _package(flag: str) -> str | None:
    """Where the parts of a setting come from."""

    def package(kind: Kind):
        inner = getattr(kind, "inner", None) or getattr(kind, "part", None)
        return package(inner) if inner else getattr(kind, "package", None)

    kind = declared(Config)[flag].kind
    return "kd_keras.schedules" if isinstance(kind, Rate) else f"kd_keras.{package(kind)}"


_KEEP = object()


def _walk(specs: tuple[Spec, ...], steps: list[str], package: str | None, path: str, new: Any = _KEEP):
    """Follows a path into specs.

    Returns:
        (value, default) at its end, and the specs with ``new`` in its place.
    """
    name, key, *rest = steps
    at = _find(specs, name, path)
    part, defaults = specs[at], _defaults(package, specs[at].name)
    values = {**dict(zip(defaults, part.args, strict=False)), **part.kwargs}
    if defaults and key not in {**defaults, **values}:
        raise InputError(f"--search={path!r}: {spec.unknown(key, f'the keys of {part.name}', list(defaults))}")
    value, default = values.get(key, defaults.get(key, signatures.MISSING)), defaults.get(key, signatures.MISSING)
    # A schedule that takes another writes a number as one.
    is_number_within = isinstance(value, Spec) and value.name == "constant"
    found = (value.kwargs["value"] if is_number_within else value, default)
    if rest:
        inner = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(item, Spec) for item in inner):
            raise InputError(f"--search={path!r}: {key} of {part} has no parts: end the path there")
        package = "kd_keras.schedules" if inner[0].name in spec.names("kd_keras.schedules") else None
        found, inner = _walk(inner, rest, package, path, new)
        value = inner if len(inner) > 1 else inner[0]
    elif new is not _KEEP:
        value = literal(new) if isinstance(new, str) else new
    if new is not _KEEP:
        # Where the keys are known, values get theirs, and what is at its default is left out.
        kwargs = {k: v for k, v in (values if defaults else part.kwargs).items() if defaults.get(k, _KEEP) != v}
        part = dataclasses.replace(part, args=() if defaults else part.args, kwargs={**kwargs, key: value})
    return found, (*specs[:at], part, *specs[at + 1 :])


def _find(specs, name: str, path: str) -> int:
    """The place of a part by its name, ``kd`` or ``kd#2``."""
    base, _, number = name.partition("#")
    places = [i for i, part in enumerate(specs) if part.name.rpartition(":")[2] == base]
    if not places or (number and number not in map(str, range(1, len(places) + 1))):
        known = [part.name.rpartition(":")[2] for part in specs]
        raise InputError(f"--search={path!r}: {spec.unknown(name, 'the parts', known)}")
    if len(places) > 1 and not number:
        raise InputError(f"--search={path!r}: {base} stands there {len(places)} times: write {base}#1, {base}#2 …")
    return places[int(number or 1) - 1]


def _defaults(package: str | None, name: str) -> dict[str, Any]:
    """The keys of a part and their defaults; empty where only Keras knows them."""
    kinds = {package: kind for kind, package in signatures.KINDS.items()}
    if package not in kinds and ":" not in name:
        return {}
    return signatures.read(kinds.get(package, "losses"), name).arguments
