"""The connection to an MLflow store, which can neither stop nor slow a training run.

What the server refuses, or a server that is down, costs one warning and then silence. Servers are talked to on a
thread: a training does not wait for them, and the end of a run only so long.
"""

import concurrent.futures
import functools
import logging as python_logging
import os
import pathlib
import queue
import re
import threading
import urllib.parse

from absl import logging

from kd_keras import files
from kd_keras.errors import InputError

# By default MLflow keeps trying a dead server for more than four minutes.
_BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # A server may ask for an hour.
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # MLflow 3 reports usage to its makers, and a process without a network would wait for that thread.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


# Seconds to wait for an answer, and at the end of a run for what is still to be sent.
_ANSWER, _END = 10.0, 20.0


class _Thread:
    """Calls functions one after the other, without holding up who asks for it or the end of the process.

    Attributes:
        error: the last mistake of a function, which whoever comes next has to raise, or None.
    """

    def __init__(self):
        self.error: BaseException | None = None
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="mlflow").start()

    def _work(self):
        while True:
            future, function = self._calls.get()
            try:
                future.set_result(function())
            # None is to end the thread without a word.
            except BaseException as error:
                self.error = error
                future.set_exception(error)

    def submit(self, function) -> concurrent.futures.Future:
        """Calls a function once those before it have ended."""
        future = concurrent.futures.Future()
        self._calls.put((future, function))
        return future


class Link:
    """The client, and whether the store still answers.

    Attributes:
        alive: whether it has taken all until now.
    """

    def __init__(self, uri):
        if "://" not in uri and not uri.startswith(("databricks", "uc:")):
            raise InputError(
                f"tracking URI {uri!r} names no scheme: give sqlite:////absolute/mlflow.db or http://host:port"
            )
        for name, value in _BOUNDS.items():
            os.environ.setdefault(name, value)
        try:
            import google.protobuf.json_format
            import mlflow
            import requests
            import sqlalchemy.exc
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
            # A server that is none of MLflow's.
            google.protobuf.json_format.Error,
        )
        self._uri = uri
        self.alive = True
        self._thread = None if sqlite_path(uri) else _Thread()
        self.client = self.ask(self._connect)

    def _connect(self):
        import mlflow
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        _open_sqlite(self._uri)
        try:
            return mlflow.MlflowClient(tracking_uri=self._uri)
        except UnsupportedModelRegistryStoreURIException as error:
            scheme = self._uri.partition("://")[0]
            raise InputError(
                f"MLflow knows no tracking URI scheme {scheme!r}: give sqlite:////absolute/mlflow.db or http://host:port"
            ) from error
        except ValueError as error:  # a port that is no number
            raise InputError(f"--tracking_uri={_public(self._uri)} can't be used: {_reason(error)}") from error

    def ask(self, function, *args, **kwargs):
        """The function's result; None when the server has failed, now or before."""
        call = functools.partial(self._call, function, *args, **kwargs)
        return call() if self._thread is None else self._wait(self._thread.submit(call), _ANSWER)

    def tell(self, function, *args, **kwargs) -> None:
        """Calls a function whose result nobody needs: now, or when the server has taken what came before."""
        call = functools.partial(self._call, function, *args, **kwargs)
        if self._thread is None:
            call()
        elif self._thread.error is not None:
            raise self._thread.error
        else:
            self._thread.submit(call)

    def attempt(self, what: str, function, *args, **kwargs) -> None:
        """Tells what an older server, or one that allows less, may refuse: the run is tracked without it."""
        from mlflow.exceptions import MlflowException

        def attempted():
            try:
                function(*args, **kwargs)
            except MlflowException as error:
                logging.warning("MLflow at %s: %s is left out: %s", _public(self._uri), what, _reason(error))

        self.tell(attempted)

    def finish(self) -> None:
        """Waits until all is told."""
        if self._thread is not None:
            self._wait(self._thread.submit(lambda: None), _END)
            if self._thread.error is not None:
                raise self._thread.error

    def _wait(self, future, seconds):
        if not self.alive:
            return None
        try:
            return future.result(seconds)
        except concurrent.futures.TimeoutError:
            return self._fail(TimeoutError(f"no answer within {seconds:g} s"))

    def _call(self, function, *args, **kwargs):
        if not self.alive:
            return None
        try:
            return function(*args, **kwargs)
        except self._errors as error:
            return self._fail(error)
        except ModuleNotFoundError as error:
            raise InputError(f"tracking at {_public(self._uri)} needs the Python package {error.name}") from error

    def _fail(self, error):
        if self.alive:
            self.alive = False
            uri = _public(self._uri)
            logging.warning("MLflow at %s failed, nothing more is tracked in this run: %s", uri, _reason(error))


_SQLITE, _SQLITE_QUOTED = "sqlite:///", "sqlite+pysqlite:///"


def sqlite_uri(path: pathlib.Path) -> str:
    """The URI of an sqlite file, whatever its name."""
    if not set("%?") & set(str(path)):
        return f"{_SQLITE}{path}"
    # Of the short scheme MLflow makes the parent folder first, by the name as it is quoted.
    return f"{_SQLITE_QUOTED}{urllib.parse.quote(str(path))}"


def sqlite_path(uri: str) -> pathlib.Path | None:
    """The file of an sqlite URI; None of another one, and of a database in memory."""
    for scheme in (_SQLITE, _SQLITE_QUOTED):
        name = urllib.parse.unquote(uri.removeprefix(scheme))
        if uri.startswith(scheme) and name not in ("", ":memory:") and "?" not in uri:
            return pathlib.Path(name)
    return None


def _reason(error: Exception) -> str:
    # MLflow quotes the address in its messages, password and all.
    return _public((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def _open_sqlite(uri):
    """Makes an sqlite database that is not there yet, whole or not at all, so that a kill leaves no half of a schema.

    Raises:
        OSError: at once, where MLflow would try for minutes to open the file.
    """
    import mlflow

    path = sqlite_path(uri)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if file.tell():
            return
    path.unlink()
    partial = files.partial(path)
    try:
        mlflow.MlflowClient(tracking_uri=sqlite_uri(partial)).search_experiments(max_results=1)
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
