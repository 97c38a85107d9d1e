"""Writes one page about a run, a sweep or several runs: kd-keras report RUN …"""

import pathlib

from kd_keras.errors import InputError
from kd_keras.run.commands._parser import Parser
from kd_keras.run.page import folders, report


def parser() -> Parser:
    """What the command takes."""
    made = Parser("kd-keras report", description=__doc__)
    made.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="the --workdir of a run or of a sweep")
    made.add_argument(
        "--output",
        type=pathlib.Path,
        help="the file; by default report.html in the folder, or of several folders in the current one",
    )
    return made


def main(argv: list[str]) -> int:
    """Writes the report.

    Args:
        argv: folders of runs and sweeps, and ``--output``.

    Raises:
        InputError: a folder holds no finished run, or the runs can't be compared.
    """
    arguments = parser().parse_args(argv)
    runs, unfinished = folders.find(arguments.runs)
    default = arguments.runs[0] / report.NAME if len(arguments.runs) == 1 else pathlib.Path(report.NAME)
    path = arguments.output or default
    try:
        report.write(runs, path, unfinished)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error
    print(f"{path}: {len(runs)} run{'s' * (len(runs) > 1)}")
    return 0
