"""The model card says what the run's files and table say."""

import json
import re
import shlex

import pytest

from kd_keras.run import __main__ as run
from kd_keras.run import config
from tests.schemes.tiny import TINY

# Every run of tests/run/test_run.py leaves a card.
pytestmark = pytest.mark.slow

FLAGS = [*TINY, "--teacher=cnn(filters=(4,), dense=())", "--export=int8_io", "--licence=CC-BY-4.0"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "run"
    assert run.main(["kd_keras", *FLAGS, f"--workdir={folder}"]) == 0
    return folder


def section(card, heading):
    return re.search(rf"\n## {heading}\n\n(.*?)(?=\n\n## |\Z)", card, re.DOTALL)[1]


def cells(text):
    return {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line[:1] == "|"
    }


def test_the_card_is_that_of_the_run(workdir):
    card = (workdir / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = {row["stage"]: row for row in json.loads((workdir / "results.json").read_text())}
    assert card.startswith("# cnn(filters=(2,), dense=()) for digits()\n\nAn image classifier of 10 classes: 0, 1, 2,")
    file = workdir / "student_int8_io.tflite"
    size, alive, operators = cells(section(card, "Files"))["`student_int8_io.tflite`"]
    assert size == f"{file.stat().st_size:,}" and 64 <= int(alive.replace(",", "")) <= 8 * 64 and "CONV_2D" in operators
    results = cells(section(card, "Results"))
    for stage in ("teacher", "baseline", "student", "student_int8_io"):
        (figures,) = (values for name, values in results.items() if name.endswith(f"`{stage}`"))
        assert figures[1] == f"{100 * rows[stage]['test_accuracy']:.2f}"
    by_class = cells(section(card, "Results by class"))
    assert sum(int(by_class[str(number)][-1]) for number in range(10)) == 359
    assert "int8, of which q stands for 1 · (q +128)" in section(card, "How it is used")
    assert section(card, "Licence").strip() == "CC-BY-4.0"


def test_its_command_is_the_run(workdir):
    card = (workdir / "MODEL_CARD.md").read_text(encoding="utf-8")
    command = shlex.split(re.search(r"```\n(python -m kd_keras.run .*)\n```", card)[1])
    expected = config.read(["kd_keras", *FLAGS, f"--workdir={workdir}"])
    assert config.read(["kd_keras", *command[3:]]).texts() == expected.texts()


def test_a_finished_run_leaves_it_as_it_is_and_makes_a_lost_one_again(workdir):
    path, environment = workdir / "MODEL_CARD.md", workdir / "environment.json"
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    assert run.main(["kd_keras", *FLAGS, f"--workdir={workdir}"]) == 0
    assert path.stat().st_mtime_ns == time
    path.unlink()
    environment.unlink()
    assert run.main(["kd_keras", *FLAGS, f"--workdir={workdir}"]) == 0
    assert path.read_bytes() == before
