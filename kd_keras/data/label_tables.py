"""Tables of independent labels: a CSV file with a row for each image and a column for each label."""

import csv
import pathlib

import numpy as np

from kd_keras.errors import InputError

_VALUES = {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1}


def read(path: pathlib.Path) -> tuple[list[str], list[str], np.ndarray]:
    """Reads a table: the first column holds the images' file names, the others 0 or 1 (−1: not known).

    Args:
        path: CSV file with a header that names the labels.

    Returns:
        The labels' K names, the N file names as they are written, and the labels int32 (N, K).

    Raises:
        InputError: the file can't be read, or a row is not of that form; row and column are named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            lines = [(rows.line_num, row) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read ({error}): give a CSV file, UTF-8, of file names and 0 or 1") from error
    names = header[1:]
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise InputError(
            f"{path}: the header is {','.join(header)[:60]!r}: it names the column of files and then at least two "
            "labels, all different"
        )
    if not lines:
        raise InputError(f"{path} has no row below its header: write one for each image")
    labels = np.empty((len(lines), len(names)), np.int32)
    first_lines: dict[str, int] = {}
    for at, (line, row) in enumerate(lines):
        if len(row) != len(header):
            raise InputError(f"{path}, row {line}: {len(row)} columns where the header has {len(header)}")
        if row[0] in first_lines:
            raise InputError(f"{path}, row {line}: {row[0]!r} stands in row {first_lines[row[0]]} already")
        first_lines[row[0]] = line
        for column, (name, text) in enumerate(zip(names, row[1:], strict=True)):
            if text.strip() not in _VALUES:
                raise InputError(
                    f"{path}, row {line}, column {name!r}: {text!r} is no label: write 0 or 1, or -1 where it is not "
                    "known"
                )
            labels[at, column] = _VALUES[text.strip()]
    for name, column in zip(names, labels.T, strict=True):
        if not (column == 1).any() or not (column == 0).any():
            raise InputError(
                f"{path}, column {name!r}: an image with 1 and one with 0 are needed: leave the column out"
            )
    return names, list(first_lines), labels
