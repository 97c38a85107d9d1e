"""Finished stages, one folder for each: ``<kind>/<key>/`` appears whole, by one rename."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from kd_keras import files
from kd_keras.errors import InputError
from kd_keras.run.lease import Lease, Owner
from kd_keras.schemes.plan import Cache, Stage

_RECORD = "record.json"


class Store:
    """Where finished stages are kept. Several runs may share a store.

    Args:
        root: its folder.
        cache_root: the folder of the teacher cache, whose files `Cache` stages name.
        made_by: what is recorded of the machine beside each stage.
        writes: whether this process may write: of several workers only the chief.
    """

    def __init__(
        self, root: str | os.PathLike, cache_root: str | os.PathLike | None = None, made_by=None, writes: bool = True
    ):
        self.root = pathlib.Path(root)
        self.cache_root = pathlib.Path(cache_root) if cache_root else self.root / "teacher_cache"
        self._made_by, self._writes = made_by or {}, writes
        # Files that were hashed in this process: (size, time of change) → SHA-256.
        self._hashes: dict[pathlib.Path, tuple[tuple[int, int], str]] = {}

    def folder(self, stage: Stage) -> pathlib.Path:
        """Where a stage's files are, or will be."""
        return self.root / type(stage).__name__.lower() / stage.key[:16]

    def checkpoint(self, stage: Stage) -> pathlib.Path:
        """Where a training keeps its state until it is finished; its name is the key, so no other training reads it."""
        return self.root / "checkpoints" / f"{stage.key[:16]}.npz"

    def record(self, stage: Stage) -> dict | None:
        """What a finished stage left; None where it has to be run.

        It has to be run where there is no record, a file is missing or damaged, or an input was made again and differs.
        """
        record = self._read(self.folder(stage))
        if record is None or not self._is_whole(self.folder(stage), record["files"]):
            return None
        if isinstance(stage, Cache) and not self._is_whole(self.cache_root / record["folder"], record["cached"]):
            return None
        return record if self._is_fresh(record) else None

    def _read(self, folder) -> dict | None:
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            return record if {"files", "inputs", "content"} <= set(record) else None
        except (OSError, ValueError, TypeError):
            return None

    def _is_whole(self, folder, sums) -> bool:
        return all(self.sha256(folder / name) == sha256 for name, sha256 in sums.items())

    def sha256(self, path: pathlib.Path) -> str | None:
        """A file's SHA-256, kept while the file does not change; None where it can't be read."""
        try:
            stat = path.stat()
            known = self._hashes.get(path)
            if known is None or known[0] != (stat.st_size, stat.st_mtime_ns):
                self._hashes[path] = known = ((stat.st_size, stat.st_mtime_ns), files.sha256(path))
            return known[1]
        except OSError:
            return None

    def _is_fresh(self, record) -> bool:
        """Whether each input that is still there is the one that was used."""
        for path, content in record["inputs"].items():
            now = self._read(self.root / path)
            if now is not None and now["content"] != content:
                return False
        return True

    @contextlib.contextmanager
    def leased(self, stage: Stage, tell: Callable[[Owner], None]) -> Iterator[None]:
        """Holds the lease of a stage, waiting until another process that makes it has ended.

        Args:
            stage: the stage.
            tell: called once with the other process.
        """
        if not self._writes:
            yield
            return
        lease = Lease(self.root / "leases" / f"{stage.key[:16]}.json")
        lease.wait_for(tell)
        try:
            yield
        finally:
            lease.release()

    def write(self, stage: Stage, work: Callable[[pathlib.Path], dict]) -> dict:
        """Runs a stage's work in a folder beside its place, and moves the folder there.

        Args:
            stage: the stage.
            work: leaves files in the folder that it is given, and returns what the record holds besides; ``content`` in
                it is the hash of what later stages depend on, by default that of the files.

        Returns:
            The record.

        Raises:
            InputError: the store can't be written.
        """
        folder = self.folder(stage)
        partial = files.partial(folder)
        for left in folder.parent.glob(f".{folder.name}.*"):
            # Of a process that was killed: this one has the lease.
            shutil.rmtree(left, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            outputs = work(partial)
            sums = {path.name: files.sha256(path) for path in sorted(partial.iterdir())}
            content = outputs.pop("content", None) or hashlib.sha256(json.dumps(sums).encode()).hexdigest()
            record = {"stage": stage.name, "key": stage.key, "content": content, **outputs}
            record |= {
                "files": sums,
                "inputs": self.inputs(stage),
                "depends_on": stage.content,
                "made_by": self._made_by,
            }
            files.write(partial / _RECORD, json.dumps(record, indent=1) + "\n")
            _move(partial, folder)
        except OSError as error:
            raise InputError(f"--store={self.root} can't be written: {error.strerror or error}") from error
        finally:
            for left in partial.parent.glob(f"{partial.name}*"):
                shutil.rmtree(left, ignore_errors=True)
        return record

    def inputs(self, stage: Stage) -> dict[str, str]:
        """The content of every stored stage that a stage is made from, those inside models made in memory too."""
        inputs = {}
        for needed in stage.inputs:
            if needed.name:
                folder = self.folder(needed)
                inputs[str(folder.relative_to(self.root))] = self._read(folder)["content"]
            else:
                inputs |= self.inputs(needed)
        return inputs

    def adopt(self, stage: Stage, other: "Store") -> bool:
        """Copies a finished stage from another store; False where that store has not finished it."""
        if other.record(stage) is None:
            return False
        source, folder = other.folder(stage), self.folder(stage)
        partial = files.partial(folder)
        shutil.copytree(source, partial)
        _move(partial, folder)
        return True


def _move(partial: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a folder to its place, and removes what was there."""
    old = partial.with_name(f"{partial.name}.old")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
