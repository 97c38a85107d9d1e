"""Converts a model of each family in every variant; prints what came of it: size, error, latency, or the refusal.

    python tools/conversions.py                                     about 40 minutes on two cores
    python tools/conversions.py --models="resnet(depth=18)" --variants=float32,int8
    python tools/conversions.py --into=docs/conversions.md          puts the table into the page

Nothing is trained: weights are initial ones, batch norm has the statistics of the images, which are scikit-learn's
handwritten digits, enlarged. The error is that of the logits, root mean square, as a share of their standard deviation
over the images, against the Keras model. ``qat`` is the model wrapped by ``qat()`` and shown the images for its ranges;
its error is against the wrapped model, which is what would have been trained. ``aeq …`` are recipes of
ai-edge-quantizer, where it is installed.
"""

import argparse
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import results
from rich.console import Console

from kd_keras import spec
from kd_keras.compress import bridge as _bridge
from kd_keras.compress import qat
from kd_keras.errors import InputError
from kd_keras.evaluate import cost
from kd_keras.export import tflite
from kd_keras.export.variants import VARIANTS

MODELS = (
    "alexnet()",
    "vgg(depth=11)",
    "resnet(depth=18)",
    "resnet(depth=50, se_ratio=16)",
    "densenet(depth=121)",
    "mobilenet(version='v2')",
    "mobilenet(version='v3_small')",
    "shufflenet(version='v2')",
    "wide_resnet(depth=16, width=2)",
    "vit(patch=4, depth=12, heads=3, width=192)",
)
#: Recipes of ai-edge-quantizer, by the name of the function that gives them, and whether they are calibrated.
RECIPES = {
    "aeq dynamic": ("dynamic_wi8_afp32", False),
    "aeq int8": ("static_wi8_ai8", True),
    "aeq int16x8": ("static_wi8_ai16", True),
}


def images(size, count):
    """(count, size, size, 3) pixels 0..255: digits, enlarged."""
    from sklearn.datasets import load_digits

    digits = load_digits().images[:count, :, :, None] * (255 / 16)
    enlarged = keras.ops.image.resize(digits.astype("float32"), (size, size), interpolation="bilinear")
    return np.repeat(keras.ops.convert_to_numpy(enlarged), 3, axis=-1)


def settled(model, data):
    """The model after some looks at the data: batch norm knows their statistics."""
    for start in range(0, len(data), 32):
        model(data[start : start + 32], training=True)
    return model


def quantised(model, data):
    """The file of the model in ``qat()``'s wrappers, whose ranges are moving averages, and the wrapped one's logits."""
    wrapped = qat.QAT().wrap(_bridge.to_tf_keras(model), (), len(data))
    for _ in range(4):
        for start in range(0, len(data), 32):
            wrapped(data[start : start + 32], training=True)
    return tflite.convert_quantised(wrapped), wrapped(data, training=False).numpy()


def by_recipe(model, data, name) -> bytes:
    """The file that a recipe of ai-edge-quantizer makes of the float32 one."""
    from ai_edge_quantizer import quantizer, recipe

    function, calibrated = RECIPES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "float.tflite")
        path.write_bytes(tflite.convert(model, "float32"))
        made = quantizer.Quantizer(str(path), getattr(recipe, function)())
        given = {"serving_default": [{"image": image[None]} for image in data]}
        result = made.calibrate(given) if calibrated else None
        quiet = {"enable_progress_bar": False, "enable_progress_report": False}
        return bytes(made.quantize(result, **quiet).quantized_model)


def content(model, data, variant):
    """A file, and the logits that it should give."""
    if variant == "qat":
        return quantised(model, data)
    expected = keras.ops.convert_to_numpy(model(data, training=False))
    if variant in RECIPES:
        return by_recipe(model, data, variant), expected
    return tflite.convert(model, variant, data), expected


def row(text, variant, model, data) -> list[str]:
    """Model, variant, size, error, latency; or model, variant and what was refused."""
    try:
        made, expected = content(model, data, variant)
        interpreter = tflite.load(made)
        got = interpreter.predict(data)
    except InputError as error:
        return [f"`{text}`", variant, "–", "–", "–", " ".join(str(error).split())]
    except (RuntimeError, ValueError, NotImplementedError) as error:  # ai-edge-quantizer's own
        return [f"`{text}`", variant, "–", "–", "–", " ".join(str(error).split())[:200]]
    error = np.sqrt(np.mean((got - expected) ** 2)) / expected.std()
    time = interpreter.latency(data[0], cost.latency)
    return [f"`{text}`", variant, f"{len(made) / 1e6:.2f}", f"{error:.4f}", f"{time.median_ms:.2f}", ""]


def variants() -> list[str]:
    try:
        import ai_edge_quantizer  # noqa: F401
    except ImportError:
        return [*VARIANTS, "qat"]
    return [*VARIANTS, "qat", *RECIPES]


def main(arguments: list[str]) -> int:
    """Runs the command; gives its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=" + ".join(MODELS), help="model specs, joined by +")
    parser.add_argument("--variants", default=",".join(variants()), help="joined by commas")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=128, help="to calibrate with and to compare on")
    parser.add_argument("--into", type=pathlib.Path, help="page whose section 'conversions' is replaced")
    options = parser.parse_args(arguments)
    console = Console(width=140)
    data = images(options.image_size, options.images)
    rows = []
    try:
        for one in spec.parse_many(options.models):
            keras.utils.set_random_seed(0)
            shape = (options.image_size, options.image_size, 3)
            model = settled(spec.build("kd_keras.models", one, num_classes=10, input_shape=shape), data)
            for variant in options.variants.split(","):
                rows.append(row(str(one), variant, model, data))
                console.print("  ".join(rows[-1]), highlight=False, markup=False)
    except InputError as error:
        print(f"conversions: {error}", file=sys.stderr)
        return 2
    if options.into:
        head = ["model", "variant", "MB", "error", "latency ms", ""]
        lines = [head, ["---"] * len(head), *rows]
        results.put(options.into, "conversions", "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
