"""Prints what differs between two runs, in settings and numbers: kd-keras compare A B"""

import os
import pathlib

from kd_keras.errors import InputError
from kd_keras.run.commands._parser import Parser
from kd_keras.run.page import comparison, folders
from kd_keras.run.report.tables import PIPED_WIDTH


def parser() -> Parser:
    """What the command takes."""
    made = Parser("kd-keras compare", description=__doc__)
    for name in "AB":
        made.add_argument(name, type=pathlib.Path, help="the --workdir of a finished run")
    return made


def main(argv: list[str]) -> int:
    """Prints the differences.

    Args:
        argv: the folders of two finished runs.

    Raises:
        InputError: they are not two, or one holds no finished run.
    """
    arguments = parser().parse_args(argv)
    runs, _ = folders.find([arguments.A, arguments.B])
    if len(runs) != 2:
        raise InputError("compare takes two runs, and a sweep has more: kd-keras report takes any number")
    print_comparison(*runs)
    return 0


def print_comparison(a: folders.Run, b: folders.Run) -> None:
    """Prints tables of what differs, and a sentence about the students."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPED_WIDTH)
    names = (a.name, b.name) if a.name != b.name else (str(a.path), str(b.path))
    parts = (
        ("settings", ("setting", *names), comparison.settings(a, b)),
        ("data, code and machine", ("what", *names), comparison.surroundings(a, b)),
        ("numbers", ("stage", "number", *names, "difference"), comparison.numbers(a, b)),
    )
    for title, headings, rows in parts:
        console.print(_table(title, headings, rows) if rows else f"{title}: the same", end="\n\n" if rows else "\n")
    for sentence in comparison.sentences(a, b):
        console.print(sentence, markup=False, highlight=False)


def _table(title, headings, rows):
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        numeric = len(headings) == 5 and heading not in ("stage", "number")
        table.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, as a string would be read as markup: "[int8]" would vanish.
        table.add_row(*map(Text, row))
    return table
