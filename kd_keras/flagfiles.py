"""Flagfiles: one flag on a line, named by a path or, of the experiments that come with the package, by a name."""

import pathlib
import sysconfig

from kd_keras.errors import InputError, one_line
from kd_keras.spec import closest


def folder() -> pathlib.Path:
    """Where the experiments lie: in the checkout, or where the wheel has put them."""
    checkout = pathlib.Path(__file__).resolve().parent.parent / "experiments"
    return checkout if checkout.is_dir() else pathlib.Path(sysconfig.get_path("data"), "share/kd_keras/experiments")


def names() -> list[str]:
    """Names of the experiments, sorted."""
    return sorted(path.stem for path in folder().glob("*.flags"))


def find(name: str) -> pathlib.Path:
    """A flagfile by its path, or an experiment by its name.

    Raises:
        InputError: neither a file nor an experiment.
    """
    path = pathlib.Path(name).expanduser()
    is_name = path.name == name and not path.suffix
    if not is_name or path.exists():
        return path
    if name not in names():
        raise InputError(
            f"--flagfile={one_line(name)} is neither a file nor an experiment{closest(name, names())}: kd-keras list "
            "experiments prints them"
        )
    return folder() / f"{name}.flags"


def flags_in(path: pathlib.Path) -> list[str]:
    """The flags of a file; lines that start with # or // are comments.

    Raises:
        InputError: it can't be read, or is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"--flagfile={one_line(path)} can't be read: {reason}") from error
    lines = [line.strip() for line in lines]
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def expand(arguments: list[str], outer: tuple[pathlib.Path, ...] = ()) -> tuple[list[str], list[pathlib.Path]]:
    """Puts the lines of each ``--flagfile=FILE`` in its place, as absl does, but reads UTF-8 whatever the locale.

    Args:
        arguments: of the command line or of a flagfile.
        outer: the files that led to this one.

    Returns:
        The arguments, and the files that they name.
    """
    expanded, files, rest = [], [], iter(arguments)
    for argument in rest:
        name, equals, file = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        file = file if equals else next(rest, "")
        if not file:
            raise InputError("--flagfile=: give the name of a file")
        path = find(file)
        if path in outer:  # A file that includes itself; absl reads it once too.
            continue
        expanded += expand(flags_in(path), (*outer, path))[0]
        files.append(path)
    return expanded, files
