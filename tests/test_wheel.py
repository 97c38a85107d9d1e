"""The package as users install it: its wheel in an empty environment, without extras and with."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
QUICK = ["--epochs=2", "--tracking=none", "--progress=none"]


class Environment:
    """An empty virtual environment.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)

    def __call__(self, program: str, *arguments) -> subprocess.CompletedProcess:
        """Runs one of its programs, in an empty folder and without this process' PYTHONPATH."""
        place = self.folder.parent / "elsewhere"
        place.mkdir(exist_ok=True)
        hidden = ("PYTHONPATH", "PYTHONHOME", "TF_CPP_MIN_LOG_LEVEL")
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        line = [str(self.folder / "bin" / program), *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, cwd=place, env=env, timeout=1800, check=False)

    def install(self, what) -> None:
        """Installs a wheel with its requirements."""
        ended = self("pip", "install", "--quiet", "--no-compile", what)
        assert ended.returncode == 0, ended.stderr[-3000:]

    @property
    def quick_start(self) -> pathlib.Path:
        """The flagfile of the quick start, as the wheel installs it."""
        return self.folder / "share" / "kd_keras" / "experiments" / "digits.flags"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that nothing of the checkout's own build is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("kd_keras", "experiments"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(line, check=True, timeout=600)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def plain(wheel, tmp_path_factory):
    """An environment that holds the wheel and what it requires."""
    environment = Environment(tmp_path_factory.mktemp("plain") / "env")
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def full(wheel, plain):
    """The same environment with all extras, installed afterwards, as the hints advise."""
    plain.install(f"{wheel}[all]")
    return plain


def rows(workdir):
    return [row["role"] for row in json.loads((workdir / "results.json").read_text(encoding="utf-8"))]


def test_the_quick_start_needs_no_extra(plain, tmp_path):
    for name in ("tensorflow_model_optimization", "tf_keras", "keras_cv", "keras_hub", "tensorflow_datasets", "optuna"):
        assert plain("python", "-c", f"import {name}").returncode == 1, f"{name} came by way of what is required"
    ended = plain("kd-keras", "run", f"--flagfile={plain.quick_start}", *QUICK, f"--workdir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(rows(tmp_path / "run")) == 7
    assert len(list((tmp_path / "run").glob("*.tflite"))) == 4


def test_the_commands_are_installed_with_what_they_read(plain):
    package = plain("python", "-c", "import kd_keras; print(kd_keras.__file__)").stdout.strip()
    assert pathlib.Path(package).is_relative_to(plain.folder)
    assert (pathlib.Path(package).parent / "py.typed").exists()
    assert plain("kd-keras", "--version").stdout.startswith("kd_keras ")
    assert "wide_resnet" in plain("kd-keras", "list").stdout
    assert "kd(weight=1.0" in plain("kd-keras", "describe", "kd").stdout
    assert plain("python", "-m", "kd_keras.run", "--help").returncode == 0


@pytest.mark.parametrize(
    ("flags", "extra"),
    [
        (["--compress=qat()"], "qat"),
        (["--data=tfds(name='digits')"], "tfds"),
        (["--augment=keras_cv()"], "augment"),
        (["--student=hub(preset='resnet_18_imagenet')"], "hub"),
    ],
)
def test_what_an_extra_is_missing_for_is_said_before_anything_is_trained(plain, tmp_path, flags, extra):
    run = [f"--flagfile={plain.quick_start}", *QUICK, *flags, f"--workdir={tmp_path / 'run'}"]
    ended = plain("kd-keras", "run", *run)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("kd_keras:")]
    assert ended.returncode == 2, ended.stderr[-3000:]
    assert len(lines) == 1 and lines[0].endswith(f"pip install 'kd_keras[{extra}]'")
    assert not list(tmp_path.rglob("*.keras"))


def test_with_all_extras_the_quick_start_is_compressed(full, tmp_path):
    for name in ("tensorflow_datasets", "keras_cv", "keras_hub", "optuna", "importlib_resources"):
        ended = full("python", "-c", f"import {name}")
        assert ended.returncode == 0, ended.stderr[-2000:]
    run = [f"--flagfile={full.quick_start}", *QUICK, "--compress=prune(sparsity=0.5) + qat()", "--export=int8"]
    ended = full("kd-keras", "run", *run, f"--workdir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert any("qat" in role for role in rows(tmp_path / "run"))
