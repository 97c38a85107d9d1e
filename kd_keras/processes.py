"""Exit codes, signals, output streams and child processes of the commands."""

import codecs
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kd_keras.errors import InputError, WorkerError, shortened

_PLAIN = "kd_keras.plain"
_SIMPLER = {"×": "x", "→": "->", "·": "|", "–": "-", "±": "+-", "−": "-", "†": "*", "‡": "**"}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What is written in place of characters that an encoding does not have."""
    text = error.object[error.start : error.end]
    simple = (_SIMPLER.get(c) or unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() for c in text)
    return "".join(c or "?" for c in simple), error.end


codecs.register_error(_PLAIN, _plainly)
#: What asks a command to end. A second one ends it at once.
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_READER_GONE = 141  # as of a program that SIGPIPE has killed
_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
_PATIENCE = 30.0  # seconds that a child has to end in


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to end.

    Attributes:
        code: the exit code, 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Does a command's work; what the user has to know becomes one line on stderr.

    SIGINT, SIGTERM and SIGHUP end the work, which may still save what it has; the next one ends the process. Characters
    that stdout or stderr can't show are written as ASCII.

    Args:
        work: gives the exit code.
        interrupted: what to say after such a signal.

    Returns:
        What ``work`` gives; 2 for bad input, 3 where another machine is lost, 128 + the signal's number, 141 where
        nobody reads the output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_PLAIN)
    seen: list[int] = []
    try:
        with _stoppable(seen):
            code = work()
            sys.stdout.flush()
            return code
    except InputError as error:
        message, code = str(error), 2
    except WorkerError as error:
        message, code = str(error), 3
    except BrokenPipeError:
        # Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, code = f"{interrupted} (nobody reads the output any more)", _READER_GONE
    except BaseException as error:
        # Modules that are interrupted while they are imported raise what they like.
        if not seen and not isinstance(error, KeyboardInterrupt):
            raise
        message, code = interrupted, getattr(error, "code", 128 + (seen[0] if seen else signal.SIGINT))
    with contextlib.suppress(BrokenPipeError):
        print(f"kd_keras: {shortened(message)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _stoppable(seen: list[int]) -> Iterator[None]:
    """Raises `Stopped` at the first signal, which is put into ``seen``; what is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        seen.append(number)
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise Stopped(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in _ENDING if (handler := signal.getsignal(number)) in usual}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(text: str) -> int:
    """Prints a page of text, such as the help; that its reader leaves early is no error. Returns the exit code."""
    return exit_code(lambda: print(text) or 0, "stopped")


def run_child(command: Sequence[str], **options: Any) -> int:
    """Runs a command to its end, and returns its exit code; it does not outlive this process.

    Args:
        command: program and arguments.
        **options: of `subprocess.Popen`.

    Raises:
        Stopped: this process was asked to end. The child was asked too, and has ended.
    """
    with subprocess.Popen(command, preexec_fn=end_with_parent(), **options) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE)
            child.kill()
            raise


def end_with_parent() -> Callable[[], None] | None:
    """A ``preexec_fn`` for `subprocess.Popen`: the child gets SIGTERM when its parent dies. None outside of Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
