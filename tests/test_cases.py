"""Small inputs that version 0.1 got wrong, each with its right answer: one folder of cases after the other."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CASES = ROOT / "tests" / "cases"


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("folder", sorted(path.name for path in CASES.iterdir()))
def test_every_case_of_a_folder_is_right(folder):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(CASES / folder),
        str(CASES / folder),
    ]
    environment = {**os.environ, "KD_KERAS_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
