"""Whole runs in MLflow, TensorBoard and Weights & Biases, each with its own package where that is installed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from kd_keras.errors import InputError
from kd_keras.run import config, tracking
from kd_keras.run.tracking import names
from kd_keras.run.tracking.base import Opening
from kd_keras.run.tracking.history import HistoryFile

QUICK = ["--data=digits()", "--train_examples=100", "--epochs=2", "--student=cnn(filters=(2,), dense=())"]
QUICK += ["--export=none", "--progress=none"]


def opening(folder, **settings):
    values = {"uri": None, "experiment": "study", "run_name": "cnn→cnn · kd T4 · s0", "folder": folder}
    return Opening(**{**values, **settings})


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_with_its_extra(tracker, tmp_path, monkeypatch):
    # What TensorFlow has imported of TensorBoard stays.
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboard.plugins.hparams.api"}.get(tracker, tracker), None)
    with pytest.raises(InputError, match=rf"^--tracking={tracker} needs .*pip install 'kd_keras\[{tracker}\]'$"):
        tracking.module(tracker).Writer(opening(tmp_path, uri=tracking.uri_of(tracker, None, tmp_path)))


@pytest.mark.slow
def test_a_run_ends_with_a_line_where_its_tracker_is_missing(tmp_path, monkeypatch, capsys):
    from kd_keras.run.__main__ import main

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["kd_keras", *QUICK, "--nobaseline", "--loss=ce()", "--tracking=wandb", f"--workdir={tmp_path}"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("kd_keras: --tracking=wandb needs") and "kd_keras[wandb]" in line


@pytest.mark.parametrize("tracker", ["tensorboard", "none"])
def test_system_metrics_need_a_tracker_that_has_them(tracker):
    with pytest.raises(InputError, match=r"tracking_system_metrics.*mlflow or wandb"):
        config.read(["kd_keras", f"--tracking={tracker}", "--tracking_system_metrics", "--workdir=w"])


def test_tensorboard_writes_what_it_can_read(tmp_path):
    pytest.importorskip("tensorboard")
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = tracking.module("tensorboard").Writer(opening(tmp_path, uri=str(tmp_path / "logs")))
    assert writer.run_id == "cnn-to-cnn_kd_T4_s0"
    writer.params({"epochs": "2", "loss.kd.temperature": "4"})
    writer.epoch("student", 1, {"loss": 2.0})
    writer.close("FAILED")
    again = tracking.module("tensorboard").Writer(opening(tmp_path, uri=str(tmp_path / "logs"), run_id=writer.run_id))
    again.epoch("student", 2, {"loss": 1.0})
    again.metrics({"student/test_accuracy": 0.5, "student/ece": None})
    again.params({"epochs": "2", "loss.kd.temperature": "4"})
    again.describe("text", [], ["loss"])
    again.close()

    def events(folder):
        return EventAccumulator(str(folder)).Reload()

    folder = tmp_path / "logs" / writer.run_id
    tensors = events(folder / "student").Tensors("loss")
    assert [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in tensors] == [(1, 2.0), (2, 1.0)]
    found = events(folder)
    assert {"settings", "student/test_accuracy", "result"} <= set(found.Tags()["tensors"])
    (start,) = [found.SummaryMetadata(tag) for tag in found.Tags()["tensors"] if tag.startswith("_hparams_")]
    assert start.plugin_data.plugin_name == "hparams" and b"loss.kd.temperature" in start.plugin_data.content
    other = tracking.module("tensorboard").Writer(opening(tmp_path, uri=str(tmp_path / "logs")))
    assert other.run_id == f"{writer.run_id}-2"


def test_tensorboard_takes_no_server(tmp_path):
    with pytest.raises(InputError, match="http://x is no folder"):
        tracking.module("tensorboard").Writer(opening(tmp_path, uri="http://x"))


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_whole_run(tracker, tmp_path, monkeypatch, capsys):
    from kd_keras.run.__main__ import main

    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = [*QUICK, "--teacher=cnn(filters=(4,), dense=())", f"--tracking={tracker}", f"--workdir={tmp_path / 'w'}"]
    assert main(["kd_keras", *flags]) == 0
    state = json.loads((tmp_path / "w" / "workdir.json").read_text())["tracking_runs"]
    assert state["tracker"] == tracker and set(state["first_epochs"]) == {"teacher", "baseline", "student"}
    command = {"tensorboard": "tensorboard --logdir", "wandb": "wandb sync"}[tracker]
    assert command in capsys.readouterr().out.replace("\n", "")
    if tracker == "tensorboard":
        folder = tmp_path / "w" / "tensorboard" / state["parent"]
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {"teacher", "baseline", "student"}
    else:
        (run_file,) = (tmp_path / "w" / "wandb").glob(f"offline-run-*/run-{state['parent']}.wandb")
        assert b"student/val_accuracy" in run_file.read_bytes()


# ---- names and parameters ----


def settings(*flags):
    return config.read(["kd_keras", *flags, "--workdir=w"])


PAIR = ["--teacher=resnet(depth=20)", "--student=resnet(depth=8)"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (PAIR, "resnet20→resnet8 · kd T4 · s0"),
        ([*PAIR, "--loss=ce() + kd(2.0, temperature=2)", "--seed=3"], "resnet20→resnet8 · kd T2 · s3"),
        (["--loss=ce()", "--student=cnn(filters=(8, 16), dense=())"], "cnn 8,16 · ce · s0"),
        ([*PAIR, "--teacher=wide_resnet(40, width=2) + vgg(depth=8)"], "wide_resnet40-2+vgg8→resnet8 · kd T4 · s0"),
        (["--teacher=saved(path='/a/b/best.keras')"], "saved best→cnn · kd T4 · s0"),
        ([*PAIR, "--loss=dkd(beta=8) + attention()"], "resnet20→resnet8 · dkd T4 beta8+attention · s0"),
        ([*PAIR, "--compress=prune() + qat(); qat()"], "resnet20→resnet8 · kd T4 · prune+qat,qat · s0"),
    ],
)
def test_names_of_runs(flags, name):
    assert names.run_name(settings(*flags)) == name


def test_a_name_says_what_a_study_varies():
    flags = [
        *PAIR,
        "--loss=ce() + kd(weight=2, temperature=4)",
        "--learning_rate=0.01",
        "--augment=flip() + pad_crop(2)",
    ]
    varied = ("learning_rate", "augment", "loss", "seed", "epochs")
    assert (
        names.run_name(settings(*flags), varied)
        == "resnet20→resnet8 · kd T4 w2 · learning_rate 0.01 · augment flip+pad_crop2 · epochs 10 · s0"
    )


def test_parameters_are_numbers_as_text():
    params = names.parameters(
        settings(*PAIR, "--loss=ce(weight=0.5) + kd(0.9) + kd(temperature=2.5)", "--learning_rate=cosine(start=0.1)")
    )
    expected = {
        **{"student": "resnet(depth=8)", "student.depth": "8", "teacher.depth": "20", "epochs": "10"},
        **{"loss.ce.weight": "0.5", "loss.kd.weight": "0.9", "loss.kd.temperature": "4", "loss.kd2.temperature": "2.5"},
        **{"learning_rate.start": "0.1"},
    }
    assert {name: params.get(name) for name in expected} == expected
    # What follows another setting is not said twice.
    assert not [name for name in params if name.startswith(("teacher_learning_rate.", "compress_loss."))]


def test_what_was_set_is_known():
    assert names.changed(settings(*PAIR, "--epochs=10", "--seed=1", "--tracking=none")) == {
        "teacher": "resnet(depth=20)",
        "student": "resnet(depth=8)",
        "seed": "1",
    }


# ---- history.csv ----


def test_history_goes_on_after_a_kill(tmp_path):
    path = tmp_path / "history.csv"
    first = HistoryFile(path)
    first.epoch("teacher", 1, {"loss": 2.0})
    first.epoch("student", 1, {"loss": 3.0, "kd": np.float32(0.5)})
    first.epoch("student", 2, {"loss": 2.5, "kd": 0.25})
    again = HistoryFile(path)
    again.epoch("student", 2, {"loss": 9.0, "kd": 0.125})
    text = "epoch,stage,loss,kd\n1,teacher,2.0,\n1,student,3.0,0.5\n2,student,9.0,0.125\n"
    assert path.read_text() == text
    path.write_text("damaged")
    again = HistoryFile(path)
    again.replace({"student": {"loss": [1.0, 0.5]}})
    assert path.read_text() == "epoch,stage,loss\n1,student,1.0\n2,student,0.5\n"
    again.replace({})
    assert path.read_text() == "epoch,stage\n"


@pytest.mark.parametrize(
    ("tracker", "uri"), [("mlflow", "sqlite:///{}/mlflow.db"), ("tensorboard", "{}/tensorboard"), ("wandb", None)]
)
def test_runs_of_a_study_write_to_one_place(tracker, uri, tmp_path):
    flags = [] if uri is None else [f"--tracking_uri={uri.format(tmp_path)}"]
    assert tracking.shared_flags([f"--tracking={tracker}"], tmp_path) == flags


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_in_its_curves(tmp_path, monkeypatch):
    """A second run of the same store copies the curves, and so does a workdir of a version with runs inside runs."""
    import mlflow

    from kd_keras.run.__main__ import main
    from kd_keras.run.tracking.runs import Tracking

    flags = ["kd_keras", *QUICK, "--epochs=3", "--loss=ce()", "--nobaseline", f"--store={tmp_path / 'store'}"]
    flags.append(f"--tracking_uri=sqlite:///{tmp_path}/mlflow.db")
    epoch = Tracking.epoch

    def stopped(self, stage, number, metrics):
        epoch(self, stage, number, metrics)
        if (stage, number) == ("student", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "epoch", stopped)
        assert main([*flags, f"--workdir={tmp_path / 'first'}"]) == 130
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    state = json.loads((tmp_path / "first" / "workdir.json").read_text())
    run_id = state["tracking_runs"]["parent"]
    assert client.get_run(run_id).info.status == "KILLED"
    assert (tmp_path / "first" / "history.csv").read_text().splitlines()[-1].startswith("2,student")
    assert main([*flags, f"--workdir={tmp_path / 'first'}"]) == 0
    # The stages are in the store: only what is measured is made again, and the curves are copied.
    place = {key: state["tracking_runs"][key] for key in ("tracker", "uri")}
    old = {**place, "parent": client.create_run("1", run_name="old").info.run_id}
    (tmp_path / "old").mkdir()
    for name in ("config.json", "workdir.json"):
        (tmp_path / "old" / name).write_text((tmp_path / "first" / name).read_text())
    (tmp_path / "old" / "workdir.json").write_text(json.dumps({**state, "tracking_runs": old}))
    assert main([*flags, "--export=float32", f"--workdir={tmp_path / 'old'}"]) == 0
    for identity in (run_id, old["parent"]):
        assert client.get_run(identity).info.status == "FINISHED"
        points = client.get_metric_history(identity, "epochs/student/val_accuracy")
        # The run was stopped before the second epoch's checkpoint: that epoch was trained again, to the same value.
        assert sorted(step for step, _ in {(point.step, point.value) for point in points}) == [1, 2, 3]


@pytest.mark.slow
def test_a_run_whose_server_was_down_is_sent_later(tmp_path, capsys):
    import mlflow

    from kd_keras.run import commands
    from kd_keras.run.__main__ import main

    folder = tmp_path / "run"
    flags = [*QUICK, "--teacher=none", "--loss=ce()", "--nobaseline", "--tracking_uri=http://127.0.0.1:9"]
    assert main(["kd_keras", *flags, f"--workdir={folder}"]) == 0
    assert f"not all was taken; later: kd-keras track {folder} --to=URI" in " ".join(capsys.readouterr().out.split())
    made_by = (folder / "environment.json").read_bytes()
    moved = folder.rename(tmp_path / "moved")
    uri = f"sqlite:///{tmp_path / 'later.db'}"
    for _ in range(2):  # the second time there is nothing left to send
        assert commands.main(["track", str(moved), f"--to={uri}"]) == 0
        assert "not all was taken" not in capsys.readouterr().out
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("kd_keras").experiment_id])
    assert run.info.status == "FINISHED" and "models/student/test_accuracy" in run.data.metrics
    assert [point.step for point in client.get_metric_history(run.info.run_id, "epochs/student/val_loss")] == [1, 2]
    assert (moved / "environment.json").read_bytes() == made_by
    assert commands.main(["track", str(tmp_path), f"--to={uri}"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_on_an_mlflow_server_with_postgresql(postgresql, tmp_path, capsys):
    """As docs/tracking.md starts it: the run, its curves, its files and its student are on the server."""
    import mlflow
    import numpy as np
    import requests

    from kd_keras.run.__main__ import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "mlflow", "server", f"--backend-store-uri={postgresql}", "--host=127.0.0.1"]
    line += [f"--port={port}", "--workers=1", f"--artifacts-destination={tmp_path / 'artefacts'}"]
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 180
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{uri}/health", timeout=5).raise_for_status()
                break
            assert server.poll() is None and time.monotonic() < until, (tmp_path / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        flags = [*QUICK, "--teacher=none", "--loss=ce()", "--nobaseline", f"--tracking_uri={uri}"]
        assert main(["kd_keras", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
        assert f"{uri}/#/experiments/" in capsys.readouterr().out
        client = mlflow.MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("kd_keras").experiment_id])
        assert run.info.status == "FINISHED" and run.data.metrics["models/student/test_accuracy"] > 0
        points = client.get_metric_history(run.info.run_id, "epochs/student/val_loss")
        assert [point.step for point in points] == [1, 2]
        assert "results.json" in [file.path for file in client.list_artifacts(run.info.run_id)]
        mlflow.set_tracking_uri(uri)
        (model,) = mlflow.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'", output_format="list"
        )
        student = mlflow.pyfunc.load_model(model.model_uri)
        assert np.isfinite(student.predict(np.zeros((2, 8, 8, 1), np.uint8))).all()
    finally:
        mlflow.set_tracking_uri(None)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
