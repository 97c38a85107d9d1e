"""Signatures that are read from source say what Python says of the imported parts."""

import inspect
import subprocess
import sys

import pytest

from kd_keras import signatures, spec
from kd_keras.errors import InputError
from tests.conftest import ROOT

PARTS = [(kind, name) for kind in signatures.KINDS for name in signatures.names(kind)]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda text: text)
def test_a_signature_is_that_of_the_imported_part(kind, name):
    builder = spec.builder(signatures.KINDS[kind], name)
    parameters = [p for p in inspect.signature(builder).parameters.values() if p.kind is not p.VAR_KEYWORD]
    empty = inspect.Parameter.empty
    wanted = {
        p.name: signatures.MISSING if p.default is empty else p.default
        for p in parameters
        if p.name not in signatures.ADDED_BY_A_RUN
    }
    part = signatures.read(kind, name)
    assert list(part.arguments.items()) == list(wanted.items())
    assert part.docstring == inspect.getdoc(builder)
    assert part.python_name == f"{builder.__module__}.{builder.__name__}"


def test_all_kinds_have_their_known_parts():
    some = {("losses", "kd"), ("models", "wide_resnet"), ("data", "mura"), ("schemes", "offline"), ("compress", "qat")}
    some |= {("augmentations", "mixup"), ("schedules", "warmup")}
    assert some <= set(PARTS)
    assert not {("losses", "base"), ("models", "layers"), ("data", "image_files"), ("compress", "step")} & set(PARTS)
    for kind, package in signatures.KINDS.items():
        assert signatures.names(kind) == spec.names(package)


def signature(kind, name):
    return signatures.read(kind, name).arguments


def test_what_a_spec_can_name_and_nothing_that_a_run_adds():
    assert signature("losses", "kd") == {"weight": 1.0, "temperature": 4.0, "standardize": False, "squared": True}
    assert "samples" not in signature("losses", "crd")
    assert not {"num_classes", "input_shape"} & signature("models", "cnn").keys()
    assert signature("schemes", "born_again") == {"generations": 3, "ensemble": False}
    assert str(signatures.read("schedules", "linear")) == "linear(start, end, over=None, per='epoch')"


OUTSIDE = '''
"""A user's module."""
from kd_keras import losses

_SIZES = (1, 2)


class Mine(losses.ResponseLoss):
    """A loss of mine."""

    def __init__(self, *, weight=1.0, sizes=_SIZES, samples, **kwargs):
        super().__init__(weight=weight, temperature=1.0, **kwargs)
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of a user's; its name."""
    (tmp_path / "users_losses.py").write_text(OUTSIDE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_losses"
    assert "users_losses" not in sys.modules
    signatures._parse.cache_clear()


def test_a_part_from_outside_the_package(outside):
    part = signatures.read("losses", f"{outside}:Mine")
    assert part.arguments == {"weight": 1.0, "sizes": (1, 2)} and part.docstring == "A loss of mine."


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("losses", "kdd", "unknown name 'kdd' in losses: .* \\(did you mean 'kd'\\?\\)"),
        ("losses", "base", "unknown name 'base' in losses"),
        ("schedules", "Schedule", "unknown name 'Schedule' in schedules"),
        ("losses", "users_losses:Nothing", "users_losses defines no class or function 'Nothing'"),
        ("losses", "no_such_module:Nothing", "there is no module 'no_such_module'"),
    ],
)
def test_what_is_refused(outside, kind, name, message):
    with pytest.raises(InputError, match=message) as caught:
        signatures.read(kind, name)
    assert "\n" not in str(caught.value)


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from kd_keras import signatures\n"
        "for kind in signatures.KINDS:\n"
        "    for name in signatures.names(kind): signatures.read(kind, name)\n"
        "print({'tensorflow', 'keras', 'numpy', 'absl', 'kd_keras.losses', 'kd_keras.data'} & set(sys.modules))"
    )
    line = [sys.executable, "-c", code]
    assert subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=True).stdout == "set()\n"
