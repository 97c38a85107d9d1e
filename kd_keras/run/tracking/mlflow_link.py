"""The connection to an MLflow store, which can neither stop nor slow a training run.

What the server refuses, or a server that is down, costs one warning and then silence.
"""

import logging as python_logging
import os
import pathlib
import re
import urllib.parse

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


class Link:
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

    def attempt(self, what: str, function, *args, **kwargs) -> None:
        """Calls a function that an older server, or one that allows less, may refuse: the run is tracked without it."""
        from mlflow.exceptions import MlflowException

        def attempted():
            try:
                function(*args, **kwargs)
            except MlflowException as error:
                logging.warning("MLflow at %s: %s is left out: %s", _public(self._uri), what, _reason(error))

        self.call(attempted)

    def _fail(self, error):
        self.alive = False
        uri = _public(self._uri)
        logging.warning("MLflow at %s failed, nothing more is tracked in this run: %s", uri, _reason(error))


_SQLITE, _SQLITE_QUOTED = "sqlite:///", "sqlite+pysqlite:///"


def sqlite_uri(path: pathlib.Path) -> str:
    """The URI of an sqlite file, whatever its name."""
    quoted = urllib.parse.quote(str(path))
    # Of the short scheme MLflow makes the parent folder first, by the name as it is quoted.
    return f"{_SQLITE if quoted == str(path) else _SQLITE_QUOTED}{quoted}"


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
