"""The public names: found without TensorFlow, the same for Python and for type checkers, none hidden by a module."""

import importlib
import pkgutil
import types

import pytest

import kd_keras
from kd_keras import spec
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
