"""The package as a user imports it: importing it is quick; its public names."""

import subprocess
import sys

import pytest

import kd_keras
from kd_keras import losses
from tests.conftest import ROOT


def python(code: str, *arguments) -> str:
    """What ``code`` prints in a process of its own."""
    line = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "line", ["import kd_keras", "from kd_keras import errors, files, spec; import kd_keras.run.config"]
)
def test_importing_the_package_imports_no_tensorflow(line):
    heavy = python(f"{line}; import sys; print({{'tensorflow', 'keras', 'numpy'}} & set(sys.modules))")
    assert heavy == "set()"


def test_public_names():
    assert sorted(kd_keras.__all__) == kd_keras.__all__
    assert {"Distiller", "Taps", "hinton", "losses", "models", "data", "InputError"} <= set(kd_keras.__all__)
    for name in kd_keras.__all__:
        assert getattr(kd_keras, name) is not None
        assert name in dir(kd_keras)
    assert kd_keras.Distiller.__module__ == "kd_keras.distillation.distiller"
    assert issubclass(kd_keras.InputError, ValueError)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'kd_keras' has no attribute 'Destiller'"):
        kd_keras.Destiller  # noqa: B018
    with pytest.raises(ImportError):
        from kd_keras import Destiller  # noqa: F401


def test_hinton_gives_the_classical_pair():
    ce, kd = kd_keras.hinton(alpha=0.7, temperature=3.0)
    assert (type(ce), type(kd)) == (losses.CE, losses.KD)
    now = {"epoch": 0, "step": 0}
    assert ce.weight(**now) == pytest.approx(0.3) and kd.weight(**now) == 0.7 and kd.temperature(**now) == 3.0
    ce, kd = kd_keras.hinton()
    assert ce.weight(**now) == pytest.approx(0.1) and kd.weight(**now) == 0.9 and kd.temperature(**now) == 4.0


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_hinton_refuses_an_alpha_that_is_no_share(alpha):
    with pytest.raises(kd_keras.InputError, match="weight"):
        kd_keras.hinton(alpha=alpha)
