"""Errors whose message is all that the user needs, and checks of values."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that says what was wrong, what was expected and what to do; the command line
    prints it and exits with code 2, without a traceback.
    """


class WorkerError(RuntimeError):
    """Another machine of a multi-worker run has stopped, or never started.

    The command line prints the message and exits with code 3; started again, all workers go on from the checkpoint.
    """


def shortened(message: str, most: int = 1500) -> str:
    """A message without its middle where it is long: it may quote anything that the user gave."""
    return message if len(message) <= most else f"{message[: most * 2 // 3]} … {message[-most // 4 :]}"


def one_line(value: object) -> str:
    """A value's text, shortened, with line breaks and control characters escaped."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
    return text if len(text) <= 200 else f"{text[:197]}…"


@contextlib.contextmanager
def naming(given: str, only: str = "") -> Iterator[None]:
    """Puts what the user gave, such as ``--loss=kd(weight=-1)``, in front of an InputError that names no flag.

    Args:
        given: the flag and its value.
        only: text that the message has to contain; other errors are left as they are.
    """
    try:
        yield
    except InputError as error:
        if "--" in str(error) or only not in str(error):
            raise
        raise InputError(f"{given}: {error}") from error


@contextlib.contextmanager
def needs(package: str, extra: str, what: str) -> Iterator[None]:
    """Imports an optional package: what can't be imported in this block becomes one line that says how to install it.

    Example::

        with needs("KerasHub", "hub", "hub(…)"):
            import keras_hub

    Args:
        package: the package's name for readers.
        extra: the extra of kd_keras that installs it.
        what: what the user asked for that needs it.

    Raises:
        InputError: the package, or what it imports, is not installed.
    """
    try:
        yield
    except ImportError as error:
        message = f"{what} needs {package} ({error}): pip install 'kd_keras[{extra}]'"
        raise InputError(message) from error


def plain(value: Any) -> Any:
    """A scalar of NumPy as Python's number, which is saved as it is; anything else unchanged."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


def is_count(value: Any, least: int = 1) -> bool:
    """Whether ``value`` is a whole number of at least ``least``; True and False are no numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float; True and False are no numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_switch(key: str, value: Any) -> None:
    """Raises InputError unless ``value`` is True or False; text such as 'no' would count as True."""
    if not isinstance(value, bool):
        raise InputError(f"{key}={value!r}: write True or False")
