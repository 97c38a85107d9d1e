import os
import pathlib
import subprocess
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _float32_policy():
    """A test that sets a dtype policy does not leave it to the next one."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture
def command():
    """Runs ``python -m kd_keras.run`` in a process of its own, from the repository's root."""

    def run(*flags, **kwargs):
        line = [sys.executable, "-m", "kd_keras.run", *map(str, flags)]
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=300, **kwargs)

    return run
