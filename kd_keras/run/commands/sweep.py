"""Runs an experiment with several values of flags: the same as python -m kd_keras.sweep."""

from kd_keras.sweep import __main__ as command


def main(argv: list[str]) -> int:
    """Runs `kd_keras.sweep` with these flags; returns its exit code."""
    return command.main(["kd-keras sweep", *argv])
