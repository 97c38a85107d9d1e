"""Settings that are declared once.

A setting is a field of a frozen dataclass, its *section*; the sections are the fields of one `Settings` dataclass::

    @dataclasses.dataclass(frozen=True)
    class Training(Section):
        '''Training of the student.'''

        epochs: int = setting(10, "Epochs of the student.", minimum=1, affects=("student",))

    @dataclasses.dataclass(frozen=True)
    class Config(Settings):
        training: Training = dataclasses.field(default_factory=Training)

All else follows from this: the flag ``--epochs`` (`read_flags`), its check, its lines in ``--help`` (`help_text`), the
command line that makes an equal Config (`Settings.command_line`), and what a workdir and MLflow record
(`Settings.texts`).
"""

import copy
import dataclasses
import functools
import itertools
import pathlib
import textwrap
import typing
from collections.abc import Callable
from typing import Any, ClassVar

from absl import flags

from kd_keras import flagfiles
from kd_keras.errors import InputError, one_line
from kd_keras.run.kinds import Kind, Switch, kind_of

# Names that absl reads itself, and `--help`.
_RESERVED = {"flagfile", "undefok", "help"}


@dataclasses.dataclass(frozen=True)
class Follows:
    """A default that depends on other settings.

    Attributes:
        flags: the settings that it depends on.
        function: takes their values and returns the default.
        text: how ``--help`` describes the default.
    """

    flags: tuple[str, ...]
    function: Callable
    text: str


def follows(flag: str) -> Follows:
    """Returns a default that is the value of another setting."""
    return Follows((flag,), lambda value: value, f"as --{flag}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting, as `declared` collects it from its section.

    Attributes:
        flag: its name on the command line.
        section: the field of `Settings` that holds it.
        field: its name in the section.
        kind: how values are read, checked and written.
        default: a value, the text of one, or a `Follows`.
        help: what ``--help`` says.
        affects: the stages whose results depend on it.
        needs: another setting; unless that one is on, only the default is accepted.
        search: the range that ``--search=auto`` of a sweep takes, or None.
    """

    flag: str
    section: str
    field: str
    kind: Kind
    default: Any
    help: str
    affects: tuple[str, ...]
    needs: str | None
    search: str | None

    def read(self, value: Any) -> Any:
        """Returns the checked value. Text is parsed, so a value may be given as on the command line."""
        try:
            parsed = self.kind.parse(value) if isinstance(value, str) else value
            self.kind.check(parsed)
        except InputError as error:
            raise InputError(f"--{self.flag}={one_line(value)}: {error}") from error
        return parsed


def setting(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    affects: tuple[str, ...] = (),
    needs: str | None = None,
    search: str | None = None,
    **limits: Any,
) -> Any:
    """Declares a setting, as the default of a field of a `Section`; the field's annotation is the setting's type.

    Args:
        default: a value, its text, or a `Follows`.
        help: one sentence for ``--help``.
        flag: its name on the command line; by default the section's prefix and the field's name.
        affects: see `Setting`.
        needs: see `Setting`.
        search: see `Setting`; of a schedule it is the range of its height.
        **limits: see `kinds.kind_of`.
    """
    declaration = {"flag": flag, "help": help, "affects": affects, "needs": needs, "search": search, "limits": limits}
    return dataclasses.field(default=default, metadata={"setting": declaration})


class Section:
    """Base class of a group of settings: a frozen dataclass whose fields are made by `setting`.

    The first line of its docstring is its heading in ``--help``; ``prefix`` starts the names of its flags.
    """

    prefix: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str = ""):
        cls.prefix = prefix

    def __post_init__(self):
        for declaration in _section_settings("", type(self)):
            value = getattr(self, declaration.field)
            if not isinstance(value, Follows):
                object.__setattr__(self, declaration.field, declaration.read(value))


class Settings:
    """Base class of a Config: a frozen dataclass whose fields are sections.

    ``rules`` are functions of the Config, called in this order when it is made. A rule raises InputError where settings
    contradict each other, and may return new values by flag.
    """

    rules: ClassVar[tuple[Callable, ...]] = ()

    def __post_init__(self):
        self._set({flag: self.default(flag) for flag in declared(type(self)) if isinstance(self[flag], Follows)})
        for flag, declaration in declared(type(self)).items():
            if declaration.needs and not self[declaration.needs] and self[flag] != self.default(flag):
                given = f"--{flag}={one_line(declaration.kind.text(self[flag]))}"
                raise InputError(f"{given} has no effect without --{declaration.needs}: give both, or neither")
        for rule in self.rules:
            self._set(rule(self) or {})

    def __getitem__(self, flag: str) -> Any:
        """Returns the value of a setting by the name of its flag."""
        declaration = declared(type(self))[flag]
        return getattr(getattr(self, declaration.section), declaration.field)

    def default(self, flag: str) -> Any:
        """Returns the value that a setting has where it is not given, the others being what they are."""
        declaration = declared(type(self))[flag]
        if not isinstance(declaration.default, Follows):
            return declaration.read(declaration.default)
        values = (self.default(f) if isinstance(self[f], Follows) else self[f] for f in declaration.default.flags)
        return declaration.default.function(*values)

    def texts(self) -> dict[str, str]:
        """Returns the text of every value by flag. The same texts, read again, make an equal Config."""
        return {flag: setting.kind.text(self[flag]) for flag, setting in declared(type(self)).items()}

    def command_line(self) -> list[str]:
        """Returns the flags that make an equal Config, without those that are at their default."""
        return [f"--{flag}={text}" for flag, text in self.texts().items() if self[flag] != self.default(flag)]

    def affecting(self, *stages: str) -> dict[str, str]:
        """Returns the texts of the settings that affect one of these stages, by flag."""
        settings = declared(type(self)).items()
        return {flag: setting.kind.text(self[flag]) for flag, setting in settings if set(stages) & set(setting.affects)}

    def _set(self, values):
        for flag, value in values.items():
            declaration = declared(type(self))[flag]
            section = copy.copy(getattr(self, declaration.section))
            object.__setattr__(section, declaration.field, declaration.read(value))
            object.__setattr__(self, declaration.section, section)


@functools.cache
def declared(settings_class: type) -> dict[str, Setting]:
    """Returns all settings of a `Settings` class by flag, in the order of their declaration."""
    by_flag = {}
    for name, section_class in typing.get_type_hints(settings_class).items():
        if isinstance(section_class, type) and issubclass(section_class, Section):
            for declaration in _section_settings(name, section_class):
                if declaration.flag in by_flag or declaration.flag in _RESERVED:
                    raise TypeError(f"the flag --{declaration.flag} is declared twice, or is absl's own")
                by_flag[declaration.flag] = declaration
    if ambiguous := [flag for flag in by_flag if flag.startswith("no") and flag[2:] in by_flag]:
        raise TypeError(f"--{ambiguous[0]} would be read as --{ambiguous[0][2:]}=false as well")
    return by_flag


@functools.cache
def _section_settings(name: str, section_class: type) -> tuple[Setting, ...]:
    types, settings = typing.get_type_hints(section_class), []
    for field in dataclasses.fields(section_class):
        rest = dict(field.metadata["setting"])
        flag = rest.pop("flag") or section_class.prefix + field.name
        kind = kind_of(types[field.name], **rest.pop("limits"))
        settings.append(Setting(flag, name, field.name, kind, field.default, **rest))
    return tuple(settings)


def read_flags(settings_class: type, argv: list[str]) -> tuple[dict[str, str], pathlib.Path | None]:
    """Reads a command line: absl's syntax, in which a later flag replaces an earlier one.

    Args:
        settings_class: a `Settings` class.
        argv: as `sys.argv`, the program's name first.

    Returns:
        The texts of the flags that are given, and the last ``--flagfile`` of ``argv`` or None.

    Raises:
        InputError: an unknown flag, a flag without a value, or a flagfile that can't be read.
    """
    # Flags of our own, as the global ones include those of every package that is imported.
    values = flags.FlagValues()
    for declaration in declared(settings_class).values():
        # absl takes the text as it is. `Setting.read` parses the last one given, with messages of our own.
        parser, is_switch = flags.ArgumentParser(), declaration.kind.is_switch
        flag = flags.Flag(parser, None, declaration.flag, None, declaration.help, boolean=is_switch)
        flags.DEFINE_flag(flag, values)
    arguments, files = flagfiles.expand(argv[1:])
    try:
        rest = values([argv[0], *arguments])
    except (flags.Error, ValueError) as error:  # absl has a plain ValueError for --noswitch=value
        raise InputError(one_line(str(error))) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: every setting is a flag, --name=value")
    given = {name: text for name, text in values.flag_values_dict().items() if text is not None}
    return given, files[-1] if files else None


def make(settings_class: type, texts: dict[str, str]) -> Any:
    """Makes a Config of the texts of some flags; the other settings have their defaults."""
    sections = {name: {} for name in settings_class.__dataclass_fields__}
    types = typing.get_type_hints(settings_class)
    for flag, text in texts.items():
        declaration = declared(settings_class)[flag]
        sections[declaration.section][declaration.field] = text
    return settings_class(**{name: types[name](**values) for name, values in sections.items()})


def help_text(settings_class: type) -> str:
    """Returns the part of ``--help`` that lists the flags, grouped by section."""
    lines, types = [], typing.get_type_hints(settings_class)
    for section, members in itertools.groupby(declared(settings_class).values(), lambda member: member.section):
        lines += ["", (types[section].__doc__ or section).splitlines()[0]]
        for member in members:
            default = member.default.text if isinstance(member.default, Follows) else member.default
            is_switch = isinstance(member.kind, Switch)
            name = f"--[no]{member.flag}" if is_switch else f"--{member.flag}={member.kind.accepts}"
            lines.append(f"  {name}" if default is None else f"  {name}  [{default}]")
            lines += textwrap.wrap(member.help, 108, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])
