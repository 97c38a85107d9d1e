"""What is left of a search's promise: its best configuration and that of the flags as given, on new seeds."""

import dataclasses
import statistics

from rich.console import Console

from kd_keras.run import config as configuration
from kd_keras.run.report import tables
from kd_keras.sweep.runs import Run, folder_name, run_all
from kd_keras.sweep.statistics import Effect, effect, holm

#: Adjusted p values below this are called a difference.
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The best configuration against another model, seed by seed.

    Attributes:
        against: what it is compared with.
        promised: the difference in the search, in points of validation accuracy; None where it has none.
        effect: the differences on the test split, in points.
        p: of the paired t test, corrected by Holm's method for all comparisons.
    """

    against: str
    promised: float | None
    effect: Effect
    p: float

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the corrected test says so; else what the interval allows."""
        if self.p < LEVEL:
            return "better" if self.effect.mean > 0 else "worse"
        verdict = self.effect.verdict()
        return verdict if verdict.startswith("equal") else f"undecided at n = {self.effect.n}"


@dataclasses.dataclass(frozen=True)
class Confirmed:
    """What the new seeds gave.

    Attributes:
        seeds: the new seeds that are finished.
        promised: the best configuration's validation accuracy in the search.
        val, test: its accuracies on the new seeds.
        shortfall: the validation accuracies less what was promised, in points.
        comparisons: with the baselines and the flags as given.
    """

    seeds: list[int]
    promised: float
    val: list[float]
    test: list[float]
    shortfall: Effect
    comparisons: list[Comparison]

    def lines(self) -> list[str]:
        """What is to be said of it, a sentence each."""
        n, gap = len(self.seeds), self.shortfall
        given = f"{tables.spread([100 * v for v in self.val])} % on validation data"
        tested = f"{tables.spread([100 * v for v in self.test])} % on test data"
        kept = "kept" if gap.mean >= 0 else "not kept" if gap.high < 0 else f"not kept on average, undecided at n = {n}"
        lines = [
            f"The search promised {100 * self.promised:.2f} % on validation data. {n} new seeds gave {given} and "
            f"{tested}: the promise was {kept} (difference {gap})."
        ]
        baselines = [c for c in self.comparisons if "baseline" in c.against]
        if baselines and not all(c.verdict == "better" for c in baselines):
            lines.append("Nothing that was searched is shown to beat the baseline on new seeds.")
        given = [c for c in self.comparisons if c.against == _GIVEN]
        if given and given[0].verdict != "better":
            lines.append("The search is not shown to have improved on the flags as given.")
        return lines


_GIVEN = "the flags as given"


def confirm(search, found, console: Console) -> tuple[Confirmed | None, list[Run]]:
    """Runs both configurations on new seeds, each in a run of its own, and compares them on the test split.

    Args:
        search: what was searched.
        found: from `report.find`.
        console: where it is printed how each run ended.

    Returns:
        The comparison, or None where a run failed; and the failed runs.
    """
    first = search.space.config.training.seed
    seeds = [first + 1 + i for i in range(search.options.confirm)]
    values = {"best": found.best.params}
    if found.start is None or found.start.number != found.best.number:
        values[_GIVEN] = None
    flags = {name: search.flags(params) for name, params in values.items()}
    runs = {}
    for name in values:
        trial = f"trial{found.best.number}" if name == "best" else "as_given"
        for seed in seeds:
            own = (*flags[name], f"--seed={seed}")
            folder = search.root / folder_name({"confirm": trial, "seed": str(seed)})
            runs[name, seed] = Run(f"confirm {name}, seed={seed}", own, folder)
    if failed := run_all(list(runs.values()), console):
        return None, failed
    rows = {name: [runs[name, seed].results for seed in seeds] for name in values}
    # The flags that a baseline depends on may be searched as well.
    configs = [configuration.read(["kd_keras", *own, f"--workdir={search.root}"]) for own in flags.values()]
    has_own_baseline = len({str(config.affecting("data", "baseline")) for config in configs}) > 1
    return compare(found, seeds, rows, has_own_baseline), []


def compare(found, seeds: list[int], rows: dict[str, list[dict]], has_own_baseline: bool) -> Confirmed:
    """Compares the best configuration's student with the others, seed by seed.

    Args:
        found: from `report.find`.
        seeds: the new seeds.
        rows: of ``best``, and of the flags as given where those are another configuration, the table of each seed.
        has_own_baseline: whether the baseline of the flags as given is another than that of the best configuration.
    """
    column, _ = tables.score(rows["best"][0]["student"])

    def scores(name, stage, split="test"):
        return [table[stage][f"{split}_{column}"] for table in rows[name]]

    others = {}
    if "baseline" in rows["best"][0]:
        others["the baseline, trained with the same settings"] = None, scores("best", "baseline")
    if _GIVEN in rows:
        promised = None if found.start is None else 100 * (found.best.value - found.start.value)
        others[_GIVEN] = promised, scores(_GIVEN, "student")
        if has_own_baseline and "baseline" in rows[_GIVEN][0]:
            others["the baseline of the flags as given"] = None, scores(_GIVEN, "baseline")
    ours, val = scores("best", "student"), scores("best", "student", "val")
    effects = [effect([100 * (a - b) for a, b in zip(ours, theirs, strict=True)]) for _, theirs in others.values()]
    adjusted = holm([e.p for e in effects])
    comparisons = [
        Comparison(name, promised, e, p)
        for (name, (promised, _)), e, p in zip(others.items(), effects, adjusted, strict=True)
    ]
    shortfall = effect([100 * (v - found.best.value) for v in val])
    return Confirmed(seeds, found.best.value, val, ours, shortfall, comparisons)


def as_json(confirmed: Confirmed) -> dict:
    """What search.json holds of it."""
    return {
        "seeds": confirmed.seeds,
        "promised_val": confirmed.promised,
        "val": confirmed.val,
        "test": confirmed.test,
        "test_mean": statistics.fmean(confirmed.test),
        "shortfall_points": dataclasses.asdict(confirmed.shortfall),
        "comparisons": [
            {**dataclasses.asdict(c), "verdict": c.verdict, "against": f"best − {c.against}"}
            for c in confirmed.comparisons
        ],
        "said": confirmed.lines(),
    }
