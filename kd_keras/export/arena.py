"""The working memory of a TFLite file on a microcontroller."""

import math

# Bytes of a number, by `schema.TensorType`.
_BYTES = {
    "FLOAT32": 4,
    "FLOAT16": 2,
    "INT32": 4,
    "UINT8": 1,
    "INT64": 8,
    "BOOL": 1,
    "INT16": 2,
    "INT8": 1,
    "FLOAT64": 8,
}


def activation_bytes(content: bytes) -> int:
    """The largest sum of a TFLite file's activations that are alive at once, for one image.

    An activation lives from the operator that writes it to the last one that reads it; weights that an operator turns
    to float are among them. LiteRT for Microcontrollers adds its own structures and the scratch buffers of its kernels,
    and saves where an operator may write over what it reads.

    Args:
        content: the file.

    Reference: https://ai.google.dev/edge/litert/microcontrollers/library, *tensor arena*.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]

    def size(number):
        tensor = graph.tensors[number]
        buffer = model.buffers[tensor.buffer]
        is_constant = (buffer.data is not None and len(buffer.data)) or buffer.offset
        shape = [] if tensor.shape is None else tensor.shape
        return 0 if is_constant else math.prod(int(side) for side in shape) * _BYTES.get(names[tensor.type], 4)

    last = len(graph.operators)
    begins = {number: 0 for number in graph.inputs}
    ends = {number: last for number in graph.outputs}
    for step, operator in enumerate(graph.operators):
        for number in operator.outputs:
            begins[number] = step
        for number in operator.inputs:
            ends[number] = max(ends.get(number, 0), step)
    alive = [
        sum(size(number) for number, begin in begins.items() if begin <= step <= ends.get(number, begin))
        for step in range(last)
    ]
    return max(alive, default=0)
