"""Who owns a folder: living, dead and distant owners."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from kd_keras.run import lease
from kd_keras.run.lease import Lease
from tests.conftest import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "owner.json"


def test_a_lease_is_taken_once_and_given_back(path):
    first, second = Lease(path), Lease(path)
    assert first.take() is None
    owner = second.take()
    assert owner.pid == os.getpid() and f"process {owner.pid} on {owner.host} since " in str(owner)
    assert second.owner() == owner
    second.release()
    assert path.exists(), "only its owner gives a lease back"
    first.release()
    assert not path.exists() and second.owner() is None and second.take() is None
    second.release()


def test_the_lease_of_a_dead_process_is_taken_over(path):
    code = "import os, sys; from kd_keras.run.lease import Lease; assert Lease(sys.argv[1]).take() is None; os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert path.exists()
    assert Lease(path).owner() is None
    mine = Lease(path)
    assert mine.take() is None and json.loads(path.read_text())["pid"] == os.getpid()
    mine.release()


def test_a_process_number_that_is_used_again_is_another_process(path):
    mine = Lease(path)
    mine.take()
    mine.release()
    owner = dataclasses.asdict(lease._this_process()) | {"started": "1"}
    path.write_text(json.dumps(owner))
    assert Lease(path).owner() is None


@pytest.mark.parametrize(("age", "lives"), [(0, True), (30, True), (90, False)])
def test_an_owner_on_another_machine_lives_while_its_lease_is_touched(path, age, lives):
    path.write_text(json.dumps(dataclasses.asdict(lease._this_process()) | {"place": "elsewhere", "host": "node7"}))
    moment = time.time() - age
    os.utime(path, (moment, moment))
    owner = Lease(path).owner()
    assert (owner is not None) == lives
    assert not lives or owner.host == "node7"


def test_an_owner_touches_its_lease(path, monkeypatch):
    monkeypatch.setattr(lease, "_BEAT", 0.05)
    mine = Lease(path)
    mine.take()
    os.utime(path, (1, 1))
    deadline = time.monotonic() + 10
    while path.stat().st_mtime < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.stat().st_mtime > 2
    mine.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_lease_is_nobodys(path, content):
    path.write_text(content)
    mine = Lease(path)
    assert mine.take() is None
    mine.release()


def test_of_many_processes_one_has_the_lease(path):
    code = """
import sys, time
from kd_keras.run.lease import Lease
for _ in range(30):
    lease = Lease(sys.argv[1])
    while lease.take() is not None:
        time.sleep(0.001)
    count = int(open(sys.argv[2]).read())
    time.sleep(0.001)
    open(sys.argv[2], "w").write(str(count + 1))
    lease.release()
"""
    counter = path.with_name("count")
    counter.write_text("0")
    line = [sys.executable, "-c", code, str(path), str(counter)]
    processes = [subprocess.Popen(line, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert counter.read_text() == "90"
