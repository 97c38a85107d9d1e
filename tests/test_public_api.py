"""The public names: found without TensorFlow, the same for Python and for type checkers, none hidden by a module."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types

import pytest

import kd_keras
from kd_keras import spec
from tests.conftest import ROOT
from tests.test_package import python
from tools import stubs

ROOMS = ("losses", "models", "data", "compress")


@pytest.mark.parametrize("package", stubs.PACKAGES)
def test_the_stub_is_up_to_date(package):
    assert stubs.path(package).read_text("utf-8") == stubs.stub(package), "run python tools/stubs.py"


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_there_after_its_file_was_imported(room):
    # A lazy name that is also a file's would now be that module.
    package = importlib.import_module(f"kd_keras.{room}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"kd_keras.{room}.{module.name}")
    for name in package.__all__:
        value = getattr(package, name)
        assert callable(value) and not isinstance(value, types.ModuleType), name
        assert value.__name__ == name and value.__doc__
        assert value.__module__.startswith(f"kd_keras.{room}.")


@pytest.mark.parametrize("room", ROOMS)
def test_every_part_is_a_public_name_of_camel_case(room):
    parts = spec.parts(f"kd_keras.{room}")
    assert set(parts.values()) <= set(getattr(kd_keras, room).__all__)
    for file, name in parts.items():
        assert name[0].isupper() and name.lower() == file.replace("_", "")


def test_names_are_listed_without_importing_tensorflow():
    code = "import kd_keras, sys\nfor room in {rooms}: names = dir(getattr(kd_keras, room)); assert len(names) > 3"
    heavy = python(
        f"{code.format(rooms=ROOMS)}\nprint({{'tensorflow', 'keras', 'numpy', 'tf_keras'}} & set(sys.modules))"
    )
    assert heavy == "set()"


@pytest.mark.parametrize("package", ["kd_keras", *(f"kd_keras.{room}" for room in ROOMS)])
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Resnet'"):
        _ = importlib.import_module(package).Resnet


def mypy(path, cache):
    """What mypy says about a user's script, one line per mistake."""
    options = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={cache}"]
    line = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", *options, str(path)]
    result = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert not result.stderr, result.stderr
    return [line for line in result.stdout.splitlines() if ": error:" in line]


@pytest.mark.slow
def test_a_users_typed_script_passes_mypy_and_mistakes_are_found(tmp_path):
    assert mypy(ROOT / "tests" / "user_script.py", tmp_path) == []
    (tmp_path / "wrong.py").write_text(
        "from kd_keras import Destiller, losses, models\n"
        "models.CNN(num_classes='ten', input_shape=(8, 8, 1))\n"
        "models.ResNet(10, (8, 8, 1), deepness=18)\n"
        "losses.KD(temperature=[4.0])\n"
        "losses.Kd()\n"
    )
    assert [line.split(":")[1] for line in mypy(tmp_path / "wrong.py", tmp_path)] == ["1", "2", "3", "4", "5"]


def test_the_users_typed_script_uses_every_public_name():
    tree = ast.parse((ROOT / "tests" / "user_script.py").read_text("utf-8"))
    used = {(node.value.id, node.attr) for node in ast.walk(tree) if getattr(getattr(node, "value", None), "id", None)
            and isinstance(node, ast.Attribute)}  # fmt: skip
    for room in ROOMS:
        assert {(room, name) for name in getattr(kd_keras, room).__all__} <= used
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set(kd_keras.__all__) <= names


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_typed(room):
    package = getattr(kd_keras, room)
    for name in package.__all__:
        value = getattr(package, name)
        # A class without a constructor of its own has that of its base, which is checked as well.
        function = value.__init__ if isinstance(value, type) else value
        if not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        assert not untyped and signature.return_annotation is not signature.empty, f"{room}.{name}: {untyped}"
