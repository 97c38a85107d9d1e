"""TensorBoard tracking: curves of every stage, the settings and figures of runs side by side (HPARAMS)."""

import contextlib
import math
import pathlib
import re

from kd_keras.errors import InputError, needs
from kd_keras.run.tracking.base import NullWriter, Opening


def default_uri(folder) -> str:
    """The log folder in a run's folder."""
    return str(pathlib.Path(folder).resolve() / "tensorboard")


def how_to_open(uri: str, writer: NullWriter) -> str:
    """What a user does to see the runs."""
    del writer
    return f"tensorboard --logdir '{uri}', then open http://127.0.0.1:6006"


class Writer(NullWriter):
    """Writes event files: the folder of a run has the final figures, and one folder for each stage with its curves.

    Args:
        opening: ``uri`` is the log folder; the run's id is the name of its folder there.

    Raises:
        InputError: TensorBoard is not installed, or the URI is no folder.
    """

    def __init__(self, opening: Opening):
        if "://" in opening.uri:
            raise InputError(f"--tracking=tensorboard: --tracking_uri={opening.uri} is no folder: give one, or none")
        with needs("TensorBoard", "tensorboard", "--tracking=tensorboard"):
            import tensorboard.plugins.hparams.api as hparams
        import tensorflow as tf

        self._summary, self._hparams = tf.summary, hparams
        logs = pathlib.Path(opening.uri).expanduser()
        self.run_id = opening.run_id or _free_name(logs, opening.run_name)
        self._folder = logs / self.run_id
        self._files, self._params = {}, {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--tracking_uri={opening.uri} can't be written: {error.strerror}") from error

    @contextlib.contextmanager
    def _writing(self, stage=""):
        if stage not in self._files:
            self._files[stage] = self._summary.create_file_writer(str(self._folder / stage))
        with self._files[stage].as_default():
            yield
        self._files[stage].flush()

    def params(self, params):
        """Writes the settings as a table."""
        self._params.update(params)
        lines = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in params.items()]
        with self._writing():
            self._summary.text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]), step=0)

    def epoch(self, stage, epoch, metrics):
        """Writes an epoch's figures; the epoch is the step."""
        with self._writing(stage):
            for name, value in metrics.items():
                self._summary.scalar(name, float(value), step=epoch)

    def metrics(self, metrics):
        """Writes final figures."""
        with self._writing():
            for name, value in metrics.items():
                if value is not None and math.isfinite(value):
                    self._summary.scalar(name, float(value), step=0)

    def describe(self, text, metrics, settings):
        """Writes what the run is as text, and what was set as hyperparameters, numbers as numbers."""
        was_set = {name: value for name, value in self._params.items() if name.partition(".")[0] in settings}
        with self._writing():
            self._summary.text("result", text, step=0)
            self._hparams.hparams({name: _value(value) for name, value in was_set.items()})

    def artifact(self, path, folder=None):
        """Shows figures as images; other files are in the run's folder already."""
        path = pathlib.Path(path)
        if path.suffix == ".png" and path.exists():
            import keras

            with self._writing():
                pixels = keras.utils.img_to_array(keras.utils.load_img(path), dtype="uint8")
                self._summary.image("/".join(filter(None, (folder, path.stem))), pixels[None], step=0)

    def close(self, status="FINISHED"):
        """Ends the event files."""
        while self._files:
            self._files.popitem()[1].close()


def _free_name(logs: pathlib.Path, run_name: str) -> str:
    """A folder's name that no other run has."""
    name = re.sub(r"[^A-Za-z0-9.=,+-]+", "_", run_name.replace("→", "-to-"))
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10_000))
    return next(free for free in names if not (logs / free).exists())


def _value(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)
