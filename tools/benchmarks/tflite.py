"""Latency of the exported student, a variant each, beside the same student in TensorFlow."""

import numpy as np
import tensorflow as tf

from benchmarks import measure, nets
from kd_keras.errors import InputError
from kd_keras.export import tflite
from kd_keras.export.variants import VARIANTS

TITLE = "The exported student"
_KERAS = "Keras in TensorFlow"


def run(options, done) -> dict:
    """Measures one image's latency in every TFLite variant, interleaved."""
    student = nets.model(options.student, options)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, *student.input_shape[1:])).astype("float32")
    forward = tf.function(lambda image: student(image, training=False))
    image = tf.constant(images[:1])
    calls, sizes, skipped = {_KERAS: measure.timed(lambda: forward(image).numpy())}, {}, {}
    for variant in VARIANTS:
        try:
            content = tflite.convert(student, variant, images if variant == "int8" else None)
        except InputError as reason:
            skipped[variant] = str(reason)
            continue
        interpreter = tflite.load(content, threads=1)
        sizes[variant] = len(content)
        # The interpreter hands its call to whatever measures; here that is the interleaving.
        calls[variant] = interpreter.latency(images[0], lambda call, **_: measure.timed(call))
    samples = measure.interleave(calls, options.latency_rounds, warmup=5)
    rows = []
    for name, values in samples.items():
        found, share = measure.summary(values), measure.ratio(samples, [name], [VARIANTS[0]])
        cells = [f"{1e3 * found['median']:.3f}", f"{1e3 * found['iqr']:.3f}", f"{share['median']:.3f}"]
        rows.append([name, *cells, f"{sizes[name]:,}" if name in sizes else ""])
    rows += [[name, f"skipped: {reason}", "", "", ""] for name, reason in skipped.items()]
    note = f"{options.student}, {options.image_size}×{options.image_size}×3, one image, one LiteRT thread."
    columns = ["variant", "ms", "IQR", f"× {VARIANTS[0]}", "bytes"]
    return {
        "title": TITLE,
        "tables": [{"title": TITLE, "columns": columns, "rows": rows, "note": note}],
        "claims": [],
        "samples": {name: measure.summary(values) for name, values in samples.items()},
    }
