"""Folders of finished runs that are made by hand, with any classes, scores and settings, in milliseconds."""

import json
import math
import pathlib

import numpy as np

from kd_keras.run import config, workdir
from kd_keras.run.report import predictions, summary, tables

MODELS = {"teacher": 0.9, "baseline": 0.6, "student": 0.8}


def logits(labels, classes: int, right: float, seed: int) -> np.ndarray:
    """Logits (N, K) that are right for about that share."""
    draw = np.random.default_rng(seed)
    guesses = np.where(draw.random(len(labels)) < right, labels, draw.integers(classes, size=len(labels)))
    return 2 * draw.random((len(labels), classes)) + 3 * np.eye(classes)[guesses]


def make(
    folder: pathlib.Path,
    *flags: str,
    classes: tuple[str, ...] = ("cat", "dog", "cow"),
    images: int = 200,
    shape: tuple[int, int, int] = (8, 8, 1),
    models: dict[str, float] = MODELS,
    seed: int = 0,
    warnings: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Makes the folder of a run; returns the labels and each model's logits.

    Args:
        folder: made.
        *flags: settings, as on the command line.
        classes: their names.
        images: test images.
        shape: of an image.
        models: stage → about how often it is right.
        seed: of everything that is drawn.
        warnings: of the run.
    """
    folder.mkdir(parents=True)
    draw = np.random.default_rng(100)
    labels = draw.integers(len(classes), size=images)
    said = {name: logits(labels, len(classes), right, 10 * seed + i) for i, (name, right) in enumerate(models.items())}
    settings = config.read(["kd_keras", *flags, f"--seed={seed}", f"--workdir={folder}"])
    rows = [_row(name, values, labels, i) for i, (name, values) in enumerate(said.items())]
    write(folder / "results.json", rows)
    for name, values in said.items():
        matrix = np.zeros((len(classes), len(classes)), int)
        np.add.at(matrix, (labels, values.argmax(-1)), 1)
        write(folder / f"{name}_confusion.json", {"class_names": classes, "matrix": matrix.tolist()})
        counts = matrix.sum(1)
        recalls = np.diag(matrix) / np.maximum(counts, 1)
        by_class = zip(classes, recalls.tolist(), counts.tolist(), strict=True)
        report = {name: {"recall": recall, "support": float(count)} for name, recall, count in by_class}
        write(folder / f"{name}_report.json", {**report, "accuracy": 0.5, "macro avg": {"recall": 0.5}})
        (folder / f"{name}.keras").write_bytes(bytes(1000))
    write(folder / workdir.SETTINGS, settings.texts())
    hashes = {f"{split} split": f"{split}-{len(classes)}-{images}" for split in ("train", "val", "test")}
    write(folder / workdir.STATE, {"data": {**hashes, "classes": classes, "image_shape": shape}, "models": {}})
    write(folder / "environment.json", {"git_revision": "abc", "git_dirty": False, "packages": {"keras": "3.13"}})
    gain = None
    if "baseline" in said:
        won, lost = (said[name].argmax(-1) == labels for name in ("student", "baseline"))
        change = won.astype(float) - lost
        half = 1.96 * change.std(ddof=1) / math.sqrt(images)
        gain = {"score": "accuracy", "change": change.mean(), "images": images}
        gain |= {"low": change.mean() - half, "high": change.mean() + half}
    series = {
        row["role"]: {"val_accuracy": [0.1, 0.5, 0.4], "val_loss": [3.0, 2.0, 2.5], "ce": [4, 2, 1]} for row in rows
    }
    stages = {name: name if name in said else None for name in MODELS}
    about = {"stages": stages, "gain": gain, "runtimes": [], "warnings": warnings, "series": series}
    about |= {"command": "python -m kd_keras.run", "images": {"train": 9, "labelled": 9, "val": 9, "test": images}}
    write(folder / summary.NAME, {**about, "several_labels": False})
    made = predictions.of_logits(labels, said)
    made.with_images(lambda indices: draw.integers(256, size=(len(indices), *shape), dtype="uint8"), **stages).write(
        folder / predictions.NAME
    )
    return {"labels": labels, **said}


def _row(name: str, values: np.ndarray, labels: np.ndarray, number: int) -> dict:
    accuracy = float((values.argmax(-1) == labels).mean())
    cost = {"parameters": 1000 * (number + 1), "bytes": 4000 * (number + 1), "latency_ms_median": 0.5 + number}
    role = {"baseline": "baseline (no teacher)", "student": "student distilled"}.get(name, name)
    return tables.row(role, "cnn()", stage=name, val_accuracy=accuracy, test_accuracy=accuracy, **cost)


def write(path: pathlib.Path, value) -> None:
    """Writes JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
