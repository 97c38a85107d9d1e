"""Running TFLite classifiers with LiteRT."""

import pathlib

import numpy as np

from kd_keras.distillation import heads
from kd_keras.errors import InputError


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

    def logits(self, images):
        """Computes logits, also of a file made elsewhere that gives probabilities, which may be rounded to 8 bits.

        Args:
            images: as for `predict`.

        Returns:
            float32 (N, K).
        """
        return self.to_logits(self.predict(images))

    def to_logits(self, outputs):
        """The logits behind what `predict` gave, (N, K); what that is, is found out from all of it, see `heads`."""
        step = self._output["quantization"][0]
        # Each probability is off by half a step at most, and so is one that is 0.
        tolerance = 2e-2 + outputs.shape[-1] * step / 2
        if outputs.min() >= 0 and np.abs(outputs.sum(axis=-1) - 1).max() <= tolerance:
            outputs = np.maximum(outputs, step / 2)
            outputs = outputs / outputs.sum(axis=-1, keepdims=True)
        return np.asarray(heads.of_values(outputs, "file").to_logits(outputs, floor=True))

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
