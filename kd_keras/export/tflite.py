"""Export to TFLite, and running the files with LiteRT.

Every file takes one float32 image of pixels 0..255, (1, H, W, C), and gives float32 logits, (1, K): the integer ones
too, so that all are used alike. ``int8_io`` alone takes and gives int8, by the scale and zero point of its tensors.
"""

import contextlib
import os
import pathlib
import re
import sys
import tempfile

import numpy as np

from kd_keras._compat import keras as graph
from kd_keras.errors import InputError
from kd_keras.export import layer_report as layer_errors
from kd_keras.export.variants import CALIBRATED, QUANTISED, VARIANTS


def convert(model, variant, representative=None, keep_float=()):
    """Converts a Keras model to a TFLite flatbuffer.

    The file has the signature ``serving_default``, from ``image`` to ``logits``. A model built under a mixed policy is
    exported in float32. While the converter works, the process's stdout and stderr are kept off the screen.

    Args:
        model: keras.Model, input (H, W, C) float32 pixels 0..255, output logits (K,).
        variant: ``float32``; ``float16``, weights stored in half precision; ``dynamic``, weights in 8 bits; ``int8``,
            weights and activations in 8 bits; ``int8_io``, pixels and logits too; ``int16x8``, weights in 8 bits and
            activations in 16. The converter leaves an operation without an integer kernel (Sin, Floor) in float32
            between a dequantise and a quantise, and says nothing.
        representative: (n, H, W, C) pixels 0..255, images whose activations calibrate those with integer activations;
            a hundred will do.
        keep_float: names of layers that stay in float32 where the others become 8 bits, such as those that
            `layer_report` finds to lose most.

    Returns:
        bytes.

    Raises:
        InputError: unknown variant, no images of the right shape where they are needed, a model without one fixed
            input, a layer to keep that the file has no operator of, or an operation that TFLite cannot express.
    """

    if variant not in VARIANTS:
        raise InputError(f"unknown TFLite variant {variant!r}; known: {', '.join(VARIANTS)}")
    shape = model.input_shape
    if not isinstance(shape, tuple) or any(not isinstance(size, int) for size in shape[1:]):
        raise InputError(f"TFLite needs a model with one input of fixed size: the input of {model.name} is {shape}")
    if variant in CALIBRATED:
        if representative is None or len(representative) == 0 or np.shape(representative)[1:] != shape[1:]:
            given = "none" if representative is None else f"an array of shape {np.shape(representative)}"
            raise InputError(
                f"TFLite {variant} needs representative images of shape (n, *{shape[1:]}) to calibrate: got {given}"
            )
        representative = np.asarray(representative, np.float32)

    if keep_float and variant != "int8":
        raise InputError(f"keep_float is for int8, not {variant}")
    return _converted(_keras_writer(model), model.name, shape, variant, representative, keep_float, _output(model))


def layer_report(model, representative) -> list[dict]:
    """What each operator of the model's int8 file loses; see `layer_errors.report`.

    Args:
        model: keras.Model, as for `convert`.
        representative: (n, H, W, C) pixels 0..255; the errors are measured on them too.

    Raises:
        InputError: an operation that TFLite cannot express.
    """
    images = np.asarray(representative, np.float32)

    def made(converter):
        debugger, _ = layer_errors.debugger(converter, images)
        return layer_errors.report(debugger, _output(model))

    return _converted(_keras_writer(model), model.name, model.input_shape, "int8", images, finish=made)


def _output(model) -> str | None:
    """Name of the layer that gives the logits."""
    return graph.made_by(model.outputs[0])[0].name if graph.is_graph(model) else None


def _keras_writer(model):
    import keras

    def write(folder, signature):
        exported = graph.in_float32(model)
        # Keras' own archive tracks Keras' variables. from_concrete_functions and tf.saved_model.save of a plain
        # module do not: the converted model then gives NaN without a word.
        archive = keras.export.ExportArchive()
        archive.track(exported)
        archive.add_endpoint(
            "serving_default",
            lambda image: {"logits": exported(image, training=False)},
            input_signature=[signature],
        )
        archive.write_out(folder, verbose=False)

    return write


def convert_quantised(model, variant="int8"):
    """Converts a tf_keras model that tensorflow-model-optimization has wrapped for quantisation-aware training.

    The ranges are those that it has learnt: no images are needed.

    Args:
        model: tf_keras.Model, (B, H, W, C) pixels 0..255 -> logits (B, K).
        variant: ``int8`` or ``int8_io``.

    Returns:
        bytes; see `convert`.

    Raises:
        InputError: another variant, or an operation that TFLite cannot express.
    """
    import tensorflow as tf

    if variant not in QUANTISED:
        raise InputError(f"a student trained with quantisation is exported as {' or '.join(QUANTISED)}, not {variant}")

    def write(folder, signature):
        serve = tf.function(lambda image: {"logits": model(image, training=False)}, input_signature=[signature])
        tf.saved_model.save(model, folder, signatures=serve)

    return _converted(write, model.name, model.input_shape, variant, instead=_INSTEAD_OF_LEARNT)


_INSTEAD = "leave the variant out: dynamic has small weights too, and float32 takes the most operators"
_INSTEAD_OF_LEARNT = (
    "keep the layers at it in float32, qat(keep_float='…'), or leave qat() out: --export=int8 quantises after training"
)


def _converted(
    write, name, shape, variant, representative=None, keep_float=(), output=None, finish=None, instead=_INSTEAD
):
    """The flatbuffer of what ``write(folder, signature)`` saves, or what ``finish`` makes of the converter."""
    import tensorflow as tf

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            write(folder, tf.TensorSpec((1, *shape[1:]), tf.float32, name="image"))
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            if variant != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if variant == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if representative is not None and variant in CALIBRATED:
                converter.representative_dataset = lambda: ([image[None]] for image in representative)
                converter.target_spec.supported_ops = [
                    tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                    if variant == "int16x8"
                    else tf.lite.OpsSet.TFLITE_BUILTINS_INT8
                ]
            if variant == "int8_io":
                converter.inference_input_type = converter.inference_output_type = tf.int8
            if finish is not None:
                return finish(converter)
            if not keep_float:
                return converter.convert()
            debugger, missing = layer_errors.debugger(converter, representative[:1], keep_float, output)
            if missing:
                raise InputError(f"no operator is called {', '.join(missing)}: take names of the layer report")
            return debugger.get_nondebug_quantized_model()
        except InputError:
            raise
        # The converter reports what it cannot express by a bare Exception subclass of its own and by the errors that
        # tracing and calibration raise; all of them mean that this model cannot become this variant.
        except Exception as error:
            raise InputError(f"TFLite {variant} of model {name} failed: {_reason(error)}; {instead}") from error


def _reason(error):
    text = str(error).strip() or type(error).__name__
    # What follows is the operator's place in the graph, which is longer than a screen.
    first = text.splitlines()[0].partition("<unknown>")[0].strip()
    operators = sorted(set(re.findall(r"'(tfl?\.\w+)' op|\b(tf\.\w+)\(tensor", text)))
    names = sorted({name for pair in operators for name in pair if name})
    return ": ".join(filter(None, [f"operator {', '.join(names)}" if names else "", first[:300]]))


@contextlib.contextmanager
def _quiet():
    """Swallows what is written to stdout and stderr, by C++ too: hence file descriptors, not sys.stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            for number, _ in kept:
                os.dup2(sink.fileno(), number)
            yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


class Interpreter:
    """A TFLite classifier under LiteRT.

    Attributes:
        runtime: name and version of the runtime, for reports.
        threads: threads it may use.
        input_shape: (H, W, C).

    Args:
        content: the flatbuffer, bytes.
        threads: threads to use.
    """

    def __init__(self, content, threads=1):
        import importlib.metadata

        try:
            from ai_edge_litert.interpreter import Interpreter as LiteRT
        except ImportError as error:
            raise InputError("running a TFLite file needs LiteRT: pip install ai-edge-litert") from error

        # Its interpreter takes the XNNPACK delegate of itself.
        self.runtime = f"LiteRT {importlib.metadata.version('ai-edge-litert')}, XNNPACK, CPU"
        self.threads = threads
        # The file's tensors point into this memory.
        self._content = bytes(content)
        self._runner = LiteRT(model_content=self._content, num_threads=threads)
        self._runner.allocate_tensors()
        (self._input,) = self._runner.get_input_details()
        (self._output,) = self._runner.get_output_details()
        self.input_shape = tuple(int(size) for size in self._input["shape"][1:])

    def details(self):
        """Of input and output each a dict: ``name``, ``shape``, ``dtype``; of integers ``scale`` and ``zero_point``."""
        (signature,) = self._runner.get_signature_list().values()
        found = []
        for kind, tensor in (("inputs", self._input), ("outputs", self._output)):
            scale, zero = tensor["quantization"]
            one = {
                "name": signature[kind][0],
                "shape": [int(size) for size in tensor["shape"]],
                "dtype": np.dtype(tensor["dtype"]).name,
            }
            found.append({**one, "scale": float(scale), "zero_point": int(zero)} if scale else one)
        return found

    def predict(self, images):
        """Logits of images, one invocation each.

        Args:
            images: (N, H, W, C), pixels 0..255, uint8 or float.

        Returns:
            float32 (N, K).

        Raises:
            InputError: the images have another shape than the file takes.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input_shape:
            raise InputError(f"this TFLite file takes images of shape (N, *{self.input_shape}): got {images.shape}")
        outputs = np.empty((len(images), self._output["shape"][-1]), np.float32)
        for i in range(len(images)):
            outputs[i] = self._invoke(_quantise(images[i : i + 1], self._input))
        return outputs

    def latency(self, image, measure):
        """Latency of one image, with the tensors' copies in and out.

        Args:
            image: (H, W, C), pixels 0..255.
            measure: `kd_keras.evaluate.latency`, or a partial of it with other numbers of runs.

        Returns:
            what ``measure`` returns.
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
        threads: threads to use.

    Returns:
        Interpreter.

    Raises:
        InputError: there is no such file, it is no TFLite file, or LiteRT is not installed.
    """
    name = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read TFLite file {name}: {error.strerror}") from error
    # LiteRT's own checks crash on some inputs that are not flatbuffers at all.
    if content[4:8] != b"TFL3":
        raise InputError(f"no TFLite file: {name} does not carry the mark TFL3; export the model again")
    try:
        return Interpreter(content, threads)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"LiteRT cannot use {name}: {str(error).splitlines()[0]}") from error


def _quantise(values, details):
    """Real values as the tensor stores them: q = round(x / scale) + zero point (TFLite quantisation specification)."""
    scale, zero = details["quantization"]
    if np.issubdtype(details["dtype"], np.integer) and scale:
        limits = np.iinfo(details["dtype"])
        values = np.clip(np.round(values / scale) + zero, limits.min, limits.max)
    return np.ascontiguousarray(values, details["dtype"])


def _dequantise(values, details):
    scale, zero = details["quantization"]
    values = values.astype(np.float32)
    return (values - zero) * np.float32(scale) if scale else values
