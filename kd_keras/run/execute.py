"""One run from its settings to its table: data, plan, checks, stages, results."""

import contextlib

from kd_keras._compat import distribute
from kd_keras.run.config import Config
from kd_keras.run.page import report
from kd_keras.run.page.folders import Run
from kd_keras.run.report import card, summary, tables
from kd_keras.run.report.results import Results
from kd_keras.run.runner import Runner, plan_of
from kd_keras.run.session import Session
from kd_keras.run.store import Store
from kd_keras.run.tracking import environment, mlflow
from kd_keras.run.workdir import Workdir, read_json


def execute(config: Config, workdir: Workdir, start: float) -> int:
    """Runs an experiment, or goes on with one.

    Args:
        config: the settings.
        workdir: the run's folder, checked.
        start: when the process began, by `time.perf_counter`.

    Returns:
        The exit code.

    Raises:
        InputError: something can't work; nothing was trained in vain.
    """
    session = Session(config, precision=workdir.state.get("precision"))
    store = Store(config.run.store, config.cache.folder, session.made_by, writes=session.is_chief)
    with distribute.watch(session.strategy):
        plan = plan_of(config, session.facts)
        tracking = _Tracking(session, workdir)
        runner = Runner(plan, session, store, tracking.child)
        note = workdir.check_data(session.data_record()) if session.is_chief else None
        if config.run.dry_run != "false":
            from kd_keras.run.report.dry_run import DryRun

            _tell_data(session, note)
            DryRun(runner).print(timed=config.run.dry_run == "time")
            return 0
        runner.check()
    with _owned(workdir, session):
        if session.is_chief:
            note = workdir.begin(session.data_record())
            workdir.update(precision=session.precision)
            _tell_data(session, note)
            made = runner.open_stages
        else:
            made = []
        if any(distribute.gather(session.strategy, len(made))):
            _make(runner, tracking)
            session.print_seconds(start)
        if session.is_chief:
            _report(runner, workdir, tracking, bool(made))
        # The others wait: should the chief stop while it measures, all have to start again to go on.
        distribute.gather(session.strategy, 1)
    return 0


@contextlib.contextmanager
def _owned(workdir, session):
    """The workdir is this run's, until it ends."""
    if session.is_chief:
        workdir.claim()
    try:
        yield
    finally:
        if session.is_chief:
            workdir.release()


def _tell_data(session, note) -> None:
    splits, train = session.splits, session.facts.student_data()
    with_labels = f" ({train.labels} with labels)" if train.labels < train.count else ""
    counts = f"{train.count} train{with_labels}, {len(splits.val)} val, {len(splits.test)} test"
    session.console.print(
        f"data     {session.config.data.source}: {counts}; {splits.num_classes} "
        f"{'labels, several for an image' if splits.multi_label else 'classes'}, "
        f"{'×'.join(map(str, splits.image_shape))}"
    )
    if note:
        session.console.print(f"data     {note}")


def _make(runner: Runner, tracking: "_Tracking") -> None:
    """Runs the stages that are not finished."""
    tracking.open()
    try:
        with distribute.watch(runner.session.strategy):
            runner.run()
    except BaseException:
        tracking.writer.close("FAILED")
        raise


def _report(runner, workdir, tracking, is_new) -> None:
    """Leaves the files that people read, and prints the table."""
    session, store, folder = runner.session, runner.store, workdir.path
    workdir.publish(runner.plan, store)
    results = Results(runner.plan, session, store)
    rows = results.rows()
    notes = results.notes(rows)
    tables.write_table(rows, folder, runtime_note="; ".join(notes))
    ran_on = folder / "environment.json"
    if not ran_on.exists():
        tables.write_json(environment.environment(), ran_on)
    card.write(results, rows, read_json(ran_on))
    if is_new or not (folder / "curves.png").exists():
        with session.console.status("drawing"):
            results.draw()
    summary.write(results, rows, is_new)
    report.write([Run(folder)], folder / report.NAME)
    if is_new:
        results.log(rows, tracking.writer, tracking.child)
        tracking.writer.close()
    tables.print_table(rows, session.console, caption="\n".join(notes))
    _tell_places(session, folder)


def _tell_places(session, folder) -> None:
    """Prints where things are and how to open them."""
    config = session.config
    names = ", ".join(sorted(path.name for path in folder.glob("*.keras")))
    lines = {
        "report": f"{folder / report.NAME}",
        "table": f"{folder}/results.csv, results.json, results.txt",
        "figures": f"{folder}/curves.png, {'' if session.splits.multi_label else '*_confusion.png, '}*_report.png",
        "models": f"{folder}/{names}; {card.NAME}",
    }
    if any(folder.glob("*.tflite")):
        lines["edge"] = f"{folder}/*.tflite"
    if config.tracking.tracker == "mlflow":
        uri = config.tracking.uri or mlflow.local_store(folder)
        lines["compare"] = uri
        if not uri.startswith("http"):
            lines["compare"] = f"mlflow ui --backend-store-uri '{uri}', then open http://127.0.0.1:5000"
    for name, text in lines.items():
        session.console.print(f"{name:<8} {text}")


class _Tracking:
    """The tracking runs of one run: a parent, and one for each stage, the same whenever the run goes on."""

    def __init__(self, session, workdir):
        self.session, self.workdir = session, workdir
        self.writer = mlflow.NullWriter()

    def open(self) -> None:
        """Opens the parent run and logs the settings and the environment."""
        config, folder = self.session.config, self.workdir.path
        if not self.session.is_chief:
            return
        environment_ = environment.environment()
        tables.write_json(environment_, folder / "environment.json")
        if config.tracking.tracker == "none":
            return
        uri = config.tracking.uri or mlflow.local_store(folder)
        runs = self.workdir.state.get("tracking_runs", {})
        self.writer = mlflow.MLflowWriter(uri, config.tracking.experiment, folder.name, run_id=runs.get("parent"))
        if runs.get("parent") != self.writer.run_id:
            self.workdir.update(tracking_runs={"parent": self.writer.run_id})
        self.writer.params(config.texts())
        self.writer.tags({"git_revision": environment_["git_revision"], "python": environment_["python"]})
        self.writer.artifact(folder / "environment.json")

    def child(self, name: str):
        """The tracking run of a stage."""
        runs = self.workdir.state.get("tracking_runs", {})
        child = self.writer.child(name, run_id=runs.get(name))
        if child.run_id is not None and child.run_id != runs.get(name):
            self.workdir.update(tracking_runs={**runs, name: child.run_id})
        return child
