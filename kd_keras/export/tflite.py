"""Export to TFLite, and running the files with LiteRT.

Every file takes one float32 image of pixels 0..255, (1, H, W, C), and returns float32 logits, (1, K), also where it
computes in integers. Only ``int8_io`` takes and returns int8, by the scale and zero point of its tensors.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError
from kd_keras.export import layer_report as layers
from kd_keras.export.variants import CALIBRATED, QUANTISED, VARIANTS


def convert(model, variant, representative=None, keep_float=()):
    """Converts a Keras model to a TFLite flatbuffer.

    The file has the signature ``serving_default``, from ``image`` to ``logits``. A model built under a mixed policy is
    exported in float32. While the converter works, the process's stdout and stderr are discarded.

    Args:
        model: keras.Model, input (H, W, C) float32 pixels 0..255, output logits (K,).
        variant: ``float32``; ``float16``, weights stored in half precision; ``dynamic``, weights in 8 bits; ``int8``,
            weights and activations in 8 bits; ``int8_io``, pixels and logits too; ``int16x8``, weights in 8 bits and
            activations in 16. The converter silently leaves an operation without an integer kernel (Sin, Floor) in
            float32, between a dequantise and a quantise.
        representative: (n, H, W, C) pixels 0..255, images that calibrate the ranges of integer activations; a hundred
            are enough.
        keep_float: names of layers that stay in float32 in an ``int8`` file, such as those with the largest errors in
            `layer_report`.

    Returns:
        bytes.

    Raises:
        InputError: an unknown variant, no images of the right shape where they are needed, a model without one fixed
            input, a name in ``keep_float`` that no operator belongs to, or an operation that TFLite does not have.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown TFLite variant {variant!r}; known: {', '.join(VARIANTS)}")
    shape = model.input_shape
    if not isinstance(shape, tuple) or any(not isinstance(size, int) for size in shape[1:]):
        raise InputError(f"TFLite needs a model with one input of fixed size: the input of {model.name} is {shape}")
    if variant in CALIBRATED:
        if representative is None or len(representative) == 0 or np.shape(representative)[1:] != shape[1:]:
            actual = "none" if representative is None else f"an array of shape {np.shape(representative)}"
            raise InputError(
                f"TFLite {variant} needs representative images of shape (n, *{shape[1:]}) to calibrate: got {actual}"
            )
        representative = np.asarray(representative, np.float32)
    if keep_float and variant != "int8":
        raise InputError(f"keep_float is for int8, not {variant}")
    output = _output(model)

    def finish(converter):
        if not keep_float:
            return converter.convert()
        debugger, missing = layers.debugger(converter, representative[:1], keep_float, output)
        if missing:
            raise InputError(f"no operator is called {', '.join(missing)}: take names of the layer report")
        return debugger.get_nondebug_quantized_model()

    return _converted(_Source(model.name, shape, _keras_writer(model), representative), variant, finish)


def layer_report(model, representative) -> list[dict]:
    """The error of each operator of the model's int8 file; see `layer_report.report`.

    Args:
        model: keras.Model, as for `convert`.
        representative: (n, H, W, C) pixels 0..255, for calibration and for measuring the errors.

    Raises:
        InputError: an operation that TFLite does not have.
    """
    images = np.asarray(representative, np.float32)

    def finish(converter):
        debugger, _ = layers.debugger(converter, images)
        return layers.report(debugger, _output(model))

    return _converted(_Source(model.name, model.input_shape, _keras_writer(model), images), "int8", finish)


def convert_quantised(model, variant="int8"):
    """Converts a tf_keras model after quantisation-aware training by tensorflow-model-optimization.

    Training has learnt the ranges, so no images are needed.

    Args:
        model: tf_keras.Model, (B, H, W, C) pixels 0..255 -> logits (B, K).
        variant: ``int8`` or ``int8_io``.

    Returns:
        bytes; see `convert`.

    Raises:
        InputError: another variant, or an operation that TFLite does not have.
    """
    import tensorflow as tf

    if variant not in QUANTISED:
        raise InputError(f"a student trained with quantisation is exported as {' or '.join(QUANTISED)}, not {variant}")

    def write(folder, signature):
        serve = tf.function(lambda image: {"logits": model(image, training=False)}, input_signature=[signature])
        tf.saved_model.save(model, folder, signatures=serve)

    source = _Source(model.name, model.input_shape, write, advice=_ADVICE_AFTER_QAT)
    return _converted(source, variant, lambda converter: converter.convert())


def _output(model) -> str | None:
    """Name of the layer that computes the logits."""
    return graph.made_by(model.outputs[0])[0].name if graph.is_graph(model) else None


def _keras_writer(model):
    import keras

    def write(folder, signature):
        exported = graph.in_float32(model)
        # Only Keras' own archive tracks Keras' variables. After from_concrete_functions, or tf.saved_model.save of a
        # plain module, the converted model returns NaN without any warning.
        archive = keras.export.ExportArchive()
        archive.track(exported)
        archive.add_endpoint(
            "serving_default",
            lambda image: {"logits": exported(image, training=False)},
            input_signature=[signature],
        )
        archive.write_out(folder, verbose=False)

    return write


_ADVICE = "leave the variant out: dynamic has small weights too, and float32 takes the most operators"
_ADVICE_AFTER_QAT = (
    "keep the layers at it in float32, qat(keep_float='…'), or leave qat() out: --export=int8 quantises after training"
)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A model to convert.

    Attributes:
        name: for messages.
        shape: of the input, (None, H, W, C).
        write: ``write(folder, signature)`` saves the model for TensorFlow.
        images: (n, H, W, C) that calibrate integer activations, or None.
        advice: what to do if it can't be converted.
    """

    name: str
    shape: tuple
    write: Callable[[str, Any], None]
    images: np.ndarray | None = None
    advice: str = _ADVICE


def _converted(source: _Source, variant, finish):
    """What ``finish`` returns for a converter that is set to a variant."""
    import tensorflow as tf

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            source.write(folder, tf.TensorSpec((1, *source.shape[1:]), tf.float32, name="image"))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if variant != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if variant == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if source.images is not None and variant in CALIBRATED:
                converter.representative_dataset = lambda: ([image[None]] for image in source.images)
                converter.target_spec.supported_ops = [
                    tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                    if variant == "int16x8"
                    else tf.lite.OpsSet.TFLITE_BUILTINS_INT8
                ]
            if variant == "int8_io":
                converter.inference_input_type = converter.inference_output_type = tf.int8
            return finish(converter)
        except InputError:
            raise
        # An operation that TFLite does not have is reported by the converter's own subclass of Exception, and by
        # whatever tracing and calibration raise.
        except Exception as error:
            raise InputError(
                f"TFLite {variant} of model {source.name} failed: {_reason(error)}; {source.advice}"
            ) from error


def _reason(error):
    text = str(error).strip() or type(error).__name__
    # What follows is the operator's place in the graph, which is longer than a screen.
    first = text.splitlines()[0].partition("<unknown>")[0].strip()
    operators = sorted(set(re.findall(r"'(tfl?\.\w+)' op|\b(tf\.\w+)\(tensor", text)))
    names = sorted({name for pair in operators for name in pair if name})
    return ": ".join(filter(None, [f"operator {', '.join(names)}" if names else "", first[:300]]))


@contextlib.contextmanager
def _quiet():
    """Discards output to stdout and stderr, that of C++ too: hence file descriptors, not sys.stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    copies = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            for number, _ in copies:
                os.dup2(sink.fileno(), number)
            yield
    finally:
        for number, copy in copies:
            os.dup2(copy, number)
            os.close(copy)


class Interpreter:
    """A TFLite classifier, run by LiteRT.

    Args:
        content: the flatbuffer, bytes.
        threads: number of threads to use.

    Attributes:
        runtime: name and version of the runtime, for reports.
        threads: as given.
        input_shape: (H, W, C).

    Raises:
        InputError: LiteRT is not installed.
    """

    def __init__(self, content, threads=1):
        import importlib.metadata

        try:
            from ai_edge_litert.interpreter import Interpreter as LiteRT
        except ImportError as error:
            raise InputError("running a TFLite file needs LiteRT: pip install ai-edge-litert") from error

        # The interpreter uses the XNNPACK delegate by default.
        self.runtime = f"LiteRT {importlib.metadata.version('ai-edge-litert')}, XNNPACK, CPU"
        self.threads = threads
        # The interpreter's tensors point into this memory.
        self._content = bytes(content)
        self._runner = LiteRT(model_content=self._content, num_threads=threads)
        self._runner.allocate_tensors()
        (self._input,) = self._runner.get_input_details()
        (self._output,) = self._runner.get_output_details()
        self.input_shape = tuple(int(size) for size in self._input["shape"][1:])

    def details(self):
        """[input, output], each a dict of ``name``, ``shape``, ``dtype``; for integers ``scale`` and ``zero_point``."""
        (signature,) = self._runner.get_signature_list().values()
        tensors = []
        for kind, tensor in (("inputs", self._input), ("outputs", self._output)):
            scale, zero = tensor["quantization"]
            details = {
                "name": signature[kind][0],
                "shape": [int(size) for size in tensor["shape"]],
                "dtype": np.dtype(tensor["dtype"]).name,
            }
            tensors.append({**details, "scale": float(scale), "zero_point": int(zero)} if scale else details)
        return tensors

    def predict(self, images):
        """Computes logits, one image at a time.

        Args:
            images: (N, H, W, C), pixels 0..255, uint8 or float.

        Returns:
            float32 (N, K).

        Raises:
            InputError: the file takes images of another shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input_shape:
            raise InputError(f"this TFLite file takes images of shape (N, *{self.input_shape}): got {images.shape}")
        outputs = np.empty((len(images), self._output["shape"][-1]), np.float32)
        for i in range(len(images)):
            outputs[i] = self._invoke(_quantise(images[i : i + 1], self._input))
        return outputs

    def latency(self, image, measure):
        """Measures the latency of one image, including the copies into and out of the tensors.

        Args:
            image: (H, W, C), pixels 0..255.
            measure: `kd_keras.evaluate.cost.latency`, or a partial of it with other numbers of runs.

        Returns:
            What ``measure`` returns.
        """
        tensor = _quantise(np.asarray(image)[None], self._input)
        return measure(lambda: self._invoke(tensor), runtime=self.runtime, threads=self.threads)

    def _invoke(self, tensor):
        self._runner.set_tensor(self._input["index"], tensor)
        self._runner.invoke()
        return _dequantise(self._runner.get_tensor(self._output["index"]), self._output)[0]


def load(source, threads=1):
    """Opens a TFLite classifier.

    Args:
        source: a path, or the flatbuffer as bytes.
        threads: number of threads to use.

    Returns:
        Interpreter.

    Raises:
        InputError: the file does not exist or is no TFLite file, or LiteRT is not installed.
    """
    name = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read TFLite file {name}: {error.strerror}") from error
    # LiteRT's own checks crash on some files that are not flatbuffers.
    if content[4:8] != b"TFL3":
        raise InputError(f"no TFLite file: {name} does not carry the mark TFL3; export the model again")
    try:
        return Interpreter(content, threads)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot use {name}: {str(error).splitlines()[0]}") from error


def _quantise(values, details):
    """Values as the tensor stores them: q = round(x / scale) + zero point (TFLite's quantisation specification)."""
    scale, zero = details["quantization"]
    if np.issubdtype(details["dtype"], np.integer) and scale:
        limits = np.iinfo(details["dtype"])
        values = np.clip(np.round(values / scale) + zero, limits.min, limits.max)
    return np.ascontiguousarray(values, details["dtype"])


def _dequantise(values, details):
    scale, zero = details["quantization"]
    values = values.astype(np.float32)
    return (values - zero) * np.float32(scale) if scale else values
