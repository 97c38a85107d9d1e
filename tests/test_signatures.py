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
    found = list(part.arguments.items())
    assert found[: len(wanted)] == list(wanted.items())
    # What is left goes through **kwargs to a base of the package.
    bases = [base for base in getattr(builder, "__mro__", ())[1:] if base.__module__.startswith("kd_keras")]
    inherited = {key for base in bases for key in inspect.signature(base).parameters}
    assert {key for key, _ in found[len(wanted) :]} <= inherited
    assert part.docstring == inspect.getdoc(builder)
    assert part.python_name == f"{builder.__module__}.{builder.__name__}"


def test_all_kinds_have_their_known_parts():
    some = {("losses", "kd"), ("models", "wide_resnet"), ("data", "mura"), ("schemes", "offline"), ("compress", "qat")}
    some |= {("augmentations", "mixup"), ("schedules", "warmup")}
    assert some <= set(PARTS)
    assert not {("losses", "base"), ("models", "layers"), ("data", "image_files"), ("compress", "step")} & set(PARTS)
    for kind, package in signatures.KINDS.items():
        assert signatures.names(kind) == signatures.names(package) == spec.names(package)


def test_a_loss_shows_what_its_bases_take_and_nothing_that_a_run_adds():
    assert signatures.signature("losses", "kd") == {
        **{"weight": 1.0, "temperature": 4.0, "standardize": False, "squared": True},
        "name": None,
    }
    assert "samples" not in signatures.signature("losses", "crd")
    assert not {"num_classes", "input_shape"} & signatures.signature("models", "cnn").keys()
    assert signatures.signature("schemes", "born_again") == {"generations": 3, "ensemble": False}
    assert signatures.signature("kd_keras.schedules", "linear") == {
        **{"start": signatures.MISSING, "end": signatures.MISSING},
        **{"over": None, "per": "epoch"},
    }
    assert str(signatures.read("schedules", "linear")) == "linear(start, end, over=None, per='epoch')"


OUTSIDE = '''
"""A user's module."""
import kd_keras
import keras
from kd_keras import losses
from kd_keras.losses.base import LogitLoss

_SIZES = (1, 2)


class Mine(losses.ResponseLoss):
    """A loss of mine."""

    def __init__(self, *, sizes=_SIZES, samples, **kwargs):
        super().__init__(temperature=1.0, **kwargs)


class Heir(Mine):
    """Takes what Mine takes."""


class Plain(LogitLoss, keras.layers.Layer):
    def __init__(self, *, squared=False, **kwargs):
        super().__init__(squared=squared, **kwargs)


class Closed(kd_keras.losses.KD):
    def __init__(self, alpha):
        super().__init__(weight=alpha)


def computed(size=len("four")):
    pass
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of a user's; its name."""
    (tmp_path / "users_losses.py").write_text(OUTSIDE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_losses"
    assert "users_losses" not in sys.modules
    for cached in (signatures._path, signatures._parse):
        cached.cache_clear()


def test_parts_from_outside_the_package(outside):
    def signature(name):
        return signatures.signature("losses", f"{outside}:{name}")

    mine = {"sizes": (1, 2), "weight": 1.0, "name": None, "standardize": False, "squared": True}
    assert signature("Mine") == signature("Heir") == mine
    assert signatures.read("losses", f"{outside}:Mine").docstring == "A loss of mine."
    assert signature("Plain") == {"squared": False, "standardize": False, "weight": 1.0, "name": None}
    assert signature("Closed") == {"alpha": signatures.MISSING}


def test_the_files_that_a_user_adds_to_a_package(tmp_path, monkeypatch):
    import kd_keras.losses

    monkeypatch.setattr(kd_keras.losses, "__path__", [*kd_keras.losses.__path__, str(tmp_path)])
    source = "from kd_keras.losses import base\n\n\nclass MyOwn(base.LogitLoss):\n    '''Mine.'''\n"
    (tmp_path / "my_own.py").write_text(source, encoding="utf-8")
    (tmp_path / "helpers.py").write_text("class Other:\n    pass\n", encoding="utf-8")
    assert "my_own" in signatures.names("losses") and "helpers" not in signatures.names("losses")
    assert signatures.read("losses", "my_own").docstring == "Mine."
    assert signatures.signature("losses", "my_own")["standardize"] is False


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("losses", "kdd", "unknown name 'kdd' in losses: .* \\(did you mean 'kd'\\?\\)"),
        ("losses", "base", "unknown name 'base' in losses"),
        ("schedules", "Schedule", "unknown name 'Schedule' in schedules"),
        (
            "losses",
            "users_losses:Nothing",
            "users_losses defines no class or function 'Nothing'",
        ),
        ("losses", "no_such_module:Nothing", "there is no module 'no_such_module'"),
        ("losses", "users_losses:computed", r"users_losses.py: the default len\('four'\) is no literal"),
        ("lossess", "kd", "there is no module 'lossess'"),
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
