"""The folder of a run: whose it is, and what it was begun with."""

import json
import os
import pathlib
import threading

import pytest

from kd_keras.errors import InputError
from kd_keras.run import config
from kd_keras.run.workdir import Workdir, read_state

DATA = {"train split": "a", "val split": "b", "test split": "c", "classes": ["0", "1"], "image_shape": [8, 8, 1]}


def workdir(folder, *flags) -> Workdir:
    return Workdir(config.read(["kd_keras", f"--workdir={folder}", *flags]))


def begun(folder, *flags, data=DATA):
    """A folder that a run has begun and left."""
    run = workdir(folder, *flags)
    run.claim()
    try:
        return run.begin(data)
    finally:
        run.release()


def test_a_folder_is_begun_and_gone_on_with(tmp_path):
    folder = tmp_path / "deep" / "er"
    workdir(folder).check()
    assert not folder.exists(), "checking writes nothing"
    begun(folder)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["epochs"] == "10" and settings["data"] == "digits()"
    begun(folder, "--tracking=none", "--export=int8", "--compress=qat()", "--nobaseline")


def test_what_a_kill_left_is_no_obstacle(tmp_path):
    (tmp_path / ".config.json.17.partial").write_text("{")
    (tmp_path / "store").mkdir()
    begun(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_another_experiments_folder_is_refused(tmp_path):
    begun(tmp_path)
    other = workdir(tmp_path, "--epochs=12", "--seed=3")
    for use in (other.check, other.claim):
        with pytest.raises(InputError, match=r"holds another .*epochs was 10, is 12; seed was 0, is 3.*name another"):
            use()
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == "10"


def test_other_data_are_refused_and_the_same_elsewhere_are_not(tmp_path):
    begun(tmp_path, "--data=folder(path='/a')")
    with pytest.raises(InputError, match=r"begun with other data \(another train split\): the images or labels"):
        begun(tmp_path, "--data=folder(path='/a')", data={**DATA, "train split": "x"})
    note = begun(tmp_path, "--data=folder(path='/b')")
    assert note == "the same images and labels as before, now read by folder(path='/b') (before folder(path='/a'))"
    assert begun(tmp_path, "--data=folder(path='/b')") is None


def test_a_second_run_is_refused_at_once_or_waits(tmp_path, capsys):
    first = workdir(tmp_path)
    first.claim()
    with pytest.raises(InputError, match=rf"is used by process {os.getpid()} on .* since .*: wait .*--wait"):
        workdir(tmp_path).claim()
    threading.Timer(0.7, first.release).start()
    second = workdir(tmp_path, "--wait")
    second.claim()
    assert f"waiting for process {os.getpid()}" in capsys.readouterr().out
    second.release()


def test_a_run_of_version_01_is_recognised(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"epochs": "10"}))
    with pytest.raises(InputError, match=r"holds a run of version 0\.1.*name another folder.*saved\(path="):
        workdir(tmp_path).check()
    with pytest.raises(InputError, match=r"is a run of version 0\.1: use its model"):
        read_state(tmp_path, "--teacher_from")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no experiment: name another folder"):
        workdir(tmp_path).check()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]x", b"3", b'["epochs"]', b"null"])
def test_a_broken_record_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json can't be read: name another --workdir"):
        workdir(tmp_path).check()


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError, match="can't be used: Not a directory"):
        workdir(path).check()
    with pytest.raises(InputError, match=r"can't be (used|written): Not a directory"):
        workdir(path / "below").claim()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="can't be written: Permission denied"):
        workdir(tmp_path / "x").claim()


def test_no_run_lends_nothing(tmp_path):
    for folder in (tmp_path, pathlib.Path("no/such")):
        with pytest.raises(InputError, match="holds no run: give the --workdir of one"):
            read_state(folder, "--teacher_from")
