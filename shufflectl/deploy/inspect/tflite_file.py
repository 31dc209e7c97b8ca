"""Reads a TFLite file, table by table, without an interpreter.

A flatbuffer is a web of offsets, and the accessors follow wherever they lead. In a damaged or hostile file
they end outside of it (an exception), or make little data look like a lot: so the number of tables that are
visited is bounded. Where a runtime would call another subgraph, its cost is unknown.
"""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shufflectl.converters.metadata import METADATA_KEY
from shufflectl.deploy.files import EXPORT_AGAIN, info_from_text, read_file
from shufflectl.deploy.inspect.program import (
    Codes,
    Contraction,
    Operation,
    Program,
    Role,
    Value,
    at,
    is_scalar,
    known_shape,
    role_table,
    trained,
)
from shufflectl.errors import ArtifactError, MissingDependencyError

__all__ = ["read_tflite"]

_WHAT = "a TFLite file"
_MAX_TABLES = 250_000
_MAX_RANK = 64

# What the accessors raise on offsets that lead nowhere.
_DAMAGE = (struct.error, ValueError, IndexError, TypeError, AttributeError, OverflowError, KeyError)

_CONVOLUTIONS = {
    "CONV_2D": (0, 1, 2),
    "DEPTHWISE_CONV_2D": (0, 1, 2),
    "CONV_3D": (0, 1, 2),
    "TRANSPOSE_CONV": (2, 1, 3),
    "CONV_3D_TRANSPOSE": (2, 1, 3),
}
"""Positions of the image, the kernel and the bias among the inputs."""

_PRODUCTS = {"FULLY_CONNECTED": (0, 1, 2), "BATCH_MATMUL": (0, 1, None)}
"""Positions of both factors and of the bias among the inputs."""

_SCALES = {"PRELU": (1,), "GATHER": (0,), "GATHER_ND": (0,), "EMBEDDING_LOOKUP": (1,)}
"""Positions of trained constants; element-wise operators have theirs anywhere."""

_BINARY = """
    ADD SUB MUL DIV POW MINIMUM MAXIMUM ADD_N SQUARED_DIFFERENCE FLOOR_DIV FLOOR_MOD ATAN2 LESS LESS_EQUAL
    GREATER GREATER_EQUAL EQUAL NOT_EQUAL LOGICAL_AND LOGICAL_OR SELECT SELECT_V2 BITWISE_XOR RIGHT_SHIFT
    """
_BINARY_NAMES = frozenset(_BINARY.split())

_ROLES = role_table(
    {
        "convolution": " ".join(_CONVOLUTIONS),
        "dense": " ".join(_PRODUCTS),
        "pooling": """
            AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D MEAN SUM REDUCE_PROD REDUCE_MAX REDUCE_MIN REDUCE_ANY
            REDUCE_ALL
            """,
        "elementwise": f"""
            {_BINARY}
            RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU PRELU ELU GELU LOGISTIC HARD_SWISH TANH EXP LOG
            SQRT RSQRT SQUARE NEG ABS SIGN FLOOR CEIL ROUND SIN COS LOGICAL_NOT
            """,
        "movement": """
            CONCATENATION PACK UNPACK SPLIT SPLIT_V SLICE STRIDED_SLICE TRANSPOSE PAD PADV2 MIRROR_PAD
            GATHER GATHER_ND SCATTER_ND TILE BROADCAST_TO DEPTH_TO_SPACE SPACE_TO_DEPTH BATCH_TO_SPACE_ND
            SPACE_TO_BATCH_ND REVERSE_V2 REVERSE_SEQUENCE CAST QUANTIZE DEQUANTIZE FAKE_QUANT
            DYNAMIC_UPDATE_SLICE DILATE DENSIFY EMBEDDING_LOOKUP
            """,
        "view": "RESHAPE SQUEEZE EXPAND_DIMS SHAPE RANK BITCAST",
        "other": """
            SOFTMAX LOG_SOFTMAX L2_NORMALIZATION LOCAL_RESPONSE_NORMALIZATION RESIZE_BILINEAR
            RESIZE_NEAREST_NEIGHBOR ARG_MAX ARG_MIN TOPK_V2 ONE_HOT CUMSUM RANGE FILL ZEROS_LIKE WHERE
            UNIQUE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 BROADCAST_ARGS SPARSE_TO_DENSE MATRIX_DIAG
            MATRIX_SET_DIAG SEGMENT_SUM BUCKETIZE RANDOM_STANDARD_NORMAL RANDOM_UNIFORM MULTINOMIAL
            """,
    }
)


def read_tflite(path: Path) -> tuple[Program, int]:
    """Read a TFLite file.

    Returns:
        The program of its first subgraph, and the file's size in bytes.

    Raises:
        ArtifactError: It is missing, damaged or no TFLite file.
        MissingDependencyError: ai-edge-litert or flatbuffers is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("ai_edge_litert", "flatbuffers"):
            raise
        raise MissingDependencyError(package.replace("_", "-"), "tflite", f"reading {path.name}") from error
    data = read_file(path, _WHAT)
    if data[4:8] != b"TFL3":
        raise ArtifactError(f"{path} is not {_WHAT}: it does not begin as one", hint="check the path")
    try:
        return _Reader(schema, data).program(), len(data)
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is a damaged or truncated TFLite file", hint=EXPORT_AGAIN) from error


_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


class _Reader:
    """One file's tables."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self._schema = schema
        self._size = len(data)
        self._left = _MAX_TABLES
        self._operators = _names(schema.BuiltinOperator)
        self._types = _names(schema.TensorType)
        self._model = schema.Model.GetRootAs(data, 0)
        if self._model.SubgraphsLength() < 1:
            raise ValueError("no subgraph")
        self._graph = self._model.Subgraphs(0)
        if self._graph.OutputsLength() < 1:
            raise ValueError("no output")
        self._filled = [self._has_data(buffer) for buffer in self._all("Buffers")]
        self._codes = [self._code(code) for code in self._all("OperatorCodes")]
        self._tensors: list[Value] = []
        self._declared: list[Value] = []
        for tensor in self._all("Tensors", self._graph):
            inner, declared = self._value(tensor)
            self._tensors.append(inner)
            self._declared.append(declared)

    def program(self) -> Program:
        graph = self._graph
        info = info_from_text(self._metadata())
        # A file's description is what converters sign with; ours holds what the name says.
        signed = (self._model.Description() or b"").decode("utf-8", "replace")
        return Program(
            "tflite",
            tuple(self._declared[i] for i in self._indices(graph.InputsLength(), graph.InputsAsNumpy)),
            tuple(self._declared[i] for i in self._indices(graph.OutputsLength(), graph.OutputsAsNumpy)),
            tuple(self._operation(op) for op in self._all("Operators", graph)),
            signed if info is None else "shufflectl",
            info,
        )

    def _all(self, what: str, table: Any = None) -> Iterator[Any]:
        """Yield a vector's tables."""
        table = self._model if table is None else table
        count = getattr(table, f"{what}Length")()
        self._spend(count)
        for index in range(count):
            item = getattr(table, what)(index)
            if item is None:
                raise ValueError(f"{what} {index} is missing")
            yield item

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError("too many tables")

    def _indices(self, count: int, read: Callable[[], Any]) -> list[int]:
        """Return a vector of tensor indices; -1 is an optional input that is not given."""
        self._spend(count)
        indices = [int(i) for i in read()] if count else []
        if any(not -1 <= i < len(self._tensors) for i in indices):
            raise ValueError("no such tensor")
        return indices

    def _has_data(self, buffer: Any) -> bool:
        count = buffer.DataLength()
        if count:
            buffer.Data(count - 1)
        # Large files keep constants behind the flatbuffer; offsets 0 and 1 say that there is none.
        if buffer.Offset() > 1 and buffer.Offset() + buffer.Size() > self._size:
            raise ValueError("a constant lies outside of the file")
        return bool(count or buffer.Offset() > 1)

    def _code(self, code: Any) -> str:
        # The old field is a byte: readers take whichever of the two says more (tensorflow's schema_utils).
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = self._operators.get(number, f"BUILTIN_{number}")
        if name == "CUSTOM":
            return f"CUSTOM:{(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        return str(name)

    def _value(self, tensor: Any) -> tuple[Value, Value]:
        """Return a tensor with a free batch of 1, and as declared."""
        name = (tensor.Name() or b"").decode("utf-8", "replace")
        dtype = self._types.get(tensor.Type(), "").lower() or None
        constant = self._filled[tensor.Buffer()] or tensor.ExternalBuffer() > 0
        if max(tensor.ShapeLength(), tensor.ShapeSignatureLength()) > _MAX_RANK:
            raise ValueError("too many dimensions")
        shape = [int(d) for d in tensor.ShapeAsNumpy()] if tensor.ShapeLength() else []
        if not shape and not constant and not tensor.HasRank():
            return Value(name, None, dtype), Value(name, None, dtype)
        free = shape
        if tensor.ShapeSignatureLength() == len(shape) and shape:
            free = [int(d) for d in tensor.ShapeSignatureAsNumpy()]
        declared = tuple(d if d >= 0 else None for d in free)
        inner = tuple(
            size if size >= 0 and (d is not None or axis == 0) else None
            for axis, (size, d) in enumerate(zip(shape, declared, strict=True))
        )
        codes = _codes(tensor, dtype)
        return (
            Value(name, inner, dtype, constant, codes=codes),
            Value(name, declared, dtype, constant, codes=codes),
        )

    def _metadata(self) -> dict[str, str]:
        found = {}
        for entry in self._all("Metadata"):
            name = (entry.Name() or b"").decode("utf-8", "replace")
            if name == METADATA_KEY:
                buffer = self._model.Buffers(entry.Buffer())
                raw = buffer.DataAsNumpy() if buffer.DataLength() else np.zeros(0, np.uint8)
                found[name] = raw.tobytes().decode("utf-8", "replace")
        return found

    def _operation(self, op: Any) -> Operation:
        kind = self._codes[op.OpcodeIndex()]
        indices = self._indices(op.InputsLength(), op.InputsAsNumpy)
        made = [i for i in self._indices(op.OutputsLength(), op.OutputsAsNumpy) if i >= 0]
        inputs = [None if i < 0 else self._tensors[i] for i in indices]
        given = [v for v in inputs if v is not None]
        role = _ROLES.get(kind, "unknown")
        if role not in ("convolution", "dense", "unknown") and given and all(v.constant for v in given):
            role = "weights"
            for i in made:
                v = self._tensors[i]
                self._tensors[i] = replace(v, constant=True, held=given[0].held or given[0].dtype)
        outputs = tuple(self._tensors[i] for i in made)
        weights, biases = _weights(kind, role, inputs)
        return Operation(
            outputs[0].name if outputs else kind,
            kind,
            role,
            tuple(v for v in given if not v.constant),
            outputs,
            weights,
            biases,
            self._contraction(kind, op, inputs, outputs),
            next((v.codes for v in (*outputs, *given) if v.codes), None) if kind in _CONVERSIONS else None,
        )

    def _contraction(
        self, kind: str, op: Any, inputs: Sequence[Value | None], outputs: Sequence[Value]
    ) -> Contraction | None:
        if not outputs:
            return None
        if kind in _CONVOLUTIONS:
            image, kernel, _ = _CONVOLUTIONS[kind]
            return _convolution(kind, at(inputs, image), at(inputs, kernel), outputs[0])
        first, second, result = (
            known_shape(at(inputs, 0)),
            known_shape(at(inputs, 1)),
            known_shape(outputs[0]),
        )
        if first is None or second is None:
            return None
        if kind == "FULLY_CONNECTED" and len(second) == 2 and second[1] > 0:
            return Contraction(second[1], second[0], math.prod(first) // second[1])
        if kind == "BATCH_MATMUL" and len(first) > 1 and len(second) > 1 and result:
            options = self._schema.BatchMatMulOptions()
            table = op.BuiltinOptions()
            adjoint = False
            if table is not None:
                options.Init(table.Bytes, table.Pos)
                adjoint = options.AdjX()
            columns = result[-1]
            return Contraction(
                first[-2] if adjoint else first[-1], columns, math.prod(result) // max(columns, 1)
            )
        return None


def _codes(tensor: Any, dtype: str | None) -> Codes | None:
    """Return the grid of a tensor of codes, if it is one for the whole tensor."""
    found = tensor.Quantization()
    if found is None or found.ScaleLength() != 1 or dtype not in ("int8", "uint8", "int16"):
        return None
    scale = float(found.Scale(0))
    zero = int(found.ZeroPoint(0)) if found.ZeroPointLength() else 0
    return Codes(dtype, scale, zero) if math.isfinite(scale) else None


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _weights(kind: str, role: Role, inputs: Sequence[Value | None]) -> tuple[tuple[Value, ...], int]:
    """Return the trained constants, biases last, and the number of biases."""
    if role == "convolution":
        _, kernel, bias = _CONVOLUTIONS[kind]
        return trained([at(inputs, kernel)], [at(inputs, bias)])
    if role == "dense":
        first, second, bias_of_product = _PRODUCTS[kind]
        return trained([at(inputs, first), at(inputs, second)], [at(inputs, bias_of_product)])
    if kind in _SCALES and role != "weights":
        return trained(at(inputs, index) for index in _SCALES[kind])
    if kind in _BINARY_NAMES and role == "elementwise":
        # A scalar is part of a formula (the 3 of hard-swish), not a trained tensor.
        return trained(v for v in inputs if v is not None and not is_scalar(v))
    return (), 0


def _convolution(kind: str, image: Value | None, kernel: Value | None, output: Value) -> Contraction | None:
    weight, source, result = known_shape(kernel), known_shape(image), known_shape(output)
    if weight is None or source is None or result is None or not (len(weight) == len(source) == len(result)):
        return None
    if len(weight) < 3 or 0 in weight or 0 in source:
        return None
    if kind == "CONV_2D":  # [c2, kh, kw, c1/g]
        groups = source[-1] // weight[-1]
        return Contraction(source[-1], weight[0], math.prod(result[:-1]), max(groups, 1), weight[1:-1])
    if kind == "DEPTHWISE_CONV_2D":  # [1, kh, kw, c2]
        return Contraction(source[-1], weight[-1], math.prod(result[:-1]), source[-1], weight[1:-1])
    if kind == "CONV_3D":  # [kd, kh, kw, c1/g, c2]
        groups = source[-1] // weight[-2]
        return Contraction(source[-1], weight[-1], math.prod(result[:-1]), max(groups, 1), weight[:-2])
    if kind == "CONV_3D_TRANSPOSE":  # [kd, kh, kw, c2, c1]
        return Contraction(source[-1], weight[-2], math.prod(source[:-1]), 1, weight[:-2])
    # A transposed convolution's kernel is [c2, kh, kw, c1].
    return Contraction(source[-1], weight[0], math.prod(source[:-1]), 1, weight[1:-1])
