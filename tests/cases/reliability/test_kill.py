"""Signals: a run that is stopped says so in one line, tells the tracker, leaves nobody behind, and goes on later."""

import contextlib
import os
import pathlib
import signal
import sqlite3
import time

import pytest

import common

#: More epochs than there is time for.
ENDLESS = [*common.TINY, "--nobaseline", "--epochs=100000"]
SAYS = "the same command goes on"


def stopped(folder, number, *flags):
    """A run that got a signal while its student learnt."""
    process = common.start(*ENDLESS, *flags, f"--workdir={folder / 'run'}")
    process.wait_for("teacher ")
    process.wait_until(lambda: common.has(folder / "run", "checkpoint"))
    process.send(number)
    return process.result(30)


def says_so(result, number):
    assert not result.timed_out, f"it does not stop: {result}"
    assert result.code == 128 + number, f"exit {result.code} where {128 + number} belongs: {result}"
    assert "Traceback" not in result.err, result
    assert len(result.own) == 1 and SAYS in result.own[0], f"it does not say that it can go on: {result.own}"


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_run_that_is_stopped_says_that_it_goes_on(number, folder):
    says_so(stopped(folder, number), number)


@pytest.mark.control
def test_ctrl_c_says_that_it_goes_on(folder):
    says_so(stopped(folder, signal.SIGINT), signal.SIGINT)


def statuses(folder):
    with contextlib.closing(sqlite3.connect(common.find(folder / "run", "mlflow store"))) as store:
        return [status for (status,) in store.execute("SELECT status FROM runs")]


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_run_that_is_stopped_is_killed_in_mlflow(number, folder):
    result = stopped(folder, number, "--tracking=mlflow")
    assert result.code == 128 + number
    # One run in the tracker holds all models.
    assert statuses(folder) == ["KILLED"]


def interrupted_at_once(folder, after):
    """Ctrl-C so many seconds after the command line has begun to import what it needs itself."""
    process = common.start(*ENDLESS, f"--workdir={folder / 'run'}", fresh=True)
    loaded = pathlib.Path(f"/proc/{process.pid}/maps")

    def begun():
        # Some module of the standard library that only the package's own first imports need.
        with contextlib.suppress(OSError):
            return any(name in loaded.read_text() for name in ("_json.cpython", "_csv.cpython", "_datetime.cpython"))
        return False

    until = time.monotonic() + 10
    while not begun() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.001)
    time.sleep(after)
    process.send(signal.SIGINT)
    return process.result(30)


def test_ctrl_c_while_python_starts_gives_no_traceback(folder):
    """A fifth of a second in which the command line itself is imported; some moments of it."""
    for after in (0.0, 0.01, 0.02, 0.03):
        result = interrupted_at_once(folder, after)
        assert result.code == 130, result
        assert "Traceback" not in result.err, result
        assert len(result.own) <= common.MOST_LINES


@pytest.mark.control
def test_a_run_that_was_halted_and_woken_has_the_same_numbers(folder, whole, cut_flags):
    process = common.start(*cut_flags, f"--workdir={folder / 'run'}")
    process.wait_for("teacher ")
    process.send(signal.SIGSTOP)
    time.sleep(0.5)
    process.send(signal.SIGCONT)
    common.went_on(process.result())
    assert common.rows(folder / "run") == common.rows(whole)


# ---- a sweep's child ----


@pytest.fixture(scope="module")
def orphans(root):
    """Of each signal to a sweep: (its own result, whether its child still ran some seconds later)."""
    found = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        folder = root / f"sweep-{number.name}"
        process = common.start(*ENDLESS, "--seeds=0,1", f"--workdir={folder}", module="kd_keras.sweep")
        process.wait_until(lambda process=process: common.children(process.pid))
        (child,) = common.children(process.pid)
        # While it imports TensorFlow, it is the package's already.
        time.sleep(2)
        process.send(number)
        until = time.monotonic() + 6
        while common.alive(child) and time.monotonic() < until:
            time.sleep(0.05)
        lives = common.alive(child)
        if lives:
            os.kill(child, signal.SIGKILL)
        found[number] = process.result(30), lives
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_sweep_that_is_killed_takes_its_child_along(number, orphans):
    result, lives = orphans[number]
    assert not lives, "its child went on training"
    assert result.code == 128 + number, result


def test_a_sweep_that_gets_sigterm_says_that_it_goes_on(orphans):
    result, _ = orphans[signal.SIGTERM]
    assert len(result.own) == 1 and SAYS in result.own[0], result


# ---- a reader that goes away ----


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return write


def test_help_whose_reader_has_gone_gives_no_traceback(folder):
    """``--help | head -1``."""
    pipe = closed_pipe()
    result = common.start("--help", stdout=pipe).result(30)
    os.close(pipe)
    assert "Traceback" not in result.err, result
    assert len(result.own) <= 1, result
