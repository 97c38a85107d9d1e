"""The console command kd-keras: what each of its commands prints, and that they answer at once."""

import os
import subprocess
import sys
import time

import pytest

import kd_keras
from kd_keras import signatures
from kd_keras.run import commands
from tests.conftest import ROOT


def test_help_and_version(capsys):
    assert commands.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("run", "sweep", "list", "describe", "report", "compare"):
        assert f"\n  {name} " in text
    assert commands.main([]) == 2
    assert capsys.readouterr().out == text
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kd_keras {kd_keras.__version__}\n"


def test_list_names_every_part(capsys):
    assert commands.main(["list"]) == 0
    text = capsys.readouterr().out
    for kind in signatures.KINDS:
        assert f"{kind}:\n" in text
        for name in signatures.names(kind):
            assert f"\n  {name} " in text
    assert "\n  wide_resnet  A wide residual network" in text
    assert commands.main(["list", "schedules"]) == 0
    text = capsys.readouterr().out
    assert "cosine" in text and "wide_resnet" not in text


def test_describe_prints_kind_signature_and_docstring(capsys):
    assert commands.main(["describe", "kd", "flip"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("kd: a loss (kd_keras.losses.kd.KD)\n\n  kd(weight=1.0, temperature=4.0, standardize=False")
    assert "\n    temperature: T > 0, a number or a schedule.\n" in text
    assert "\nflip: an augmentation (kd_keras.data.augment.flip)\n\n  flip()\n\n" in text


@pytest.mark.parametrize("kind", signatures.KINDS)
def test_describe_knows_every_kind(kind, capsys):
    name = signatures.names(kind)[0]
    assert commands.main(["describe", name]) == 0
    assert f"({signatures.KINDS[kind]}." in capsys.readouterr().out


def test_a_name_that_several_kinds_have_is_shown_for_each(monkeypatch, capsys):
    monkeypatch.setitem(signatures.KINDS, "augmentations", "kd_keras.losses")
    assert commands.main(["describe", "kd"]) == 0
    text = capsys.readouterr().out
    assert "kd: a loss (" in text and "\n\n\nkd: an augmentation (" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["describe", "kdd"], "kd_keras: unknown part 'kdd', did you mean 'kd'? kd-keras list prints all"),
        (["describe", "123"], "kd_keras: unknown part '123': kd-keras list prints all"),
        (["describe"], "kd_keras: describe needs the name of a part, such as kd: kd-keras list prints all"),
        (
            ["list", "loss"],
            "kd_keras: unknown name 'loss' in kinds of parts: known are losses, models, data, schemes, compress, "
            "augmentations, schedules, experiments (did you mean 'losses'?)",
        ),
        (
            ["lst"],
            "kd_keras: unknown name 'lst' in commands: known are check-data, "
            "compare, completion, describe, evaluate, export, list, report, run, sweep, track (did you mean 'list'?)",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, argv, message):
    assert commands.main(argv) == 2
    assert capsys.readouterr().err == message + "\n"


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_run_and_sweep_are_handed_their_flags(name, monkeypatch):
    import importlib

    command = importlib.import_module(f"kd_keras.{name}.__main__")
    given = []
    monkeypatch.setattr(command, "main", lambda argv: given.append(argv) or 7)
    assert commands.main([name, "--epochs=3", "--help"]) == 7
    assert given == [[f"kd-keras {name}", "--epochs=3", "--help"]]


def test_run_prints_its_help_and_refuses_a_flag(capsys):
    assert commands.main(["run", "--help"]) == 0
    assert "--teacher_epochs" in capsys.readouterr().out
    assert commands.main(["run", "--epoch=3"]) == 2
    assert "epoch" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["list"], ["describe", "kd"], ["--help"], ["--version"]])
def test_it_answers_within_a_second_and_imports_no_tensorflow(argv):
    code = (
        "import sys; from kd_keras.run.commands import main; code = main(sys.argv[1:]);"
        "print(code, {'tensorflow', 'keras', 'numpy', 'absl'} & set(sys.modules), file=sys.stderr)"
    )
    before = os.times()
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT, check=True)
    after = os.times()
    assert ended.stderr == "0 set()\n"
    # Of its own time: other processes may have the machine.
    own = after.children_user + after.children_system - before.children_user - before.children_system
    assert own < 1 and time.monotonic() - start < 20


def test_python_m_kd_keras_is_the_same_command():
    line = [sys.executable, "-m", "kd_keras", "describe", "nothing_like_it"]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("kd_keras: unknown part")
