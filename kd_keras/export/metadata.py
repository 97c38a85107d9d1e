"""Metadata inside a TFLite file: input, output, class names and operators, which any unzip can read.

It is a zip archive after the flatbuffer, where TFLite readers ignore it:
``zipfile.ZipFile('student_int8.tflite').read('metadata.json')``, or ``unzip -p student_int8.tflite labels.txt``.
TFLite's own metadata tools pack files in the same way (https://ai.google.dev/edge/litert/models/metadata).
"""

import io
import json
import zipfile

from kd_keras.errors import InputError

# A zip entry has a date; a constant one makes the files of equal models equal.
_DATE = (1980, 1, 1, 0, 0, 0)


def attach(content: bytes, class_names, **more) -> bytes:
    """Appends metadata to a TFLite file.

    Args:
        content: the flatbuffer.
        class_names: K names, in the order of the logits.
        **more: further entries, of types that JSON has; ``thresholds``, by name, where the labels are independent.

    Returns:
        bytes: the TFLite file, followed by a zip of ``labels.txt`` (one name per line) and ``metadata.json``.
    """
    record = {
        **_tensors(content, "thresholds" in more),
        "class_names": list(class_names),
        "operators": operators(content),
        **more,
    }
    packed = io.BytesIO(content)
    with zipfile.ZipFile(packed, "a") as archive:
        for name, text in (
            ("labels.txt", "\n".join(map(str, class_names)) + "\n"),
            ("metadata.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def read(path) -> dict:
    """Reads the metadata of a file that `attach` made.

    Raises:
        InputError: the file has none, or does not exist.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("metadata.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} has no metadata ({error}): export the model again") from error


def operators(content: bytes) -> list[str]:
    """Names of the operators that a TFLite file uses, sorted, such as ``CONV_2D``."""
    from ai_edge_litert import schema_py_generated as schema

    names = {
        value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int) and name.isupper()
    }
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    # The file's own list also has operators that the converter has replaced since.
    used = {operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators}
    return sorted(
        {
            code.customCode.decode()
            if code.builtinCode == schema.BuiltinOperator.CUSTOM
            else names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            for code in (model.operatorCodes[index] for index in used)
        }
    )


def _tensors(content, is_multilabel=False) -> dict:
    """The signature's input and output: names, shapes, types, and the quantisation of integers."""
    from kd_keras.export import tflite

    image, logits = tflite.load(content).details()
    meaning = "logits, one a class; softmax makes them probabilities"
    if is_multilabel:
        meaning = "logits, one a label; a sigmoid makes each a probability: the label is there above its threshold"
    return {
        "input": {**image, "range": [0, 255], "layout": "NHWC", "meaning": "pixels of the image"},
        "output": {**logits, "meaning": meaning},
    }
