"""What a search has found: search.json, search.csv, best.flags, figures, and the lines that are printed."""

import dataclasses
import re
import shlex
import warnings
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from kd_keras import files
from kd_keras.run import config as configuration
from kd_keras.run.report import figures, tables
from kd_keras.sweep import confirm
from kd_keras.sweep.search import Search, short
from kd_keras.sweep.study import Trials, optuna, shown

# Of fewer trials the importance of a parameter is noise.
_ENOUGH = 10
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Found:
    """What the trials say.

    Attributes:
        best: the best trial.
        start: that of the flags as given; None where there is none that was completed.
        metric: what both are judged by, on the validation split.
        importance: the share of each parameter in the variance of the values, by fANOVA; None of too few trials.
    """

    best: Any
    start: Any
    metric: str
    importance: dict[str, float] | None


def find(trials: Trials) -> Found | None:
    """The best trial by the validation split; None where none has ended."""
    complete = trials.of("complete")
    if not complete:
        return None
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    start = next((trial for trial in complete if "start" in trial.user_attrs), None)
    return Found(best, start, best.user_attrs["metric"], _importance(trials, complete))


def _importance(trials: Trials, complete: list) -> dict[str, float] | None:
    if len(complete) < _ENOUGH or len({trial.value for trial in complete}) == 1:
        return None
    with warnings.catch_warnings():
        # Optuna says that a parameter of a single value has none.
        warnings.simplefilter("ignore")
        evaluator = optuna().importance.FanovaImportanceEvaluator(seed=0)
        return optuna().importance.get_param_importances(trials.study, evaluator=evaluator)


def write(search: Search, trials: Trials, found: Found, confirmed: confirm.Confirmed | None) -> None:
    """Writes search.json, search.csv, best.flags and the figures."""
    root, options = search.root, search.options
    best = configuration.read(["kd_keras", *search.flags(found.best.params), f"--workdir={root}"])
    own = ("--workdir=", "--store=", "--tracking_uri=")
    flags = [flag for flag in best.command_line() if not flag.startswith(own)]
    header = (
        f"# Trial {found.best.number} of a search: validation {found.metric} {found.best.value:.4f} with one seed.\n"
    )
    files.update(root / "best.flags", header + "\n".join(flags) + "\n")
    summary = {
        "sampler": options.sampler,
        "pruner": options.pruner,
        "storage": shown(options.storage),
        "search": {path: str(domain) for path, domain in search.space.domains.items()},
        "tied": {path: f"1 - {of}" for path, of in search.space.tied.items()},
        "trials": {state: len(trials.of(state)) for state in ("complete", "pruned", "running", "waiting")}
        | {"failed": len(trials.refused)},
        "metric": f"validation {found.metric}",
        "best": _as_json(search, found.best) | {"flags": flags, "command": shlex.join(_command(search))},
        "as_given": found.start and _as_json(search, found.start),
        "importance": found.importance,
        "confirmed": confirmed and confirm.as_json(confirmed),
    }
    tables.write_json(summary, root / "search.json")
    rows = [_row(trial, search) for trial in trials.study.get_trials(deepcopy=False)]
    tables.write_csv(rows, root / "search.csv")
    if len(trials.of("complete")) > 1:
        _draw(trials, found, root)


def _command(search) -> list[str]:
    """Runs the best configuration; what it needs is in the store already."""
    flags = [f"--flagfile={search.root / 'best.flags'}", f"--store={search.store}"]
    return ["python", "-m", "kd_keras.run", *flags]


def _as_json(search, trial) -> dict:
    values = search.space.taken(trial.params)
    return {"trial": trial.number, "value": trial.value, "values": values, **trial.user_attrs}


def _row(trial, search) -> dict:
    record = {key: trial.user_attrs.get(key) for key in ("epochs", "best_epoch", "seconds", "attempt", "of", "refused")}
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        **dict.fromkeys(search.space.domains),
        **search.space.taken(trial.params),
        **{"as_given": bool(trial.user_attrs.get("start")), **record},
        "last_epoch": max(trial.intermediate_values, default=None),
    }


def _draw(trials, found, root) -> None:
    """Optuna's figures, without a screen."""
    with warnings.catch_warnings():
        # Its figures by matplotlib are called experimental.
        warnings.simplefilter("ignore")
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as draw

        name, count = f"validation {found.metric}", len(trials.distributions)
        plots = {
            "history.png": (draw.plot_optimization_history(trials.study, target_name=name), 8, 4.5),
            "parallel.png": (draw.plot_parallel_coordinate(trials.study, target_name=name), 4 + 2 * count, 5),
        }
        for file, (axes, width, height) in plots.items():
            axes.figure.set_size_inches(width, height)
            figures.save_figure(axes.figure, root / file)
            pyplot.close(axes.figure)


def show(search: Search, trials: Trials, found: Found, confirmed: confirm.Confirmed | None, console: Console) -> None:
    """Prints the report."""
    complete = sorted(trials.of("complete"), key=lambda trial: (-trial.value, trial.number))
    names = ("trial", *search.space.domains, f"val {found.metric} %")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for trial in complete[:_SHOWN] + [t for t in complete[_SHOWN:] if t is found.start]:
        name = f"{trial.number}{' (as given)' if trial is found.start else ''}"
        values = [short(trial.params.get(path)) for path in search.space.domains]
        table.add_row(name, *values, f"{100 * trial.value:.2f}")
    console.print(table)
    counts = {state: len(trials.of(state)) for state in ("complete", "pruned", "running", "waiting")}
    counts |= {"failed": len(trials.refused)}
    console.print("trials     " + ", ".join(f"{count} {state}" for state, count in counts.items() if count))
    lines = {"importance": _importance_line(found), "best": _best_line(found)}
    lines |= {"flags": " ".join(map(_quoted, search.space.flags(found.best.params)))}
    lines |= {"command": shlex.join(_command(search))}
    for name, text in lines.items():
        console.print(f"{name:<10} {text}", highlight=False, markup=False)
    if confirmed is not None:
        _show_confirmed(confirmed, console)
    else:
        text = "not yet: one seed chose it. --confirm=3 compares it with the baseline on new seeds, on the test split"
        waits = "not yet: --confirm waits for the last trial, or one of its runs has failed"
        console.print(f"confirmed  {waits if search.options.confirm else text}", highlight=False)
    names = ["search.json", "search.csv", "best.flags", *(path.name for path in sorted(search.root.glob("*.png")))]
    console.print(f"files      {search.root}/{', '.join(names)}", highlight=False)


def _quoted(flag: str) -> str:
    """A flag for a shell, in double quotes where it can be: specs have single ones."""
    return f'"{flag}"' if shlex.quote(flag) != flag and not re.search(r'["$`\\!]', flag) else shlex.quote(flag)


def _importance_line(found: Found) -> str:
    if found.importance is None:
        return f"not known: it takes {_ENOUGH} complete trials that differ"
    return ", ".join(f"{path} {share:.0%}" for path, share in found.importance.items())


def _best_line(found: Found) -> str:
    text = f"trial {found.best.number}, validation {found.metric} {100 * found.best.value:.2f} %"
    if found.start is None:
        return f"{text}; the flags as given are no trial of this search"
    if found.start.number == found.best.number:
        return f"{text}: the flags as given; nothing that was tried is better"
    return f"{text}; the flags as given have {100 * found.start.value:.2f} % (trial {found.start.number})"


def _show_confirmed(confirmed: confirm.Confirmed, console: Console) -> None:
    table = Table("best minus", "promised, val", "new seeds, test [95 %]", "p (Holm)", "verdict")
    for c in confirmed.comparisons:
        promised = "–" if c.promised is None else f"{c.promised:+.2f}"
        table.add_row(c.against, promised, str(c.effect).replace("[", r"\["), f"{c.p:.3f}", c.verdict)
    console.print(table)
    for line in confirmed.lines():
        console.print(line, highlight=False, markup=False)
