"""Reads what a TFLite delegate asks about an operator: version, options, types, ranks and constants.

`tflite_file` reads what operators cost; a delegate's rules ask for more, and for nothing of that. The file's
structure is checked first (`runtimes.tflite_file`), since offsets are followed here without further care.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shufflectl.deploy.files import EXPORT_AGAIN
from shufflectl.deploy.runtimes import tflite_file
from shufflectl.errors import ArtifactError, MissingDependencyError

__all__ = ["Node", "Tensor", "read_nodes"]

_MOST_VALUES: Final = 64
"""Shapes, axes, paddings and permutations are shorter; longer constants are weights, and stay unread."""

_DAMAGE: Final = (struct.error, ValueError, IndexError, TypeError, AttributeError, KeyError)
_UNPACKING: Final = ("DEQUANTIZE", "DENSIFY")
_SMALL: Final = {"int32": "<i4", "int64": "<i8"}


@dataclass(frozen=True)
class Tensor:
    """A tensor as delegates see it.

    Attributes:
        index: Its number in the file.
        name: Its name in the file.
        shape: A free dimension counts as the file's default for it, mostly 1.
        dtype: ``float32``, ``int8`` ...
        constant: Whether the file stores it, or an operator only unpacks what the file stores.
        values: The numbers of a short constant of integers; None otherwise.
        scales: How many quantisation scales it has; 0 where it is not quantised.
        scale: The first of them.
        zero_point: The first zero point.
        axis: The axis of the scales where there are several.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    values: tuple[int, ...] | None = None
    scales: int = 0
    scale: float = 0.0
    zero_point: int = 0
    axis: int = 0

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


@dataclass(frozen=True)
class Node:
    """An operator.

    Attributes:
        index: Its place in the order of execution.
        name: Its first output's name: the file has no names for operators.
        type: TFLite's name of the operator, ``CUSTOM:name`` for others.
        version: The operator's version.
        inputs: None for an optional input that is not given.
        outputs: What it writes.
        options: The scalar options by their names in the schema's object API, as ``strideH``.
        unpacks: Whether it only unpacks a constant of the file (fp16 or sparse weights), which happens once,
            when the model is loaded.
    """

    index: int
    name: str
    type: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Mapping[str, int | float]
    unpacks: bool = False

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The inputs that are given."""
        return tuple(t for t in self.inputs if t is not None)

    @property
    def runtime_inputs(self) -> tuple[Tensor, ...]:
        """The inputs that differ from run to run."""
        return tuple(t for t in self.given if not t.constant)

    def input(self, position: int) -> Tensor | None:
        """Return the input at a position; None where it is not given."""
        return self.inputs[position] if position < len(self.inputs) else None


def read_nodes(path: Path) -> tuple[Node, ...]:
    """Return the operators of a TFLite file's graph, in the order of execution.

    Raises:
        ArtifactError: The file is missing, damaged, of another kind, or its structure is not one that is
            checked (several graphs that call one another, weights in other files).
        MissingDependencyError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ModuleNotFoundError as error:
        raise MissingDependencyError("ai-edge-litert", "tflite", f"reading {path.name}") from error
    file = tflite_file.read(path)
    try:
        return tuple(_Reader(schema, file.data).nodes())
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is a damaged TFLite file", hint=EXPORT_AGAIN) from error


class _Reader:
    def __init__(self, schema: Any, data: bytes) -> None:
        self._schema = schema
        self._operators = _names(schema.BuiltinOperator)
        self._types = _names(schema.TensorType)
        self._kinds = _names(schema.BuiltinOptions)
        self._model = schema.Model.GetRootAs(data, 0)
        self._graph = self._model.Subgraphs(0)
        self._tensors = [self._tensor(i) for i in range(self._graph.TensorsLength())]
        self._codes = [
            self._code(self._model.OperatorCodes(i)) for i in range(self._model.OperatorCodesLength())
        ]

    def nodes(self) -> Iterator[Node]:
        for index in range(self._graph.OperatorsLength()):
            yield self._node(index, self._graph.Operators(index))

    def _code(self, code: Any) -> tuple[str, int]:
        # The old field is a byte: readers take whichever of the two says more (schema_utils.cc).
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = self._operators.get(number, f"BUILTIN_{number}")
        if name == "CUSTOM":
            name = f"CUSTOM:{(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        return name, int(code.Version())

    def _tensor(self, index: int) -> Tensor:
        import numpy as np

        tensor = self._graph.Tensors(index)
        shape = tuple(int(d) for d in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        dtype = self._types.get(tensor.Type(), "").lower()
        buffer = self._model.Buffers(tensor.Buffer())
        constant = bool(buffer.DataLength() or buffer.Offset() > 1)
        values = None
        if constant and dtype in _SMALL and 0 < buffer.DataLength() <= 8 * _MOST_VALUES:
            raw = buffer.DataAsNumpy().tobytes()
            values = tuple(int(v) for v in np.frombuffer(raw, np.dtype(_SMALL[dtype])))
        scales, scale, zero_point, axis = 0, 0.0, 0, 0
        quantization = tensor.Quantization()
        if quantization is not None and quantization.ScaleLength():
            scales, scale = quantization.ScaleLength(), float(quantization.Scale(0))
            axis = int(quantization.QuantizedDimension())
            zero_point = int(quantization.ZeroPoint(0)) if quantization.ZeroPointLength() else 0
        name = (tensor.Name() or b"").decode("utf-8", "replace")
        return Tensor(index, name, shape, dtype, constant, values, scales, scale, zero_point, axis)

    def _node(self, index: int, op: Any) -> Node:
        kind, version = self._codes[op.OpcodeIndex()]
        reads = [int(i) for i in op.InputsAsNumpy()] if op.InputsLength() else []
        writes = [int(i) for i in op.OutputsAsNumpy()] if op.OutputsLength() else []
        inputs = tuple(self._tensors[i] if i >= 0 else None for i in reads)
        outputs = tuple(self._tensors[i] for i in writes if i >= 0)
        unpacks = kind in _UNPACKING and bool(inputs) and all(t is not None and t.constant for t in inputs)
        if unpacks:
            # Delegates read such weights as if the file stored them unpacked (delegates/utils.cc).
            for tensor in outputs:
                self._tensors[tensor.index] = Tensor(
                    tensor.index, tensor.name, tensor.shape, tensor.dtype, constant=True
                )
        name = outputs[0].name if outputs else kind
        return Node(index, name, kind, version, inputs, outputs, self._options(op), unpacks)

    def _options(self, op: Any) -> Mapping[str, int | float]:
        table, kind = op.BuiltinOptions(), self._kinds.get(op.BuiltinOptionsType(), "NONE")
        if table is None or kind == "NONE" or not hasattr(self._schema, f"{kind}T"):
            return {}
        options = getattr(self._schema, kind)()
        options.Init(table.Bytes, table.Pos)
        found = getattr(self._schema, f"{kind}T").InitFromObj(options)
        return {key: value for key, value in vars(found).items() if isinstance(value, int | float)}


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
