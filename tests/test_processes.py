"""Exit codes, signals, streams and children of commands, in real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

WAITS = """
    import sys, time
    from kd_keras.processes import exit_code
    def work():
        try:
            print("begun", flush=True)
            time.sleep(60)
        finally:
            print("saved", flush=True)
            time.sleep(LEAVING)
    sys.exit(exit_code(work, "stopped; goes on"))
"""


def heed_signals():
    """Takes back what the tests themselves may have been started with: in the background, under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(code, **options):
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": heed_signals,
        **options,
    }
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], **options)


def begun(code, **options):
    process = start(code, **options)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_work_which_may_save_what_it_has(number):
    process = begun(WAITS.replace("LEAVING", "0"))
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (128 + number, "saved\n", "kd_keras: stopped; goes on\n")


def test_a_second_signal_ends_the_process():
    process = begun(WAITS.replace("LEAVING", "60"))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    process = begun(
        WAITS.replace("time.sleep(60)", "time.sleep(1.5)").replace("LEAVING", "0"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_signal_during_an_import_that_turns_it_into_another_error_is_told_in_a_line():
    process = begun("""
        import sys, time
        from kd_keras.processes import exit_code
        def work():
            try:
                print("begun", flush=True)
                time.sleep(60)
            except KeyboardInterrupt as error:
                raise ImportError("could not be initialised") from error
        sys.exit(exit_code(work, "stopped"))
    """)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "kd_keras: stopped\n")


def test_what_a_stream_cannot_show_is_written_as_ascii():
    code = "import sys; from kd_keras.processes import show; sys.exit(show('1 ± 2 \\udcff'))"
    for encoding, shown in (("ascii", "1 +- 2 ?\n"), ("utf-8", "1 ± 2 ?\n")):
        process = start(code, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding="utf-8")
        assert process.communicate(timeout=20) == (shown, "") and process.returncode == 0


def test_a_reader_that_has_gone_gives_no_traceback():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from kd_keras.processes import show; sys.exit(show('text'))"
    process = start(code, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 141 and err == "kd_keras: stopped (nobody reads the output any more)\n"


PARENT = """
    import sys
    from kd_keras.processes import exit_code, run_child
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    sys.exit(exit_code(lambda: run_child([sys.executable, "-c", child]), "stopped"))
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells children of their parent's death")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent_however_that_ends(number):
    process = start(PARENT)
    child = int(process.stdout.readline())
    process.send_signal(number)
    process.wait(20)
    until = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(child)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    process.communicate()
