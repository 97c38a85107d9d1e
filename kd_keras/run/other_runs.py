"""What a run takes from others that have finished it: their teachers, their student without a teacher."""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping

from kd_keras import files, spec
from kd_keras.errors import InputError
from kd_keras.run.config import Config

# What the student without a teacher depends on; the views that it is shown among it.
_OF_THE_BASELINE = (
    *("data", "train_examples", "student", "baseline_loss", "epochs", "batch_size", "optimizer", "learning_rate"),
    *("augment", "seed", "precision", "cache_views", "cache_seed"),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A stage of another run: its workdir, and what the stage is called there."""

    folder: pathlib.Path
    stage: str

    @property
    def record(self) -> dict:
        """What the stage left when it ended."""
        return json.loads((self.folder / "state" / f"{self.stage}.json").read_text(encoding="utf-8"))

    def copies(self, workdir: pathlib.Path, stage: str) -> dict[pathlib.Path, pathlib.Path]:
        """Its files, the model and what was measured of it, each with its place in a workdir."""
        found = (
            self.folder / f"{self.stage}.keras",
            *self.folder.glob(f"{self.stage}_*.*"),
            *(self.folder / "state").glob(f"{self.stage}-*"),
        )
        return {
            path: workdir / path.relative_to(self.folder).with_name(stage + path.name.removeprefix(self.stage))
            for path in found
        }

    def copy(self, workdir: pathlib.Path, stage: str) -> None:
        """Copies those files."""
        for path, own in self.copies(workdir, stage).items():
            files.copy(path, own)


def sources(config: Config, data: dict, done: Collection[str] = ()) -> dict[str, Source]:
    """Where each stage that is still to be taken from another run lies, by its stage here.

    Args:
        config: what is asked for.
        data: what this run's data are, as `Experiment.data_record` has it.
        done: stages that this run has already, for which the other run may be gone.

    Raises:
        InputError: a folder has no such finished stage, or one that was trained otherwise or measured on other data.
    """
    found: dict[str, Source] = {}
    for (stage, one), folder in zip(config.teachers.items(), config.teacher_from, strict=False):
        if stage in done:
            continue
        source = _teacher(config, stage, one, folder, taken=set(found.values()))
        # It may have been trained on more or fewer images.
        _same_data(source, "--teacher_from", {name: value for name, value in data.items() if name != "train"})
        found[stage] = source
    if config.baseline_from is not None and "baseline" not in done:
        found["baseline"] = _baseline(config)
        _same_data(found["baseline"], "--baseline_from", data)
    return found


def _teacher(config, stage, one, folder, taken) -> Source:
    """The other run's teacher of this spec: of several the one of the same number, else the first that is left."""
    theirs = _read(folder, "--teacher_from", "teacher")
    if theirs.get("data") != str(config.data):
        raise InputError(
            f"--teacher_from={folder} has --data={theirs.get('data')}, not {config.data}: name another folder"
        )
    specs = spec.parse_many(theirs.get("teacher", "none"))
    names = ["teacher"] if len(specs) == 1 else [f"teacher{number}" for number in range(1, len(specs) + 1)]
    fitting = [Source(folder, name) for name, other in zip(names, specs, strict=True) if str(other) == str(one)]
    if not fitting:
        raise InputError(
            f"--teacher_from={folder} has --teacher={theirs.get('teacher')}, not {one}: name another folder"
        )
    left = sorted((source for source in fitting if source not in taken), key=lambda source: source.stage != stage)
    if not left:
        raise InputError(f"--teacher_from={folder} would give the same teacher twice: an ensemble of equals is one")
    source = left[0]
    stop = _finished(source, "--teacher_from", "teacher").get("stop")
    asked = config.teacher_stop_at_val_accuracy
    if asked is not None and (stop is None or stop["at_val_accuracy"] != asked):
        was = "none" if stop is None else stop["at_val_accuracy"]
        raise InputError(
            f"--teacher_from={folder} has --teacher_stop_at_val_accuracy={was}, not {asked}: name another folder"
        )
    return source


def of_the_baseline(fields: Mapping[str, str]) -> dict[str, str]:
    """Those of a run's resolved flags (`Config.identity`) that its student without a teacher depends on."""
    # Views without a cache are those of the augmentation, whatever their seed would be.
    unread = {"cache_seed"} if fields["cache_views"] == "0" else set()
    return {name: fields[name] for name in _OF_THE_BASELINE if name not in unread}


def _baseline(config) -> Source:
    folder = config.baseline_from
    theirs = _read(folder, "--baseline_from", "baseline")
    for name, ours in of_the_baseline(config.identity()).items():
        if theirs.get(name) != ours:
            raise InputError(
                f"--baseline_from={folder} has --{name}={theirs.get(name)}, not {ours}: the student without a teacher "
                "would be another"
            )
    source = Source(folder, "baseline")
    _finished(source, "--baseline_from", "baseline")
    return source


def _same_data(source, flag, data) -> None:
    """Refuses what was measured on other data, as the same ``--data`` may mean in another folder, or later."""
    theirs = _read(source.folder, flag, source.stage, "state/data.json")
    if differing := [name for name, value in data.items() if theirs.get(name) != value]:
        raise InputError(
            f"{flag}={source.folder} has other data by the same --data (another {', another '.join(differing)}): name "
            "another folder"
        )


def _read(folder, flag, what, name="config.json") -> dict:
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{flag}={folder} holds no finished {what} ({error})") from error


def _finished(source, flag, what) -> dict:
    try:
        return source.record
    except (OSError, ValueError) as error:
        raise InputError(f"{flag}={source.folder} holds no finished {what} ({error})") from error
