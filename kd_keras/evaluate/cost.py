"""What a model costs: parameters, multiply-accumulates, latency, peak memory.

``python -m kd_keras.evaluate.cost student_int8.tflite`` prints the peak memory of a TFLite file, in bytes.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import logging

from kd_keras.errors import InputError

_STATUS = pathlib.Path("/proc/self/status")


def parameters(model):
    """Number of trainable parameters of a Keras model."""
    return int(sum(np.prod(weight.shape, dtype=np.int64) for weight in model.trainable_weights))


def macs(model):
    """Multiply-accumulates of one forward pass at batch 1.

    They are counted in the traced graph, so any layer counts, also in a model that was loaded from a file. Conv2D
    (which also computes 1-D and grouped convolutions), DepthwiseConv2dNative, MatMul, BatchMatMul and Einsum count;
    element-wise operations don't, as is customary, nor do transposed and 3-D convolutions and the bodies of loops
    (recurrent layers). TensorFlow's own profiler ignores Einsum (attention) and convolutions inside a called function
    (Keras' grouped convolution).

    Args:
        model: keras.Model with one input of known size (H, W, C).

    Returns:
        int.

    Raises:
        InputError: the input size, or the shape of an operation, is not known.
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
    # The product over all indices. An ellipsis stands for leading dimensions of the output.
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


# Operation -> numbers whose product is its multiply-accumulates. A Conv2D kernel is (h, w, channels / groups, filters)
# and a depthwise one (h, w, channels, multiplier): each output value takes h * w (* channels / groups).
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
    """The forward pass at batch 1 as a tf.function with a fixed signature."""
    import tensorflow as tf

    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) < 2 or any(not isinstance(size, int) for size in shape[1:]):
        raise InputError(f"model {model.name} must have one input of known size to be measured: its input is {shape}")
    signature = [tf.TensorSpec((1, *shape[1:]), tf.float32, name="image")]
    return tf.function(lambda image: model(image, training=False), input_signature=signature)


@dataclasses.dataclass(frozen=True)
class Latency:
    """The time that one call takes.

    Attributes:
        median_ms: median, in milliseconds.
        iqr_ms: interquartile range, in milliseconds.
        runtime: the runtime, such as ``"TensorFlow 2.21.0, CPU"``.
        threads: number of threads that it may use.
        runs: number of calls that were timed.
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
    """Measures the time of a call.

    Args:
        call: takes no arguments and returns when its work is done (on a GPU: when the result has been fetched).
        runs: number of calls to time.
        warmup: number of calls before them, which are not timed.
        runtime: see `Latency`.
        threads: see `Latency`.
        max_seconds: no call starts after this time, and warming up takes at most a quarter of it. At least one call
            warms up and at least three are timed, however long they take.

    Returns:
        Latency.
    """
    start = time.perf_counter()
    for number in range(warmup):
        if number and time.perf_counter() - start > max_seconds / 4:
            break
        call()
    times = []
    for number in range(runs):
        begin = time.perf_counter()
        if number >= 3 and begin - start > max_seconds:
            break
        call()
        times.append(1000 * (time.perf_counter() - begin))
    low, median, high = np.percentile(times, [25, 50, 75])
    return Latency(float(median), float(high - low), runtime, threads, len(times))


def keras_latency(model, **settings):
    """Measures a Keras model in TensorFlow at batch 1, on a random image of pixels 0..255.

    Args:
        model: keras.Model with one input of known size (H, W, C).
        **settings: runs, warmup and max_seconds, see `latency`.

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
    # For TensorFlow 0 means as many as there are.
    threads = tf.config.threading.get_intra_op_parallelism_threads() or cores()
    return latency(
        lambda: forward(image).numpy(), runtime=f"TensorFlow {tf.__version__}, {device}", threads=threads, **settings
    )


def cores() -> int:
    """Number of CPU cores that this process may use, fewer than the machine has in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(path) -> int | None:
    """Peak memory of a TFLite file: bytes that loading it and one run (one thread) add to a process at most.

    None where the system does not report it: on other systems than Linux, and in some containers.
    """
    if not _STATUS.exists():
        return None
    # The package may be found by the working directory alone.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "kd_keras.evaluate.cost", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        logging.warning("peak memory is not measured: %s", (result.stderr.strip().splitlines() or ["no reason"])[-1])
        return None
    return int(result.stdout.split()[-1])


def _peak_memory_here(path) -> int:
    from ai_edge_litert.interpreter import Interpreter

    # Resets the peak, which importing may have reached.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    runner = Interpreter(model_path=path, num_threads=1)
    runner.allocate_tensors()
    (details,) = runner.get_input_details()
    runner.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    runner.invoke()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(name) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


if __name__ == "__main__":
    print(_peak_memory_here(sys.argv[1]))
