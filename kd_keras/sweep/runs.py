"""Runs that belong together: each in a process and a folder of its own, with one store for all."""

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys
import time

from rich.console import Console

from kd_keras import spec
from kd_keras.processes import run_child
from kd_keras.run import config as configuration
from kd_keras.run.lease import Lease
from kd_keras.run.report import tables
from kd_keras.run.settings import Follows, declared
from kd_keras.run.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """One of many runs.

    Attributes:
        title: what distinguishes it from the others.
        flags: its flags, without the workdir.
        workdir: its folder.
    """

    title: str
    flags: tuple[str, ...]
    workdir: pathlib.Path

    @property
    def results(self) -> dict[str, dict] | None:
        """Rows by stage, or None where it has not ended."""
        path = self.workdir / "results.json"
        return tables.read_table(path) if path.exists() else None

    def command(self) -> list[str]:
        """What `kd_keras.run` is started with."""
        return [*self.flags, f"--workdir={self.workdir}"]


def teacher_flags(config: configuration.Config) -> list[str]:
    """The flags that fix a teacher's training at what a config says, whatever other runs' settings are."""
    if not config.teacher.models or config.teacher.folders:
        return []
    following = {
        flag: setting
        for flag, setting in declared(configuration.Config).items()
        if flag.startswith("teacher_") and isinstance(setting.default, Follows)
    }
    fixed = [f"--{flag}={setting.kind.text(config[flag])}" for flag, setting in following.items()]
    if config.teacher.epochs is None and not any(
        spec.constant("kd_keras.models", model.name, "TRAINED") for model in config.teacher.models
    ):
        fixed.append(f"--teacher_epochs={config.training.epochs}")
    return fixed


def folder_name(varied: dict[str, str]) -> str:
    """A name that can be read, and that stays a run's whatever else is varied later."""
    text = ",".join(f"{flag}={value}" for flag, value in varied.items())
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9.=,_-]+', '_', text)[:80]}-{digest}"


def run_all(runs: list[Run], console: Console) -> list[Run]:
    """Runs each in a process of its own; a failed run does not stop the others.

    A run that another sweep is working on is passed over until that sweep has ended it. It is then started all the
    same: where it is finished, it makes nothing and says so by its exit code.

    Args:
        runs: in this order.
        console: where it is printed how each ended.

    Returns:
        Those that failed.

    Raises:
        InputError: a run's flags are refused, or its folder holds another experiment.
    """
    waiting, failed = [], []
    for number, run in enumerate(runs, start=1):
        config = configuration.read(["kd_keras", *run.command()])
        Workdir(config).check()
        waiting.append((number, run, lease_of(config)))
    while waiting:
        passed_over = []
        for number, run, lease in waiting:
            if lease.take() is not None:
                passed_over.append((number, run, lease))
                continue
            try:
                failed += _run_one(number, run, len(runs), console)
            finally:
                lease.release()
        if len(passed_over) == len(waiting):
            time.sleep(0.5)
        waiting = passed_over
    return failed


def lease_of(config: configuration.Config) -> Lease:
    """The lease that a sweep holds while it works on a run, from before the run's process has started."""
    name = hashlib.sha256(str(config.run.workdir).encode()).hexdigest()[:16]
    return Lease(config.run.store / "leases" / f"run-{name}.json")


def _run_one(number, run, count, console) -> list[Run]:
    """Runs one; the run itself where it failed, else nothing."""
    title, error = f"run {number}/{count}  {run.title}", None
    log = run.workdir.with_name(f"{run.workdir.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "kd_keras.run", *run.command(), "--progress=none", "--wait"]
    with open(log, "ab") as out, console.status(title):
        code = run_child(command, stdout=out, stderr=subprocess.STDOUT)
    if code:
        error = f"failed ({last_line(log)}); see {log}"
    console.print(f"{title}: {error or _headline(run)}", highlight=False)
    return [run] if error else []


def last_line(log: pathlib.Path) -> str:
    """What a process has said last, which is why it failed."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _headline(run):
    row = run.results["student"]
    column, name = tables.score(row)
    return f"test {name} {row[f'test_{column}']:.4f}"
