"""Sums up experiments/RESULTS.md: question, answer, effect with its interval; as a table and as a figure.

    python tools/summary.py
    python tools/summary.py --into experiments/RESULTS.md --figure docs/figures/effects.png

Effects are read from the sections that tools/results.py and tools/run_matrix.py have written: the student's test score
minus the baseline's, paired by seed. With ``--into``, what stands between ``<!-- begin summary -->`` and
``<!-- end summary -->`` is replaced.
"""

import argparse
import dataclasses
import math
import pathlib
import re
import sys

from results import put
from scipy import stats

from kd_keras.sweep.statistics import Effect, effect

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "RESULTS.md"


@dataclasses.dataclass(frozen=True)
class Question:
    """What a section of the results answers.

    Attributes:
        text: does the student gain by its teacher, and where?
        section: of the page.
        row: of a study's table; of a table of one experiment None.
    """

    text: str
    section: str
    row: str | None = None


QUESTIONS = (
    Question("CIFAR-10, 500 labels of 45 000 images, ResNet-20 → ResNet-8", "unlabelled_cifar10_500"),
    Question("CIFAR-10, 2 000 labels of 45 000 images, the same", "unlabelled_cifar10_2000"),
    Question("CIFAR-10, a teacher without a head on 45 000 images, then 500 labels", "pretrain_cifar10_500"),
    Question("two digits per image, 100 images (mAP)", "multilabel_digits_100"),
    Question("digits, 100 labels of 1 168 images: the quick start", "digits"),
    Question("CIFAR-10, 10 000 images, ResNet-20 → ResNet-8", "cifar_resnet"),
    Question("CIFAR-10, 500 labels, the teacher has the same 500", "unlabelled_cifar10_500_self_training"),
    Question("S3: CIFAR-10, 5 000 images, ResNet-20 → small CNN", "s3_resnet", "s3_cifar10_resnet18_cnn"),
    Question("S4: CIFAR-10, 10 000 images, AlexNet → small CNN, α 0.5", "s4", "α = 0.5"),
    Question("S3: CIFAR-10, 2 000 images, transformer → small CNN", "s3_vit", "s3_cifar10_vit_cnn"),
    Question("S0: CIFAR-10, 5 000 images, ten convolutions → three", "s0_cifar", "s0_cifar10_cnn10_cnn3"),
    Question("Fashion-MNIST, 18.7 M → 1.2 M multiply-accumulates", "edge_fashion_mnist"),
    Question(
        "S0: PneumoniaMNIST, DenseNet121 → MobileNetV2",
        "s0_pneumonia",
        "s0_pneumoniamnist_densenet121_mobilenetv2_scratch",
    ),
    Question("Fashion-MNIST, 219 k → 7 k parameters", "fashion_mnist"),
    Question("S2: CIFAR-10, 5 000 images, ResNet-50 → ResNet-18", "s2", "s2_cifar10_resnet50_resnet18_fixed_5000"),
)
_PAIRED = re.compile(r"^Student minus baseline, paired by seed, test [^:]+: [^(]+\((?P<values>[^)]+)\)", re.MULTILINE)
_GAIN = re.compile(r"\| (?P<n>\d+) \|.* (?P<mean>[+-][\d.]+) ± (?P<spread>[\d.]+) \|$")


def read(page: str, question: Question) -> Effect:
    """A question's effect in points.

    Raises:
        SystemExit: the page has no such section, row or figure.
    """
    begin, end = f"<!-- begin {question.section} -->", f"<!-- end {question.section} -->"
    section = page.partition(begin)[2].partition(end)[0]
    if question.row is None and (found := _PAIRED.search(section)):
        return effect([float(value) for value in found["values"].split(", ")])
    for line in section.splitlines():
        if line.startswith(f"| {question.row} | student distilled |") and (found := _GAIN.search(line)):
            return _of_spread(float(found["mean"]), float(found["spread"]), int(found["n"]))
    sys.exit(
        f"section {question.section} has no gain over the baseline{f' in row {question.row}' * bool(question.row)}"
    )


def _of_spread(mean: float, spread: float, n: int) -> Effect:
    """The effect of differences whose mean and standard deviation are known."""
    error = spread / math.sqrt(n)
    half = stats.t.ppf(0.975, n - 1) * error
    return Effect(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, n - 1)), n)


def table(effects: dict[Question, Effect]) -> str:
    """The effects in Markdown, the largest first."""
    lines = ["| does the student gain by its teacher? | answer | points [95 % interval], n |", "|---|---|---|"]
    lines += [f"| {question.text} | {found.verdict()} | {found} |" for question, found in effects.items()]
    return "\n".join(lines)


def draw(effects: dict[Question, Effect], path: pathlib.Path) -> None:
    """The effects with their intervals, from top to bottom."""
    from kd_keras.run.report import figures

    figure = figures.new_figure(10, 0.34 * len(effects) + 1)
    axes = figure.subplots()
    colours = {"better": "tab:blue", "worse": "tab:red"}
    for at, found in enumerate(effects.values()):
        colour = colours.get(found.verdict(), "tab:gray")
        axes.plot([found.low, found.high], [at, at], color=colour, linewidth=2)
        axes.plot(found.mean, at, "o", color=colour)
        text = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axes.annotate(f"{found.mean:+.1f}", (found.mean, at), **text)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(effects)), [f"{question.text}, n = {e.n}" for question, e in effects.items()], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=5)
    ticks = [-10, -5, -2, 0, 2, 5, 10, 20, 40]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlabel(
        "gain over the same student without a teacher: test points, 95 % interval over seeds\n"
        "(linear to ±5, logarithmic beyond)"
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figures.save_figure(figure, path)


def main() -> None:
    """Prints the table, or puts it where the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--into", type=pathlib.Path, help="the page whose summary is replaced")
    parser.add_argument("--figure", type=pathlib.Path, help="the PNG")
    options = parser.parse_args()
    page = RESULTS.read_text(encoding="utf-8")
    found = {question: read(page, question) for question in QUESTIONS}
    effects = dict(sorted(found.items(), key=lambda item: -item[1].mean))
    if options.figure:
        draw(effects, options.figure)
    if options.into:
        put(options.into, "summary", table(effects))
    else:
        print(table(effects))


if __name__ == "__main__":
    main()
