"""A search that any number of processes share: Optuna's study, and a lease on each trial that is running.

Who claims a trial holds its lease, a file in the search's folder, until it has told how the trial ended. A trial
without a living holder was killed: the next process that claims one marks it as failed and puts its values in the queue
again, so that its training goes on from the last epoch. Optuna's own heartbeat does the same for databases alone.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

from kd_keras.errors import InputError, needs
from kd_keras.run.lease import Lease
from kd_keras.sweep.space import Choice, Space

# How often the values of trials are tried that are killed.
_ATTEMPTS = 3


def optuna():
    """The package, silent but for warnings; raises InputError where it is not installed."""
    with needs("Optuna", "search", "--search"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_storage(url: str | None, root: pathlib.Path):
    """Optuna's storage: a database by its URL, or a file in the search's folder.

    Raises:
        InputError: the database can't be reached, or its driver is not installed.
    """
    storages = optuna().storages
    if url is None:
        root.mkdir(parents=True, exist_ok=True)
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(root / "study.log")))
    import sqlalchemy

    try:
        # A connection that the server has closed in the hours of a trial is opened again.
        return storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error.__cause__ or error.__context__ or error).split())
        raise InputError(
            f"--storage={shown(url)} can't be used ({reason[:300]}): give the URL of a database that answers, such as "
            "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME, and install its driver"
        ) from error


def shown(url: str | None) -> str:
    """A storage's URL without its password."""
    if url is None:
        return "a file in --workdir"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


@dataclasses.dataclass
class Claim:
    """A trial that this process runs.

    Attributes:
        trial: Optuna's.
        lease: held until it has ended.
        best_values: the best value up to each epoch that was reported.
    """

    trial: Any
    lease: Lease
    best_values: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def is_start(self) -> bool:
        """Whether its values are those of the flags as they are given."""
        return "start" in self.trial.user_attrs

    def is_worse(self, epoch: int, value: float) -> bool:
        """Reports an epoch; whether the trial shall be pruned, which that of the flags as given never is."""
        if epoch not in self.best_values:
            # The weights that are kept are those of the best epoch.
            self.best_values[epoch] = max(value, *self.best_values.values(), value)
            self.trial.report(self.best_values[epoch], epoch)
        return not self.is_start and self.trial.should_prune()


class Trials:
    """The trials of a search.

    Args:
        root: the search's folder.
        space: what is searched.
        storage: a database's URL; None for a file in the search's folder.
        sampler: ``tpe``, ``random`` or ``grid``.
        pruner: ``hyperband`` or ``none``.
        digest: what tells this search from any other.

    Raises:
        InputError: the storage can't be used, or holds another search of this name.
    """

    def __init__(
        self, root: pathlib.Path, space: Space, storage: str | None, *, sampler: str, pruner: str, digest: str
    ):
        self.root, self.space = root, space
        self.distributions = {path: domain.distribution() for path, domain in space.domains.items()}
        with self._alone():
            self.study = optuna().create_study(
                study_name=root.name,
                storage=open_storage(storage, root),
                direction="maximize",
                load_if_exists=True,
                pruner=self._pruner(pruner),
                sampler=optuna().samplers.RandomSampler(),
            )
            if self.study.user_attrs.get("kd_keras", digest) != digest:
                raise InputError(f"the storage holds another search named {root.name}: name another --workdir")
            self.study.set_user_attr("kd_keras", digest)
            self._queue(sampler)
        self.study.sampler = self._sampler(sampler)

    def _pruner(self, name):
        pruners = optuna().pruners
        if name == "none":
            return pruners.NopPruner()
        epochs = self.space.domains.get("epochs")
        longest = self.space.config.training.epochs
        if epochs is not None:
            longest = max(map(int, epochs.values)) if isinstance(epochs, Choice) else epochs.high
        return pruners.HyperbandPruner(min_resource=1, max_resource=longest)

    def _sampler(self, name):
        # Processes that start at once must not draw the same values; one alone draws the same each time.
        for number in itertools.count():
            self._place = Lease(self.root / "leases" / f"process-{number}.json")
            if self._place.take() is None:
                break
        count = len(self.study.get_trials(deepcopy=False))
        text = f"{self.space.config.training.seed} {number} {count}"
        seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        samplers = optuna().samplers
        return samplers.TPESampler(seed=seed) if name == "tpe" else samplers.RandomSampler(seed=seed)

    def _queue(self, sampler) -> None:
        """Queues the values that the flags give, and every other combination of a grid."""
        start = self.space.start()
        combinations = [] if start is None else [start]
        if sampler == "grid":
            values = [domain.grid() for domain in self.space.domains.values()]
            combinations = [dict(zip(self.space.domains, each, strict=True)) for each in itertools.product(*values)]
        for values in combinations:
            marks = {"start": True} if values == start else {}
            self.study.enqueue_trial(values, user_attrs=marks, skip_if_exists=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No two processes claim, or look for killed trials, at once."""
        lease = Lease(self.root / "leases" / "study.json")
        lease.wait_for(lambda owner: None)
        try:
            yield
        finally:
            lease.release()

    def _lease(self, number: int) -> Lease:
        return Lease(self.root / "leases" / f"trial-{number}.json")

    def of(self, *states: str) -> list:
        """The trials in some states: ``complete``, ``pruned``, ``fail``, ``running``, ``waiting``."""
        wanted = [optuna().trial.TrialState[state.upper()] for state in states]
        return self.study.get_trials(deepcopy=False, states=wanted)

    @property
    def refused(self) -> list:
        """The trials that failed and are not tried again."""
        again = {trial.user_attrs.get("of") for trial in self.study.get_trials(deepcopy=False)}
        return [trial for trial in self.of("fail") if trial.number not in again]

    def claim(self, budget: float) -> Claim | None:
        """Takes a trial from the queue, or a new one; None where the budget is used, by running trials too.

        Args:
            budget: trials that may be made by all processes.
        """
        with self._alone():
            self._revive()
            if len(self.of("complete", "pruned", "running")) + len(self.refused) >= budget:
                return None
            trial = self.study.ask(self.distributions)
            claim = Claim(trial, self._lease(trial.number))
            claim.lease.take()
        if "of" in trial.user_attrs:
            before = self.study.get_trials(deepcopy=False)[trial.user_attrs["of"]]
            claim.best_values |= before.intermediate_values
            for epoch, value in before.intermediate_values.items():
                trial.report(value, epoch)
        return claim

    def _revive(self) -> None:
        """Queues the values of trials again whose process was killed."""
        for trial in self.of("running"):
            lease = self._lease(trial.number)
            if lease.take() is None:
                self._again(trial, is_killed=True)
                lease.release()

    def _again(self, trial, is_killed: bool) -> None:
        """Marks a trial as failed and queues its values again, unless they were killed too often."""
        failed = optuna().trial.TrialState.FAIL
        # Its holder may have ended it just now.
        if self.study.tell(trial.number, state=failed, skip_if_finished=True).state != failed:
            return
        attempt = trial.user_attrs.get("attempt", 1) + is_killed
        if attempt <= _ATTEMPTS:
            marks = {key: value for key, value in trial.user_attrs.items() if key == "start"}
            self.study.enqueue_trial(trial.params, user_attrs={**marks, "attempt": attempt, "of": trial.number})

    def close(self) -> None:
        """Gives the place of this process to others."""
        self._place.release()

    def complete(self, claim: Claim, value: float, **record: Any) -> None:
        """Ends a trial with its value; ``record`` is kept with it."""
        for key, item in record.items():
            claim.trial.set_user_attr(key, item)
        self.study.tell(claim.trial, value)
        claim.lease.release()

    def prune(self, claim: Claim) -> None:
        """Ends a trial that is worse than others."""
        self.study.tell(claim.trial, state=optuna().trial.TrialState.PRUNED)
        claim.lease.release()

    def refuse(self, claim: Claim, reason: str) -> None:
        """Ends a trial that can't be run."""
        claim.trial.set_user_attr("refused", reason)
        self.study.tell(claim.trial, state=optuna().trial.TrialState.FAIL)
        claim.lease.release()

    def put_back(self, claim: Claim, is_killed: bool = False) -> None:
        """Queues a trial's values again: its training was stopped, or killed."""
        with self._alone():
            self._again(self.study.trials[claim.trial.number], is_killed)
        claim.lease.release()
