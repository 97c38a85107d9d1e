"""The scheme of docs/schemes.md: short, and it trains what the page says."""

import pathlib
import sys

import pytest

from kd_keras.errors import InputError
from tests.schemes.tiny import checked, records, stage_of, trained
from tests.test_readme import read_blocks

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "schemes.md"
A, B = "cnn(filters=(4,), dense=())", "cnn(filters=(3,), dense=())"
FLAGS = [f"--teacher={A}", f"--scheme=my_schemes:plan(large={B})"]


@pytest.fixture
def scheme(tmp_path, monkeypatch) -> str:
    """The text of the scheme, which is put where a user would put it."""
    (text,) = [block.text for block in read_blocks(PAGE) if block.text.startswith("# my_schemes.py\n")]
    (tmp_path / "my_schemes.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield text
    sys.modules.pop("my_schemes", None)


def test_it_has_30_lines_at_most(scheme):
    assert len(scheme.splitlines()) <= 30


def test_the_teacher_teaches_the_large_student_and_that_the_small_student(scheme, tmp_path):
    runner = trained(tmp_path, *FLAGS)
    stages = {name: stage_of(runner, name) for name in records(runner)}
    assert {name: stage.teacher and stage.teacher.name for name, stage in stages.items()} == {
        "teacher": None,
        "baseline": None,
        "large": "teacher",
        "student": "large",
    }
    architectures = {name: stage.architecture for name, stage in stages.items()}
    small = "cnn(filters=(2,), dense=())"
    assert architectures == {"teacher": A, "baseline": small, "large": B, "student": small}
    # What teaches is the trained model, not the new one.
    assert stages["student"].teacher.key == stages["large"].key


def test_what_it_can_not_do_is_refused(scheme, tmp_path):
    with pytest.raises(InputError, match=r"my_schemes:plan.* takes 1 teacher"):
        checked(tmp_path, "--teacher=none", FLAGS[1])
    with pytest.raises(InputError, match="no loss of --loss reads a teacher"):
        checked(tmp_path, *FLAGS, "--loss=ce()")
    with pytest.raises(InputError, match="lacks the key 'large'"):
        checked(tmp_path, FLAGS[0], "--scheme=my_schemes:plan()")
    with pytest.raises(InputError, match="my_schemes has no class or function 'scheme'"):
        checked(tmp_path, FLAGS[0], "--scheme=my_schemes:scheme()")
