"""Export to TFLite.

Every file takes one float32 image of pixels 0..255, (1, H, W, C), and returns float32 logits, (1, K), also where it
computes in integers. Only ``int8_io`` takes and returns int8, by the scale and zero point of its tensors.
"""

import contextlib
import dataclasses
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_keras._compat import keras as graph
from kd_keras.distillation.distiller import Distiller
from kd_keras.distillation.taps import Taps
from kd_keras.errors import InputError
from kd_keras.export import calibration
from kd_keras.export import layer_report as layers
from kd_keras.export.interpreter import Interpreter, load  # noqa: F401
from kd_keras.export.variants import CALIBRATED, QUANTISED, VARIANTS

# Calibration images that are looked at, and the largest output of a model that can have been trained.
_SEEN, _MOST = 32, 1e9


def convert(model, variant, representative=None, keep_float=(), output=None):
    """Converts a Keras model to a TFLite flatbuffer.

    The file has the signature ``serving_default``, from ``image`` to ``logits``. Of a model that ends in probabilities
    it gives the logits behind them; see `kd_keras.distillation.heads`. A model built under a mixed policy is exported
    in float32. While the converter works, the process's stdout and stderr are discarded. Calibration images that are
    constant, few or on another scale are warned of.

    Args:
        model: keras.Model, input (H, W, C) float32 pixels 0..255, output logits or probabilities (K,); or a
            `Distiller`, of which the student is exported.
        variant: ``float32``; ``float16``, weights stored in half precision; ``dynamic``, weights in 8 bits; ``int8``,
            weights and activations in 8 bits; ``int8_io``, pixels and logits too; ``int16x8``, weights in 8 bits and
            activations in 16. The converter silently leaves an operation without an integer kernel (Sin, Floor) in
            float32, between a dequantise and a quantise.
        representative: (n, H, W, C) pixels 0..255, images that calibrate the ranges of integer activations; a hundred
            are enough. Whatever the variant, what the model's output is is found out from them.
        keep_float: names of layers that stay in float32 in an ``int8`` file, such as those with the largest errors in
            `layer_report`.
        output: what the model's output is, one of `kd_keras.distillation.heads.KINDS`, where that is known.

    Returns:
        bytes.

    Raises:
        InputError: an unknown variant, no images of the right shape where they are needed, a model without one fixed
            input, a name in ``keep_float`` that no operator belongs to, an operation that TFLite does not have, or one
            that an ``int8_io`` file would compute in float.
    """
    model = model.student if isinstance(model, Distiller) else model
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
        for sentence in calibration.doubts(representative):
            warnings.warn(f"TFLite {variant} of {model.name}: {sentence}", stacklevel=1)
    if keep_float and variant != "int8":
        raise InputError(f"keep_float is for int8, not {variant}")
    model = _with_logits(model, representative, output)
    if variant in CALIBRATED:
        _check_outputs(model, variant, representative)

    def finish(converter):
        if not keep_float:
            return converter.convert()
        debugger, missing = layers.debugger(converter, representative[:1], keep_float, _output(model))
        if missing:
            raise InputError(f"no operator is called {', '.join(missing)}: take names of the layer report")
        return debugger.get_nondebug_quantized_model()

    return _converted(_Source(model.name, shape, _keras_writer(model), representative), variant, finish)


def layer_report(model, representative, output=None) -> list[dict]:
    """The error of each operator of the model's int8 file; see `layer_report.report`.

    Args:
        model: keras.Model, as for `convert`.
        representative: (n, H, W, C) pixels 0..255, for calibration and for measuring the errors.
        output: as for `convert`.

    Raises:
        InputError: an operation that TFLite does not have.
    """
    images = np.asarray(representative, np.float32)
    model = _with_logits(model, images, output)

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
        InputError: another variant, an operation that TFLite does not have, or one that an ``int8_io`` file would
            compute in float.
    """
    import tensorflow as tf

    if variant not in QUANTISED:
        raise InputError(f"a student trained with quantisation is exported as {' or '.join(QUANTISED)}, not {variant}")

    def write(folder, signature):
        serve = tf.function(lambda image: {"logits": model(image, training=False)}, input_signature=[signature])
        tf.saved_model.save(model, folder, signatures=serve)

    source = _Source(model.name, model.input_shape, write, advice=_ADVICE_AFTER_QAT)
    return _converted(source, variant, lambda converter: converter.convert())


def _with_logits(model, images, output):
    """The model in float32, ending in logits; decided on images of the real data where there are some."""
    taps = Taps(graph.in_float32(model), "model", output)
    taps.decide(images)
    return taps.logits_model()


def _check_outputs(model, variant, images):
    """Raises InputError of a model that has diverged: converting it to integers can end the process."""
    largest = float(np.abs(model.predict(images[:_SEEN], verbose=0)).max())
    if not largest < _MOST:
        raise InputError(
            f"TFLite {variant} of {model.name}: its output reaches {largest:.1g} on the calibration images, so its "
            "training has diverged: lower the learning rate or clip gradients"
        )


def _output(model) -> str | None:
    """Name of the layer that computes the logits."""
    if not graph.is_graph(model):
        return None
    last, _ = graph.made_by(model.outputs[0])
    # A layer without its activation is wrapped; see `heads`.
    return getattr(last, "layer", last).name


def _keras_writer(model):
    import keras

    def write(folder, signature):
        # Only Keras' own archive tracks Keras' variables. After from_concrete_functions, or tf.saved_model.save of a
        # plain module, the converted model returns NaN without any warning.
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(
            "serving_default",
            lambda image: {"logits": model(image, training=False)},
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
            return _checked(finish(converter), source, variant)
        except InputError:
            raise
        # An operation that TFLite does not have is reported by the converter's own subclass of Exception, and by
        # whatever tracing and calibration raise.
        except Exception as error:
            raise InputError(
                f"TFLite {variant} of model {source.name} failed: {_reason(error)}; {source.advice}"
            ) from error


def _checked(content, source, variant):
    """The file; refused where it computes in float and is for devices that have none."""
    names = float_tensors(content) if variant == "int8_io" else []
    if names:
        shown = ", ".join(name.partition(";")[0][-60:] for name in names[:3])
        raise InputError(
            f"TFLite int8_io of model {source.name} would compute in float at {len(names)} places ({shown}), which a "
            "device without floating point can't: give int8, or build the model of layers that have integer kernels"
        )
    return content


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


def float_tensors(content: bytes) -> list[str]:
    """Names of a TFLite file's tensors of floating point."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {getattr(schema.TensorType, name) for name in ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")}
    graphs = schema.ModelT.InitFromPackedBuf(content, 0).subgraphs
    return [(tensor.name or b"?").decode() for graph in graphs for tensor in graph.tensors if tensor.type in kinds]
