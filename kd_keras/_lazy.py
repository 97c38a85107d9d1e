"""Public names of packages, imported when they are first used: importing a package does not import TensorFlow.

Each package says where its names are defined. ``tools/stubs.py`` writes the same as ``__init__.pyi`` for type checkers.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kd_keras import spec

#: Package → public name → the module of the package that defines it.
HOMES: dict[str, Mapping[str, str]] = {}


def parts(package: str) -> dict[str, str]:
    """The class or function of each part of a package → its module: ``{"KD": "kd", …}``."""
    return {name: module for module, name in spec.parts(package).items()}


def exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's ``__getattr__``, ``__dir__`` and ``__all__``.

    Args:
        package: its ``__name__``.
        homes: public name → the module of the package that defines it; a module of that name is public itself.
    """
    HOMES[package] = homes

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name]}")
        return module if name == homes[name] else getattr(module, name)

    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), sorted(homes)
