"""What a model costs: parameters, multiply-accumulates, latency."""

import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np

from kd_keras.errors import InputError


def parameters(model):
    """Number of trainable parameters of a Keras model."""
    return int(sum(np.prod(weight.shape, dtype=np.int64) for weight in model.trainable_weights))


def macs(model):
    """Multiply-accumulates of one forward pass at batch 1.

    Read from the traced graph, so it holds for any layer and for a model loaded from file. Counted are Conv2D (1-D
    and grouped convolutions too, which TensorFlow runs as Conv2D), DepthwiseConv2dNative, MatMul, BatchMatMul and
    Einsum; everything element-wise is left out, as is customary. Transposed and 3-D convolutions, and the bodies of
    loops (recurrent layers) are not counted. TensorFlow's own profiler knows neither Einsum (attention) nor
    convolutions inside a called function (Keras' grouped convolution), which is why it is not used.

    Args:
        model: keras.Model with one input of known size (H, W, C).

    Returns:
        int.

    Raises:
        InputError: the input size, or a shape that the count needs, is not known.
    """
    graph = _traced(model).get_concrete_function().graph.as_graph_def(add_shapes=True)
    functions = {function.signature.name: function for function in graph.library.function}
    return _graph_macs(graph.node, {}, functions)


def _graph_macs(nodes, arguments, functions):
    shapes = dict(arguments)
    for node in nodes:
        outputs = node.attr["_output_shapes"].list.shape
        shapes[node.name] = [[dim.size for dim in output.dim] for output in outputs]

    def shape(reference):
        # "node", "node:1" in a graph, "node:output_name:1" in a function's body.
        name, *rest = reference.split(":")
        return shapes[name][int(rest[-1]) if rest else 0]

    total = 0
    for node in nodes:
        called = functions.get(node.attr["f"].func.name) if "PartitionedCall" in node.op else None
        if called is not None:
            inner = {
                argument.name: [
                    [dim.size for dim in output.dim] for output in called.arg_attr[i].attr["_output_shapes"].list.shape
                ]
                for i, argument in enumerate(called.signature.input_arg)
            }
            total += _graph_macs(called.node_def, inner, functions)
        elif node.op in _FACTORS:
            operands = [shape(reference) for reference in node.input if not reference.startswith("^")]
            factors = _FACTORS[node.op](node, operands, shapes[node.name][0])
            if min(factors, default=1) < 0:
                raise InputError(
                    f"cannot count the multiply-accumulates of {node.op} {node.name}: its shapes are not known; "
                    "build the model with a fixed input size"
                )
            total += int(np.prod(factors, dtype=np.int64))
    return total


def _matmul_factors(node, operands, output):
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    return [*output, operands[0][-2 if transposed else -1]]


def _einsum_factors(node, operands, output):
    # Every index takes part in the product once. An ellipsis stands for leading dimensions of the output.
    terms, result = node.attr["equation"].s.decode().split("->")
    sizes = {}
    for term, operand in zip([*terms.split(","), result], [*operands, output], strict=True):
        before, _, after = term.partition("...")
        named = len(before) + len(after)
        middle = operand[len(before) : len(operand) - len(after)]
        sizes.update(zip(before, operand, strict=False))
        sizes.update(zip(after, operand[len(operand) - len(after) :], strict=True))
        if len(operand) > named:
            sizes["..."] = int(np.prod(middle)) if min(middle) >= 0 else -1
    return list(sizes.values())


# Operation -> the numbers whose product is its multiply-accumulates. A Conv2D kernel is (h, w, channels / groups,
# filters) and a depthwise one (h, w, channels, multiplier): each output value takes h * w (* channels / groups).
_FACTORS = {
    "Conv2D": lambda node, operands, output: [*output, *operands[1][:3]],
    "DepthwiseConv2dNative": lambda node, operands, output: [*output, *operands[1][:2]],
    "MatMul": _matmul_factors,
    "BatchMatMul": _matmul_factors,
    "BatchMatMulV2": _matmul_factors,
    "BatchMatMulV3": _matmul_factors,
    "Einsum": _einsum_factors,
}


def _traced(model):
    """The forward pass at batch 1 as a tf.function of one fixed signature."""
    import tensorflow as tf

    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) < 2 or any(not isinstance(size, int) for size in shape[1:]):
        raise InputError(f"model {model.name} must have one input of known size to be measured: its input is {shape}")
    signature = [tf.TensorSpec((1, *shape[1:]), tf.float32, name="image")]
    return tf.function(lambda image: model(image, training=False), input_signature=signature)


@dataclasses.dataclass(frozen=True)
class Latency:
    """Time of one call.

    Attributes:
        median_ms: median, milliseconds.
        iqr_ms: interquartile range, milliseconds.
        runtime: what ran it, such as ``"TensorFlow 2.21.0, CPU"``.
        threads: threads it may use.
        runs: timed calls behind the figures.
    """

    median_ms: float
    iqr_ms: float
    runtime: str
    threads: int
    runs: int


def latency(
    call: Callable[[], object],
    *,
    runs: int = 100,
    warmup: int = 10,
    runtime: str,
    threads: int,
    max_seconds: float = 3.0,
) -> Latency:
    """Times a call.

    Args:
        call: takes nothing and returns when its work is done (on a GPU: when the result has been fetched).
        runs: timed calls.
        warmup: calls before them, not timed.
        runtime: name to report.
        threads: number of threads to report.
        max_seconds: no call is started after this time, of which warming up takes a quarter at most. At least one
            call warms up and three are timed, however long they take.

    Returns:
        Latency.
    """
    start = time.perf_counter()
    for done in range(warmup):
        if done and time.perf_counter() - start > max_seconds / 4:
            break
        call()
    times = []
    for done in range(runs):
        begin = time.perf_counter()
        if done >= 3 and begin - start > max_seconds:
            break
        call()
        times.append(1000 * (time.perf_counter() - begin))
    low, median, high = np.percentile(times, [25, 50, 75])
    return Latency(float(median), float(high - low), runtime, threads, len(times))


def keras_latency(model, **settings):
    """Latency of a Keras model in TensorFlow at batch 1, on a random image of pixels 0..255.

    Args:
        model: keras.Model with one input of known size (H, W, C).
        **settings: `latency`'s runs, warmup, max_seconds.

    Returns:
        Latency.

    Raises:
        InputError: the input size is not known.
    """
    import tensorflow as tf

    forward = _traced(model)
    shape = (1, *model.input_shape[1:])
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32))
    device = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    # 0 is TensorFlow's way of saying "as many as there are".
    threads = tf.config.threading.get_intra_op_parallelism_threads() or cores()
    return latency(
        lambda: forward(image).numpy(), runtime=f"TensorFlow {tf.__version__}, {device}", threads=threads, **settings
    )


def cores() -> int:
    """CPU cores that this process may use."""
    # A container or taskset may allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
