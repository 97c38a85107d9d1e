import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

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


@pytest.fixture
def postgresql():
    """The URL of a database on a real server."""
    pytest.importorskip("psycopg", reason="no driver: pip install 'psycopg[binary]'")
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("no PostgreSQL server on the PATH")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kd_keras_pg_"))
    # It refuses to be run as root.
    who = {"user": "nobody"} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, "nobody")

    def run(*words):
        subprocess.run(words, check=True, cwd=folder, stdout=subprocess.DEVNULL, **who)

    data = str(folder / "data")
    run("initdb", "-D", data, "-A", "trust", "-U", "kd")
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder}", "start")
    yield f"postgresql+psycopg://kd:secret@/postgres?host={folder}"
    run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)
