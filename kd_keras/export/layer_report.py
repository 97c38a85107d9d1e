"""Which layers an 8-bit file hurts: each operator's error where its inputs are those of the quantised model."""

import io
import re

import numpy as np


def debugger(converter, images, keep_float=(), output=None):
    """TensorFlow's quantisation debugger over a converter that is set for 8 bits, and the names it verifies.

    Args:
        converter: tf.lite.TFLiteConverter with optimisations and representative images.
        images: (n, H, W, C) pixels 0..255, to measure the errors on.
        keep_float: names of layers that stay in float32.
        output: name of the layer that makes the logits.

    Returns:
        ``(debugger, missing)``: ``missing`` are those names of ``keep_float`` that no operator of the file has.
    """
    import tensorflow as tf

    def data():
        return ([image[None]] for image in images)

    made = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=data)
    if not keep_float:
        return made, []
    names = [one["tensor_name"] for one in _statistics(made)]
    kept = [name for name in names if set(layers(name, output)) & set(keep_float)]
    missing = sorted(set(keep_float) - {layer for name in kept for layer in layers(name, output)})
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=kept)
    again = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=data, debug_options=options)
    return again, missing


def _statistics(made) -> list[dict[str, str]]:
    """The debugger's figures, an operator each."""
    made.run()
    page = io.StringIO()
    made.layer_statistics_dump(page)
    # By hand, as a name may hold what CSV would put in quotes.
    header, *lines = page.getvalue().splitlines()
    columns = header.split(",")
    return [dict(zip(columns, line.split(",", len(columns) - 1), strict=True)) for line in lines]


def report(made, output=None) -> list[dict]:
    """Each operator's error, the file's order.

    Args:
        made: from `debugger`.
        output: name of the layer that makes the logits.

    Returns:
        dicts of ``layers`` (the Keras layers that the converter fused in it), ``operator``, ``values`` (compared an
        image), ``rmse``, ``scale`` (of the output's 8 bits) and ``rmse_in_steps`` = rmse / scale. Rounding alone costs
        0.29 steps (1/√12); an operator well above that loses more, by ranges that are too wide for it or too narrow.
    """
    rows = []
    for one in _statistics(made):
        rmse, scale = float(one["mean_squared_error"]) ** 0.5, float(one["scale"])
        rows.append(
            {
                "layers": " ".join(layers(one["tensor_name"], output)),
                "operator": one["op_name"],
                "values": int(float(one["num_elements"])),
                "rmse": rmse,
                "scale": scale,
                "rmse_in_steps": rmse / scale if scale else float(np.nan),
            }
        )
    return rows


def layers(name: str, output: str | None = None) -> list[str]:
    """The Keras layers in an operator's name, such as ``cnn_1/stage1_1/Relu;cnn_1/stage1_conv1_1/convolution``."""
    found = []
    for part in name.split(";"):
        # The model, then the layer; Keras numbers both as it traces them for the file.
        pieces = part.split("/")
        if len(pieces) >= 2:
            found.append(re.sub(r"_\d+$", "", pieces[1]))
        elif part.startswith("StatefulPartitionedCall") and output:
            found.append(output)
    return list(dict.fromkeys(found))
