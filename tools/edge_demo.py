#!/usr/bin/env python3
"""Classifies images with a TFLite file that kd_keras exported; needs ai-edge-litert, numpy and pillow, nothing else.

    pip install ai-edge-litert numpy pillow
    python edge_demo.py student_int8.tflite photo.jpg
    python edge_demo.py student_int8.tflite photos/ --top=3 --threads=4

The zip archive behind the model says what the file takes and what its classes are called. Images in folders that are
named as classes (photos/cat/1.jpg) are scored too. Where an image may have several labels, each has a threshold: a
label below its own stands in brackets.
"""

import argparse
import json
import pathlib
import sys
import time
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, UnidentifiedImageError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def main(argv=None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path, help="TFLite file")
    parser.add_argument("images", type=pathlib.Path, help="an image, or a folder of images")
    parser.add_argument("--top", type=int, default=3, help="classes to print for each image (3)")
    parser.add_argument("--threads", type=int, default=1, help="threads to use (1)")
    options = parser.parse_args(argv)
    try:
        return classify(options)
    except BadInput as error:
        print(f"edge_demo: {error}", file=sys.stderr)
        return 2


class BadInput(Exception):
    """What the user can mend; the message says how."""


def classify(options) -> int:
    """Prints each image's best classes, then the latency; gives the exit code: 2 if an image could not be read."""
    for name in ("top", "threads"):
        if getattr(options, name) < 1:
            raise BadInput(f"--{name}={getattr(options, name)} is not a positive number")
    about, paths = metadata(options.model), image_files(options.images)
    names = about["class_names"]
    thresholds = [about["thresholds"][name] for name in names] if "thresholds" in about else None
    try:
        runner = Interpreter(model_path=str(options.model), num_threads=options.threads)
        runner.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"{options.model} is no TFLite file that LiteRT can run ({error})") from error
    (given,), (made,) = runner.get_input_details(), runner.get_output_details()
    # The first run sets the kernels up, and is not counted.
    runner.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
    runner.invoke()
    times, right, unread = [], [], 0
    for path in paths:
        try:
            image = pixels(path, given["shape"][1:])
        except BadInput as error:
            print(f"edge_demo: {error}", file=sys.stderr)
            unread += 1
            continue
        runner.set_tensor(given["index"], stored(image, given))
        start = time.perf_counter()
        runner.invoke()
        times.append(1000 * (time.perf_counter() - start))
        logits = real(runner.get_tensor(made["index"])[0], made)
        shares = softmax(logits) if thresholds is None else 1 / (1 + np.exp(-logits))
        best = np.argsort(shares)[::-1][: options.top]
        told = [f"{names[i]} {shares[i]:.1%}" for i in best]
        if thresholds is not None:
            told = [text if shares[i] >= thresholds[i] else f"({text})" for i, text in zip(best, told, strict=True)]
        elif path.parent.name in names:
            right.append(names[best[0]] == path.parent.name)
        print(f"{path}: {', '.join(told)}")
    if right:
        others = f"; {len(times) - len(right)} others are in no class's folder" if len(right) < len(times) else ""
        print(f"right: {sum(right)} of {len(right)} ({np.mean(right):.1%}){others}")
    if times:
        low, median, high = np.percentile(times, [25, 50, 75])
        told = f"median {median:.3f} ms, IQR {high - low:.3f} ms an image"
        print(f"{len(times)} images, {options.threads} thread(s): {told}")
    return 2 if unread else 0


def metadata(model: pathlib.Path) -> dict:
    """What travels with the file: ``class_names``, and ``thresholds`` by name where an image has several labels."""
    try:
        with zipfile.ZipFile(model) as archive:
            found = json.loads(archive.read("metadata.json"))
            return {**found, "class_names": list(found["class_names"])}
    except OSError as error:
        raise BadInput(f"cannot read {model}: {error.strerror}") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{model} has no class names with it: export it with kd_keras") from error


def image_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The image itself, or the images below a folder, by name."""
    if not path.exists():
        raise BadInput(f"there is no {path}")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise BadInput(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return found


def pixels(path: pathlib.Path, shape) -> np.ndarray:
    """The image in the model's size and channels, pixels 0..255, (1, H, W, C)."""
    height, width, channels = map(int, shape)
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                # 16 bits a pixel, which Pillow would cut off at 255.
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(image, np.float32).reshape(1, height, width, channels)
    except (OSError, UnidentifiedImageError) as error:
        raise BadInput(f"{path} is no image that Pillow can read ({error})") from error


def stored(values, tensor) -> np.ndarray:
    """Real values as the tensor holds them: integers by its scale and zero point."""
    if not np.issubdtype(tensor["dtype"], np.integer):
        return values.astype(tensor["dtype"])
    scale, zero = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def real(values, tensor) -> np.ndarray:
    """The inverse of `stored`."""
    if not np.issubdtype(tensor["dtype"], np.integer):
        return values.astype(np.float32)
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * scale


def softmax(logits) -> np.ndarray:
    """Probabilities of logits (K,)."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


if __name__ == "__main__":
    sys.exit(main())
