"""Sends a finished run to a tracker, such as a server that was down: kd-keras track RUN --to=http://host:5000."""

import os
import pathlib
import time

from kd_keras.errors import InputError
from kd_keras.run import config as configuration
from kd_keras.run.commands._parser import Parser
from kd_keras.run.settings import make
from kd_keras.run.tracking import NONE
from kd_keras.run.workdir import SETTINGS, Workdir, read_json

_RESULTS = "results.json"


def parser() -> Parser:
    """What the command takes."""
    made = Parser("kd-keras track", description=__doc__)
    made.add_argument("run", type=pathlib.Path, metavar="RUN", help="the --workdir of a finished run")
    made.add_argument("--to", help="what --tracking_uri takes; by default where the run was tracked")
    made.add_argument("--tracking", help="mlflow, tensorboard or wandb; by default the run's, or mlflow")
    return made


def main(argv: list[str]) -> int:
    """Sends settings, curves, figures, files and the student.

    Args:
        argv: the run's folder and where to.

    Raises:
        InputError: the folder holds no finished run, or the tracker is none.
    """
    arguments = parser().parse_args(argv)
    folder = arguments.run.expanduser().resolve()
    if not (folder / SETTINGS).exists() or not (folder / _RESULTS).exists():
        raise InputError(f"{arguments.run} holds no finished run: give the --workdir of one")
    texts = read_json(folder / SETTINGS)
    # Of a folder that was moved, its store has moved along.
    if pathlib.Path(texts["store"]) == pathlib.Path(texts["workdir"]) / "store":
        texts["store"] = str(folder / "store")
    given = arguments.tracking or texts["tracking"]
    texts |= {"workdir": str(folder), "tracking": "mlflow" if given == NONE else given}
    if arguments.to is not None:
        texts["tracking_uri"] = arguments.to
    config = make(configuration.Config, texts)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kd_keras.run import execute

    return execute.execute(config, Workdir(config), time.perf_counter())
