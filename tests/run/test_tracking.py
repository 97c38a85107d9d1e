import base64
import contextlib
import http.server
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import zlib

import mlflow
import pytest
from absl import logging as absl_logging

from kd_keras.errors import InputError
from kd_keras.run.tracking import environment, mlflow_link
from kd_keras.run.tracking import mlflow as tracking
from kd_keras.run.tracking.base import Dataset, NullWriter, Opening


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One database for the module: MLflow takes a second to make its tables."""
    return tracking.default_uri(tmp_path_factory.mktemp("work"))


@pytest.fixture
def client(store):
    return mlflow.MlflowClient(tracking_uri=store)


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


def writer_at(uri, name="run", **settings):
    return tracking.Writer(Opening(uri, "study", name, pathlib.Path("unused"), **settings))


@pytest.fixture
def opened(store, request):
    return lambda **settings: writer_at(store, request.node.name, **settings)


def closed_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_more_than_mlflow_takes_in_one_call(opened, client, warnings):
    writer = opened()
    writer.params({f"p{i}": "x" * 7000 for i in range(130)})
    writer.metrics({f"m{i}": i for i in range(1200)})
    run = client.get_run(writer.run_id)
    assert len(run.data.params) == 130 and len(run.data.params["p0"]) == 6000
    assert len(run.data.metrics) == 1200
    assert warnings == []


def test_the_default_store_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = tracking.default_uri("some where")
    assert uri == f"sqlite:///{tmp_path}/some where/mlflow.db"
    # MLflow's default would be a folder of the current folder.
    assert tracking._artifact_location(uri) == f"file://{tmp_path}/some%20where/mlartifacts"
    assert tracking._artifact_location("http://127.0.0.1:5000") is None


@pytest.mark.parametrize("name", ["plain", "some where", "100%20done", "what?x=1", "a#b;c"])
def test_a_store_lies_in_a_folder_of_any_name(name, tmp_path):
    uri = tracking.default_uri(tmp_path / name)
    assert mlflow_link.sqlite_path(uri) == tmp_path / name / "mlflow.db"
    if name in ("100%20done", "what?x=1"):
        writer_at(uri).close()
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name / "mlflow.db").stat().st_size > 100_000


def test_a_run_holds_what_was_written(opened, client, store, tmp_path):
    writer = opened()
    writer.params({"loss": "kd(temperature=4.0)", "epochs": 3, "seed": None})
    writer.tags({"study": "teacher"})
    writer.epoch("student", 1, {"accuracy": 0.5, "loss": 2.0})
    writer.epoch("student", 2, {"accuracy": 0.75})
    writer.epochs("teacher", [{"accuracy": 0.1}, {"accuracy": 0.2}])
    writer.metrics({"student/test_accuracy": 0.7})
    data = Dataset("digits() train", "training", "ab" * 32, "digits()", 100, (8, 8, 1), 10)
    writer.datasets([data])
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
    assert run.data.tags["study"] == "teacher" and run.data.metrics["student/test_accuracy"] == 0.7
    for stage, values in (("student", [0.5, 0.75]), ("teacher", [0.1, 0.2])):
        history = client.get_metric_history(writer.run_id, f"epochs/{stage}/accuracy")
        assert [(point.step, point.value) for point in history] == list(enumerate(values, start=1))
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.name == "digits() train" and ("ab" * 32).startswith(given.dataset.digest)
    assert json.loads(given.dataset.profile) == {"num_rows": 100, "num_classes": 10}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    artifacts = pathlib.Path(store.removeprefix("sqlite:///")).parent / "mlartifacts" / writer.run_id / "artifacts"
    assert (artifacts / "results.csv").read_text() == "a,b\n"
    assert (artifacts / "plots" / "curves.png").read_bytes() == b"png"


def test_metrics_go_in_one_call_an_epoch_without_what_is_not_finite(opened, client, monkeypatch):
    writer = opened()
    calls = []
    log_batch = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *a, **k: (calls.append(k), log_batch(*a, **k)))
    writer.epoch("s", 7, {"a": 1, "b": math.inf, "c": math.nan, "d": -math.inf, "e": None, "f@(x=1)": 2.0})
    assert len(calls) == 1
    assert client.get_run(writer.run_id).data.metrics == {"epochs/s/a": 1.0, "epochs/s/f__x_1_": 2.0}
    writer.epoch("s", 8, {"a": math.nan})
    assert len(calls) == 1
    writer.epochs("t", [{"a": at} for at in range(100)])
    assert len(calls) == 2


def test_the_view_shows_figures_and_the_settings_in_which_runs_differ(opened, client):
    def columns():
        text = client.get_experiment(writer.experiment_id).tags["mlflow.sharedViewState.kd_keras"]
        state = json.loads(zlib.decompress(base64.b64decode(text.removeprefix("deflate;"))))
        return [column for column in state["selectedColumns"] if not column.startswith("attributes")]

    writer = opened()
    study = {"study": "view"}
    for seed in (0, 1):
        writer = tracking.Writer(Opening(writer.link._uri, "view", "run", pathlib.Path("unused")))
        writer.params({"seed": seed, "loss.kd.temperature": 4, "workdir": f"/somewhere/{seed}"})
        writer.tags(study)
        writer.describe("# It *is*", ["student/test_accuracy"], ["loss.kd.temperature"])
        shown = "loss.kd.temperature" if seed == 0 else "seed"
        assert columns() == ["metrics.`student/test_accuracy`", f"params.`{shown}`"]
    assert client.get_run(writer.run_id).data.tags["mlflow.note.content"] == "# It *is*"


def test_a_run_goes_on_in_its_experiment(opened, client):
    first = opened()
    again = tracking.Writer(Opening(first.link._uri, "another", "run", pathlib.Path("unused"), run_id=first.run_id))
    assert (again.run_id, again.experiment_id) == (first.run_id, first.experiment_id)
    assert client.get_experiment_by_name("another") is None


def test_going_on_in_the_same_run(opened, client, warnings):
    first = opened()
    first.params({"epochs": 3, "seed": 1})
    first.epoch("s", 1, {"loss": 2.0})
    first.close("FAILED")
    assert client.get_run(first.run_id).info.status == "FAILED"

    again = opened(run_id=first.run_id)
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    again.params({"epochs": 5, "seed": 1, "new": True})
    again.epoch("s", 2, {"loss": 1.0})
    again.close()
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "3", "seed": "1", "new": "True"}
    assert run.data.tags["resumed.epochs"] == "5" and "resumed.seed" not in run.data.tags
    assert [point.value for point in client.get_metric_history(first.run_id, "epochs/s/loss")] == [2.0, 1.0]
    assert warnings == []


def test_a_run_that_the_store_forgot_is_replaced(opened, client, warnings):
    writer = opened(run_id="0" * 32)
    assert writer.run_id not in (None, "0" * 32)
    assert client.get_run(writer.run_id).info.status == "RUNNING"
    assert len(warnings) == 1 and "new run" in warnings[0]


def tell_all(writer, folder):
    """Every method that a run calls."""
    writer.params({"a": 1})
    writer.epoch("student", 1, {"a": 1.0})
    writer.epochs("student", [{"a": 1.0}])
    writer.metrics({"a": 1.0})
    writer.tags({"a": "b"})
    writer.datasets([Dataset("d train", "training", "ab", "d", 1, (8, 8, 1), 10)])
    writer.artifact(folder)
    writer.describe("text", ["a"], ["a"])
    writer.close()


@pytest.mark.parametrize("error", [mlflow.exceptions.MlflowException("gone"), ConnectionError("gone")])
def test_a_failure_in_mid_run_silences_the_writer(opened, warnings, monkeypatch, error, tmp_path):
    writer, calls = opened(), []

    def broken(*args, **kwargs):
        calls.append(args)
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", broken)
    tell_all(writer, tmp_path)
    assert len(calls) == 1 and len(warnings) == 1 and "gone" in warnings[0] and writer.run_id is not None


def test_what_a_server_refuses_is_left_out_and_the_rest_is_tracked(opened, warnings, monkeypatch, client, tmp_path):
    def refused(*args, **kwargs):
        raise mlflow.exceptions.MlflowException("no such endpoint")

    writer = opened()
    for name in ("log_inputs", "set_experiment_tag", "search_runs"):
        monkeypatch.setattr(mlflow.MlflowClient, name, refused)
    tell_all(writer, tmp_path)
    assert len(warnings) == 2 and all("left out: no such endpoint" in line for line in warnings)
    run = client.get_run(writer.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["a"] == 1.0


@pytest.mark.parametrize("tracker", ["mlflow", "tensorboard", "wandb"])
def test_writers_have_the_interface_of_the_null_writer(tracker, tmp_path):
    from kd_keras.run.tracking import module

    kind = module(tracker).Writer
    assert {name for name in vars(kind) if not name.startswith("_")} <= {*vars(NullWriter), "place"}
    tell_all(NullWriter(), tmp_path)


def test_close_keeps_the_first_status(opened, client):
    writer = opened()
    writer.close("FAILED")
    writer.close()
    assert client.get_run(writer.run_id).info.status == "FAILED"


def test_no_run_becomes_the_global_one(opened):
    opened().metrics({"a": 1.0})
    assert mlflow.active_run() is None


def test_a_dead_server_costs_one_warning_and_little_time(warnings, tmp_path):
    start = time.monotonic()
    uri = f"http://user:secret@127.0.0.1:{closed_port()}"
    writer = writer_at(uri)
    tell_all(writer, tmp_path)
    assert writer.run_id is None
    assert time.monotonic() - start < 15
    assert len(warnings) == 1
    assert "nothing more is tracked" in warnings[0] and "\n" not in warnings[0] and "secret" not in warnings[0]


def test_a_mistake_of_the_program_is_not_hidden(opened, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("a bug")

    writer = opened()
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", broken)
    with pytest.raises(TypeError, match="a bug"):
        writer.metrics({"a": 1.0})


@contextlib.contextmanager
def serving(answer):
    """The address of a server on this machine; ``answer(request)`` answers what it is asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            answer(self)

        do_GET = do_POST

        def log_message(self, *args):
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def drips(request):
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            request.wfile.write(b" ")
            time.sleep(0.05)


def asks_for_an_hour(request):
    request.send_response(503)
    request.send_header("Retry-After", "3600")
    request.send_header("Content-Length", "0")
    request.end_headers()


def answers_something_else(request):
    request.send_response(200)
    request.send_header("Content-Length", "4")
    request.end_headers()
    request.wfile.write(b"null")


@pytest.mark.parametrize("answer", [drips, asks_for_an_hour, answers_something_else])
def test_a_server_that_is_slow_or_none_of_mlflows_holds_nobody_up(answer, warnings, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_link, "_ANSWER", 3.0)
    with serving(answer) as uri:
        start = time.monotonic()
        writer = writer_at(uri)
        tell_all(writer, tmp_path)
        assert time.monotonic() - start < 10
    assert len(warnings) == 1 and "nothing more is tracked" in warnings[0] and not writer.is_complete


def test_a_training_does_not_wait_for_a_server(monkeypatch):
    link, calls = mlflow_link.Link("http://127.0.0.1:1"), []
    start = time.monotonic()
    for number in range(5):
        link.tell(lambda number=number: (time.sleep(0.2), calls.append(number)))
    assert time.monotonic() - start < 0.2 and not calls
    link.finish()
    assert calls == [0, 1, 2, 3, 4] and link.alive

    def broken():
        raise TypeError("a bug")

    link.tell(broken)
    with pytest.raises(TypeError, match="a bug"):
        link.finish()


def test_an_artefact_that_is_missing_is_warned_about_and_nothing_else(opened, warnings, client, tmp_path):
    writer = opened()
    writer.artifact(tmp_path / "none.png")
    writer.metrics({"a": 1.0})
    assert len(warnings) == 1 and "none.png" in warnings[0]
    assert client.get_run(writer.run_id).data.metrics == {"a": 1.0}


def test_a_database_that_cannot_be_used_costs_one_warning(tmp_path, warnings):
    (tmp_path / "file").write_text("")
    start = time.monotonic()
    writer = writer_at(f"sqlite:///{tmp_path}/file/mlflow.db")
    writer.metrics({"a": 1.0})
    assert writer.run_id is None and len(warnings) == 1 and time.monotonic() - start < 15


@pytest.mark.parametrize("uri", ["sqlit:////tmp/x.db", "./mlruns", "localhost:5000", "ftp://x"])
def test_a_uri_of_no_known_scheme_is_refused(uri):
    with pytest.raises(InputError, match=r"sqlite:////absolute/mlflow.db or http://host:port") as caught:
        writer_at(uri)
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
        "from kd_keras.run.tracking import base, mlflow\n"
        f"opening = base.Opening(mlflow.default_uri({str(tmp_path)!r}), 'study', 'run', None)\n"
        "writer = mlflow.Writer(opening)\n"
        "writer.metrics({'a': 1.0})\n"
        "writer.close()\n"
        "assert writer.run_id\n"
    )
    # In a process of its own: MLflow sets up its logging once.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]


@pytest.mark.slow
def test_system_metrics_on_request(store, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    writer = writer_at(store, system_metrics=True)
    time.sleep(3)
    writer.close()
    run = client.get_run(writer.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["system/system_memory_usage_megabytes"] > 0


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
    uri = tracking.default_uri(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_link.os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer_at(uri, "killed")
        assert list(tmp_path.iterdir()) == []
    first = writer_at(uri, "first")
    assert writer_at(uri, "again", run_id=first.run_id).run_id == first.run_id
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.slow
def test_a_database_is_made_where_files_can_not_be_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_link.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links")))
    assert writer_at(tracking.default_uri(tmp_path)).run_id
