"""Which layers an 8-bit file hurts: the error of each operator, given the inputs that the quantised model gives it."""

import io
import re

import numpy as np


def debugger(converter, images, keep_float=(), output=None):
    """TensorFlow's quantisation debugger for a converter that is set to 8 bits.

    Args:
        converter: tf.lite.TFLiteConverter with optimisations and representative images.
        images: (n, H, W, C) pixels 0..255, on which errors are measured.
        keep_float: names of layers that stay in float32.
        output: name of the layer that computes the logits.

    Returns:
        ``(debugger, missing)``: ``missing`` are the names in ``keep_float`` that no operator of the file belongs to.
    """
    import tensorflow as tf

    def data():
        return ([image[None]] for image in images)

    quantization_debugger = tf.lite.experimental.QuantizationDebugger
    whole = quantization_debugger(converter=converter, debug_dataset=data)
    if not keep_float:
        return whole, []
    names = [operator["tensor_name"] for operator in _statistics(whole)]
    denied = [name for name in names if set(layers(name, output)) & set(keep_float)]
    missing = sorted(set(keep_float) - {layer for name in denied for layer in layers(name, output)})
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=denied)
    return quantization_debugger(converter=converter, debug_dataset=data, debug_options=options), missing


def _statistics(debugger) -> list[dict[str, str]]:
    """The debugger's figures for each operator."""
    debugger.run()
    page = io.StringIO()
    debugger.layer_statistics_dump(page)
    # Not by the csv module: names may contain the characters that it would take for quotes.
    header, *lines = page.getvalue().splitlines()
    columns = header.split(",")
    return [dict(zip(columns, line.split(",", len(columns) - 1), strict=True)) for line in lines]


def report(debugger, output=None) -> list[dict]:
    """The error of each operator, in the file's order.

    Args:
        debugger: see `debugger`.
        output: name of the layer that computes the logits.

    Returns:
        dicts of ``layers`` (the Keras layers that the converter fused into the operator), ``operator``, ``values``
        (number compared per image), ``rmse``, ``scale`` (of the 8-bit output) and ``rmse_in_steps`` = rmse / scale.
        Rounding alone costs 0.29 steps (1/√12). An operator far above that has a range that is too wide or too narrow.
    """
    rows = []
    for operator in _statistics(debugger):
        rmse, scale = float(operator["mean_squared_error"]) ** 0.5, float(operator["scale"])
        rows.append(
            {
                "layers": " ".join(layers(operator["tensor_name"], output)),
                "operator": operator["op_name"],
                "values": int(float(operator["num_elements"])),
                "rmse": rmse,
                "scale": scale,
                "rmse_in_steps": rmse / scale if scale else float(np.nan),
            }
        )
    return rows


def layers(name: str, output: str | None = None) -> list[str]:
    """The Keras layers in an operator's name, such as ``cnn_1/stage1_1/Relu;cnn_1/stage1_conv1_1/convolution``."""
    names = []
    for part in name.split(";"):
        # The model, then the layer; Keras numbers both as it traces them for the file.
        pieces = part.split("/")
        if len(pieces) >= 2:
            layer = re.sub(r"_\d+$", "", pieces[1])
            # The layer of the logits, without its activation, has another name in the file.
            names.append(output if output and layer == f"{output}_linear" else layer)
        elif part.startswith("StatefulPartitionedCall") and output:
            names.append(output)
    return list(dict.fromkeys(names))
