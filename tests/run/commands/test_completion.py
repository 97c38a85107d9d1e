"""The completion of a shell, in a real one."""

import shutil
import subprocess

import pytest

from kd_keras.run import commands

CASES = {
    ("kd-keras", "sw"): ["sweep"],
    ("kd-keras", "run", "--flagf"): ["--flagfile="],
    ("kd-keras", "run", "--nobasel"): ["--nobaseline"],
    ("kd-keras", "run", "--flagfile", "=", "digi"): ["digits"],
    ("kd-keras", "run", "--student", "=", "resn"): ["resnet("],
    ("kd-keras", "run", "--loss", "=", "dk"): ["dkd("],
    ("kd-keras", "run", "--precision", "="): ["auto", "float32", "mixed_float16", "mixed_bfloat16"],
    ("kd-keras", "run", "--samp"): [],
    ("kd-keras", "sweep", "--samp"): ["--sampler="],
    ("kd-keras", "sweep", "--sampler", "=", "t"): ["tpe"],
    ("kd-keras", "describe", "review"): ["review_kd"],
    ("kd-keras", "list", "exp"): ["experiments"],
    ("kd-keras", "report", "own_f"): ["own_file.txt"],
    ("kd-keras", "run", "--workdir", "=", "own_f"): ["own_file.txt"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(capsys, tmp_path):
    assert commands.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "own_file.txt").touch()
    for words in CASES:
        quoted = " ".join(f"'{word}'" for word in words)
        script += f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _kd_keras 2>/dev/null\n"
        script += 'printf "%s\\n" "${COMPREPLY[*]}"\n'
    ended = subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert dict(zip(CASES, (line.split() for line in ended.stdout.splitlines()), strict=True)) == CASES


def test_zsh_gets_bashs_functions_and_other_shells_are_refused(capsys):
    assert commands.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -Uz compinit bashcompinit")
    assert commands.main(["completion", "fish"]) == 2
    assert "unknown name 'fish' in shells: known are bash, zsh" in capsys.readouterr().err
