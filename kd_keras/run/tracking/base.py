"""What a run writes to its tracker: the interface of all writers, which itself keeps nothing."""

import dataclasses
import pathlib
from typing import ClassVar


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A split, as trackers record it.

    Attributes:
        name: the spec of the data set and the split.
        context: ``training``, ``validation`` or ``testing``.
        digest: hash of its content.
        source: the spec that it is read by.
        count: number of images.
        image_shape: (H, W, C).
        num_classes: K.
    """

    name: str
    context: str
    digest: str
    source: str
    count: int
    image_shape: tuple[int, int, int]
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Served:
    """A finished model, with what its server has to know.

    Attributes:
        name: such as ``student``.
        path: its ``.keras`` file.
        classes: what its K outputs stand for.
        architecture: its spec.
    """

    name: str
    path: pathlib.Path
    classes: tuple[str, ...]
    architecture: str


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a writer is opened with.

    Attributes:
        uri: where it writes; see `uri_of`.
        experiment: name of the experiment, or project.
        run_name: name of the run.
        folder: of the run.
        run_id: run to go on with, or None.
        system_metrics: whether the use of processor, memory and GPU is recorded.
    """

    uri: str | None
    experiment: str
    run_name: str
    folder: pathlib.Path
    run_id: str | None = None
    system_metrics: bool = False


class NullWriter:
    """Takes what a run has to tell, and keeps nothing. Writers override what their tracker can show.

    Attributes:
        run_id: the tracker's id of the run; a run that goes on is opened with it. None where nothing is tracked.
    """

    has_system_metrics: ClassVar[bool] = False
    run_id: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the tracker has taken all that it was told."""
        return True

    def params(self, params: dict) -> None:
        """Logs settings: by name, anything that has a string."""

    def epoch(self, stage: str, epoch: int, metrics: dict) -> None:
        """Logs the figures of one epoch, counted from 1, of a stage's training."""

    def epochs(self, stage: str, epochs: list[dict]) -> None:
        """Logs the figures of epochs 1, 2 … that were trained elsewhere."""
        for at, metrics in enumerate(epochs):
            self.epoch(stage, at + 1, metrics)

    def metrics(self, metrics: dict) -> None:
        """Logs final figures by name, ``student/test_accuracy``."""

    def tags(self, tags: dict) -> None:
        """Sets tags; one that exists gets the new value."""

    def datasets(self, datasets: list[Dataset]) -> None:
        """Records the data that the run reads."""

    def artifact(self, path: pathlib.Path, folder: str | None = None) -> None:
        """Uploads a file, or a folder's content, into a folder among the run's artefacts."""

    def model(self, model: Served) -> None:
        """Uploads a model so that it can be served."""

    def describe(self, text: str, metrics: list[str], settings: list[str]) -> None:
        """Says what the run is.

        Args:
            text: Markdown.
            metrics: names of the final figures by which runs are compared, the first one first.
            settings: the parameters that are not at their default.
        """

    def close(self, status: str = "FINISHED") -> None:
        """Ends the run, as ``FINISHED``, ``FAILED`` or ``KILLED``; a second call changes nothing."""
