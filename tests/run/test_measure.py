"""What the table says of models that come from elsewhere, and the notes below it."""

import json
import pathlib

import keras
import numpy as np
import pytest

from kd_keras.run import __main__ as run
from kd_keras.run import config, measure
from kd_keras.run.experiment import Experiment, Trained
from tests.schemes.tiny import TINY, trained

A, B = "cnn(filters=(4,), dense=())", "cnn(filters=(3,), dense=())"


def table(workdir):
    return {row["role"]: row for row in json.loads((workdir / "results.json").read_text())}


def state(workdir, name):
    return json.loads((workdir / "state" / f"{name}.json").read_text())


@pytest.mark.slow
def test_an_ensemble_of_other_runs_teachers(tmp_path, capsys):
    one, two, ours = tmp_path / "one", tmp_path / "two" / "w", tmp_path / "ours"
    assert run.main(["kd_keras", *TINY, f"--teacher={A}", "--loss=ce() + kd()", f"--workdir={one}"]) == 0
    trained(two.parent, f"--teacher={B}", "--nobaseline", "--seed=1")
    lent = [f"--teacher_from={one},{two}", f"--baseline_from={one}"]
    capsys.readouterr()
    flags = ["kd_keras", *TINY, f"--teacher={A} + {B}", "--scheme=ensemble()", *lent, f"--workdir={ours}"]
    assert run.main(flags) == 0
    out = capsys.readouterr().out
    assert f"teacher1 taken from {one}" in out and f"teacher2 taken from {two}" in out
    rows, before = table(ours), table(one)
    assert list(rows) == ["teacher 1", "teacher 2", "teacher ensemble", "student without KD", "student distilled"]
    assert "agreement is with the teacher ensemble" in state(ours, "measured")["notes"]
    # As measured there, latency too; but for the role, and for the agreement, which is with another teacher here.
    own = {"role", "teacher_agreement"}
    for role, theirs in (("teacher 1", "teacher"), ("student without KD", "student without KD")):
        assert {k: v for k, v in rows[role].items() if k not in own} == {
            k: v for k, v in before[theirs].items() if k not in own
        }
    classes = {
        stage: np.load(ours / "state" / f"{stage}-measured.npy").argmax(-1) for stage in ("ensemble", "baseline")
    }
    agreement = np.mean(classes["ensemble"] == classes["baseline"])
    assert rows["student without KD"]["teacher_agreement"] == pytest.approx(agreement)
    assert rows["teacher 1"]["teacher_agreement"] is None and rows["teacher ensemble"]["teacher_agreement"] is None
    assert rows["teacher ensemble"]["parameters"] == rows["teacher 1"]["parameters"] + rows["teacher 2"]["parameters"]
    for stage, (folder, name) in {"teacher1": (one, "teacher"), "teacher2": (two, "teacher")}.items():
        weights = (
            keras.models.load_model(path).get_weights() for path in (ours / f"{stage}.keras", folder / f"{name}.keras")
        )
        assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
        assert (ours / f"{stage}_confusion.png").exists()
    # The title says what the model is called here.
    here, there = (path.read_bytes() for path in (ours / "teacher1_confusion.png", one / "teacher_confusion.png"))
    assert here != there
    # A finished run needs the lenders no more.
    one.rename(tmp_path / "gone")
    assert run.main(flags) == 0


def model(stage, role=None, stop=None):
    return Trained(stage, role or stage, "cnn()", pathlib.Path("none"), {}, stop=stop)


def notes(teacher=0.9, baseline=0.8, sizes=(100, 10), stop=None, role="teacher"):
    models = [model("teacher", role, stop), model("baseline", "student without KD"), model("student")]
    accuracies = (teacher, baseline, 0.85)
    parameters = (sizes[0], sizes[1], sizes[1])
    rows = [{"val_accuracy": a, "parameters": p} for a, p in zip(accuracies, parameters, strict=True)]
    return measure._notes(models, rows, models[2], models[0])


STOPPED = {"at_val_accuracy": 0.5, "step": 30, "val_accuracy": 0.512}


def test_notes():
    assert notes() == []
    assert notes(role="teacher ensemble") == ["agreement is with the teacher ensemble"]
    (told,) = notes(teacher=0.7)
    assert told.startswith(
        "the teacher does not beat the student without KD on validation data (70.00% against 80.00%)"
    )
    assert told.endswith("says nothing about distillation")


def test_notes_of_reverse_distillation():
    told = "reverse: the teacher has fewer parameters than the student"
    assert notes(sizes=(10, 100)) == [told]
    first, second = notes(sizes=(10, 100), teacher=0.7)
    assert first == told and second.endswith("as may be of a smaller teacher, in reverse on purpose")


def test_notes_of_a_defective_teacher():
    told = (
        "defective teacher: training ended on purpose in step 30, at validation accuracy 51.20%, the first check that "
        "found 50.00%"
    )
    first, second = notes(teacher=0.512, stop=STOPPED)
    assert first == told and second.endswith("as it is a defective teacher, on purpose")
    assert notes(teacher=0.85, stop=STOPPED) == [told]
    (never,) = notes(stop={"at_val_accuracy": 0.95, "step": None, "val_accuracy": None})
    assert never == "teacher not defective: it never reached validation accuracy 95.00%, and was trained to the end"


@pytest.mark.slow
def test_a_defective_teacher_is_recorded(tmp_path, caplog):
    flags = [f"--teacher={A}", "--nobaseline", "--teacher_epochs=3", "--teacher_stop_check_steps=1"]
    models, _, _ = trained(tmp_path / "a", *flags, "--teacher_stop_at_val_accuracy=0.01")
    assert models[0].stop["step"] == 1 and models[0].stop["val_accuracy"] >= 0.01
    assert state(tmp_path / "a" / "w", "teacher")["stop"] == models[0].stop
    assert "stop" not in state(tmp_path / "a" / "w", "student")
    models, _, _ = trained(tmp_path / "b", *flags, "--teacher_stop_at_val_accuracy=1.0")
    assert models[0].stop == {"at_val_accuracy": 1.0, "step": None, "val_accuracy": None}
    assert "the teacher never reached --teacher_stop_at_val_accuracy=1" in caplog.text
    assert len(models[0].series["loss"]) == 3


ALONE = ["kd_keras", *TINY, "--teacher=none", "--nobaseline", "--export=float32"]
UNTAUGHT = [*ALONE, "--loss=ce()"]


@pytest.mark.slow
def test_every_peer_is_measured_and_exported(tmp_path):
    peers = tmp_path / "peers"
    assert run.main([*ALONE, f"--scheme=mutual(peers={A})", f"--workdir={peers}"]) == 0
    named = ["student distilled", "peer 2", "peers together", "TFLite float32", "peer 2 TFLite float32"]
    assert list(table(peers)) == named
    assert {path.name for path in peers.glob("*.tflite")} == {"student_float32.tflite", "peer2_float32.tflite"}
    for role in ("TFLite float32", "peer 2 TFLite float32"):
        assert table(peers)[role]["float_agreement"] == 1


@pytest.mark.slow
def test_every_exit_is_measured_and_exported(tmp_path, capsys):
    exits = tmp_path / "exits"
    deeper = "--student=cnn(filters=(2, 3), dense=())"
    scheme = "--scheme=self_distillation(export_exits=True)"
    assert run.main([*ALONE, deeper, scheme, f"--workdir={exits}"]) == 0
    rows = table(exits)
    assert list(rows) == ["exit 1", "student distilled", "TFLite float32", "exit 1 TFLite float32"]
    assert rows["exit 1 TFLite float32"]["parameters"] == rows["exit 1"]["parameters"]
    assert (exits / "curves.png").exists() and (exits / "exit1_float32.tflite").exists()
    # Again: nothing is trained twice, and the table is the same.
    capsys.readouterr()
    assert run.main([*ALONE, deeper, scheme, f"--workdir={exits}"]) == 0
    assert "exit 1" in capsys.readouterr().out


@pytest.mark.slow
def test_other_files_can_be_asked_for_later(tmp_path):
    folder = tmp_path / "w"
    assert run.main([*UNTAUGHT, f"--workdir={folder}"]) == 0
    trained_at = (folder / "student.keras").stat().st_mtime_ns
    flags = ["--export=int8", "--keep_float=logits", "--max_accuracy_drop=0.5", f"--workdir={folder}"]
    assert run.main([*UNTAUGHT, *flags]) == 0
    assert list(table(folder)) == ["student distilled", "TFLite int8"]
    assert (folder / "student.keras").stat().st_mtime_ns == trained_at
    measured_at = (folder / "results.json").stat().st_mtime_ns
    assert run.main([*UNTAUGHT, *flags]) == 0 and (folder / "results.json").stat().st_mtime_ns == measured_at


@pytest.mark.slow
def test_teacher_and_baseline_become_files_too(tmp_path):
    folder = tmp_path / "w"
    flags = ["--baseline", "--export=int8", "--export_beside=baseline,teacher", f"--workdir={folder}"]
    assert run.main(["kd_keras", *TINY, f"--teacher={A}", *flags]) == 0
    rows = table(folder)
    files = ["teacher, TFLite float32", "student without KD, TFLite float32", "TFLite int8"]
    assert list(rows)[3:] == files
    for role in files[:2]:
        of = rows[role.partition(",")[0]]
        assert rows[role]["float_agreement"] == 1 and rows[role]["parameters"] == of["parameters"]
    assert rows[files[0]]["teacher_agreement"] == 1


@pytest.mark.slow
def test_what_an_older_version_measured_is_read(tmp_path):
    lender = tmp_path / "lender"
    assert run.main(["kd_keras", *TINY, f"--teacher={A}", "--nobaseline", f"--workdir={lender}"]) == 0
    path = lender / "state" / "teacher-measured.json"
    old = json.loads(path.read_text())
    for name in ("marked", "zip_bytes", "accuracy_change"):
        del old["row"][name]
    path.write_text(json.dumps(old))
    given = [f"--teacher={A}", "--nobaseline", f"--teacher_from={lender}", f"--workdir={tmp_path / 'w'}"]
    assert run.main(["kd_keras", *TINY, *given]) == 0
    assert table(tmp_path / "w")["teacher"]["zip_bytes"] is None


def test_a_run_of_an_older_version_shows_its_table_and_can_be_compressed(tmp_path):
    flags = [*UNTAUGHT, f"--workdir={tmp_path / 'w'}"]
    assert run.main(flags) == 0
    paths = {"record": tmp_path / "w" / "config.json", "measured": tmp_path / "w" / "state" / "measured.json"}
    read = {name: json.loads(path.read_text()) for name, path in paths.items()}
    read["record"] = {key: value for key, value in read["record"].items() if not key.startswith("compress")}
    del read["measured"]["files"]
    for row in read["measured"]["rows"]:
        del row["marked"], row["zip_bytes"]
    for name, path in paths.items():
        path.write_text(json.dumps(read[name]))
    assert run.main(flags) == 0
    assert not Experiment(config.read([*flags, "--compress=qat()"])).finished


@pytest.mark.slow
def test_a_file_that_cannot_be_made_is_told_of_and_the_others_are(tmp_path):
    student = "--student=vit(patch=4, depth=1, heads=1, width=8)"
    flags = [student, "--export=int16x8,float32", f"--workdir={tmp_path / 'w'}"]
    assert run.main([*UNTAUGHT, *flags]) == 0
    assert list(table(tmp_path / "w")) == ["student distilled", "TFLite float32"]
    (note,) = (note for note in state(tmp_path / "w", "measured")["notes"] if "failed" in note)
    assert note.startswith("TFLite int16x8 of model vit1_4 failed: ") and "leave the variant out" in note
