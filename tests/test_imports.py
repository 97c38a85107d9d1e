"""Imports go one way (CONTRIBUTING.md, The shape): read from the source, so that a late import counts as well."""

import ast
import dataclasses
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "kd_keras"
FILES = sorted(PACKAGE.rglob("*.py"))

# What `--help` reads; no TensorFlow before a function needs it.
QUICK = {"errors", "files", "spec", "schedules", "config", "values"}
SHARED = {"arrays", "graph", "labels"}
LEAVES = {"losses", "models", "data", "compress"}
HANDED = {
    "device",
    "frozen",
    "distiller",
    "teacher_cache",
    "evaluate",
    "tracking",
    "report",
    "export",
    "distribute",
    "training",
    "joined",
    "other_runs",
}
# What each part may import beside itself.
MAY_IMPORT = {
    **{part: QUICK for part in QUICK},
    **{part: QUICK for part in SHARED},
    **{part: QUICK | SHARED for part in LEAVES},
    **{part: QUICK | SHARED | HANDED for part in HANDED},
    "teaching": QUICK | SHARED | LEAVES | HANDED,
    "experiment": QUICK | SHARED | LEAVES | HANDED | {"teaching"},
    "schemes": QUICK | SHARED | LEAVES | HANDED | {"teaching", "experiment"},
    "compressed": QUICK | SHARED | LEAVES | HANDED | {"teaching", "experiment"},
    "measure": QUICK | SHARED | LEAVES | HANDED | {"experiment", "compressed"},
    "run": QUICK | SHARED | LEAVES | HANDED | {"experiment", "schemes", "compressed", "measure"},
    "sweep": QUICK | {"tracking"},
    "__init__": QUICK | SHARED | LEAVES | HANDED,
}
HEAVY = {"tensorflow", "keras", "tf_keras", "keras_cv", "keras_hub", "tensorflow_model_optimization"}


@dataclasses.dataclass(frozen=True)
class Import:
    """An imported name in full, such as ``kd_keras.losses.kd``; ``late`` where a function imports it."""

    name: str
    line: int
    late: bool


def imports(source: str, module: str) -> list[Import]:
    """Every import in a module's source; ``module`` (dotted, ``….__init__`` for a package) resolves relative ones."""
    found = []

    def visit(node, late):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            found.extend(Import(f"{start}.{alias.name}", node.lineno, late) for alias in node.names)
        inside = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def offences(source: str, module: str) -> list[str]:
    """What a module's imports break, a line each; ``module`` is dotted, such as ``kd_keras.losses.kd``."""
    part = module.split(".")[1]
    broken = []
    for found in imports(source, module):
        root, *rest = found.name.split(".")
        where = f"{module}:{found.line} imports {found.name}"
        if root in HEAVY and not found.late and part in QUICK | {"__init__", "run"}:
            broken.append(f"{where} as it is read")
        if root != "kd_keras":
            continue
        other = rest[0] if rest else None
        if other not in MAY_IMPORT:
            # The lazy public names hide which module they come from.
            broken.append(f"{where}, which is no module: import from the one that defines it")
        elif other != part and other not in MAY_IMPORT[part]:
            broken.append(f"{where}, which comes later")
    return broken


def module_of(path: pathlib.Path) -> str:
    return ".".join(("kd_keras", *path.relative_to(PACKAGE).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_one_way(path):
    module = module_of(path)
    assert module.split(".")[1] in MAY_IMPORT, "give the new module its place in MAY_IMPORT and in CONTRIBUTING.md"
    assert offences(path.read_text("utf-8"), module) == []


def test_all_files_are_read():
    assert {"kd_keras.distiller", "kd_keras.losses.kd", "kd_keras.__init__", "kd_keras.run"} <= set(
        map(module_of, FILES)
    )


@pytest.mark.parametrize(
    "module, line",
    [
        ("kd_keras.config", "import tensorflow as tf"),
        ("kd_keras.schedules", "from keras import ops"),
        ("kd_keras.spec", "if True:\n    import keras.ops"),
        ("kd_keras.config", "from kd_keras import losses"),
        ("kd_keras.spec", "def f():\n    from kd_keras.distiller import Taps"),
        ("kd_keras.losses.kd", "from kd_keras.models import cnn"),
        ("kd_keras.losses.kd", "from ..models import cnn"),
        ("kd_keras.models.__init__", "from .. import data"),
        ("kd_keras.data.digits", "import kd_keras.distiller"),
        ("kd_keras.distiller", "from kd_keras import losses"),
        ("kd_keras.distiller", "def f():\n    import kd_keras.losses.kd"),
        ("kd_keras.export.tflite", "from kd_keras import experiment"),
        ("kd_keras.experiment", "from kd_keras.schemes import offline"),
        ("kd_keras.schemes.offline", "from kd_keras.run import main"),
        ("kd_keras.training", "from kd_keras import run"),
        ("kd_keras.training", "from kd_keras import Distiller"),
        ("kd_keras.run", "import keras"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert len(offences(line, module)) == 1


@pytest.mark.parametrize(
    "module, line",
    [
        ("kd_keras.schedules", "def f():\n    from keras import ops"),
        ("kd_keras.losses.kd", "import keras\nfrom kd_keras import labels, schedules\nfrom . import _base"),
        ("kd_keras.distiller", "import tensorflow as tf\nfrom kd_keras import labels"),
        ("kd_keras.experiment", "from kd_keras import data, training\nfrom kd_keras.export import tflite"),
    ],
)
def test_an_allowed_import_passes(module, line):
    assert offences(line, module) == []
