"""Draws a small tree in MURA's layout, to try the ``mura`` data set where MURA itself cannot be had.

    python tools/draw_mura.py mura-demo
    python -m kd_keras.run --data="mura(folder='mura-demo')" --image_size=64 ...

The pictures are no radiographs: grey PNGs of varying sizes, each body part with stripes of its own direction, abnormal
ones with a bright spot. A network can learn both label sets from them; its figures say nothing of MURA.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

PARTS = ("ELBOW", "FINGER", "FOREARM", "HAND", "HUMERUS", "SHOULDER", "WRIST")
ROOT = "MURA-v1.1"


def draw(
    folder: str | pathlib.Path,
    patients: int = 70,
    valid_patients: int = 14,
    size: tuple[int, int] = (60, 100),
    seed: int = 0,
) -> pathlib.Path:
    """Draws the tree, with MURA's four CSV files.

    Args:
        folder: where ``MURA-v1.1`` is made.
        patients: people in ``train``; every third is seen for two body parts.
        valid_patients: other people in ``valid``.
        size: smallest and largest side in pixels.
        seed: of everything.

    Returns:
        The folder ``MURA-v1.1``.

    Raises:
        FileExistsError: there is one already, which is not drawn over.
    """
    rng = np.random.default_rng(seed)
    root = pathlib.Path(folder) / ROOT
    root.mkdir(parents=True)
    number = 0
    for split, count in (("train", patients), ("valid", valid_patients)):
        paths, studies = [], []
        for _ in range(count):
            number += 1
            # In turn, so that each part has its share however few people there are.
            parts = [number % len(PARTS)] + ([(number + 3) % len(PARTS)] if number % 3 == 0 else [])
            for part in parts:
                for study in range(1, 2 + (number % 5 == 0)):
                    # By part in turn too, so that neither finding tells the part.
                    abnormal = (number // len(PARTS) + study + part) % 2
                    name = f"study{study}_{'positive' if abnormal else 'negative'}"
                    below = pathlib.Path(f"XR_{PARTS[part]}", f"patient{number:05d}", name)
                    (root / split / below).mkdir(parents=True)
                    studies.append(f"{ROOT}/{split}/{below.as_posix()}/,{abnormal}\n")
                    for image in range(1, 2 + int(rng.integers(3))):
                        path = below / f"image{image}.png"
                        Image.fromarray(picture(part, abnormal, size, rng)).save(root / split / path)
                        paths.append(f"{ROOT}/{split}/{path.as_posix()}\n")
        (root / f"{split}_image_paths.csv").write_text("".join(paths))
        (root / f"{split}_labeled_studies.csv").write_text("".join(studies))
    return root


def picture(part: int, abnormal: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (H, W)."""
    height, width = rng.integers(size[0], size[1] + 1, 2)
    y, x = np.mgrid[:height, :width] / max(height, width)
    angle = np.pi * part / len(PARTS)
    stripes = np.sin(30 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    values = 100 + 50 * stripes + rng.normal(0, 15, (height, width))
    if abnormal:
        at_y, at_x = rng.uniform(0.2, 0.6, 2)
        values[(y - at_y) ** 2 + (x - at_x) ** 2 < 0.02] = 250
    return np.clip(values, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where MURA-v1.1 is made")
    parser.add_argument("--patients", type=int, default=70, help="people in train [70]")
    parser.add_argument("--valid_patients", type=int, default=14, help="other people in valid [14]")
    parser.add_argument("--seed", type=int, default=0, help="of everything [0]")
    given = parser.parse_args()
    if min(given.patients, given.valid_patients) < len(PARTS) or given.seed < 0:
        parser.error(
            f"--patients and --valid_patients take {len(PARTS)} at least, one a body part; --seed takes 0 or more"
        )
    try:
        print(draw(given.folder, given.patients, given.valid_patients, seed=given.seed))
    except OSError as error:
        parser.error(f"{given.folder} cannot be drawn in ({error}): give another folder")
