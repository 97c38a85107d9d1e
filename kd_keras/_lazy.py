"""Packages whose public names are imported when they are first used, so that TensorFlow is not imported before."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kd_keras import spec


def exports(package: str, shared: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package of parts.

    Args:
        package: its ``__name__``.
        shared: public name → the module of the package that defines it, for what is not named as its file.
    """
    homes = {**{name: stem for stem, name in spec.parts(package).items()}, **shared}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), sorted(homes)
