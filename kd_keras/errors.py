"""The exceptions whose message is all that the user needs."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that says what was wrong, what was expected and what to do; the command line
    prints it and exits with code 2, without a traceback.
    """


class WorkerError(RuntimeError):
    """Another machine of a multi-worker run has stopped, or never started.

    The command line prints the message and exits with code 3; started again, all workers go on from the checkpoint.
    """
