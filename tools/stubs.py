"""Writes ``__init__.pyi`` beside the ``__init__.py`` of each package whose names are imported lazily.

    python tools/stubs.py

Type checkers and editors read these files. Python itself does not: a new loss works before this script has run.
"""

import importlib
import pathlib

import kd_keras
from kd_keras import _lazy

PACKAGES = ("kd_keras", "kd_keras.compress", "kd_keras.data", "kd_keras.losses", "kd_keras.models")


def stub(package: str) -> str:
    """The text of a package's stub."""
    importlib.import_module(package)
    imports = []
    for name, module in _lazy.HOMES[package].items():
        home = package if name == module else f"{package}.{module}"
        imports.append((home, not name[0].isupper(), name))
    lines = [f"from {home} import {name} as {name}\n" for home, _, name in sorted(imports)]
    return "# Written by tools/stubs.py.\n" + "".join(lines) + ("\n__version__: str\n" if package == "kd_keras" else "")


def path(package: str) -> pathlib.Path:
    """Where a package's stub lies."""
    return pathlib.Path(kd_keras.__file__).parent.joinpath(*package.split(".")[1:], "__init__.pyi")


if __name__ == "__main__":
    for package in PACKAGES:
        path(package).write_text(stub(package), encoding="utf-8")
