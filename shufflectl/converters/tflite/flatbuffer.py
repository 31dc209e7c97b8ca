"""Writes a TFLite flatbuffer: tensors, constants held once, operators with their versions, metadata.

The schema's own object API (``ai_edge_litert.schema_py_generated``) packs the tables. One thing differs from
using it bare: constants are aligned to 16 bytes, as the schema's ``force_align`` asks and the Python
generator forgets. The bytes depend on the calls alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.tflite.layout import Dim
from shufflectl.converters.tflite.versions import minimum_runtime, operator_version

__all__ = ["COUNTS", "SIGNATURE", "Grid", "ModelWriter", "Operator", "Tensor"]

SIGNATURE: Final = "serving_default"
"""The key of the one signature that every file has."""

_ALIGNMENT = 16
_TYPES: Final = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.bool_): schema.TensorType.BOOL,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
}


@dataclass(frozen=True, eq=False)
class Grid:
    """What the integers of a tensor stand for: ``scale * (integer - zero point)``.

    Attributes:
        scales: float32, one, or one for each place of an axis.
        zeros: The zero points, as many.
        axis: That axis.
    """

    scales: NDArray[np.float32]
    zeros: NDArray[np.int64]
    axis: int = 0

    @classmethod
    def of(cls, scale: Scale, *, unsigned: bool = False) -> Self:
        """Return the grid of an activation, of int8 or uint8 codes."""
        zero = scale.zero_point + (128 if unsigned else 0)
        return cls(np.asarray([scale.scale], np.float32), np.asarray([zero], np.int64))

    @property
    def digest(self) -> bytes:
        """What tells two grids apart."""
        return self.scales.tobytes() + self.zeros.tobytes() + bytes([self.axis])


COUNTS: Final = Grid(np.ones(1, np.float32), np.zeros(1, np.int64))
"""The grid of integers that stand for themselves."""


@dataclass(eq=False)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: Unique in the file once it is written.
        dims: Its shape; a name for a size that is not fixed.
        dtype: The type of its elements.
        data: The value of a constant.
        digest: A hash of its bytes.
        grid: What its integers stand for; None where that is not said.
        scale: The grid that codes of a float tensor would have, see `tflite.integer`; None where it has none.
    """

    name: str
    dims: tuple[Dim, ...]
    dtype: np.dtype[Any]
    data: NDArray[Any] | None = None
    digest: bytes = b""
    grid: Grid | None = None
    scale: Scale | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with 1 for every size that is not fixed, as TFLite stores it."""
        return tuple(d if isinstance(d, int) else 1 for d in self.dims)


@dataclass(eq=False)
class Operator:
    """One operator of the file.

    Attributes:
        code: The builtin operator.
        inputs: What it reads.
        outputs: What it makes.
        options: Its options in the schema's object API; None where it has none.
        floating: Whether it computes in floats, even where its tensors have scales.
        version: Its version.
        rows: Whether an input has a scale for each place of an axis.
    """

    code: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    options: Any = None
    floating: bool = False
    version: int = field(init=False)
    rows: bool = field(init=False)

    def __post_init__(self) -> None:
        shapes, dtypes = [t.shape for t in self.inputs], [t.dtype for t in self.inputs]
        self.rows = any(t.grid is not None and len(t.grid.scales) > 1 for t in self.inputs)
        self.version = operator_version(self.code, shapes, dtypes, self.options, rows=self.rows)


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that aligns byte vectors (the constants) to what the schema asks, and writes equal ones once.

    Shapes and zero points of rows are the same for many tensors.
    """

    head: int  # the base class is untyped

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:  # noqa: N802 - overrides the library's name
        if x.dtype == np.uint8:
            return self._bytes(x)
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = int(super().CreateNumpyVector(x))
        return self._written[key]

    def _bytes(self, x: NDArray[Any]) -> int:
        self.StartVector(1, x.size, _ALIGNMENT)
        end: int = self.head
        self.head = end - x.size
        self.Bytes[self.head : end] = x.data
        self.vectorNumElems = x.size
        return int(self.EndVector())


class ModelWriter:
    """Collects one subgraph's tensors and operators and writes the file."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes, bytes], Tensor] = {}

    @staticmethod
    def holds(dtype: np.dtype[Any]) -> bool:
        """Say whether a file can hold tensors of that type."""
        return np.dtype(dtype) in _TYPES

    def tensor(self, name: str, dims: Sequence[Dim], dtype: np.dtype[Any] | type[Any] = np.float32) -> Tensor:
        """Return a new tensor; a name that is taken gets a number behind it."""
        return Tensor(self._unique(name), tuple(dims), np.dtype(dtype))

    def constant(self, data: NDArray[Any], name: str, grid: Grid | None = None) -> Tensor:
        """Return a constant; the same one for the same type, shape, bytes and grid."""
        # np.ascontiguousarray gives a scalar a dimension
        data = data if data.flags.c_contiguous else np.ascontiguousarray(data)
        digest = hashlib.blake2b(data.data if data.size else b"").digest()
        key = (data.dtype.str, data.shape, digest, b"" if grid is None else grid.digest)
        if key not in self._constants:
            self._constants[key] = Tensor(self._unique(name), data.shape, data.dtype, data, digest, grid)
        return self._constants[key]

    def operator(
        self,
        code: int,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        options: Any = None,
        *,
        floating: bool = False,
    ) -> None:
        """Append an operator; see `Operator`."""
        self.operators.append(Operator(code, tuple(inputs), tuple(outputs), options, floating))

    def rename(self, tensor: Tensor, name: str) -> None:
        """Give a tensor a name, taking it away from whichever has it."""
        if tensor.name == name:
            return
        for op in self.operators:
            for other in (*op.inputs, *op.outputs):
                if other.name == name:
                    other.name = self._unique(f"{name}/inner")
        self._names.setdefault(name, 1)
        tensor.name = name

    def live(self, outputs: Sequence[Tensor]) -> set[int]:
        """Drop operators whose results nobody reads; return the identities of the tensors that remain."""
        wanted = {id(t) for t in outputs}
        kept = []
        for op in reversed(self.operators):
            if any(id(t) in wanted for t in op.outputs):
                kept.append(op)
                wanted.update(id(t) for t in (*op.inputs, *op.outputs))
        self.operators = kept[::-1]
        return wanted

    def finish(
        self,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor],
        *,
        name: str,
        description: str,
        metadata: Mapping[str, bytes],
    ) -> bytes:
        """Return the file.

        Args:
            inputs: The tensors that the caller fills, by name in the signature.
            outputs: The tensors that the caller reads, likewise.
            name: The subgraph's name.
            description: One line about the model.
            metadata: Further buffers by name. ``min_runtime_version`` is added.
        """
        self.live([*inputs.values(), *outputs.values()])
        tensors: dict[int, Tensor] = {id(t): t for t in inputs.values()}
        for op in self.operators:
            tensors.update((id(t), t) for t in (*op.inputs, *op.outputs))
        tensors.update((id(t), t) for t in outputs.values())
        index = {key: i for i, key in enumerate(tensors)}
        codes = {pair: i for i, pair in enumerate(sorted({(op.code, op.version) for op in self.operators}))}
        model = schema.ModelT(version=3, description=description)
        buffers = [schema.BufferT()]  # buffer 0 is empty: tensors without data point to it
        seen: dict[bytes, int] = {}

        def buffer(data: NDArray[Any], digest: bytes) -> int:
            if digest not in seen:
                seen[digest] = len(buffers)
                buffers.append(schema.BufferT(data=data.reshape(-1).view(np.uint8)))
            return seen[digest]

        graph = schema.SubGraphT(name=name)
        graph.tensors = [
            schema.TensorT(
                shape=np.asarray(t.shape, np.int32),
                type=_TYPES[t.dtype],
                buffer=0 if t.data is None else buffer(t.data, t.digest),
                name=t.name,
                quantization=None
                if t.grid is None
                else schema.QuantizationParametersT(
                    scale=t.grid.scales, zeroPoint=t.grid.zeros, quantizedDimension=t.grid.axis
                ),
                shapeSignature=None
                if t.dims == t.shape
                else np.asarray([d if isinstance(d, int) else -1 for d in t.dims], np.int32),
            )
            for t in tensors.values()
        ]
        graph.operators = [
            schema.OperatorT(
                opcodeIndex=codes[op.code, op.version],
                inputs=[index[id(t)] for t in op.inputs],
                outputs=[index[id(t)] for t in op.outputs],
                builtinOptionsType=0 if op.options is None else _options_type(op.options),
                builtinOptions=op.options,
            )
            for op in self.operators
        ]
        graph.inputs = [index[id(t)] for t in inputs.values()]
        graph.outputs = [index[id(t)] for t in outputs.values()]
        model.subgraphs = [graph]
        model.operatorCodes = [
            schema.OperatorCodeT(
                # codes above 127 do not fit the old field: 127 sends readers to the new one
                deprecatedBuiltinCode=min(code, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES),
                builtinCode=code,
                version=version,
            )
            for code, version in codes
        ]
        model.signatureDefs = [
            schema.SignatureDefT(
                inputs=[schema.TensorMapT(name=n, tensorIndex=index[id(t)]) for n, t in inputs.items()],
                outputs=[schema.TensorMapT(name=n, tensorIndex=index[id(t)]) for n, t in outputs.items()],
                signatureKey=SIGNATURE,
            )
        ]
        oldest = minimum_runtime(set(codes), rows={op.code for op in self.operators if op.rows})
        notes = {"min_runtime_version": oldest.encode().ljust(16, b"\0"), **metadata}
        model.metadata = [
            schema.MetadataT(name=key, buffer=buffer(np.frombuffer(data, np.uint8), key.encode()))
            for key, data in notes.items()
        ]
        model.buffers = buffers
        size = sum(b.data.nbytes + 64 for b in buffers if b.data is not None) + 512 * (len(tensors) + 8)
        builder = _Builder(size)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(memoryview(builder.Bytes)[builder.Head() :])  # Output() would copy once more

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else self._unique(f"{name}_{count}")


def _options_type(options: Any) -> int:
    """Return the tag of an options table, which the schema names like its class."""
    return int(getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T")))
