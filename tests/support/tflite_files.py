"""TFLite files made operator by operator, for operators and versions that the emitter does not write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "int8": schema.TensorType.INT8,
}


@dataclass(frozen=True)
class Op:
    """An operator: its type, the names of its tensors, its version, and its options' class and fields."""

    type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    version: int = 1
    options: str = ""
    fields: Mapping[str, int | float] = field(default_factory=dict)
    custom: str = ""


def tflite_bytes(
    ops: Sequence[Op],
    shapes: Mapping[str, Sequence[int]],
    constants: Mapping[str, NDArray[Any]] | None = None,
    *,
    outputs: Sequence[str],
    dtypes: Mapping[str, str] | None = None,
) -> bytes:
    """Return a file. Its input is the tensor ``x``; every other tensor is a constant or made by an operator.

    Args:
        ops: The operators, in the order of execution.
        shapes: The shapes of tensors that are not constant.
        constants: The constants.
        outputs: The names of the results.
        dtypes: The types of tensors that are not constant; float32 where not given.
    """
    constants = constants or {}
    model = schema.ModelT()
    model.version, model.description = 3, "made by hand"
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, names = [], [*shapes, *constants]
    for name in names:
        tensor = schema.TensorT()
        tensor.name = name
        if name in constants:
            array = np.ascontiguousarray(constants[name])
            tensor.shape, tensor.type = list(array.shape), _TYPES[str(array.dtype)]
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(array.tobytes(), np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        else:
            tensor.shape, tensor.buffer = list(shapes[name]), 0
            tensor.type = _TYPES[(dtypes or {}).get(name, "float32")]
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = [names.index("x")], [names.index(name) for name in outputs]
    graph.operators, model.operatorCodes = [], []
    for op in ops:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, op.type)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version, code.customCode = op.version, op.custom or None
        entry = schema.OperatorT()
        entry.opcodeIndex = len(model.operatorCodes)
        model.operatorCodes.append(code)
        entry.inputs = [names.index(name) if name else -1 for name in op.inputs]
        entry.outputs = [names.index(name) for name in op.outputs]
        if op.options:
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, op.options)
            entry.builtinOptions = getattr(schema, f"{op.options}T")()
            for key, value in op.fields.items():
                setattr(entry.builtinOptions, key, value)
        graph.operators.append(entry)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


__all__ = ["Op", "tflite_bytes"]
