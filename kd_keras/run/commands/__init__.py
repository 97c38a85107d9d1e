"""The console command `kd-keras`. Each of its commands is a file of this folder with a function ``main(argv)``."""

import ast
import importlib
import pathlib
import sys

from kd_keras import __version__, spec
from kd_keras.errors import InputError
from kd_keras.processes import exit_code, show

_FOLDER = pathlib.Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the command's name and its arguments; by default those of this process.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        return show(help_text()) or (0 if argv else 2)
    if argv[0] == "--version":
        print(f"kd_keras {__version__}")
        return 0
    return exit_code(lambda: _load(argv[0]).main(argv[1:]), "stopped")


def names() -> list[str]:
    """Names of all commands, sorted."""
    return sorted(path.stem.replace("_", "-") for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


def help_text() -> str:
    """What ``kd-keras --help`` prints: the commands and what each does."""
    lines = ["Knowledge distillation for Keras.", "", "  kd-keras COMMAND [ARGUMENTS …]", "  kd-keras --version", ""]
    for name in names():
        docstring = ast.get_docstring(ast.parse((_FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")))
        lines.append(f"  {name:<11}{docstring.splitlines()[0]}")
    return "\n".join([*lines, "", "kd-keras run --help and kd-keras sweep --help print their flags."])


def _load(name: str):
    if name not in names():
        raise InputError(spec.unknown(name, "commands", names()))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
