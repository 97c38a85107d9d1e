"""Who owns a folder or a stage at the moment: a file that a process keeps alive, and that others can take over."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable

from kd_keras import files

# The owner touches its file this often; one that has not for longer than `_DEAD` seconds is taken for dead.
_BEAT, _DEAD = 5, 60


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lease.

    Attributes:
        host: name of its machine.
        pid: number of the process.
        since: local time at which it took the lease, as text.
        place: machine, boot and process namespace: where two processes agree, a process number means the same.
        started: when the process started, in the kernel's ticks, as numbers of processes are used again.
        token: tells this lease from every other.
    """

    host: str
    pid: int
    since: str
    place: str
    started: str
    token: str

    def __str__(self):
        return f"process {self.pid} on {self.host} since {self.since}"


class Lease:
    """A lease on whatever a file stands for.

    Args:
        path: the file; it exists while somebody holds the lease.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self._owner: Owner | None = None
        self._released = threading.Event()

    def take(self) -> Owner | None:
        """Takes the lease; returns None, or the living owner where it is taken."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._exclusively():
            owner = self._read()
            if owner is not None and self._lives(owner):
                return owner
            self._owner = _this_process()
            files.write(self.path, json.dumps(dataclasses.asdict(self._owner)) + "\n")
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return None

    def wait_for(self, tell: Callable[[Owner], None]) -> None:
        """Takes the lease, waiting until it is free; ``tell`` is called once with the process that has it."""
        has_told = False
        while (owner := self.take()) is not None:
            if not has_told:
                tell(owner)
                has_told = True
            time.sleep(0.5)

    def release(self) -> None:
        """Gives the lease back, if it is still this one's."""
        self._released.set()
        with self._exclusively():
            owner = self._read()
            if self._owner is not None and owner is not None and owner.token == self._owner.token:
                self.path.unlink(missing_ok=True)
        self._owner = None

    def owner(self) -> Owner | None:
        """The living owner, or None."""
        owner = self._read()
        return owner if owner is not None and self._lives(owner) else None

    @contextlib.contextmanager
    def _exclusively(self):
        """No two processes read and write the file at once."""
        with open(self.path.with_name(".guard"), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> Owner | None:
        try:
            return Owner(**json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            # Not there, or not a lease: nobody's.
            return None

    def _lives(self, owner: Owner) -> bool:
        if owner.place == _place():
            return _start_of(owner.pid) == owner.started
        # By the clock of the disk, which both machines see: their own may differ.
        probe = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self.path.stat().st_mtime < _DEAD
        except OSError:
            return self.path.exists()
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self):
        while not self._released.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _this_process() -> Owner:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Owner(socket.gethostname(), os.getpid(), since, _place(), _start_of(os.getpid()), uuid.uuid4().hex)


def _place() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_of(pid: int) -> str:
    """When a process of this machine started; empty where there is no such process, or it has ended."""
    try:
        # The name of the process, in brackets, may have spaces and brackets itself.
        fields = (
            pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
