"""What travels with a TFLite file: input, output, class names, operators, readable by any unzip.

The record is a zip archive behind the flatbuffer, which TFLite readers do not look at:
``zipfile.ZipFile('student_int8.tflite').read('metadata.json')``, or ``unzip -p student_int8.tflite labels.txt``. Files
that go with a model are packed so by TFLite's own metadata tools (https://ai.google.dev/edge/litert/models/metadata).
"""

import io
import json
import zipfile

from kd_keras.errors import InputError

# A zip entry has a date; of equal models the files shall be equal.
_DATE = (1980, 1, 1, 0, 0, 0)


def attach(content: bytes, class_names, **more) -> bytes:
    """The file with its record.

    Args:
        content: the flatbuffer.
        class_names: K names, in the order of the logits.
        **more: what else the record is to say, as JSON has it.

    Returns:
        bytes; a TFLite file as before, ``labels.txt`` (a name a line) and ``metadata.json`` in the zip behind it.
    """
    record = {**_tensors(content), "class_names": list(class_names), "operators": operators(content), **more}
    packed = io.BytesIO(content)
    with zipfile.ZipFile(packed, "a") as archive:
        for name, text in (
            ("labels.txt", "\n".join(map(str, class_names)) + "\n"),
            ("metadata.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n"),
        ):
            archive.writestr(zipfile.ZipInfo(name, _DATE), text, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def read(path) -> dict:
    """The record of a file that `attach` made.

    Raises:
        InputError: it has none, or there is no such file.
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
    return sorted(
        {
            one.customCode.decode()
            if one.builtinCode == schema.BuiltinOperator.CUSTOM
            else names[max(one.builtinCode, one.deprecatedBuiltinCode)]
            for one in model.operatorCodes
        }
    )


def _tensors(content) -> dict:
    """The signature's input and output: names, shapes, types, and how integers are to be read."""
    from kd_keras.export import tflite

    given, made = tflite.load(content).details()
    return {
        "input": {**given, "range": [0, 255], "layout": "NHWC", "meaning": "pixels of the image"},
        "output": {**made, "meaning": "logits, one a class; softmax makes them probabilities"},
    }
