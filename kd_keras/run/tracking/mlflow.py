"""MLflow tracking that can neither stop nor slow a training run.

Runs are named by explicit ids through `mlflow.MlflowClient`: no active run, no autolog, nothing global that a user's
MLflow code could trip over. What the server refuses, or a server that is down, costs one warning and then silence.
"""

import logging as python_logging
import math
import os
import pathlib
import re
import time

from absl import logging

from kd_keras import files
from kd_keras.errors import InputError

# By default MLflow keeps trying a dead server for more than four minutes.
_BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # MLflow 3 reports usage to its makers, and a process without a network would wait for that thread.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_PARAMS_PER_CALL, _METRICS_PER_CALL, _VALUE_LENGTH = 100, 1000, 6000


def local_store(workdir):
    """The URI of the MLflow store in a run's folder, absolute, as MLflow's defaults depend on the current folder.

    Args:
        workdir: folder; need not exist.
    """
    return f"sqlite:///{pathlib.Path(workdir).resolve() / 'mlflow.db'}"


def _artifact_location(uri):
    """Where the artefacts of a store's experiments go: next to an sqlite file; None leaves it to the server.

    Args:
        uri: tracking URI.
    """
    if not uri.startswith("sqlite:///"):
        return None
    return (pathlib.Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


class NullWriter:
    """Takes what `MLflowWriter` takes, and keeps nothing."""

    run_id = None

    def params(self, params):
        """Ignores parameters."""

    def metrics(self, metrics, step):
        """Ignores metrics."""

    def tags(self, tags):
        """Ignores tags."""

    def artifact(self, path, folder=None):
        """Ignores an artefact."""

    def child(self, name, run_id=None):
        """Returns a writer for a child run, which keeps nothing either."""
        return NullWriter()

    def close(self, status="FINISHED"):
        """Does nothing."""


class MLflowWriter:
    """Writes one MLflow run.

    Once the server has failed, this writer and all of its relatives are silent: `run_id` stays as it was, None where no
    run could be opened.

    Attributes:
        run_id: id of the run; keep it to go on in the same run later.

    Args:
        uri: tracking URI: ``sqlite:////absolute/mlflow.db``, ``http://host:port``, another database or a plug-in's.
        experiment: name of the experiment, made where it is missing.
        run_name: name of the run.
        run_id: run to resume. A run that the store does not know is replaced by a new run, with a warning.
        parent_id: id of the parent run.

    Raises:
        InputError: the URI's scheme is none that MLflow knows, or MLflow is not installed.
    """

    def __init__(self, uri, experiment, run_name, run_id=None, parent_id=None):
        self._link = _Link(uri)
        self._open(self._link.call(self._experiment, experiment, _artifact_location(uri)), run_name, run_id, parent_id)

    def _open(self, experiment_id, run_name, run_id, parent_id):
        self.run_id = None
        self._closed = False
        self._experiment_id = experiment_id
        if run_id is not None and self._link.call(self._resume, run_id):
            self.run_id = run_id
        else:
            self.run_id = self._link.call(self._create, run_name, parent_id)
        self._params = dict(self._link.call(self._logged_params) or {})

    def _experiment(self, name, artifact_location):
        from mlflow.exceptions import MlflowException

        client = self._link.client
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(name, artifact_location=artifact_location)
            except MlflowException:
                # Another run, started at the same time, has just made it.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _create(self, run_name, parent_id):
        tags = {} if parent_id is None else {"mlflow.parentRunId": parent_id}
        return self._link.client.create_run(self._experiment_id, tags=tags, run_name=run_name).info.run_id

    def _resume(self, run_id):
        from mlflow.exceptions import MlflowException

        try:
            self._link.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logging.warning("MLflow does not know run %s any more: a new run is started", run_id)
            return False
        return True

    def _logged_params(self):
        return self._link.client.get_run(self.run_id).data.params

    def params(self, params):
        """Logs parameters, given as a dict of anything that has a string.

        MLflow never changes a parameter. Where a resumed run has another value, the new one is written as the tag
        ``resumed.<name>``.
        """
        params = {_key(name): str(value)[:_VALUE_LENGTH] for name, value in params.items()}
        new = {name: value for name, value in params.items() if name not in self._params}
        changed = {name: value for name, value in params.items() if self._params.get(name, value) != value}
        self._params.update(new)
        self._log(params=list(new.items()), tags=[(f"resumed.{name}", value) for name, value in changed.items()])

    def metrics(self, metrics, step):
        """Logs a dict of numbers at a step, in a single call. Values that are not finite are left out."""
        # MLflow stores infinity as 1.8e308, which ruins every plot.
        values = {_key(name): float(value) for name, value in metrics.items() if value is not None}
        self._log(metrics=[item for item in values.items() if math.isfinite(item[1])], step=step)

    def tags(self, tags):
        """Sets tags, given as a dict; a tag that exists gets the new value."""
        self._log(tags=[(_key(name), str(value)[:_VALUE_LENGTH]) for name, value in tags.items()])

    def _log(self, metrics=(), params=(), tags=(), step=0):
        if self.run_id is None or not self._link.alive:
            return
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        for part in _parts(metrics, _METRICS_PER_CALL):
            batch = [Metric(name, value, now, int(step)) for name, value in part]
            self._link.call(self._link.client.log_batch, self.run_id, metrics=batch)
        for part in _parts(params, _PARAMS_PER_CALL):
            self._link.call(self._link.client.log_batch, self.run_id, params=[Param(*item) for item in part])
        for part in _parts(tags, _PARAMS_PER_CALL):
            self._link.call(self._link.client.log_batch, self.run_id, tags=[RunTag(*item) for item in part])

    def artifact(self, path, folder=None):
        """Uploads a file, or a folder's content.

        Args:
            path: file or folder. One that does not exist is warned about.
            folder: folder among the run's artefacts.
        """
        path = pathlib.Path(path)
        if self.run_id is None or not self._link.alive:
            return
        if not path.exists():
            logging.warning("MLflow artefact %s does not exist and is left out", path)
            return
        upload = self._link.client.log_artifacts if path.is_dir() else self._link.client.log_artifact
        self._link.call(upload, self.run_id, str(path), folder)

    def child(self, name, run_id=None):
        """Opens a child run.

        Args:
            name: its name.
            run_id: child run to go on with.

        Returns:
            MLflowWriter.
        """
        writer = MLflowWriter.__new__(MLflowWriter)
        writer._link = self._link
        writer._open(self._experiment_id, name, run_id, self.run_id)
        return writer

    def close(self, status="FINISHED"):
        """Ends the run, as ``FINISHED`` or ``FAILED``; a second call changes nothing. Children are closed apart."""
        if self.run_id is not None and not self._closed:
            self._link.call(self._link.client.set_terminated, self.run_id, status)
        self._closed = True


class _Link:
    """The client that a family of runs shares, and whether it still answers."""

    def __init__(self, uri):
        if "://" not in uri and not uri.startswith(("databricks", "uc:")):
            raise InputError(
                f"tracking URI {uri!r} names no scheme: give sqlite:////absolute/mlflow.db or http://host:port"
            )
        for name, value in _BOUNDS.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
            import requests
            import sqlalchemy.exc
            from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
        except ImportError as error:
            raise InputError("tracking needs MLflow: pip install mlflow, or run without tracking") from error
        for name in ("alembic", "mlflow"):
            # INFO tells of database tables being made, once a run.
            python_logging.getLogger(name).setLevel(python_logging.WARNING)
        self._errors = (
            mlflow.exceptions.MlflowException,
            requests.RequestException,
            OSError,
            sqlalchemy.exc.SQLAlchemyError,
        )
        self._uri = uri
        self.alive = True
        try:
            _open_sqlite(uri)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
        except UnsupportedModelRegistryStoreURIException as error:
            scheme = uri.partition("://")[0]
            raise InputError(
                f"MLflow knows no tracking URI scheme {scheme!r}: give sqlite:////absolute/mlflow.db or http://host:port"
            ) from error
        except self._errors as error:
            self._fail(error)

    def call(self, function, *args, **kwargs):
        """The function's result; None when the server has failed, now or before."""
        if not self.alive:
            return None
        try:
            return function(*args, **kwargs)
        except self._errors as error:
            return self._fail(error)
        except ModuleNotFoundError as error:
            raise InputError(f"tracking at {_public(self._uri)} needs the Python package {error.name}") from error

    def _fail(self, error):
        self.alive = False
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # MLflow quotes the address in its messages, password and all.
        uri, reason = _public(self._uri), _public(reason)[:200]
        logging.warning("MLflow at %s failed, nothing more is tracked in this run: %s", uri, reason)


def _open_sqlite(uri):
    """Makes an sqlite database that is not there yet, whole or not at all, so that a kill leaves no half of a schema.

    Raises:
        OSError: at once, where MLflow would try for minutes to open the file.
    """
    import mlflow

    name = uri.removeprefix("sqlite:///")
    if name == uri or not name or "?" in name:
        return
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell():
            return
    path.unlink()
    partial = files.partial(path)
    try:
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
        try:
            # A link, not a move: a database that another run has just made is not replaced.
            os.link(partial, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _public(uri):
    """The URI without a user's password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _key(name):
    """A name that MLflow takes: letters, digits and ``_-. :/``, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", str(name))[:250]


def _parts(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]
