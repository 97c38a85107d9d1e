"""MLflow tracking.

Runs are named by explicit ids through `mlflow.MlflowClient`: no active run, no autolog, nothing global that a user's
MLflow code could trip over. A run of kd_keras is one MLflow run. Figures are
named ``compare/gain_over_baseline``, ``models/student/test_accuracy`` and ``epochs/student/val_accuracy``:
MLflow's charts have a section for each.
"""

import json
import math
import pathlib
import re
import tempfile
import time

from absl import logging

from kd_keras.errors import InputError, needs
from kd_keras.run.tracking import mlflow_link, mlflow_view
from kd_keras.run.tracking.base import Dataset, NullWriter, Opening, Served

_PARAMS_PER_CALL, _METRICS_PER_CALL, _VALUE_LENGTH = 100, 1000, 6000
# What lists have room for; MLflow takes up to 36.
_DIGEST_LENGTH = 12


def default_uri(folder) -> str:
    """The URI of the MLflow store in a folder, absolute, as MLflow's defaults depend on the current folder.

    Args:
        folder: need not exist.
    """
    return mlflow_link.sqlite_uri(pathlib.Path(folder).resolve() / "mlflow.db")


def how_to_open(uri: str, writer: NullWriter) -> str:
    """What a user does to see the runs."""
    where = "" if writer.run_id is None or not (link := mlflow_view.link(writer)) else f"/#/{link}"
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}{where}"
    return f"mlflow ui --backend-store-uri '{uri}', then open http://127.0.0.1:5000{where}"


def _artifact_location(uri):
    """Where the artefacts of a store's experiments go: next to an sqlite file; None leaves it to the server."""
    path = mlflow_link.sqlite_path(uri)
    return None if path is None else (path.absolute().parent / "mlartifacts").as_uri()


class Writer(NullWriter):
    """Writes one MLflow run.

    Once the server has failed, this writer is silent: `run_id` stays as it was, None where no run could be opened.

    Attributes:
        experiment_id: the experiment that holds the run.

    Args:
        opening: ``uri`` is ``sqlite:////absolute/mlflow.db``, ``http://host:port``, another database or a plug-in's;
            the experiment is made where it is missing. A ``run_id`` that the store does not know is replaced by a new
            run, with a warning.

    Raises:
        InputError: the URI's scheme is none that MLflow knows, or MLflow or a package that it needs is not installed.
    """

    has_system_metrics = True

    @property
    def is_complete(self) -> bool:
        """Whether the store has taken all."""
        return self.link.alive

    def __init__(self, opening: Opening):
        self.run_id = self.experiment_id = self._monitor = None
        self._closed = False
        self.link = mlflow_link.Link(opening.uri)
        if opening.run_id is None or not self.link.ask(self._resume, opening.run_id):
            self.link.ask(self._create, opening)
        self._params = dict(self.link.ask(self._logged_params) or {})
        if opening.system_metrics and self.run_id is not None:
            self._measure_system(opening.uri)

    def _create(self, opening):
        self.experiment_id = self._experiment(opening.experiment, _artifact_location(opening.uri))
        self.run_id = self.link.client.create_run(self.experiment_id, run_name=opening.run_name).info.run_id
        self.tags({"mlflow.source.name": "kd_keras", "mlflow.source.type": "LOCAL"})

    def _experiment(self, name, artifact_location):
        from mlflow.exceptions import MlflowException

        client = self.link.client
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client.create_experiment(name, artifact_location=artifact_location, tags=mlflow_view.TAGS)
            except MlflowException:
                # Another run, started at the same time, has just made it.
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _resume(self, run_id):
        from mlflow.exceptions import MlflowException

        try:
            self.link.client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logging.warning("MLflow does not know run %s any more: a new run is started", run_id)
            return False
        self.run_id, self.experiment_id = run_id, self.link.client.get_run(run_id).info.experiment_id
        return True

    def _logged_params(self):
        return self.link.client.get_run(self.run_id).data.params

    def _measure_system(self, uri):
        with needs("psutil", "system", "--tracking_system_metrics"):
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def params(self, params):
        """Logs parameters.

        MLflow never changes a parameter. Where a resumed run has another value, the new one is written as the tag
        ``resumed.<name>``.
        """
        params = {_key(name): str(value)[:_VALUE_LENGTH] for name, value in params.items()}
        new = {name: value for name, value in params.items() if name not in self._params}
        changed = {name: value for name, value in params.items() if self._params.get(name, value) != value}
        self._params.update(new)
        self._log(params=list(new.items()), tags=[(f"resumed.{name}", value) for name, value in changed.items()])

    def epoch(self, stage, epoch, metrics):
        """Logs an epoch's figures in a single call; the epoch is the step."""
        self._log(metrics=_finite(metrics, f"epochs/{stage}/", epoch))

    def epochs(self, stage, epochs):
        """Logs epochs in as few calls as MLflow takes."""
        steps = enumerate(epochs, start=1)
        self._log(metrics=[item for step, metrics in steps for item in _finite(metrics, f"epochs/{stage}/", step)])

    def metrics(self, metrics):
        """Logs final figures."""
        self._log(metrics=_finite(metrics))

    def tags(self, tags):
        """Sets tags."""
        self._log(tags=[(_key(name), str(value)[:_VALUE_LENGTH]) for name, value in tags.items()])

    def _log(self, metrics=(), params=(), tags=()):
        if not self._writes:
            return
        from mlflow.entities import Metric, Param, RunTag

        now = int(1000 * time.time())
        for part in _parts(metrics, _METRICS_PER_CALL):
            batch = [Metric(name, value, now, step) for name, value, step in part]
            self.link.tell(self.link.client.log_batch, self.run_id, metrics=batch)
        for part in _parts(params, _PARAMS_PER_CALL):
            self.link.tell(self.link.client.log_batch, self.run_id, params=[Param(*item) for item in part])
        for part in _parts(tags, _PARAMS_PER_CALL):
            self.link.tell(self.link.client.log_batch, self.run_id, tags=[RunTag(*item) for item in part])

    @property
    def _writes(self) -> bool:
        return self.run_id is not None and self.link.alive

    def datasets(self, datasets):
        """Records the splits as the run's inputs."""
        if self._writes:
            inputs = list(map(_input, datasets))
            self.link.attempt("what the data are", self.link.client.log_inputs, self.run_id, datasets=inputs)

    def artifact(self, path, folder=None):
        """Uploads a file, or a folder's content. One that does not exist is warned about."""
        path = pathlib.Path(path)
        if not self._writes:
            return
        if not path.exists():
            logging.warning("MLflow artefact %s does not exist and is left out", path)
            return
        upload = self.link.client.log_artifacts if path.is_dir() else self.link.client.log_artifact
        self.link.tell(upload, self.run_id, str(path), folder)

    def model(self, model):
        """Logs a model that ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` load."""
        from kd_keras.run.tracking import served

        if not self._writes:
            return
        try:
            keras_model = served.load(model.path)
        except InputError as error:
            logging.warning("%s is not logged as a model that MLflow can serve: %s", model.name, error)
            return
        self.link.attempt(f"the model {model.name}", self._log_model, model, served.signature(keras_model))

    def _log_model(self, model: Served, signature):
        from kd_keras.run.tracking import served

        client = self.link.client
        logged = client.create_logged_model(
            self.experiment_id,
            name=model.name,
            source_run_id=self.run_id,
            params={"architecture": model.architecture},
            model_type="image classifier",
        )
        status = "FAILED"
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "model"
                served.write(model, path, signature, model_id=logged.model_id, run_id=self.run_id)
                client.log_model_artifacts(logged.model_id, str(path))
            status = "READY"
        finally:
            client.finalize_logged_model(logged.model_id, status)
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def describe(self, text, metrics, settings):
        """Writes the run's description, and the experiment's view."""
        self.tags({"mlflow.note.content": text})
        if self._writes:
            names = [list(map(_key, part)) for part in (metrics, settings)]
            self.link.attempt("the view", mlflow_view.write, self.link.client, self.experiment_id, *names)

    def close(self, status="FINISHED"):
        """Ends the run."""
        if self.run_id is not None and not self._closed:
            if self._monitor is not None:
                self._monitor.finish()
            self.link.tell(self.link.client.set_terminated, self.run_id, status)
            self.link.finish()
        self._closed = True


def _input(dataset: Dataset):
    """A split as MLflow's entity; MLflow's own datasets would read the images."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    features = [{"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *dataset.image_shape]}}]
    entity = Entity(
        name=dataset.name,
        digest=dataset.digest[:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        schema=json.dumps({"mlflow_tensorspec": {"features": json.dumps(features), "targets": None}}),
        profile=json.dumps({"num_rows": dataset.count, "num_classes": dataset.num_classes}),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", dataset.context)])


def _finite(metrics, prefix="", step=0) -> list[tuple[str, float, int]]:
    """Names, values and step of the finite ones: MLflow stores infinity as 1.8e308, which ruins every plot."""
    values = {_key(f"{prefix}{name}"): float(value) for name, value in metrics.items() if value is not None}
    return [(name, value, int(step)) for name, value in values.items() if math.isfinite(value)]


def _key(name):
    """A name that MLflow takes: letters, digits and ``_-. :/``, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", str(name))[:250]


def _parts(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]
