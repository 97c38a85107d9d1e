"""Tracking: one file for each tracker, which has its `Writer`; the file's name is the value of ``--tracking``."""

import importlib
import pathlib

NONE = "none"


def uri_of(tracker: str, uri: str | None, folder: pathlib.Path) -> str | None:
    """Where a tracker writes.

    Args:
        tracker: ``mlflow``, ``tensorboard``, ``wandb`` or ``none``.
        uri: ``--tracking_uri``, or None.
        folder: of the run, or of the runs that are compared.

    Returns:
        What ``--tracking_uri`` takes; None where the tracker knows by itself.
    """
    return uri or (None if tracker == NONE else module(tracker).default_uri(folder))


def shared_flags(flags: list[str], folder: pathlib.Path) -> list[str]:
    """The flag by which runs of one study are compared in one place, unless flags after it say otherwise.

    Args:
        flags: of every run.
        folder: of all runs.
    """
    from kd_keras.run.config import Config
    from kd_keras.run.settings import declared, read_flags

    # Whether the other flags go together, only each run's own can tell.
    setting = declared(Config)["tracking"]
    given = read_flags(Config, ["kd_keras", *flags])[0].get("tracking", setting.default)
    uri = uri_of(setting.read(given), None, folder)
    return [] if uri is None else [f"--tracking_uri={uri}"]


def has_system_metrics(tracker: str) -> bool:
    """Whether a tracker can show the use of processors and memory."""
    return tracker != NONE and module(tracker).Writer.has_system_metrics


def module(tracker: str):
    """A tracker's file, which defines ``default_uri(folder)``, ``how_to_open(uri, writer)`` and `Writer`."""
    return importlib.import_module(f"{__name__}.{tracker}")
