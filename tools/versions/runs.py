"""Runs command lines of a checkout, each from a clean state, and kills those that it is asked to kill."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from versions.cases import Case

# TensorFlow is imported once for each tree. Each command line runs in a fork of that process, which has computed
# nothing, so it starts in the state of a new process. With --fresh it starts in a new process, with the same results.
_SERVER = """
import json, os, runpy, sys, threading
import kd_keras, keras, tensorflow, ai_edge_litert.interpreter, sklearn.datasets, sklearn.model_selection
from tensorflow.python.eager import context
assert context.context()._context_handle is None and threading.active_count() == 1, "no clean state to fork"
print(json.dumps(kd_keras.__file__), flush=True)
for line in iter(sys.stdin.readline, ""):
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["kd_keras.run", *job["flags"]]
        runpy.run_module("kd_keras.run", run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(json.dumps(pid), flush=True)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
"""
# What both trees get: 0.1 does not resume to the bit with --teacher_dtype=auto.
_COMMON = ("--teacher_dtype=float32", "--tracking=none", "--progress=none")


@dataclasses.dataclass
class Ended:
    """A run that has ended.

    Attributes:
        workdir: its folder.
        codes: exit codes of its processes, in order.
        log: what its processes printed.
    """

    workdir: pathlib.Path
    codes: list[int]
    log: pathlib.Path


class Tree:
    """A checkout whose command line is run.

    Args:
        name: ``old`` or ``new``.
        folder: the checkout.
        root: where workdirs, logs and the tree's caches go.
        images: replaces ``{images}`` in the flags of cases.
        fresh: whether each command line starts a new Python process.
    """

    def __init__(self, name: str, folder: pathlib.Path, root: pathlib.Path, images: pathlib.Path, fresh: bool):
        self.name, self.folder, self.root, self.images, self.fresh = name, folder, root, images, fresh
        # A KERAS_HOME for each tree: a cached list of checked images must not pass from one tree to the other.
        self.env = {**os.environ, "PYTHONPATH": str(folder), "KERAS_HOME": str(root / f"{name}-keras")}
        self.env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        self.env.pop("TF_CONFIG", None)
        self._server = None

    def run(self, case: Case) -> dict[str, Ended]:
        """Runs a case.

        Returns:
            The ended runs by name: ``undisturbed`` and, of a case that is killed, ``resumed``.

        Raises:
            RuntimeError: the run could not be killed during training.
        """
        flags = [flag.replace("{images}", str(self.images)) for flag in (*case.flags, *_COMMON)]
        if case.workers > 1:
            return {"undisturbed": self._run_workers(case, flags)}
        start = time.time()
        ended = {"undisturbed": self._run(f"{case.name}-{self.name}", flags)}
        if case.killed and ended["undisturbed"].codes == [0]:
            moment = _middle_of_a_training(ended["undisturbed"].workdir, start)
            name = f"{case.name}-{self.name}-resumed"
            ended["resumed"] = self._run_killed(name, flags, ended["undisturbed"], moment)
        return ended

    def close(self) -> None:
        """Ends the process that command lines are forked from."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server = None

    def _run(self, name: str, flags: list[str], seconds: float | None = None) -> Ended:
        """Runs a command line to its end, or kills it after so many seconds."""
        workdir, log = self.root / name, self.root / f"{name}.log"
        flags = [*flags, f"--workdir={workdir}"]
        if self.fresh:
            process = self._start(flags, log)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            if process.poll() is None:
                process.kill()
            return Ended(workdir, [process.wait()], log)
        server = self._forking()
        server.stdin.write(json.dumps({"flags": flags, "log": str(log)}) + "\n")
        server.stdin.flush()
        pid = json.loads(server.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return Ended(workdir, [json.loads(server.stdout.readline())], log)

    def _run_killed(self, name: str, flags: list[str], undisturbed: Ended, seconds: float) -> Ended:
        """Kills a run after so many seconds, earlier if all was trained by then, and gives the same command again."""
        models = len(list(undisturbed.workdir.glob("*.keras")))
        for attempt, share in enumerate((1.0, 0.7, 0.5), start=1):
            killed = self._run(f"{name}{attempt}", flags, share * seconds)
            finished = len(list(killed.workdir.glob("*.keras")))
            if killed.codes == [-signal.SIGKILL] and killed.workdir.is_dir() and finished < models:
                return self._run(f"{name}{attempt}", flags)
        raise RuntimeError(f"{self.name}: could not kill {name} during training in three attempts")

    def _run_workers(self, case: Case, flags: list[str]) -> Ended:
        """Runs the processes of a run of several workers. They are new processes: a fork has no network of its own."""
        name = f"{case.name}-{self.name}"
        workdir, log = self.root / name, self.root / f"{name}.log"
        flags = [*flags, "--worker_timeout=300", f"--workdir={workdir}"]
        processes = [self._start(flags, log, TF_CONFIG=config) for config in _tf_configs(case.workers)]
        return Ended(workdir, [process.wait() for process in processes], log)

    def _start(self, flags: list[str], log: pathlib.Path, **env: str) -> subprocess.Popen:
        with open(log, "ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "kd_keras.run", *flags],
                cwd=self.folder,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def _forking(self) -> subprocess.Popen:
        """The process to fork from, started with the first command line."""
        if self._server is None:
            pipe = subprocess.PIPE
            with open(self.root / f"{self.name}-server.log", "ab") as err:
                self._server = subprocess.Popen(
                    [sys.executable, "-c", _SERVER],
                    cwd=self.folder,
                    env=self.env,
                    stdin=pipe,
                    stdout=pipe,
                    stderr=err,
                    text=True,
                )
            imported = json.loads(self._server.stdout.readline() or '"nothing"')
            if not pathlib.Path(imported).is_relative_to(self.folder):
                raise RuntimeError(f"{self.folder} was to be run, but Python imported {imported}")
        return self._server


def _middle_of_a_training(workdir: pathlib.Path, start: float) -> float:
    """Seconds after the start of a run: the middle of the longest time between two finished models.

    Args:
        workdir: of the same command, run undisturbed.
        start: when that run started.
    """
    moments = sorted(path.stat().st_mtime - start for path in workdir.glob("*.keras"))
    longest = max(range(1, len(moments)), key=lambda at: moments[at] - moments[at - 1])
    return (moments[longest - 1] + moments[longest]) / 2


def _tf_configs(count: int) -> list[str]:
    """TF_CONFIG of each of so many workers on this machine, at free ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
