import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import time

import mlflow
import pytest
from absl import logging as absl_logging

from kd_keras.errors import InputError
from kd_keras.run.tracking import environment
from kd_keras.run.tracking import mlflow as tracking


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One database for the module: MLflow takes a second to make its tables."""
    return tracking.local_store(tmp_path_factory.mktemp("work"))


@pytest.fixture
def client(store):
    return mlflow.MlflowClient(tracking_uri=store)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


@pytest.fixture
def opened(store, request):
    def open_writer(**settings):
        return tracking.MLflowWriter(store, "study", request.node.name, **settings)

    return open_writer


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_local_store_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = tracking.local_store("some where")
    assert uri == f"sqlite:///{tmp_path}/some where/mlflow.db"
    # MLflow's default would be a folder of the current folder.
    assert tracking._artifact_location(uri) == f"file://{tmp_path}/some%20where/mlartifacts"
    assert tracking._artifact_location("http://127.0.0.1:5000") is None


def test_a_run_holds_what_was_written(opened, client, store, tmp_path):
    writer = opened()
    writer.params({"loss": "kd(temperature=4.0)", "epochs": 3, "seed": None})
    writer.tags({"stage": "teacher"})
    writer.metrics({"accuracy": 0.5, "loss": 2.0}, step=1)
    writer.metrics({"accuracy": 0.75}, step=2)
    (tmp_path / "results.csv").write_text("a,b\n")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curves.png").write_bytes(b"png")
    writer.artifact(tmp_path / "results.csv")
    writer.artifact(tmp_path / "figures", folder="plots")
    assert client.get_run(writer.run_id).info.status == "RUNNING"
    writer.close()

    run = client.get_run(writer.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test_a_run_holds_what_was_written"
    assert client.get_experiment(run.info.experiment_id).name == "study"
    assert run.data.params == {"loss": "kd(temperature=4.0)", "epochs": "3", "seed": "None"}
    assert run.data.tags["stage"] == "teacher"
    history = client.get_metric_history(writer.run_id, "accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.75)]
    assert run.data.metrics["loss"] == 2.0
    artifacts = pathlib.Path(store.removeprefix("sqlite:///")).parent / "mlartifacts" / writer.run_id / "artifacts"
    assert (artifacts / "results.csv").read_text() == "a,b\n"
    assert (artifacts / "plots" / "curves.png").read_bytes() == b"png"


def test_metrics_go_in_one_call_a_step_without_what_is_not_finite(opened, client, monkeypatch):
    writer = opened()
    calls = []
    log_batch = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *a, **k: (calls.append(k), log_batch(*a, **k)))
    writer.metrics({"a": 1, "b": math.inf, "c": math.nan, "d": -math.inf, "e": None, "f@(x=1)": 2.0}, step=7)
    assert len(calls) == 1
    assert client.get_run(writer.run_id).data.metrics == {"a": 1.0, "f__x_1_": 2.0}
    writer.metrics({"a": math.nan}, step=8)
    assert len(calls) == 1


def test_more_than_mlflow_takes_in_one_call(opened, client, warnings):
    writer = opened()
    writer.params({f"p{i}": "x" * 7000 for i in range(130)})
    writer.metrics({f"m{i}": i for i in range(1200)}, step=0)
    run = client.get_run(writer.run_id)
    assert len(run.data.params) == 130 and len(run.data.params["p0"]) == 6000
    assert len(run.data.metrics) == 1200
    assert warnings == []


def test_going_on_in_the_same_run(opened, client, warnings):
    first = opened()
    first.params({"epochs": 3, "seed": 1})
    first.metrics({"loss": 2.0}, step=1)
    first.close("FAILED")
    assert client.get_run(first.run_id).info.status == "FAILED"

    again = opened(run_id=first.run_id)
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again.params({"epochs": 5, "seed": 1, "new": True})
    again.metrics({"loss": 1.0}, step=2)
    again.close()
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "3", "seed": "1", "new": "True"}
    assert run.data.tags["resumed.epochs"] == "5" and "resumed.seed" not in run.data.tags
    assert [point.value for point in client.get_metric_history(first.run_id, "loss")] == [2.0, 1.0]
    assert warnings == []


def test_a_run_that_the_store_forgot_is_replaced(opened, client, warnings):
    writer = opened(run_id="0" * 32)
    assert writer.run_id not in (None, "0" * 32)
    assert client.get_run(writer.run_id).info.status == "RUNNING"
    assert len(warnings) == 1 and "new run" in warnings[0]


def test_children_name_their_parent_and_are_resumed(opened, client):
    parent = opened()
    child = parent.child("teacher")
    grandchild = child.child("probe")
    child.close()
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(grandchild.run_id).data.tags["mlflow.parentRunId"] == child.run_id
    assert client.get_run(child.run_id).info.run_name == "teacher"
    assert client.get_run(child.run_id).info.experiment_id == client.get_run(parent.run_id).info.experiment_id
    assert client.get_run(parent.run_id).info.status == "RUNNING"
    assert parent.child("teacher", run_id=child.run_id).run_id == child.run_id
    assert client.get_run(child.run_id).info.status == "RUNNING"
    other = opened(parent_id=parent.run_id)
    assert client.get_run(other.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_close_keeps_the_first_status(opened, client):
    writer = opened()
    writer.close("FAILED")
    writer.close()
    assert client.get_run(writer.run_id).info.status == "FAILED"


def test_no_run_becomes_the_global_one(opened):
    opened().metrics({"a": 1.0}, step=0)
    assert mlflow.active_run() is None


def test_a_dead_server_costs_one_warning_and_little_time(warnings, tmp_path):
    start = time.monotonic()
    uri = f"http://user:secret@127.0.0.1:{closed_port()}"
    writer = tracking.MLflowWriter(uri, "study", "run")
    child = writer.child("teacher")
    for one in (writer, child):
        one.params({"a": 1})
        one.metrics({"a": 1.0}, step=0)
        one.tags({"a": "b"})
        one.artifact(tmp_path)
        one.close()
        assert one.run_id is None
    assert time.monotonic() - start < 15
    assert len(warnings) == 1
    assert "nothing more is tracked" in warnings[0] and "\n" not in warnings[0] and "secret" not in warnings[0]


@pytest.mark.parametrize("error", [mlflow.exceptions.MlflowException("gone"), ConnectionError("gone")])
def test_a_failure_in_mid_run_silences_the_whole_family(opened, warnings, monkeypatch, error):
    writer = opened()
    child, calls = writer.child("teacher"), []

    def broken(*args, **kwargs):
        calls.append(args)
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", broken)
    child.metrics({"a": 1.0}, step=0)
    child.metrics({"a": 1.0}, step=1)
    writer.metrics({"a": 1.0}, step=1)
    assert len(calls) == 1 and len(warnings) == 1 and "gone" in warnings[0]
    assert writer.run_id is not None and writer.child("student").run_id is None
    writer.close()


def test_a_mistake_of_the_program_is_not_hidden(opened, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a bug")

    writer = opened()
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", broken)
    with pytest.raises(TypeError, match="a bug"):
        writer.metrics({"a": 1.0}, step=0)


def test_an_artefact_that_is_missing_is_warned_about_and_nothing_else(opened, warnings, client, tmp_path):
    writer = opened()
    writer.artifact(tmp_path / "none.png")
    writer.metrics({"a": 1.0}, step=0)
    assert len(warnings) == 1 and "none.png" in warnings[0]
    assert client.get_run(writer.run_id).data.metrics == {"a": 1.0}


def test_a_database_that_cannot_be_used_costs_one_warning(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    start = time.monotonic()
    writer = tracking.MLflowWriter(f"sqlite:///{tmp_path}/file/mlflow.db", "study", "run")
    writer.metrics({"a": 1.0}, step=0)
    assert writer.run_id is None and len(warnings) == 1 and time.monotonic() - start < 15


@pytest.mark.parametrize("uri", ["sqlit:////tmp/x.db", "./mlruns", "localhost:5000", "ftp://x"])
def test_a_uri_of_no_known_scheme_is_refused(uri):
    with pytest.raises(InputError, match=r"sqlite:////absolute/mlflow.db or http://host:port") as caught:
        tracking.MLflowWriter(uri, "study", "run")
    assert "\n" not in str(caught.value)


def test_bounds_do_not_override_the_users(store, monkeypatch, opened):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    opened()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


@pytest.mark.slow
def test_a_new_store_prints_nothing(tmp_path):
    code = (
        "from kd_keras.run.tracking import mlflow as tracking\n"
        f"writer = tracking.MLflowWriter(tracking.local_store({str(tmp_path)!r}), 'study', 'run')\n"
        "writer.metrics({'a': 1.0}, 0)\n"
        "writer.close()\n"
        "assert writer.run_id\n"
    )
    # In a process of its own: MLflow sets up its logging once.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]


def test_null_writer_has_the_same_interface(tmp_path):
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_")} - {"run_id"}

    assert public(tracking.NullWriter) == public(tracking.MLflowWriter)
    writer = tracking.NullWriter().child("teacher", run_id="x")
    writer.params({}), writer.metrics({}, 0), writer.tags({}), writer.artifact(tmp_path, folder="x")
    writer.close("FAILED")
    assert writer.run_id is None


def git(folder, *arguments):
    name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = environment.environment()
    json.dumps(found)
    assert found["git_revision"] is None and found["git_dirty"] is None
    assert found["packages"]["mlflow"] == mlflow.__version__
    assert found["cpus"] >= 1 and any(device.startswith("CPU") for device in found["devices"])

    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    found = environment.environment()
    assert found["git_revision"] == git(tmp_path, "rev-parse", "HEAD").strip()
    assert found["git_dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.environment()["git_dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert environment.environment()["git_revision"] is None


@pytest.mark.slow
def test_a_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    uri = tracking.local_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tracking.os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tracking.MLflowWriter(uri, "e", "killed")
        assert list(tmp_path.iterdir()) == []
    first = tracking.MLflowWriter(uri, "e", "first")
    assert tracking.MLflowWriter(uri, "e", "again", run_id=first.run_id).run_id == first.run_id
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.slow
def test_a_database_is_made_where_files_can_not_be_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    assert tracking.MLflowWriter(tracking.local_store(tmp_path), "e", "r").run_id
