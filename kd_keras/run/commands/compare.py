"""Prints what differs between two runs, in settings and numbers: kd-keras compare A B"""

import os
import pathlib

from kd_keras.errors import InputError
from kd_keras.run.page import comparison, folders
from kd_keras.run.report.tables import PIPED_WIDTH


def main(argv: list[str]) -> int:
    """Prints the differences.

    Args:
        argv: the folders of two finished runs.

    Raises:
        InputError: they are not two, or one holds no finished run.
    """
    if {"-h", "--help"} & set(argv):
        print(f"{__doc__}\n\nA and B are the --workdir of two finished runs.")
        return 0
    runs, _ = folders.find([pathlib.Path(argument) for argument in argv])
    if len(argv) != 2 or len(runs) != 2:
        raise InputError("compare takes two folders, each the --workdir of a run: kd-keras report takes more of them")
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
