"""What each model of a run said of the test images, and a few of those images: `predictions.npz`.

Written once, when a run ends; the report's reliability diagram and its images are made from it.
"""

import dataclasses
import io
import pathlib
import zipfile
import zlib

import numpy as np

from kd_keras import files
from kd_keras.errors import InputError

NAME = "predictions.npz"
#: Images of each kind that are stored, and their longest side in pixels.
IMAGES, SIDE = 8, 96
#: Kinds of images on which models differ: name → whether teacher, baseline and student are right; None is either.
KINDS = {
    "Only the baseline is wrong": (True, False, True),
    "Only the teacher is right": (True, False, False),
    "The student is wrong, the baseline right": (None, True, False),
    "The student is right, the teacher wrong": (False, None, True),
}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of one class for each test image.

    Attributes:
        labels: int32 (N,).
        classes: the predicted classes of each model or file by its stage, int32 (N,).
        confidences: their probabilities, float32 (N,).
        images: some test images by index, uint8 (H, W, C).
    """

    labels: np.ndarray
    classes: dict[str, np.ndarray]
    confidences: dict[str, np.ndarray]
    images: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def is_right(self, stage: str) -> np.ndarray:
        """Whether a model's class is the label: bool (N,)."""
        return self.classes[stage] == self.labels

    def differing(self, teacher: str | None, baseline: str | None, student: str) -> dict[str, np.ndarray]:
        """The indices of the test images of each of `KINDS`, those of which the student is surest first.

        Args:
            teacher, baseline, student: stages; a kind that asks for a model that there is not has no place.
        """
        stages, found = (teacher, baseline, student), {}
        order = np.argsort(-self.confidences[student], kind="stable")
        for kind, wanted in KINDS.items():
            asked = [(stage, value) for stage, value in zip(stages, wanted, strict=True) if value is not None]
            if all(stage is not None for stage, _ in asked):
                fits = np.all([self.is_right(stage) == value for stage, value in asked], axis=0)
                found[kind] = order[fits[order]]
        return found

    def with_images(self, read, teacher: str | None, baseline: str | None, student: str) -> "Predictions":
        """The same with the first `IMAGES` of each kind, no side longer than `SIDE`.

        Args:
            read: gives the images uint8 (B, H, W, C) of indices (B,).
            teacher, baseline, student: stages.
        """
        kinds = self.differing(teacher, baseline, student).values()
        chosen = sorted({int(i) for indices in kinds for i in indices[:IMAGES]})
        if not chosen:
            return self
        images = np.asarray(read(np.array(chosen)))
        return dataclasses.replace(self, images=dict(zip(chosen, map(_small, images), strict=True)))

    def write(self, path: pathlib.Path) -> None:
        """Writes the file."""
        arrays = {"labels": self.labels}
        arrays |= {f"class/{stage}": values for stage, values in self.classes.items()}
        arrays |= {f"confidence/{stage}": values for stage, values in self.confidences.items()}
        arrays |= {f"image/{index}": image for index, image in self.images.items()}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        files.write(path, content.getvalue())


def of_logits(labels, logits: dict[str, np.ndarray]) -> Predictions:
    """The predictions of models.

    Args:
        labels: (N,) integers.
        logits: (N, K) by stage.
    """
    from scipy.special import softmax

    classes = {stage: np.asarray(values).argmax(-1).astype(np.int32) for stage, values in logits.items()}
    confidences = {
        stage: softmax(np.asarray(values, np.float64), axis=-1).max(-1).astype(np.float32)
        for stage, values in logits.items()
    }
    return Predictions(np.asarray(labels, np.int32), classes, confidences)


def read(path: pathlib.Path) -> Predictions:
    """Reads the file.

    Raises:
        InputError: it is damaged.
    """
    parts = {"class": {}, "confidence": {}, "image": {}}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                kind, slash, key = name.partition("/")
                if slash:
                    parts[kind][key] = arrays[name]
            labels = arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} can't be read: delete it, and give the run's command again") from error
    images = {int(index): image for index, image in parts["image"].items()}
    return Predictions(labels, parts["class"], parts["confidence"], images)


def _small(image: np.ndarray) -> np.ndarray:
    """An image whose longest side is at most `SIDE`; of other channels than 1 or 3 the first alone."""
    from PIL import Image

    image = image if image.shape[-1] in (1, 3) else image[..., :1]
    if max(image.shape[:2]) <= SIDE:
        return image
    scale = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)).reshape(height, width, -1)
