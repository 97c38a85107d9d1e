"""Trains, measures and exports: the same as python -m kd_keras.run."""

from kd_keras.run import __main__ as command


def main(argv: list[str]) -> int:
    """Runs `kd_keras.run` with these flags; returns its exit code."""
    return command.main(["kd-keras run", *argv])
