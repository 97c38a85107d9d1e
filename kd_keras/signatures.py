"""Signatures and docstrings of parts, read from their source, so that nothing waits for TensorFlow to be imported."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import pathlib
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
#: The default of an argument that has none.
MISSING = type("Missing", (), {"__repr__": lambda self: "MISSING"})()


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
    """Names of all parts of a kind, sorted; a module's are those in its ``__all__``."""
    package = KINDS[kind]
    if (path := _path(package)).name == "__init__.py":
        return spec.names(package)
    return sorted(_constants(_parse(path))["__all__"])


def read(kind: str, name: str) -> Part:
    """A part of a kind.

    Args:
        kind: one of `KINDS`.
        name: its name in a spec; ``package.module:name`` for a class or function of the user's own code.

    Raises:
        InputError: there is no such part; the message names the closest.
    """
    package = KINDS[kind]
    if ":" in name:
        module, _, python_name = name.partition(":")
    elif name not in names(kind):
        raise InputError(spec.unknown(name, kind, names(kind)))
    elif _path(package).name != "__init__.py":
        module, python_name = package, name
    else:
        module, python_name = f"{package}.{name}", spec.parts(package)[name]
    tree = _parse(_path(module))
    node = next((node for node in tree.body if getattr(node, "name", None) == python_name), None)
    if node is None:
        raise InputError(f"{name!r}: {module} defines no class or function {python_name!r}")
    docstring = inspect.cleandoc(ast.get_docstring(node) or "")
    arguments = _arguments(node, _constants(tree), _path(package).parent)
    return Part(kind, name, f"{module}.{python_name}", arguments, docstring)


def _arguments(node: ast.ClassDef | ast.FunctionDef, constants, folder: pathlib.Path) -> dict[str, Any]:
    """The arguments of a function, a class or a dataclass that a spec can name."""
    function = node
    if isinstance(node, ast.ClassDef):
        inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        if not inits and not is_dataclass:
            inherited = _base_of(node, folder)
            return {} if inherited is None else _arguments(inherited, constants, folder)
        if not inits:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {field.target.id: _default(field.value, constants) for field in fields}
        function = inits[0]
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults = [None] * (len(positional) - len(function.args.defaults)) + function.args.defaults
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    skipped = ADDED_BY_A_RUN | {"self"}
    return {argument.arg: _default(default, constants) for argument, default in pairs if argument.arg not in skipped}


def _base_of(node: ast.ClassDef, folder: pathlib.Path) -> ast.ClassDef | None:
    """The base class that a package's shared files define, whose arguments a class without ``__init__`` takes."""
    wanted = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    classes = (item for path in folder.glob("*.py") for item in _parse(path).body if isinstance(item, ast.ClassDef))
    return next((item for item in classes if item.name in wanted and item is not node), None)


def _default(node: ast.expr | None, constants) -> Any:
    """The value of a default: a literal, or a constant of its module."""
    if node is None:
        return MISSING
    return constants[node.id] if isinstance(node, ast.Name) and node.id in constants else ast.literal_eval(node)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Names that are assigned a literal at top level."""
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                values[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return values


def _path(module: str) -> pathlib.Path:
    """The file of a module; of this package nothing is imported to find it."""
    root, *rest = module.split(".")
    if root == "kd_keras":
        place = pathlib.Path(__file__).parent.joinpath(*rest)
        return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    spec.search_current_folder()
    found = importlib.util.find_spec(root) and importlib.util.find_spec(module)
    if found is None or not (found.origin or "").endswith(".py"):
        raise InputError(f"there is no module {module!r} with Python source: write package.module:name")
    return pathlib.Path(found.origin)


@functools.cache
def _parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
