"""Signatures and docstrings of parts, read from their source.

No part is imported, so that `kd-keras list`, `kd-keras describe` and the binding of specs don't wait for TensorFlow.

A file of a package is a part if it defines a class or function with the file's name, underscores and case aside: `KD`
in ``kd.py``, `WideResNet` in ``wide_resnet.py``. A scheme is the function `plan` of its file. The parts of a module
(augmentations, schedules) are the names in its ``__all__``.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import pathlib
import sys
from typing import Any

from kd_keras import spec
from kd_keras.errors import InputError

#: Packages and modules by the kind of their parts.
KINDS = {
    "losses": "kd_keras.losses",
    "models": "kd_keras.models",
    "data": "kd_keras.data",
    "schemes": "kd_keras.schemes",
    "compress": "kd_keras.compress",
    "augmentations": "kd_keras.data.augment",
    "schedules": "kd_keras.schedules",
}
#: Arguments that a run adds; a spec can't name them.
ADDED_BY_A_RUN = frozenset({"num_classes", "input_shape", "samples", "config", "facts"})


class _Missing:
    """The default of an argument that has none."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a kind.

    Attributes:
        kind: such as ``losses``.
        name: its name in a spec, such as ``kd``.
        python_name: its name in Python, with its module: ``kd_keras.losses.kd.KD``.
        arguments: the default of each argument that a spec can name, or `MISSING`.
        docstring: its docstring, without indentation.
    """

    kind: str
    name: str
    python_name: str
    arguments: dict[str, Any]
    docstring: str

    def __str__(self) -> str:
        """The signature, as a spec has it: ``kd(weight=1.0, temperature=4.0)``."""
        values = [name if default is MISSING else f"{name}={default!r}" for name, default in self.arguments.items()]
        return f"{self.name}({', '.join(values)})"


def names(kind: str) -> list[str]:
    """Names of all parts of a kind, sorted.

    Args:
        kind: such as ``losses``, or a package or module, such as ``kd_keras.losses``.
    """
    package = KINDS.get(kind, kind)
    folders = _folders(package)
    if not folders:
        return sorted(_module(package).constants()["__all__"])
    return sorted({path.stem for folder in folders for path in folder.glob("*.py") if _definition_in(path, package)})


def signature(kind: str, name: str) -> dict[str, Any]:
    """The arguments of a part that a spec can name, in their order, and their defaults; see `read`."""
    return read(kind, name).arguments


def read(kind: str, name: str) -> Part:
    """A part of a kind.

    Args:
        kind: such as ``losses``, or a package or module, such as ``kd_keras.losses``.
        name: its name in a spec; ``package.module:name`` for a class or function that comes from elsewhere.

    Raises:
        InputError: there is no such part; the message names the closest.
    """
    package = KINDS.get(kind, kind)
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        module = _module(module_name)
        node = module.definitions().get(attribute)
        if node is None:
            raise InputError(f"{name!r}: {module_name} defines no class or function {attribute!r}")
    elif not (folders := _folders(package)):
        module = _module(package)
        node = module.definitions().get(name) if name in module.constants()["__all__"] else None
    else:
        path = next((folder / f"{name}.py" for folder in folders if (folder / f"{name}.py").is_file()), None)
        node = _definition_in(path, package) if path else None
        module = _parse(path, f"{package}.{name}") if node else None
    if node is None:
        raise InputError(spec.unknown(name, package.rpartition(".")[2], names(kind)))
    arguments = _arguments(node, module)
    kept = {key: value for key, value in arguments.items() if key not in ADDED_BY_A_RUN}
    docstring = inspect.cleandoc(ast.get_docstring(node) or "")
    return Part(kind, name, f"{module.name}.{node.name}", kept, docstring)


def _definition_in(path: pathlib.Path, package: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The class or function that makes a file a part."""
    module = _parse(path, f"{package}.{path.stem}")
    definitions = module.definitions()
    if package.endswith(".schemes"):
        return definitions.get("plan")
    wanted = path.stem.replace("_", "")
    return next((node for name, node in definitions.items() if name.lower() == wanted), None)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module that was parsed, not imported.

    Attributes:
        name: dotted, such as ``kd_keras.losses.kd``.
        path: its file.
        tree: its syntax tree.
    """

    name: str
    path: pathlib.Path
    tree: ast.Module

    def definitions(self) -> dict[str, ast.ClassDef | ast.FunctionDef]:
        """Public and private classes and functions at top level, by name."""
        return {node.name: node for node in self.tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}

    def constants(self) -> dict[str, Any]:
        """Names that are assigned a literal at top level."""
        values = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    values[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
        return values

    def imports(self) -> dict[str, str]:
        """Names that are imported at top level → what they stand for, in full."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        found = {}
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    root = alias.name.partition(".")[0]
                    found[alias.asname or root] = alias.name if alias.asname else root
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
                start = ".".join([*above, *([node.module] if node.module else [])])
                found.update({alias.asname or alias.name: f"{start}.{alias.name}" for alias in node.names})
        return found


def _arguments(node: ast.ClassDef | ast.FunctionDef, module: _Source) -> dict[str, Any]:
    """The arguments of a function or class by name, those of its bases that go through ``**kwargs`` included."""
    if isinstance(node, ast.FunctionDef):
        return _arguments_of_function(node, module)
    init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    if init is None:
        inherited = _arguments_of_bases(node, module)
        return inherited | _fields(node, module) if _is_dataclass(node) else inherited
    arguments = _arguments_of_function(init, module)
    del arguments[init.args.args[0].arg]
    if init.args.kwarg is not None:
        given = _given_to_the_base(init)
        inherited = _arguments_of_bases(node, module)
        arguments |= {key: value for key, value in inherited.items() if key not in arguments and key not in given}
    return arguments


def _arguments_of_bases(node, module) -> dict[str, Any]:
    arguments = {}
    for base in node.bases:
        found = _find_class(ast.unparse(base), module)
        if found is not None:
            arguments = _arguments(*found) | arguments
    return arguments


def _arguments_of_function(node: ast.FunctionDef, module: _Source) -> dict[str, Any]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(positional, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return {argument.arg: _default(default, module) for argument, default in pairs}


def _fields(node: ast.ClassDef, module: _Source) -> dict[str, Any]:
    """The fields of a dataclass."""
    return {
        item.target.id: _default(item.value, module)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
    }


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _default(node: ast.expr | None, module: _Source) -> Any:
    """The value of a default: a literal, or a constant of its module."""
    if node is None:
        return MISSING
    if isinstance(node, ast.Name) and node.id in (constants := module.constants()):
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        text = ast.unparse(node)
        raise InputError(f"{module.path}: the default {text} is no literal: write a literal, or None") from error


def _given_to_the_base(init: ast.FunctionDef) -> set[str]:
    """Keywords that `__init__` gives to its base itself: ``super().__init__(pairs=None, **kwargs)``."""
    calls = [node for node in ast.walk(init) if isinstance(node, ast.Call)]
    supers = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    return {keyword.arg for call in supers for keyword in call.keywords if keyword.arg is not None}


def _find_class(name: str, module: _Source) -> tuple[ast.ClassDef, _Source] | None:
    """The class that ``_base.ResponseLoss`` stands for in a module; None if it is of another package, such as Keras."""
    first, *rest = name.split(".")
    definition = module.definitions().get(name)
    if isinstance(definition, ast.ClassDef):
        return definition, module
    full = ".".join([module.imports().get(first, first), *rest])
    home, _, attribute = full.rpartition(".")
    # Keras' classes are no further bases: their arguments are not those of a part.
    if home.partition(".")[0] not in ("kd_keras", module.name.partition(".")[0]):
        return None
    # A package's public names are imported when they are used, so they are looked for in its files.
    folders = _folders(home)
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))] or [_path(home)]
    for path in files:
        found = _parse(path, home if not folders else f"{home}.{path.stem}")
        definition = found.definitions().get(attribute)
        if isinstance(definition, ast.ClassDef):
            return definition, found
    return None


def _folders(package: str) -> list[pathlib.Path]:
    """The folders of a package, also those that a user has added to its path; none of a module."""
    if package in sys.modules:
        return [pathlib.Path(folder) for folder in getattr(sys.modules[package], "__path__", [])]
    path = _path(package)
    return [path.parent] if path.name == "__init__.py" else []


@functools.cache
def _path(module: str) -> pathlib.Path:
    """The file of a module. Of this package nothing is imported to find it.

    Raises:
        InputError: there is no such module.
    """
    root, *rest = module.split(".")
    if root == "kd_keras":
        place = pathlib.Path(__file__).parent.joinpath(*rest)
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if path.is_file():
            return path
    else:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        if found is not None and found.origin is not None and found.origin.endswith(".py"):
            return pathlib.Path(found.origin)
    raise InputError(f"there is no module {module!r} with Python source: write package.module:name")


def _module(name: str) -> _Source:
    return _parse(_path(name), name)


@functools.cache
def _parse(path: pathlib.Path, name: str) -> _Source:
    return _Source(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
