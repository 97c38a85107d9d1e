"""Finished stages: what counts as whole, what is stale, how they appear."""

import json
import threading

import pytest

from kd_keras.errors import InputError
from kd_keras.run.store import Store
from kd_keras.schemes.plan import Build, Part

FIRST = Build(name="first", what=Part("cnn"), seed=0)
SECOND = Build(name="second", what=Part("join"), of=(FIRST,))


def work(text="model", **outputs):
    def write(folder):
        (folder / "model.keras").write_text(text)
        return dict(outputs)

    return write


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store", made_by={"keras": "3"})
    store.write(FIRST, work(content="a"))
    store.write(SECOND, work())
    return store


def test_a_finished_stage_has_a_record(store):
    record = store.record(FIRST)
    assert (record["stage"], record["key"], record["content"]) == ("first", FIRST.key, "a")
    assert record["made_by"] == {"keras": "3"} and list(record["files"]) == ["model.keras"]
    assert store.record(SECOND)["inputs"] == {f"build/{FIRST.key[:16]}": "a"}
    assert store.record(Build(name="first", what=Part("cnn"), seed=1)) is None


@pytest.mark.parametrize("damage", ["delete", "truncate", "zero", "record", "no record", "not a record"])
def test_a_damaged_stage_is_not_finished(store, damage):
    folder = store.folder(FIRST)
    store.record(FIRST)  # its hash is known by now
    file, record = folder / "model.keras", folder / "record.json"
    {
        "delete": lambda: file.unlink(),
        "truncate": lambda: file.write_text("mod"),
        "zero": lambda: file.write_bytes(bytes(5)),
        "record": lambda: record.write_text(record.read_text()[:40]),
        "no record": lambda: record.unlink(),
        "not a record": lambda: record.write_text("[1]"),
    }[damage]()
    assert store.record(FIRST) is None
    store.write(FIRST, work(content="a"))
    assert store.record(FIRST) is not None and store.record(SECOND) is not None


def test_what_was_made_of_another_input_is_stale(store):
    store.write(FIRST, work("another model", content="b"))
    assert store.record(FIRST) is not None and store.record(SECOND) is None
    store.write(SECOND, work())
    assert store.record(SECOND)["inputs"] == {f"build/{FIRST.key[:16]}": "b"}


def test_a_stage_appears_whole_or_not_at_all(store):
    third = Build(name="third", what=Part("cnn"), seed=3)

    def fail(folder):
        (folder / "model.keras").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(third, fail)
    assert store.record(third) is None
    left = store.folder(third).with_name(f".{store.folder(third).name}.killed")
    left.mkdir()
    store.write(third, work())
    assert sorted(path.name for path in store.folder(third).parent.iterdir()) == sorted(
        stage.key[:16] for stage in (FIRST, SECOND, third)
    )


def test_a_second_process_waits_for_a_stage(store):
    third, order, owners = Build(name="third", what=Part("cnn"), seed=3), [], []
    held = threading.Event()

    def hold():
        with store.leased(third, owners.append):
            held.set()
            order.append("first")
            threading.Event().wait(0.8)
            order.append("first ends")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with Store(store.root).leased(third, owners.append):
        order.append("second")
    thread.join()
    assert order == ["first", "first ends", "second"] and len(owners) == 1


def test_a_stage_is_taken_from_another_store(store, tmp_path):
    other = Store(tmp_path / "other")
    assert other.adopt(FIRST, store) and other.record(FIRST)["content"] == "a"
    assert not other.adopt(Build(name="third", what=Part("cnn"), seed=3), store)


def test_a_store_that_cant_be_written_is_refused_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--store=.*file can't be written: Not a directory") as error:
        Store(tmp_path / "file").write(FIRST, work())
    assert "\n" not in str(error.value)


def test_records_can_be_read(store):
    record = json.loads((store.folder(SECOND) / "record.json").read_text())
    assert record["depends_on"] == ["Build", {"of": [FIRST.key], "what": ["join", {}]}]
