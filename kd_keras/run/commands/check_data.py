"""Looks through a data set for what makes results doubtful: kd-keras check-data photos --image_size=224."""

import pathlib

from kd_keras.run.commands._parser import Parser


def parser() -> Parser:
    """What the command takes beside flags of ``kd-keras run``."""
    made = Parser("kd-keras check-data", description=__doc__)
    made.add_argument(
        "path", nargs="?", type=pathlib.Path, help="a folder as folder(path=…) takes it; else give --data"
    )
    made.add_argument("--near", action="store_true", help="look for near duplicates too, by a perceptual hash")
    return made


def main(argv: list[str]) -> int:
    """Prints how many images each class has in each split, and a sentence for everything that is doubtful.

    Args:
        argv: a folder, or ``--data``; further flags of ``kd-keras run`` that concern the data.

    Returns:
        1 where something is doubtful, else 0.

    Raises:
        InputError: the data can't be read.
    """
    arguments, flags = parser().parse_known_args(argv)
    from kd_keras.run import data_check

    return int(data_check.check(arguments.path, flags, looks_near=arguments.near))
