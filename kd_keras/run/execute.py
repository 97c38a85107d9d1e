"""One run from its settings to its table: data, plan, checks, stages, results."""

import contextlib
import shlex

from kd_keras._compat import distribute
from kd_keras.run import tracking
from kd_keras.run.config import Config
from kd_keras.run.page import report
from kd_keras.run.page.folders import Run
from kd_keras.run.progress import Work
from kd_keras.run.report import card, summary, tables
from kd_keras.run.report.results import Results
from kd_keras.run.runner import Runner, plan_of
from kd_keras.run.session import Session
from kd_keras.run.store import Store
from kd_keras.run.tracking import environment
from kd_keras.run.tracking.runs import Tracking
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
        tracker = Tracking(session, workdir)
        runner = Runner(plan, session, store, tracker)
        note = workdir.check_data(session.data_record()) if session.is_chief else None
        if config.run.dry_run != "false":
            from kd_keras.run.report.dry_run import DryRun

            _tell_data(session, note)
            DryRun(runner).print(timed=config.run.dry_run == "time")
            return 0
        runner.check()
    is_archive = session.is_chief and workdir.is_read_only and not runner.open_stages
    if any(distribute.gather(session.strategy, int(is_archive))):
        if is_archive:
            _show(Results(plan, session, store), session, workdir.path, tracker)
        return 0
    with _owned(workdir, session):
        if session.is_chief:
            note = workdir.begin(session.data_record())
            workdir.update(precision=session.precision)
            _tell_data(session, note)
            made = runner.open_stages
        else:
            made = []
        is_open = any(distribute.gather(session.strategy, len(made)))
        is_due = is_open or tracker.is_due
        with tracker.tracked(is_open) if is_due else contextlib.nullcontext():
            if is_open:
                with distribute.watch(session.strategy):
                    runner.run()
                session.print_seconds(start)
            if session.is_chief:
                _report(runner, workdir, tracker, bool(made), is_due)
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


def _report(runner, workdir, tracker, is_new, is_tracked) -> None:
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
    tracker.write_history(results)
    if is_new or not (folder / "curves.png").exists():
        with session.progress.stage(Work("drawing", "draw")):
            results.draw()
    summary.write(results, rows, is_new)
    report.write([Run(folder)], folder / report.NAME)
    if is_tracked:
        tracker.finish(results, rows)
    _show(results, session, folder, tracker)


def _show(results, session, folder, tracker) -> None:
    """Prints the table, and where everything is."""
    rows = results.rows()
    tables.print_table(rows, session.console, caption="\n".join(results.notes(rows)))
    _tell_places(session, folder, tracker)


def _tell_places(session, folder, tracker) -> None:
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
    if config.tracking.tracker != tracking.NONE:
        lines["compare"] = tracking.module(config.tracking.tracker).how_to_open(tracker.uri, tracker.writer)
    if not tracker.writer.is_complete:
        lines["tracking"] = f"not all was taken; later: kd-keras track {shlex.quote(str(folder))} --to=URI"
    for name, text in lines.items():
        session.console.print(f"{name:<8} {text}")
