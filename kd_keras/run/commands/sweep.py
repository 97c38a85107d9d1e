"""Runs an experiment with several values of flags: the same as python -m kd_keras.sweep."""

import os

from kd_keras.sweep import __main__ as command


def main(argv: list[str]) -> int:
    """Runs `kd_keras.sweep` with these flags; returns its exit code."""
    # TensorFlow warns of every instruction set that it was not built for.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return command.main(["kd-keras sweep", *argv])
