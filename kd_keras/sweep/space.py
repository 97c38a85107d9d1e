"""What a search varies: ranges of flags, and of values inside of their specs.

    loss.kd.temperature: 1..20 log       a range, here on a logarithmic scale; whole numbers where the value is one
    loss.kd.weight: x0.1..x10 log        multiples of the value that the flags give
    loss.ce.weight: 1 - loss.kd.weight   what another one leaves of 1
    augment: none | flip()               values
    epochs: 10..40 step 10               a range in steps

A path is a flag, or a flag, a part of its value and a key of that part, and so on inwards:
``learning_rate.warmup.to.cosine.start``. The second of two parts of one name is ``kd#2``.
"""

import dataclasses
import re
from typing import Any

from kd_keras import signatures, spec
from kd_keras.errors import InputError, is_count, is_number
from kd_keras.run.config import Config
from kd_keras.run.kinds import Number, OrNone
from kd_keras.run.settings import declared
from kd_keras.schedules import Schedule, constant
from kd_keras.sweep import paths

_NUMBER = r"x?[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})(\s+log)?(?:\s+step\s+({_NUMBER}))?")
_REST_OF_ONE = re.compile(r"1\s*-\s*(\S+)")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{' log' if self.log else ''}{f' step {self.step}' if self.step else ''}"

    @property
    def is_whole(self) -> bool:
        """Whether it has whole numbers alone."""
        return isinstance(self.low, int)

    def distribution(self):
        """Optuna's."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def grid(self) -> list[float]:
        """All numbers; raises InputError where they are not counted."""
        step = self.step or (1 if self.is_whole and not self.log else None)
        if step is None:
            raise InputError("a grid needs values, a | b | c, or steps, 1..20 step 1")
        return [self.low + i * step for i in range(int((self.high - self.low) / step + 1e-9) + 1)]

    def take(self, value: Any) -> float | None:
        """A number of the range, without needless digits; None where it has no such number."""
        if not is_number(value) or not self.low <= value <= self.high or (self.is_whole and value != int(value)):
            return None
        steps = (value - self.low) / (self.step or 1)
        if self.step and abs(steps - round(steps)) > 1e-6:
            return None
        # Four digits are more than a search can tell apart, and a command line that can be read.
        return int(value) if self.is_whole else min(max(float(f"{value:.4g}"), self.low), self.high)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several texts."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return " | ".join(self.values)

    def distribution(self):
        """Optuna's."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def grid(self) -> list[str]:
        """All values."""
        return list(self.values)


@dataclasses.dataclass(frozen=True)
class Space:
    """What a search varies of a Config.

    Attributes:
        config: the settings that the flags give.
        domains: path → range or values.
        tied: path → the path of what leaves it the rest of 1.
    """

    config: Config
    domains: dict[str, Range | Choice]
    tied: dict[str, str]

    def taken(self, values: dict[str, Any]) -> dict[str, Any]:
        """A trial's values as its flags have them, without needless digits."""
        return {path: self.domains[path].take(v) if _is_range(self.domains[path]) else v for path, v in values.items()}

    def flags(self, values: dict[str, Any]) -> list[str]:
        """The flags that set these values.

        Args:
            values: path → number or text, as a trial has them.
        """
        taken = self.taken(values)
        rest = {path: float(f"{1 - taken[of]:.6g}") for path, of in self.tied.items()}
        texts = {}
        for path, value in {**taken, **rest}.items():
            flag, *steps = path.split(".")
            if steps:
                text = texts.get(flag, self.config.texts()[flag])
                texts[flag] = paths.replaced(path, text, value)
            else:
                texts[flag] = str(value)
        return [f"--{flag}={text}" for flag, text in texts.items()]

    def start(self) -> dict[str, Any] | None:
        """The values that the flags give; None where one of them is out of its range."""
        values = {}
        for path, domain in self.domains.items():
            value, _ = paths.value_at(self.config, path)
            if _is_range(domain):
                values[path] = domain.take(value)
            else:
                values[path] = next((text for text in domain.values if _means(path, text, value)), None)
        tied = all(abs(paths.value_at(self.config, p)[0] - 1 + (values[of] or 0)) < 1e-6 for p, of in self.tied.items())
        return values if tied and None not in values.values() else None


def read(texts: tuple[str, ...], config: Config) -> Space:
    """Reads what ``--search`` says; a range that is given replaces that of ``auto``.

    Raises:
        InputError: a path leads nowhere, or what is given is no range for it.
    """
    given = {}
    items = [item.strip() for text in texts for item in re.split("[;\n]", text) if item.strip()]
    for item in items:
        path, colon, domain = (part.strip() for part in item.partition(":"))
        path = path.lstrip("-")
        if item != "auto" and not (colon and path and domain):
            raise InputError(f"--search={item!r}: give auto, or a path and its range, {paths.EXAMPLE}")
        if path in given:
            raise InputError(f"--search names {path} twice: give its range once")
        if item != "auto":
            given[path] = domain
    if "auto" in items:
        given = {**auto(config), **given}
    if within := [(path, whole) for path in given for whole in given if path.startswith(f"{whole}.")]:
        raise InputError("--search names both {1} and {0}, a key of it: search one of them".format(*within[0]))
    tied = {path: match[1] for path, text in given.items() if (match := _REST_OF_ONE.fullmatch(text))}
    domains = {path: _domain(config, path, text) for path, text in given.items() if path not in tied}
    if not domains:
        raise InputError(f"--search names no range: give auto, or one, {paths.EXAMPLE}")
    for path, of in tied.items():
        paths.value_at(config, path)
        if not _is_range(domains.get(of)) or not 0 <= domains[of].low <= domains[of].high <= 1:
            raise InputError(f"--search='{path}: 1 - {of}': give {of} a range within 0..1")
    return Space(config, domains, tied)


def auto(config: Config) -> dict[str, str]:
    """The ranges that settings and losses declare, by path; what is 0 or follows a schedule is left as it is."""
    ranges = {}
    for flag, setting in declared(Config).items():
        if setting.search is not None:
            ranges[flag + _height(config[flag])] = setting.search
    names = [part.name for part in config.student.loss]
    for number, part in enumerate(config.student.loss):
        alone = len(names) == 1
        name = part.name.rpartition(":")[2]
        name += f"#{names[: number + 1].count(part.name)}" if names.count(part.name) > 1 else ""
        # One of the user's own may be a function.
        ranges_of_loss = getattr(spec.builder("kd_keras.losses", part.name), "search", {})
        # The weight of a single loss only scales the learning rate.
        ranges |= {f"loss.{name}.{key}": r for key, r in ranges_of_loss.items() if not (alone and key == "weight")}
    values = {path: paths.value_at(config, path)[0] for path in ranges}
    return {p: text for p, text in ranges.items() if values[p] is None or (is_number(values[p]) and values[p] != 0)}


def _height(value: Any) -> str:
    """The path from a schedule to what sets its height; empty for a number."""
    if not isinstance(value, Schedule) or isinstance(value, constant) or value.height is None:
        return ""
    return f".{type(value).__name__}.{value.height}{_height(getattr(value, value.height))}"


def _is_range(domain) -> bool:
    return isinstance(domain, Range)


def _domain(config: Config, path: str, text: str) -> Range | Choice:
    """What a text says of a path."""
    value, default = paths.value_at(config, path)
    match = _RANGE.fullmatch(text)
    try:
        if match is None:
            return _choice(config, path, text)
        numbers = [float(t.lstrip("x")) for t in match.group(1, 2)]
        if relative := [t.startswith("x") for t in match.group(1, 2)].count(True):
            if relative == 1 or not is_number(value) or value == 0:
                raise InputError(f"multiples, x0.1..x10, are of a number that is not 0, and {path} is {value}")
            numbers = [float(f"{value * number:.6g}") for number in numbers]
        if not (value is None or value is signatures.MISSING or is_number(value)):
            raise InputError(f"{path} is {value}, no number: name a key of it, or give values, a | b")
        step = None if match[4] is None else float(match[4])
        texts = match.group(1, 2) if step is None else match.group(1, 2, 4)
        plain = all(re.fullmatch(r"x?[-+]?[\d.]+" if relative else r"[-+]?\d+", t) for t in texts)
        if _wants_whole(path, value, default) and plain:
            low, high = max(1, round(numbers[0])) if relative else int(numbers[0]), round(numbers[1])
            numbers, step = [low, high], None if step is None else int(step)
        elif _wants_whole(path, value, default):
            raise InputError(f"{path} takes whole numbers: give a range of them")
        if not numbers[0] < numbers[1] or (match[3] and (numbers[0] <= 0 or step)) or (step is not None and step <= 0):
            raise InputError("give the lower end first; on a log scale above 0, and without steps")
    except InputError as error:
        raise InputError(f"--search='{path}: {text}': {error}") from error
    return Range(*numbers, log=bool(match[3]), step=step)


def _wants_whole(path, value, default) -> bool:
    kind = declared(Config)[path].kind if "." not in path else None
    kind = kind.inner if isinstance(kind, OrNone) else kind
    if kind is not None:
        return isinstance(kind, Number) and kind.type is int
    number = value if default in (signatures.MISSING, None) else default
    return is_count(number, -(10**9))


def _choice(config, path, text) -> Choice:
    values = tuple(value.strip() for value in text.split("|"))
    if len(values) < 2 or not all(values) or len(set(values)) < len(values):
        raise InputError(f"give a range, 1..20 log, or different values, a | b; {paths.EXAMPLE}")
    if "." in path:
        for value in values:
            paths.literal(value)
    return Choice(values)


def _means(path: str, text: str, value: Any) -> bool:
    """Whether a text stands for the value at a path."""
    return paths.literal(text) == value if "." in path else declared(Config)[path].kind.parse(text) == value
