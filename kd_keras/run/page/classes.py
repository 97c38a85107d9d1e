"""What a report shows of each class: confusion matrices, gains by class, and images on which the models differ."""

import base64
import dataclasses
import io
import statistics
from typing import Any

import numpy as np

from kd_keras.run.page.folders import MODELS
from kd_keras.run.page.groups import Group, corrected
from kd_keras.run.report.predictions import IMAGES
from kd_keras.sweep.statistics import Effect, effect, holm

#: Up to so many classes a matrix is a table; beyond it, an image.
CELLS = 20
# Classes that are listed, and confusions.
_CLASSES, _CONFUSIONS = 30, 8
_BETTER, _WORSE = (20, 110, 220), (225, 110, 10)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A confusion matrix, or the difference of two.

    Attributes:
        name: whose.
        counts: (K, K); rows are true classes.
        shades: (K, K) from -1, worse, to 1: each cell's share of its true class.
        is_difference: whether the counts have a sign.
        image: a data URI, where there are too many classes for a table.
    """

    name: str
    counts: np.ndarray
    shades: np.ndarray
    is_difference: bool = False
    image: str | None = None


def confusions(group: Group) -> dict[str, Any] | None:
    """Confusion matrices over a group's runs, and what the student confuses more or less than the baseline."""
    names, counts = None, {}
    for model in MODELS:
        files = [file for run in group.runs.values() if (file := run.file(model, "confusion"))]
        if files:
            names = files[0]["class_names"]
            counts[model] = np.sum([file["matrix"] for file in files], axis=0)
    if "student" not in counts:
        return None
    images = np.maximum(counts["student"].sum(axis=1, keepdims=True), 1)
    matrices = [Matrix(model, matrix, matrix / images) for model, matrix in counts.items()]
    changed = []
    if "baseline" in counts and counts["baseline"].sum() == counts["student"].sum():
        change = counts["student"] - counts["baseline"]
        # More on the diagonal is better, more beside it is worse.
        good = np.where(np.eye(len(change), dtype=bool), change, -change)
        matrices.append(Matrix("student minus baseline", change, good / images, is_difference=True))
        changed = _changed(counts["baseline"], counts["student"], names)
    if len(names) > CELLS:
        matrices = [dataclasses.replace(matrix, image=_heat_map(matrix.shades)) for matrix in matrices]
    return {"names": names, "matrices": matrices, "changed": changed}


def _changed(before: np.ndarray, after: np.ndarray, names: list[str]) -> list[tuple]:
    """(true class, predicted class, before, after) of the confusions that changed most."""
    size = np.abs(after - before)
    np.fill_diagonal(size, 0)
    order = np.argsort(-size, axis=None, kind="stable")[:_CONFUSIONS]
    places = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, size.shape), strict=True) if size[i, j]]
    return [(names[i], names[j], int(before[i, j]), int(after[i, j])) for i, j in places]


def _heat_map(shades: np.ndarray) -> str:
    colours = np.where(shades[..., None] >= 0, _BETTER, _WORSE)
    # The square root: a share of a hundredth is to be seen.
    alpha = np.sqrt(np.abs(shades).clip(0, 1))[..., None] * 255
    return picture(np.concatenate([colours, alpha], axis=-1).astype(np.uint8))


def picture(image: np.ndarray) -> str:
    """An image uint8 (H, W, 1, 3 or 4) as a data URI."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclasses.dataclass(frozen=True)
class ClassGain:
    """What the student gains in one class, or label.

    Attributes:
        name: of the class.
        images: test images of it.
        baseline, student: percent, the mean over the runs.
        gain: points over the baseline, over the runs.
        p: after Holm's correction over all classes; None where it can't be told.
        won, lost: images that the student alone gets right, and the baseline alone; None without predictions.
    """

    name: str
    images: int
    baseline: float
    student: float
    gain: Effect
    p: float | None = None
    won: int | None = None
    lost: int | None = None


def gains(group: Group) -> dict[str, Any] | None:
    """Each class's gain, the highest first; None without a baseline or its figures by class."""
    reports = [(run.file("baseline", "report"), run.file("student", "report")) for run in group.runs.values()]
    reports = [pair for pair in reports if all(pair)]
    if not reports:
        return None
    names = [name for name in reports[0][1] if name not in ("accuracy", "macro avg", "weighted avg", "micro avg")]
    column = "average_precision" if "average_precision" in reports[0][1][names[0]] else "recall"
    found = []
    for name in names:
        pairs = [[report[name][column] for report in pair] for pair in reports]
        if any(value is None for pair in pairs for value in pair):
            continue
        before, after = (100 * statistics.mean(values) for values in zip(*pairs, strict=True))
        change = effect([100 * (after - before) for before, after in pairs])
        found.append(ClassGain(name, int(reports[0][1][name]["support"]), before, after, change))
    found = _tested(found, names, group)
    found.sort(key=lambda item: -item.gain.mean)
    shown = found if len(found) <= _CLASSES else found[: _CLASSES // 2] + found[-_CLASSES // 2 :]
    return {
        "column": column.replace("_", " "),
        "rows": shown,
        "hidden": len(found) - len(shown),
        "widest": max((abs(item.gain.mean) for item in shown), default=0) or 1,
        "certain": [item for item in found if item.p is not None and item.p < 0.05],
        "tested": "McNemar's exact test over the images" if len(reports) == 1 else "the paired t test over the seeds",
        "p_known": any(item.p is not None for item in found),
    }


def _tested(found: list[ClassGain], names: list[str], group: Group) -> list[ClassGain]:
    """The same with p values: over the runs, or of a single one over its images."""
    if len(group.runs) > 1:
        return [dataclasses.replace(f, p=p) for f, p in zip(found, corrected([f.gain for f in found]), strict=True)]
    predictions, baseline = group.first.predictions, group.first.stage("baseline")
    if predictions is None or baseline not in predictions.classes:
        return found
    from scipy.stats import binomtest

    student = predictions.is_right(group.first.stage("student"))
    before, counts = predictions.is_right(baseline), []
    for item in found:
        of_class = predictions.labels == names.index(item.name)
        counts.append([int((of_class & a & ~b).sum()) for a, b in ((student, before), (before, student))])
    p_values = holm([binomtest(won, won + lost).pvalue if won + lost else 1.0 for won, lost in counts])
    return [
        dataclasses.replace(item, p=p, won=won, lost=lost)
        for item, p, (won, lost) in zip(found, p_values, counts, strict=True)
    ]


def differing(group: Group) -> list[dict[str, Any]] | None:
    """Test images of the group's first run on which its models differ; None where predictions are not kept."""
    run = group.first
    predictions = run.predictions
    if predictions is None:
        return None
    stages = {model: stage for model in MODELS if (stage := run.stage(model)) in predictions.classes}
    if "student" not in stages:
        return None
    names, kinds = run.data.get("classes", []), []

    def said(stage, index):
        return names[predictions.classes[stage][index]], float(predictions.confidences[stage][index])

    for kind, indices in predictions.differing(*(stages.get(model) for model in MODELS)).items():
        images = [
            {
                "index": int(index),
                "source": picture(predictions.images[int(index)]),
                "width": predictions.images[int(index)].shape[1],
                "label": names[predictions.labels[index]],
                "said": [(model, *said(stage, index)) for model, stage in stages.items()],
                "right": {model: bool(predictions.is_right(stage)[index]) for model, stage in stages.items()},
            }
            for index in indices[:IMAGES]
            if int(index) in predictions.images
        ]
        kinds.append({"name": kind, "count": len(indices), "images": images})
    return kinds
