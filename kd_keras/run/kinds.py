"""How the value of a setting is written on the command line, read back and checked: one class for each type.

`kind_of` picks the class by the type annotation of a setting. For every kind, ``parse(text(value)) == value``, and the
text is a single line, so that it can stand in a flagfile. A kind does not know the name of the setting: its messages
say what is accepted, and `settings` puts the name in front of them.
"""

import dataclasses
import difflib
import math
import pathlib
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, ClassVar

from kd_keras import schedules, signatures, spec
from kd_keras.errors import InputError
from kd_keras.schedules import Schedule
from kd_keras.spec import Spec

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Kind:
    """Base class. A subclass says how a value is parsed, checked and written.

    Attributes:
        accepts: what ``--help`` shows after the flag's name.
    """

    accepts: ClassVar[str] = "TEXT"
    #: Whether ``--name`` alone and ``--noname`` are written for true and false.
    is_switch = False

    def parse(self, text: str) -> Any:
        """Returns the value that a text stands for; raises InputError if it stands for none."""
        return text.strip()

    def check(self, value: Any) -> None:
        """Raises InputError if a value is not accepted, whether it was parsed or given in Python."""

    def text(self, value: Any) -> str:
        """Returns the text that `parse` reads as an equal value."""
        return str(value)

    def parts(self, value: Any) -> Iterator[tuple[str, Spec]]:
        """The specs in a value that name files of ``kd_keras``, each with its package."""
        del value
        yield from ()

    def beginnings(self) -> list[str]:
        """How texts may begin, for completion in a shell: the words of a choice, names of parts with a bracket."""
        return []


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """Text in one line. Spaces around it are removed, as they are from a line of a flagfile."""

    def check(self, value):
        if not isinstance(value, str) or value != value.strip() or not value.isprintable():
            raise InputError("give text in one line, without spaces around it")


@dataclasses.dataclass(frozen=True)
class Folder(Kind):
    """A path, ``~`` being the user's home. A relative path is taken from the current folder when it is read."""

    accepts = "FOLDER"

    def parse(self, text):
        if not text.strip():
            raise InputError("give the name of a folder")
        try:
            # No shell has seen what stands in a flagfile.
            return pathlib.Path(text.strip()).expanduser().absolute()
        except RuntimeError as error:
            raise InputError(f"{error}: give the name of a folder") from error

    def check(self, value):
        name = str(value)
        if not isinstance(value, pathlib.Path) or name != name.strip() or not name.isprintable():
            raise InputError("give the name of a folder in one line")
        if not value.is_absolute():
            raise InputError("give an absolute path: Path(…).absolute()")


@dataclasses.dataclass(frozen=True)
class Switch(Kind):
    """True or False: ``--name`` and ``--noname``."""

    accepts = ""
    is_switch = True

    def parse(self, text):
        word = text.strip().lower()
        if word not in ("true", "t", "1", "false", "f", "0"):
            raise InputError("give true or false")
        return word in ("true", "t", "1")

    def check(self, value):
        if not isinstance(value, bool):
            raise InputError("give True or False")


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A number within bounds, both included; a whole number where ``type`` is int."""

    type: type
    minimum: float | None = None
    maximum: float | None = None

    def parse(self, text):
        try:
            return self.type(text)
        except ValueError as error:
            raise InputError(f"give {self._wanted()}") from error

    def check(self, value):
        is_number = isinstance(value, int if self.type is int else (int, float)) and not isinstance(value, bool)
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        # Both comparisons are False for NaN.
        if not is_number or not low <= value <= high:
            raise InputError(f"give {self._wanted()}")
        if self.type is int and self.maximum is None and value >= 2**31:  # TensorFlow's counts have 32 bits.
            raise InputError(f"give a number below {2**31}")

    def _wanted(self):
        noun = "a whole number" if self.type is int else "a number"
        bounds = {"of at least": self.minimum, "and at most": self.maximum}
        return " ".join([noun, *(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)])

    @property
    def accepts(self):
        return "N" if self.type is int else "X"


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of several words."""

    words: tuple[str, ...]

    @property
    def is_switch(self):
        return {"true", "false"} <= set(self.words)

    def check(self, value):
        if value not in self.words:
            closest = difflib.get_close_matches(str(value), self.words, n=1)
            hint = f" (did you mean {closest[0]!r}?)" if closest else ""
            raise InputError(f"give one of {', '.join(self.words)}{hint}")

    @property
    def accepts(self):
        return "|".join(self.words)

    def beginnings(self):
        return list(self.words)


@dataclasses.dataclass(frozen=True)
class OrNone(Kind):
    """A value of another kind, or None, which is written ``none``."""

    inner: Kind

    def parse(self, text):
        return None if text.strip() == NONE else self.inner.parse(text)

    def check(self, value):
        if value is not None:
            if value == NONE:
                raise InputError("'none' stands for no value")
            self.inner.check(value)

    def text(self, value):
        return NONE if value is None else self.inner.text(value)

    @property
    def accepts(self):
        return self.inner.accepts

    def beginnings(self):
        return [*self.inner.beginnings(), NONE]


# An item of a list: in double quotes, with "" for a quote inside; or plain, without quotes and commas.
_ITEM = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",]*?))\s*(?:,|$)')


@dataclasses.dataclass(frozen=True)
class Items(Kind):
    """A list joined by commas. An item with a comma or a quote, or the only item ``none``, is in double quotes."""

    item: Kind
    distinct: bool = False

    def parse(self, text):
        if text.strip() in ("", NONE):
            return ()
        items, position = [], 0
        while position < len(text) or text[position - 1] == ",":
            match = _ITEM.match(text, position)
            if match is None:
                raise InputError("give a list joined by commas; an item with a comma or a quote is in double quotes")
            quoted, plain = match.groups()
            items.append(self.item.parse(plain) if quoted is None else self.item.parse(quoted.replace('""', '"')))
            if match.end() == position:
                break
            position = match.end()
        return tuple(dict.fromkeys(items) if self.distinct else items)

    def check(self, value):
        if not isinstance(value, tuple):
            raise InputError("give a tuple")
        for item in value:
            self.item.check(item)
            if item == "":
                raise InputError("the list has an empty item")
        if self.distinct and len(set(value)) < len(value):
            raise InputError("the list names an item twice")

    def text(self, value):
        def quoted(item):
            return '"' + item.replace('"', '""') + '"' if item == NONE or re.search('[",]', item) else item

        return ",".join(quoted(self.item.text(item)) for item in value) or NONE

    @property
    def accepts(self):
        return f"{self.item.accepts},…"

    def beginnings(self):
        return self.item.beginnings()


# Parts whose names Keras or TensorFlow know: they are looked up when the run begins, since `--help` imports neither.
_LOOKED_UP_LATER = ("optimizers", "data.augment")


@dataclasses.dataclass(frozen=True)
class Part(Kind):
    """One spec. Its name is looked up among the parts of ``kd_keras.<package>``, where a package is given."""

    accepts = "SPEC"

    package: str | None = None

    def parse(self, text):
        return spec.parse(text)

    def check(self, value):
        if not isinstance(value, Spec):
            raise InputError("give a spec, name(key=value)")
        if self.package and self.package not in _LOOKED_UP_LATER:
            spec.check_name(f"kd_keras.{self.package}", value.name)

    def parts(self, value):
        if self.package:
            yield f"kd_keras.{self.package}", value

    def beginnings(self):
        kinds = {package: kind for kind, package in signatures.KINDS.items()}
        package = f"kd_keras.{self.package}"
        return [f"{name}(" for name in signatures.names(kinds[package])] if package in kinds else []


@dataclasses.dataclass(frozen=True)
class Sum(Kind):
    """Specs joined by ``+``; unless at least one is required, ``none`` is no spec."""

    accepts = "SPEC + …"

    part: Part
    required: bool = False

    def parse(self, text):
        return tuple(spec.parse_many(text))

    def check(self, value):
        if not isinstance(value, tuple):
            raise InputError("give a tuple of specs")
        for part_spec in value:
            self.part.check(part_spec)
        if self.required and not value:
            raise InputError("give at least one, name(key=value)")

    def text(self, value):
        return " + ".join(map(str, value)) or NONE

    def parts(self, value):
        for part_spec in value:
            yield from self.part.parts(part_spec)

    def beginnings(self):
        return self.part.beginnings()


# Pieces of a text that ; does not divide: literals in quotes, and everything up to the next quote or ;.
_PIECE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^;'"]+|['"]|(;)""", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Alternatives(Kind):
    """Several sums of specs, separated by ``;``; ``none`` is no sum."""

    accepts = "SPEC + …; …"

    sum: Sum

    def parse(self, text):
        if text.strip() in ("", NONE):
            return ()
        texts = [""]
        for match in _PIECE.finditer(text):
            if match[1]:
                texts.append("")
            else:
                texts[-1] += match[0]
        return tuple(map(self.sum.parse, texts))

    def check(self, value):
        if not isinstance(value, tuple):
            raise InputError("give a tuple of tuples of specs")
        for specs in value:
            self.sum.check(specs)
        if len(set(map(self.sum.text, value))) < len(value):
            raise InputError("the same is given twice")

    def text(self, value):
        return "; ".join(map(self.sum.text, value)) or NONE

    def parts(self, value):
        for specs in value:
            yield from self.sum.parts(specs)

    def beginnings(self):
        return self.sum.beginnings()


@dataclasses.dataclass(frozen=True)
class Rate(Kind):
    """A learning rate: a number, or a schedule by its spec."""

    accepts = "X|SPEC"

    def parse(self, text):
        try:
            number = float(text)
        except ValueError:
            return schedules.get(text)
        return schedules.get(number)

    def check(self, value):
        if not isinstance(value, Schedule):
            raise InputError("give a number or a schedule")
        # The length of the training is not known yet; 1 stands for it.
        schedules.check(value, "learning_rate", total=1)


@dataclasses.dataclass(frozen=True)
class ImageSize(Kind):
    """The side of a square image in pixels, or its height and width."""

    accepts = "N|N,N"

    def parse(self, text):
        try:
            sides = tuple(map(int, text.split(",")))
        except ValueError as error:
            raise InputError("give pixels: 64, or height,width") from error
        return sides[0] if len(sides) == 1 else sides

    def check(self, value):
        sides = value if isinstance(value, tuple) else (value,)
        if len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise InputError("give pixels: 64, or height,width")

    def text(self, value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def kind_of(annotation: Any, minimum=None, maximum=None, parts: str | None = None, required: bool = False) -> Kind:
    """Returns the kind for a type annotation.

    Args:
        annotation: such as ``int``, ``float | None``, ``Literal["a", "b"]``, ``tuple[Spec, ...]``.
        minimum: the lowest number accepted.
        maximum: the highest number accepted.
        parts: the package of ``kd_keras`` whose files a spec may name.
        required: whether a sum of specs has at least one.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (int, float):
        return Number(annotation, minimum, maximum)
    if annotation in (simple := {str: Text(), bool: Switch(), pathlib.Path: Folder(), Schedule: Rate()}):
        return simple[annotation]
    if annotation is Spec:
        return Part(parts)
    if origin is typing.Literal:
        return Choice(arguments)
    if annotation == int | tuple[int, int] | None:
        return OrNone(ImageSize())
    if origin in (types.UnionType, typing.Union) and arguments[1] is types.NoneType:
        return OrNone(kind_of(arguments[0], minimum, maximum, parts))
    if annotation == tuple[Spec, ...]:
        return Sum(Part(parts), required)
    if annotation == tuple[tuple[Spec, ...], ...]:
        return Alternatives(Sum(Part(parts), required=True))
    if origin is tuple:
        return Items(kind_of(arguments[0]), distinct=arguments[0] is not pathlib.Path)
    raise TypeError(f"no kind for {annotation}")
