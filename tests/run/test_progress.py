import contextlib
import io
import os
import pathlib
import pty
import re
import subprocess
import sys
import termios
import time
import types

import pytest
from rich.console import Console

from kd_keras.run.callbacks import ShowProgress
from kd_keras.run.progress import Clock, Progress, Work

ROOT = pathlib.Path(__file__).parents[2]
TWO = [Work("teacher", "train", 40), Work("student", "train", 40)]


def plain(text: str) -> str:
    """What a terminal was sent, without the sequences that move its cursor or colour."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@contextlib.contextmanager
def terminal(encoding="utf-8", columns=100):
    """A console on a pseudo-terminal, and a function that gives what it has been sent."""
    main, sub = pty.openpty()
    termios.tcsetwinsize(sub, (24, columns))
    os.set_blocking(main, False)
    sent = b""

    def read():
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while part := os.read(main, 65536):
                sent += part
        return sent.decode(encoding)

    with os.fdopen(sub, "w", encoding=encoding) as file:
        yield Console(file=file, width=columns, soft_wrap=True), read
    os.close(main)


def train(progress, work, epochs=4, seconds=0.0):
    """Tells what a training tells, by the callback that does."""
    callback = ShowProgress(progress, epochs)
    steps = work.size // epochs
    callback.params = {"steps": steps}
    callback.set_model(types.SimpleNamespace())
    with progress.stage(work):
        for epoch in range(epochs):
            callback.on_epoch_begin(epoch)
            for step in range(steps):
                time.sleep(seconds)
                callback.on_train_batch_end(step, {"loss": 0.5, "accuracy": 0.25})
            callback.on_epoch_end(epoch, {"loss": 0.5, "accuracy": 0.25, "val_loss": 0.4, "val_accuracy": 0.75})


def test_the_time_that_is_left():
    now = 100.0
    clock = Clock([*TWO, Work("measuring", "quality"), Work("cache", "cache", 10, seconds=7.0)], lambda: now)
    clock.begin(TWO[0])
    assert clock.of_stage is None and clock.of_run is None
    now += 30  # TensorFlow traces the first step, which says nothing of the others
    clock.tell(1)
    assert clock.of_stage is None
    now += 5
    clock.tell(11)
    assert clock.of_stage == pytest.approx(29 * 0.5)
    # The student's steps are expected to take what the teacher's take; a measurement of which nothing is known 2 s.
    assert clock.of_run == pytest.approx(29 * 0.5 + 40 * 0.5 + 2 + 7)
    now += 29
    clock.tell(40)
    clock.end()
    clock.begin(TWO[1])
    assert clock.of_stage == pytest.approx(40 * 34 / 39)
    now += 1
    assert clock.of_stage == pytest.approx(40 * 34 / 39 - 1)
    clock.end()
    clock.begin(Work("not announced", "quality"))
    assert [work.title for work in clock.works[:3]] == ["teacher", "student", "not announced"]


def test_a_training_that_goes_on_counts_from_where_it_is():
    now = 0.0
    clock = Clock([Work("student", "train", 100)], lambda: now)
    clock.begin(clock.works[0])
    clock.tell(90)
    now = 4.0
    clock.tell(92)
    assert clock.of_stage == pytest.approx(8 * 2.0)


def test_a_log_has_a_line_for_each_epoch():
    page = io.StringIO()
    progress = Progress(Console(file=page, width=120, soft_wrap=True))
    with progress.run(TWO):
        for work in TWO:
            train(progress, work)
    lines = page.getvalue().splitlines()
    assert len(lines) == 8
    for at, line in enumerate(lines):
        stage = TWO[at // 4].title
        figures = "loss 0.5000  accuracy 0.2500  val_loss 0.4000  val_accuracy 0.7500"
        assert line.startswith(f"{stage:<8} epoch {at % 4 + 1}/4  {figures}")


@pytest.mark.parametrize("color", ["1", None])
def test_a_log_is_no_terminal_whatever_colours_are_forced(color, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1") if color else monkeypatch.delenv("FORCE_COLOR", raising=False)
    page = io.StringIO()
    progress = Progress(Console(file=page, width=120, soft_wrap=True))
    train(progress, TWO[0])
    assert len(page.getvalue().splitlines()) == 4 and "\x1b[1A" not in page.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_has_a_bar_for_the_stage_and_one_for_the_run(encoding, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    with terminal(encoding) as (console, read):
        progress = Progress(console)
        with progress.run([*TWO, Work("measuring student", "quality")]):
            train(progress, TWO[0])
            train(progress, TWO[1], seconds=0.015)
            console.print("a line above the bars")
            with progress.stage(Work("measuring student", "quality")):
                pass
        text = read()
    shown = plain(text)
    for word in ("teacher", "/4  ", "steps/s", "loss 0.500", "accuracy 0.250", "stage 2 of 3", "a line above"):
        assert word in shown
    assert re.search(r"student +\S+ 00:\d\d left", shown) and re.search(r"run +\S+ 00:\d\d left", shown)
    # The bars are gone when all is done: the last thing that is written erases their lines.
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[2K" in text[-60:]


def test_a_terminal_that_can_not_move_up_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as (console, read):
        progress = Progress(console)
        train(progress, TWO[0])
        assert "\x1b" not in read() and len(read().splitlines()) == 4


def test_none_is_silent(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    with terminal() as (console, read):
        progress = Progress(console, "none")
        with progress.run(TWO):
            train(progress, TWO[0])
        assert read() == ""


def test_steps_cost_next_to_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    pictures, steps = 0, 20_000

    def figures():
        nonlocal pictures
        pictures += 1
        return "loss"

    with terminal() as (console, read):
        progress = Progress(console)
        with progress.stage(Work("student", "train", steps)):
            start = time.monotonic()
            for step in range(steps):
                progress.update(step + 1, figures)
            seconds = time.monotonic() - start
            read()
    assert pictures <= seconds / 0.25 + 1
    # 50 microseconds a step on a machine that is busy with other work; it is one or two.
    assert seconds < 50e-6 * steps


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "encoding"), [("--progress=auto", "ascii"), ("--progress=none", "utf-8")])
def test_a_run_on_a_terminal_and_in_a_pipe(flag, encoding, tmp_path):
    command = [sys.executable, "-m", "kd_keras.run", "--data=digits()", "--train_examples=200", "--epochs=2"]
    command += ["--teacher=cnn(filters=(4,), dense=())", "--student=cnn(filters=(2,), dense=())", "--cache_views=1"]
    command += ["--export=int8", "--tracking=none", flag]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm-256color", "COLUMNS": "110"}
    piped = subprocess.run(
        [*command, f"--workdir={tmp_path / 'pipe'}"], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    lines = piped.stdout.decode(encoding).splitlines()
    epochs = [line for line in lines if re.match(r"(teacher|baseline|student) +epoch \d/2  loss", line)]
    assert len(epochs) == (6 if flag == "--progress=auto" else 0) and b"\x1b[1A" not in piped.stdout
    main, sub = pty.openpty()
    process = subprocess.Popen(
        [*command, f"--workdir={tmp_path / 'terminal'}"], cwd=ROOT, env=environment, stdout=sub, stderr=sub
    )
    os.close(sub)
    sent = b""
    with contextlib.suppress(OSError):  # how a pseudo-terminal says that nobody writes to it any more
        while part := os.read(main, 65536):
            sent += part
    os.close(main)
    assert process.wait() == 0
    shown = plain(sent.decode(encoding))
    words = ("epoch 2/2", "stage 1 of", "cache   ", "exporting student_int8", "measuring teacher")
    assert [word in shown for word in words] == [flag == "--progress=auto" or word == "cache   " for word in words]


_CELL = """
import time
from rich.console import Console
from kd_keras.run.progress import Progress, Work
works = [Work("teacher", "train", 50), Work("student <b>", "train", 50)]
progress = Progress(Console())
with progress.run(works):
    for work in works:
        with progress.stage(work):
            for step in range(50):
                time.sleep(0.03)
                progress.update(step + 1, lambda: f"epoch 1/2  loss {step}")
"""


@pytest.mark.slow
def test_a_notebook_has_the_bars_in_one_output():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(_CELL)])
    client, pages = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}), []
    process = client.process_message

    def watched(message, cell, index):
        if message["msg_type"] in ("display_data", "update_display_data"):
            pages.append(message["content"]["data"]["text/html"])
        return process(message, cell, index)

    client.process_message = watched
    client.execute()
    assert 4 <= len(pages) <= 20
    assert any("<progress value=" in page and "teacher" in page and "stage 1 of 2" in page for page in pages)
    assert any("student &lt;b&gt;" in page and "left" in page for page in pages)
    # When all is done the output is empty.
    assert [output["data"]["text/html"] for output in notebook.cells[0].outputs] == [""]
