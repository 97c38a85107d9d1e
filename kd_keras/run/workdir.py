"""The folder of one run: whose it is, what it was begun with, and the files in it that people read."""

import json
import os
import pathlib

from kd_keras import files
from kd_keras.errors import InputError
from kd_keras.run.config import EXPERIMENT, Config
from kd_keras.run.lease import Lease
from kd_keras.run.store import Store
from kd_keras.schemes.plan import Export, Plan

#: What a run is, for people: every setting as text.
SETTINGS = "config.json"
#: What the package itself keeps: the data's fingerprint, what was decided, the tracking runs, the models by name.
STATE = "workdir.json"
_FORMAT = 2


class Workdir:
    """A run's folder.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: Config):
        self.path, self.config = config.run.workdir, config
        self._lease = Lease(self.path / ".owner.json")

    def check(self) -> None:
        """Finds out, without writing, whether the folder is free or holds this very experiment.

        Raises:
            InputError: it holds another experiment, a run of version 0.1, or other files, or can't be read.
        """
        try:
            if not self.path.exists():
                return
            if _is_of_version_0_1(self.path):
                raise InputError(
                    f"--workdir={self.path} holds a run of version 0.1, which this version does not go on with: name "
                    f"another folder; its models can be used, --teacher=\"saved(path='{self.path}/teacher.keras')\""
                )
            if (self.path / SETTINGS).exists():
                self._compare(read_json(self.path / SETTINGS))
            elif any(not path.name.startswith(".") and path.name != "store" for path in self.path.iterdir()):
                raise InputError(f"--workdir={self.path} is not empty and holds no experiment: name another folder")
        except OSError as error:
            raise InputError(f"--workdir={self.path} can't be used: {error.strerror}") from error

    def _compare(self, before: dict[str, str]) -> None:
        if changed := changes(before, self.config.affecting(*EXPERIMENT)):
            raise InputError(
                f"--workdir={self.path} holds another experiment ({'; '.join(changed)}): name another --workdir"
            )

    @property
    def is_read_only(self) -> bool:
        """Whether the folder is there and nothing can be written into it."""
        return self.path.is_dir() and not os.access(self.path, os.W_OK)

    def claim(self) -> None:
        """Makes the folder this process' own, until `release`.

        Raises:
            InputError: another process uses it, or it can't be written.
        """
        try:
            if self.config.run.wait:
                self._lease.wait_for(lambda owner: print(f"waiting for {owner}, which uses {self.path}", flush=True))
            elif (owner := self._lease.take()) is not None:
                raise InputError(
                    f"--workdir={self.path} is used by {owner}: wait until it has ended, give --wait, or name another "
                    "folder"
                )
            self.check()
        except OSError as error:
            raise InputError(f"--workdir={self.path} can't be written: {error.strerror}") from error

    def release(self) -> None:
        """Lets others use the folder."""
        self._lease.release()

    def check_data(self, data: dict) -> str | None:
        """Compares the data with those that the folder was begun with, and writes nothing.

        Args:
            data: what the data are; see `Session.data_record`.

        Returns:
            A sentence where the same data are read from elsewhere, or None.

        Raises:
            InputError: the folder was begun with other data.
        """
        before = self.state.get("data")
        if before is None:
            return None
        if changed := [name for name, value in data.items() if before.get(name) != value]:
            raise InputError(
                f"--workdir={self.path} was begun with other data (another {', another '.join(changed)}): the "
                "images or labels have changed; name another --workdir, or bring the data back"
            )
        text, was = str(self.config.data.source), read_json(self.path / SETTINGS).get("data")
        if was is None or was == text:
            return None
        return f"the same images and labels as before, now read by {text} (before {was})"

    def begin(self, data: dict) -> str | None:
        """Records the settings and the data that the folder was begun with; see `check_data`."""
        note = self.check_data(data)
        files.update(self.path / SETTINGS, json.dumps(self.config.texts(), indent=2, ensure_ascii=False) + "\n")
        self.update(data=data)
        return note

    @property
    def state(self) -> dict:
        """What the package itself keeps of the run."""
        return read_json(self.path / STATE) if (self.path / STATE).exists() else {}

    def update(self, **values) -> None:
        """Keeps further values in `state`."""
        state = {"format": _FORMAT, **self.state, **values}
        files.update(self.path / STATE, json.dumps(state, indent=2, ensure_ascii=False) + "\n")

    def publish(self, plan: Plan, store: Store) -> None:
        """Copies the finished models and files from the store, where they are not there yet or damaged."""
        models = {}
        # Roots of one key are one stage with several names.
        for stage in {stage.name: stage for stage in (*plan.stages, *plan.roots)}.values():
            record = store.record(stage) if stage.name else None
            if record is None:
                continue
            for name, sha256 in record["files"].items():
                target = self.path / f"{stage.name}{pathlib.Path(name).suffix}"
                if pathlib.Path(name).stem in ("model", "layers") and store.sha256(target) != sha256:
                    files.copy(store.folder(stage) / name, target)
            if not isinstance(stage, Export) and "model.keras" in record["files"]:
                models[stage.name] = {"architecture": stage.architecture, "content": record["content"]}
        self.update(models=models)


def read_json(path: pathlib.Path, flag: str = "--workdir") -> dict:
    """What a file of the workdir that a flag names holds.

    Raises:
        InputError: it can't be read.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # no UTF-8, no JSON, no dict
        raise InputError(f"{path} can't be read: name another {flag}") from error


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Says of each setting that has changed what it was and what it is; one that is new has not changed."""
    return [f"{flag} was {before[flag]}, is {text}" for flag, text in now.items() if before.get(flag, text) != text]


def _is_of_version_0_1(folder: pathlib.Path) -> bool:
    return (folder / "state").is_dir() and not (folder / STATE).exists()


def read_state(folder: pathlib.Path, flag: str) -> dict:
    """What another run's workdir keeps of itself.

    Raises:
        InputError: the folder holds no run, or one of version 0.1.
    """
    if _is_of_version_0_1(folder):
        raise InputError(
            f"{flag}={folder} is a run of version 0.1: use its model, "
            f"--teacher=\"saved(path='{folder}/teacher.keras')\""
        )
    try:
        return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{flag}={folder} holds no run: give the --workdir of one") from error
