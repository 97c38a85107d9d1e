"""The one exception that stands for a mistake in what the user gave."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that says what was wrong, what was expected and what to do; the command line
    prints it and exits with code 2, without a traceback.
    """
