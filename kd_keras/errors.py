"""The exceptions whose message is all that the user needs, and what the command line makes of them."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that says what was wrong, what was expected and what to do; the command line
    prints it and exits with code 2, without a traceback.
    """


class WorkerError(RuntimeError):
    """Another machine of a multi-worker run has stopped, or never started.

    The command line prints the message and exits with code 3; started again, all workers go on from the checkpoint.
    """


def exit_code(work: Callable[[], int], interrupted: str) -> int:
    """Does a command's work; what the user has to know becomes one line on stderr.

    Args:
        work: gives the exit code.
        interrupted: what to say after Ctrl-C.

    Returns:
        What ``work`` gives; 2 for bad input, 3 where another machine is lost, 130 after Ctrl-C.
    """
    try:
        return work()
    except InputError as error:
        message, code = str(error), 2
    except WorkerError as error:
        message, code = str(error), 3
    except KeyboardInterrupt:
        message, code = interrupted, 130
    print(f"kd_keras: {message}", file=sys.stderr)
    return code
