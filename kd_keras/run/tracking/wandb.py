"""Weights & Biases tracking. ``WANDB_MODE=offline`` writes files that ``wandb sync`` uploads later."""

import math
import pathlib
import uuid

from absl import logging

from kd_keras.errors import InputError, needs
from kd_keras.run.tracking.base import NullWriter, Opening


def default_uri(folder) -> None:
    """The server is Weights & Biases' own, or that of its settings."""
    del folder


def how_to_open(uri: str | None, writer: NullWriter) -> str:
    """What a user does to see the run."""
    return "Weights & Biases" if writer.run_id is None else writer.place


class Writer(NullWriter):
    """Writes one run of Weights & Biases.

    Args:
        opening: ``uri`` is a server's address, or None; the experiment is the project.

    Raises:
        InputError: the package is not installed, or the server refuses the user.
    """

    has_system_metrics = True

    def __init__(self, opening: Opening):
        with needs("Weights & Biases", "wandb", "--tracking=wandb"):
            import wandb
        self._wandb, self._stages, self._closed, self._has_failed = wandb, set(), False, False
        # The console is the run's own, and a run that failed is not to wait for a network.
        settings = {"silent": True, "console": "off", "x_disable_stats": not opening.system_metrics}
        if opening.uri is not None:
            settings["base_url"] = opening.uri
        opening.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=opening.experiment,
                name=opening.run_name,
                id=opening.run_id or uuid.uuid4().hex[:12],
                resume="allow",
                dir=str(opening.folder),
                settings=wandb.Settings(**settings),
            )
        except (wandb.Error, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--tracking=wandb: {reason}: `wandb login`, or WANDB_MODE=offline, or run without tracking"
            ) from error
        self.run_id = self._run.id

    @property
    def is_complete(self) -> bool:
        """Whether nothing has failed."""
        return not self._has_failed

    @property
    def place(self) -> str:
        """Where the run is seen, or how it is uploaded."""
        return self._run.url or f"wandb sync '{pathlib.Path(self._run.dir).parent}'"

    def _call(self, function, *args, **kwargs):
        """Does what can fail without harm to a training."""
        if self._closed:
            return
        try:
            function(*args, **kwargs)
        except (self._wandb.Error, OSError) as error:
            self._closed = self._has_failed = True
            reason = " ".join(str(error).split())[:200]
            logging.warning("Weights & Biases failed, nothing more is tracked in this run: %s", reason)

    def params(self, params):
        """Logs settings, numbers as numbers."""
        values = {name: _value(value) for name, value in params.items()}
        self._call(self._run.config.update, values, allow_val_change=True)

    def epoch(self, stage, epoch, metrics):
        """Logs an epoch's figures over a stage's own epochs."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._call(self._run.define_metric, f"{stage}/epoch")
            self._call(self._run.define_metric, f"{stage}/*", step_metric=f"{stage}/epoch")
        values = {name: float(value) for name, value in metrics.items()}
        self._call(self._run.log, {f"{stage}/{name}": value for name, value in {**values, "epoch": epoch}.items()})

    def metrics(self, metrics):
        """Writes final figures into the summary."""
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        self._call(self._run.summary.update, {name: value for name, value in values.items() if math.isfinite(value)})

    def tags(self, tags):
        """Sets fields of the configuration: tags of Weights & Biases have no values."""
        self._call(self._run.config.update, {"tags": tags}, allow_val_change=True)

    def datasets(self, datasets):
        """Records the splits in the configuration."""
        values = {data.context: {"name": data.name, "digest": data.digest, "count": data.count} for data in datasets}
        self._call(self._run.config.update, {"datasets": values}, allow_val_change=True)

    def describe(self, text, metrics, settings):
        """Sets the run's notes."""
        self._call(setattr, self._run, "notes", text)

    def artifact(self, path, folder=None):
        """Uploads a file; a figure is shown as an image."""
        path = pathlib.Path(path)
        if path.suffix == ".png":
            name = "/".join(filter(None, (folder, path.stem)))
            self._call(lambda: self._run.log({name: self._wandb.Image(str(path))}))
        elif path.exists():
            self._call(self._run.save, str(path), base_path=str(path.parent), policy="now")

    def model(self, model):
        """Uploads a model as an artefact."""
        self._call(self._run.log_model, str(model.path), name=f"{self.run_id}-{model.name}")

    def close(self, status="FINISHED"):
        """Ends the run."""
        self._call(self._run.finish, exit_code=0 if status == "FINISHED" else 1)
        self._closed = True


def _value(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
