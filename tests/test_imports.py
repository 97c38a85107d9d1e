"""Imports go one way (CONTRIBUTING.md, The shape): read from the source, so that a late import counts as well."""

import ast
import dataclasses
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "kd_keras"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the first room to the last: each may import those before it.
BASE = {"errors", "files", "flagfiles", "recipes", "spec", "schedules", "signatures", "processes", "_lazy"}
LEAVES = {"losses", "models", "data", "compress"}
OBJECTS = {"distillation", "export", "evaluate"}
BEFORE = BASE | {"_compat"}
MAY_IMPORT = {
    **{part: BASE for part in (*BASE, "_compat")},
    **{part: BEFORE for part in LEAVES},
    "distillation": BEFORE | LEAVES,
    # A file gives logits, whatever the model gives.
    "export": BEFORE | LEAVES | {"distillation"},
    "evaluate": BEFORE | LEAVES | {"distillation", "export"},
    # Plans: of export they read which kinds of file there are.
    "schemes": BASE | {"export"},
    "run": BEFORE | LEAVES | OBJECTS | {"schemes"},
    # Reports of one run and of many: the statistics of many runs are the sweep's.
    "run.page": BASE | {"evaluate", "run", "sweep"},
    "sweep": BEFORE | LEAVES | OBJECTS | {"schemes", "run"},
    # The console command lies in run/ and starts all that there is.
    "run.commands": BASE | {"run", "sweep"},
    "__main__": {"run"},
    "testing": BEFORE | {"losses", "models", "data"},
    "__init__": BEFORE | LEAVES | OBJECTS | {"testing"},
}
# Modules that answer at once: no TensorFlow is imported before a function needs it.
QUICK = {*BASE, "__init__", "__main__", "run.__main__", "run.config", "export.variants", "sweep.__main__"}
QUICK |= {f"schemes.{path.stem}" for path in PACKAGE.glob("schemes/*.py")}
QUICK |= {f"sweep.{path.stem}" for path in PACKAGE.glob("sweep/*.py")}
QUICK |= {f"run.{room}.{path.stem}" for room in ("commands", "page") for path in PACKAGE.glob(f"run/{room}/*.py")}
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
    parts = module.split(".")
    part = ".".join(parts[1:3]) if ".".join(parts[1:3]) in MAY_IMPORT else parts[1]
    broken = []
    for found in imports(source, module):
        root, *rest = found.name.split(".")
        where = f"{module}:{found.line} imports {found.name}"
        if root in HEAVY and not found.late and module.removeprefix("kd_keras.") in QUICK:
            broken.append(f"{where} as it is read")
        if root != "kd_keras" or found.name == "kd_keras.__version__":
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


# Of distillation/ these alone need TensorFlow: a step for another backend is a file more.
WITH_TENSORFLOW = {"tensorflow_step.py", "tensorflow_labels.py", "teacher_cache.py", "precomputed.py"}


def uses_tensorflow(source: str, module: str) -> list[str]:
    """Imports of TensorFlow, and of the module for its strategies, and uses of it as ``tf``."""
    names = [found.name for found in imports(source, module)]
    used = [n for n in names if n.split(".")[0] == "tensorflow" or n.startswith("kd_keras._compat.distribute")]
    return used + [n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == "tf"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "distillation").glob("*.py")), ids=module_of)
def test_tensorflow_stands_in_the_step_and_the_teacher_cache_alone(path):
    assert bool(uses_tensorflow(path.read_text("utf-8"), module_of(path))) == (path.name in WITH_TENSORFLOW)


@pytest.mark.parametrize(
    "line", ["def f():\n    import tensorflow as tf", "from kd_keras._compat import distribute", "tf.cast(x, 'int32')"]
)
def test_a_use_of_tensorflow_is_noticed(line):
    assert uses_tensorflow(line, "kd_keras.distillation.taps")


def test_nothing_imports_the_teacher_cache_as_it_is_read():
    for path in sorted((PACKAGE / "distillation").glob("*.py")):
        found = imports(path.read_text("utf-8"), module_of(path))
        assert [i for i in found if "teacher_cache" in i.name and not i.late] == []


def test_all_files_are_read():
    wanted = {"kd_keras.distillation.distiller", "kd_keras.losses.kd", "kd_keras.__init__", "kd_keras.run.__main__"}
    assert wanted <= set(map(module_of, FILES))


@pytest.mark.parametrize(
    "module, line",
    [
        ("kd_keras.run.config", "import tensorflow as tf"),
        ("kd_keras.schedules", "from keras import ops"),
        ("kd_keras.spec", "if True:\n    import keras.ops"),
        ("kd_keras.spec", "def f():\n    from kd_keras.distillation.distiller import Taps"),
        ("kd_keras.losses.kd", "from kd_keras.models import cnn"),
        ("kd_keras.losses.kd", "from ..models import cnn"),
        ("kd_keras.models.__init__", "from .. import data"),
        ("kd_keras.data.digits", "import kd_keras.distillation.distiller"),
        ("kd_keras._compat.keras", "def f():\n    import kd_keras.losses.kd"),
        ("kd_keras.export.tflite", "from kd_keras.run import experiment"),
        ("kd_keras.distillation.distiller", "from kd_keras.evaluate import quality"),
        ("kd_keras.distillation.distiller", "from kd_keras import Distiller"),
        ("kd_keras.run.training", "from kd_keras import sweep"),
        ("kd_keras.run.__main__", "import keras"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert len(offences(line, module)) == 1


@pytest.mark.parametrize(
    "module, line",
    [
        ("kd_keras.schedules", "def f():\n    from keras import ops"),
        ("kd_keras.losses.kd", "import keras\nfrom kd_keras import schedules\nfrom . import base"),
        ("kd_keras.distillation.distiller", "import tensorflow as tf\nfrom kd_keras.losses import labels"),
        ("kd_keras.run.training", "from kd_keras import data\nfrom kd_keras.export import tflite"),
    ],
)
def test_an_allowed_import_passes(module, line):
    assert offences(line, module) == []


def tensorflow_in(source: str, module: str) -> list[str]:
    """The imports of TensorFlow in a module's source, late ones too."""
    return [f"{module}:{item.line}" for item in imports(source, module) if item.name.split(".")[0] == "tensorflow"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "losses").glob("*.py")), ids=module_of)
def test_losses_use_keras_ops_and_no_tensorflow(path):
    assert tensorflow_in(path.read_text("utf-8"), module_of(path)) == []


@pytest.mark.parametrize(
    ("start", "reached"),
    [
        ("kd_keras.losses.crd", {"kd_keras.losses.base", "kd_keras._compat.replicas", "kd_keras._compat.ops"}),
        ("kd_keras.losses.ft", {"kd_keras.losses.features"}),
        ("kd_keras.distillation.__init__", {"kd_keras.distillation.taps", "kd_keras.models.layers"}),
    ],
)
def test_losses_and_distillation_import_no_tensorflow_by_themselves(start, reached):
    """Follows the imports within the package, as another backend than TensorFlow would."""
    left, seen = {start}, {"kd_keras.distillation.tensorflow_step"}  # which the distiller imports under TensorFlow
    while left - seen:
        module = (left - seen).pop()
        seen.add(module)
        path = PACKAGE.parent / (module.replace(".", "/") + ".py")
        for item in imports(path.read_text("utf-8"), module):
            assert item.late or item.name.split(".")[0] != "tensorflow", f"{module}:{item.line}"
            for name in (item.name, item.name.rpartition(".")[0]):
                if not item.late and (PACKAGE.parent / (name.replace(".", "/") + ".py")).exists():
                    left.add(name)
    assert reached <= seen


@pytest.mark.parametrize("line", ["import tensorflow as tf", "def f():\n    from tensorflow import cast"])
def test_tensorflow_is_found(line):
    assert len(tensorflow_in(line, "kd_keras.losses.kd")) == 1
