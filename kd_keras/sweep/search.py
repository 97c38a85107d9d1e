"""A search: trials, each in a process of its own, chosen by Optuna by the accuracy on the validation split."""

import dataclasses
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import threading
import time

from rich.console import Console

from kd_keras.errors import InputError
from kd_keras.processes import end_with_parent
from kd_keras.run import config as configuration
from kd_keras.run import tracking
from kd_keras.sweep import space as spaces
from kd_keras.sweep.runs import last_line, teacher_flags
from kd_keras.sweep.study import Claim, Trials, optuna

# Trials that may be refused before any has succeeded.
_PATIENCE = 3
_DEFAULT_TRIALS = 20


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of a search, see `kd_keras.sweep`."""

    search: tuple[str, ...]
    workdir: str | None
    shared_teacher: bool
    sampler: str
    pruner: str
    storage: str | None
    trials: int | None
    minutes: float | None
    confirm: int


@dataclasses.dataclass(frozen=True)
class Search:
    """What is to be searched, checked.

    Attributes:
        root: the search's folder.
        store: the store of all runs.
        common: the flags of every run, those that fix the teacher among them.
        space: what is varied.
        options: the flags of the search.
        digest: what tells this search from any other.
    """

    root: pathlib.Path
    store: pathlib.Path
    common: tuple[str, ...]
    space: spaces.Space
    options: Options
    digest: str

    @property
    def budget(self) -> float:
        """Trials of all processes together."""
        trials, sampler = self.options.trials, self.options.sampler
        if sampler == "grid":
            size = math.prod(len(domain.grid()) for domain in self.space.domains.values())
            return min(size, trials or size)
        return trials or (math.inf if self.options.minutes else _DEFAULT_TRIALS)

    def flags(self, values: dict | None) -> list[str]:
        """The flags of a run with these values; None for those of the flags as given."""
        return [*self.common, *(self.space.flags(values) if values else [])]


def plan(common: list[str], options: Options) -> Search:
    """Checks a search's flags; nothing is written.

    Raises:
        InputError: a flag is refused, or a value of a range.
    """
    optuna()
    base = configuration.read(["kd_keras", *common, "--workdir=."])
    if base.hardware.strategy == "multi_worker":
        raise InputError("--strategy=multi_worker trains one model on several machines: start a search on each instead")
    space = spaces.read(options.search, base)
    how = [space.domains, space.tied, options.sampler, options.pruner, options.shared_teacher]
    digest = hashlib.sha256(json.dumps([common, *map(str, how)]).encode()).hexdigest()[:8]
    root = pathlib.Path(options.workdir or f"runs/search-{digest}").absolute()
    fixed = teacher_flags(base) if options.shared_teacher else []
    shared = [*tracking.shared_flags(common, root), f"--store={root / 'store'}", *common, *fixed]
    store = configuration.read(["kd_keras", *shared, f"--workdir={root}"]).run.store
    search = Search(root, store, tuple(shared), space, options, digest)
    _ = search.budget  # refuses a grid without values
    for path, domain in space.domains.items():
        ends = domain.values if isinstance(domain, spaces.Choice) else (domain.low, domain.high)
        for value in ends:
            _read(search, {path: value})
    return search


def _read(search: Search, values: dict) -> configuration.Config:
    # What is tied to a path that is not among the values stays as it is.
    tied = {path: of for path, of in search.space.tied.items() if of in values}
    flags = dataclasses.replace(search.space, tied=tied).flags(values)
    return configuration.read(["kd_keras", *search.common, *flags, f"--workdir={search.root}"])


def run(common: list[str], options: Options, console: Console) -> int:
    """Runs a search, or goes on with one, and prints its report.

    Returns:
        The exit code: 1 where no trial has succeeded, or a run of ``--confirm`` failed.

    Raises:
        InputError: a flag is refused, or the first trials were.
    """
    from kd_keras.sweep import confirm, report

    search = plan(common, options)
    names = {"sampler": options.sampler, "pruner": options.pruner, "digest": search.digest}
    trials = Trials(search.root, search.space, options.storage, **names)
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    try:
        is_over = _search(search, trials, deadline, console)
    finally:
        trials.close()
    found = report.find(trials)
    if found is None:
        console.print("no trial is finished yet: the same command goes on", highlight=False)
        return 1
    confirmed, failed = None, []
    if options.confirm and is_over:
        confirmed, failed = confirm.confirm(search, found, console)
    report.write(search, trials, found, confirmed)
    report.show(search, trials, found, confirmed, console)
    return 1 if failed else 0


def _search(search: Search, trials: Trials, deadline: float, console: Console) -> bool:
    """Runs trials until the budget is used and no process has one running; whether that is so."""
    while time.monotonic() < deadline:
        claim = trials.claim(search.budget)
        if claim is None:
            if not trials.of("running"):
                return True
            time.sleep(1)
            continue
        try:
            text = _run_trial(search, trials, claim, deadline)
        except BaseException:
            trials.put_back(claim)
            raise
        values = ", ".join(f"{path}={short(value)}" for path, value in claim.trial.params.items())
        as_given = " (the flags as given)" if claim.is_start else ""
        console.print(f"trial {claim.trial.number}  {values}{as_given}: {text}", highlight=False)
        refused = trials.refused
        if len(refused) >= _PATIENCE and not trials.of("complete", "pruned"):
            reason = refused[-1].user_attrs.get("refused", "its process was killed")
            raise InputError(f"the first {len(refused)} trials failed, the last one with: {reason}")
    # Minutes alone are a budget as well.
    return search.budget == math.inf


def short(value) -> str:
    """A trial's value for a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _run_trial(search: Search, trials: Trials, claim: Claim, deadline: float) -> str:
    """Runs a trial in a process of its own, and ends it; returns how it ended."""
    log = search.root / "trials" / f"{claim.trial.number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = [*search.flags(claim.trial.params), f"--workdir={search.root}", "--progress=none"]
    command = [sys.executable, "-m", "kd_keras.sweep.trial", *flags]
    pruned, result, start = None, None, time.monotonic()
    with (
        open(log, "ab") as err,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            encoding="utf-8",
            preexec_fn=end_with_parent(),
        ) as process,
    ):
        # Killed at any moment, the training goes on from the end of its last epoch.
        timer = threading.Timer(min(deadline - start, threading.TIMEOUT_MAX), process.terminate)
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "result" in message:
                    result = message
                    continue
                pruned = message["epoch"] if claim.is_worse(message["epoch"], message["value"]) else None
                process.stdin.write("go\n" if pruned is None else "end\n")
                process.stdin.flush()
        except BrokenPipeError:
            pass  # It died while it was answered: its exit code says how.
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if pruned is not None:
        trials.prune(claim)
        return f"pruned after epoch {pruned}"
    if result is not None and process.returncode == 0:
        value, seconds = result.pop("result"), round(time.monotonic() - start, 1)
        trials.complete(claim, value, **result, seconds=seconds)
        return f"validation {result['metric']} {value:.4f} in epoch {result['best_epoch']} of {result['epochs']}"
    if process.returncode in (-2, 130):
        raise KeyboardInterrupt
    if time.monotonic() >= deadline:
        trials.put_back(claim)
        return "stopped, as --minutes are over; the same command goes on"
    if process.returncode < 0:
        trials.put_back(claim, is_killed=True)
        return f"killed by signal {-process.returncode}; see {log}"
    reason = last_line(log).removeprefix("kd_keras: ")
    trials.refuse(claim, reason)
    return f"failed ({reason}); see {log}"
