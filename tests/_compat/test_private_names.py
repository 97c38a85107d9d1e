"""Private names of other packages stand in `kd_keras._compat` alone: read from the source of all other files."""

import ast
import pathlib

import keras
import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "kd_keras"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "_compat"]
PRIVATE_MODULES = ("keras.src", "tf_keras.src", "tensorflow.python", "tensorflow_model_optimization.python")
KERAS_CLASSES = (keras.Model, keras.layers.Layer, keras.metrics.Metric, keras.callbacks.Callback)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(source: str) -> set[str]:
    """Private names that a file defines: functions, classes, variables, attributes of ``self``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return {name for name in names if is_private(name)}


OURS = set().union(*(defined(path.read_text("utf-8")) for path in FILES))


def offences(source: str, ours: set[str] = OURS) -> list[str]:
    """Uses of private names of other packages in a file, one line each."""
    broken = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in ours:
                broken.append(f"{node.lineno}: .{node.attr}")
            if ast.unparse(node).startswith(tuple(f"{name}." for name in PRIVATE_MODULES)):
                broken.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PRIVATE_MODULES):
            broken.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith(PRIVATE_MODULES)]
            broken += [f"{node.lineno}: import {name}" for name in names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if is_private(name) and name not in ours:
                broken.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef) and is_private(part.name)]
            overrides = [part for part in methods if any(hasattr(kind, part.name) for kind in KERAS_CLASSES)]
            broken += [f"{part.lineno}: def {part.name}, a name that Keras uses" for part in overrides]
    return broken


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_others_stand_in_compat(path):
    assert offences(path.read_text("utf-8")) == [], "give each a function in kd_keras/_compat, and a test of its name"


@pytest.mark.parametrize(
    "line",
    [
        "tensor._keras_history",
        "from tensorflow.python.framework import ops",
        "import tensorflow_model_optimization.python.core",
        "import keras\nkeras.src.backend",
        "getattr(layer, '_weight_vars', ())",
        "class A(keras.Model):\n    def _maybe_symbolic_build(self):\n        pass",
    ],
)
def test_a_private_name_is_noticed(line):
    assert offences(line, ours=set())


def test_own_names_pass():
    source = "class A:\n    def __init__(self):\n        self._x = 1\n    def f(self, other):\n        return other._x"
    assert offences(source, ours=defined(source)) == []
