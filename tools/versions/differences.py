"""What differs between the workdirs of two runs: weights, tables and TFLite files, to the bit."""

import dataclasses
import io
import json
import math
import pathlib
import re
import zipfile

import numpy as np

#: Columns of results.json that are texts which may change, or that only one version has.
_TEXTS = ("role", "stage")
#: Beginnings of the columns that are measured by a clock, or depend on what else runs.
_MEASURED = ("latency", "memory", "seconds", "time")
# Sizes of a file: of a TFLite file they change with its metadata, of a .keras file with the names of modules in it.
_SIZES = ("bytes", "zip_bytes")


@dataclasses.dataclass
class Comparison:
    """What was compared, and what differs.

    Attributes:
        models: names of the ``.keras`` files that both runs have.
        files: names of the ``.tflite`` files that both runs have.
        rows: rows of ``results.json`` that both runs have.
        differences: a text for each difference.
        notes: a text for each difference that does not count.
    """

    models: list[str] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)
    rows: int = 0
    differences: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def compare(old: pathlib.Path, new: pathlib.Path) -> Comparison:
    """Compares the top level of two workdirs."""
    result = Comparison()
    result.models = _in_both(old, new, "*.keras", result)
    for name in result.models:
        result.differences += [f"{name}: {text}" for text in compare_weights(old / name, new / name)]
    result.files = _in_both(old, new, "*.tflite", result)
    for name in result.files:
        what, counts = compare_tflite(old / name, new / name)
        if what:
            (result.differences if counts else result.notes).append(f"{name}: {what}")
    if not result.models:
        result.differences.append("no .keras file to compare")
    tables = [folder / "results.json" for folder in (old, new)]
    missing = [str(path) for path in tables if not path.exists()]
    if missing:
        result.differences.append(f"{' and '.join(missing)} missing")
    else:
        _compare_tables(*(json.loads(path.read_text(encoding="utf-8")) for path in tables), result)
    return result


def _in_both(old, new, pattern, result) -> list[str]:
    names = [{path.name for path in folder.glob(pattern)} for folder in (old, new)]
    result.differences += [f"{name} is only in the old run" for name in sorted(names[0] - names[1])]
    result.differences += [f"{name} is only in the new run" for name in sorted(names[1] - names[0])]
    return sorted(names[0] & names[1])


def read_weights(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a ``.keras`` file by their path in it, without those of an optimizer."""
    import h5py

    arrays = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            arrays[name] = item[()]

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(collect)
    return arrays


def compare_weights(old: pathlib.Path, new: pathlib.Path) -> list[str]:
    """What differs between the weights of two ``.keras`` files.

    Layers that have other names but the same weights don't count: a class of the package may have been renamed.
    """
    first, second = read_weights(old), read_weights(new)
    if first.keys() != second.keys():
        same = sorted(map(_content, first.values())) == sorted(map(_content, second.values()))
        return [] if same else [f"other arrays: {', '.join(sorted(first.keys() ^ second.keys())[:4])} …"]
    differing = [name for name in first if _content(first[name]) != _content(second[name])]
    if not differing:
        return []
    if any(first[name].shape != second[name].shape for name in differing):
        return ["shapes of weights differ"]
    largest = max(float(np.max(np.abs(np.float64(first[name]) - second[name]))) for name in differing)
    return [f"{len(differing)} of {len(first)} weight arrays differ, by up to {largest:.3g}"]


def _content(array) -> tuple:
    return array.shape, array.dtype.str, array.tobytes()


def _compare_tables(old: list[dict], new: list[dict], result: Comparison) -> None:
    """Compares the rows of results.json by their position."""
    if len(old) != len(new):
        result.differences.append(f"results.json has {len(old)} and {len(new)} rows")
    sizes_count = {"tflite": not any("metadata" in note for note in result.notes), "keras": bool(result.differences)}
    if added := sorted(set().union(*new) - set().union(*old) - set(_TEXTS)):
        result.notes.append(f"results.json has new columns: {', '.join(added)}")
    for number, (first, second) in enumerate(zip(old, new, strict=False), start=1):
        result.rows += 1
        for column in sorted(first.keys() - set(_TEXTS)):
            values = [row.get(column, "no such column") for row in (first, second)]
            if column.startswith(_MEASURED) or _equal(*values):
                continue
            text = f"results.json, row {number} ({first['role']}), {column}: {values[0]} and {values[1]}"
            # Of a Keras model, zip_bytes is null.
            counts = column not in _SIZES or sizes_count["keras" if first.get("zip_bytes") is None else "tflite"]
            (result.differences if counts else result.notes).append(text)


def _equal(first, second) -> bool:
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second):
        return True
    return type(first) is type(second) and first == second


def compare_tflite(old: pathlib.Path, new: pathlib.Path) -> tuple[str, bool]:
    """Compares two TFLite files.

    Returns:
        What differs ("" if nothing does), and whether it counts: metadata alone does not, if without it the flatbuffers
        are equal and both give the same outputs for the same images.
    """
    first, second = old.read_bytes(), new.read_bytes()
    if first == second:
        return "", False
    if _stripped(first) != _stripped(second):
        return "the networks differ", True
    if not all(np.array_equal(*pair) for pair in zip(_outputs(first), _outputs(second), strict=True)):
        return "the outputs differ", True
    return "only metadata differ", False


def _stripped(content: bytes) -> bytes:
    """The flatbuffer without its metadata and the zip archive after it.

    The layer that quantises the input has a number in version 0.1 that counts the models of the process.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = content[: min(entry.header_offset for entry in archive.infolist())]
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for entry in model.metadata or []:
        model.buffers[entry.buffer].data = None
    model.metadata = model.metadataBuffer = model.description = None
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        tensor.name = re.sub(rb"quantize_layer_\d+", b"quantize_layer", tensor.name)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _outputs(content: bytes) -> list[np.ndarray]:
    """The network's outputs for eight fixed images."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    rng = np.random.default_rng(0)
    outputs = []
    for _ in range(8):
        image = rng.integers(0, 128, given["shape"]).astype(given["dtype"])
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        outputs += [interpreter.get_tensor(details["index"]) for details in interpreter.get_output_details()]
    return outputs
