"""A MIL program as a plan: constants decoded once, one closure an operation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shufflectl.deploy.runtimes.coreml_reference.blob import BlobFile
from shufflectl.deploy.runtimes.coreml_reference.package import inside
from shufflectl.deploy.runtimes.coreml_reference.protos import message_modules
from shufflectl.errors import ArtifactError, UnsupportedOperatorError

__all__ = [
    "MAX_LIVE",
    "NAME",
    "Argument",
    "Compute",
    "Declared",
    "Operation",
    "Program",
    "held",
    "read_program",
    "room",
]

NAME: Final = "coreml-reference"

MAX_ELEMENTS: Final = 1 << 29
"""Elements of one tensor (2 GiB of fp32): a program that asks for more is refused, not tried."""

MAX_LIVE: Final = 1 << 31
"""Elements of all tensors that are held at one time."""

Argument = str | torch.Tensor
"""An operand: the name of a tensor that is computed, or a constant."""

Compute = Callable[..., Any]
"""What an operation does: tensors to a tensor, or to a tuple of them where it has several outputs."""

_REMEDY: Final = "export the model again, and copy the whole .mlpackage folder"
_MODEL_PATH: Final = "@model_path/"

_FIELDS: Final = MappingProxyType(
    {
        "BOOL": "bools",
        "STRING": "strings",
        "FLOAT32": "floats",
        "FLOAT64": "doubles",
        "INT32": "ints",
        "INT64": "longInts",
        "UINT64": "longInts",
    }
)
"""Which field of a ``TensorValue`` holds which type; others are in ``bytes``, or 16-bit ones in ``ints``."""

_NUMPY: Final = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "FLOAT16": np.dtype("<f2"),
        "FLOAT32": np.dtype("<f4"),
        "FLOAT64": np.dtype("<f8"),
        "INT8": np.dtype("i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "UINT8": np.dtype("u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
    }
)


@dataclass(frozen=True)
class Declared:
    """A tensor as the program declares it.

    Attributes:
        name: Its name.
        kind: MIL's data type, as ``FLOAT16``.
        shape: Its shape; None for a size that is not fixed.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of its elements."""
        return _NUMPY[self.kind]


def room(shape: Sequence[int], what: str, limit: int = MAX_ELEMENTS) -> None:
    """Refuse a tensor that would not fit into memory.

    Raises:
        ArtifactError: It has more than ``limit`` elements, or a negative size.
    """
    if min(shape, default=0) < 0 or math.prod(shape) > limit:
        raise ArtifactError(
            f"{what} asks for a tensor of shape {list(shape)}", hint="do not use this package"
        )


def held(array: NDArray[Any]) -> torch.Tensor:
    """Return a constant or an input as the runtime holds it: floats as fp32, integers as int32."""
    if array.dtype.kind == "f":
        # A value that fp16 has is the same value in fp32; where rounding is due is the operations' matter.
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ascontiguousarray(array, np.float32))
    if array.dtype.kind in "iu":
        return torch.from_numpy(np.ascontiguousarray(array).astype(np.int32))
    return torch.from_numpy(np.ascontiguousarray(array))


@dataclass(frozen=True)
class Text:
    """A constant string: not the name of a tensor."""

    value: str


class Operation:
    """One operation, as its builder in `operations` reads it.

    Args:
        type: The operation's type, as ``conv``.
        inputs: For each parameter its operands: names of computed tensors, arrays, or text.
        outputs: What it computes.
    """

    def __init__(
        self,
        type: str,  # noqa: A002 - MIL's word
        inputs: Mapping[str, Sequence[str | NDArray[Any] | Text]],
        outputs: Sequence[Declared],
    ) -> None:
        self.type = type
        self.inputs = inputs
        self.outputs = tuple(outputs)

    @property
    def name(self) -> str:
        """The name of its first output."""
        return self.outputs[0].name if self.outputs else "?"

    def refuse(self, why: str = "") -> UnsupportedOperatorError:
        """Return the error that says why this operation is not executed."""
        return UnsupportedOperatorError(self.name, self.type, NAME, why=why)

    def damaged(self, why: str) -> ArtifactError:
        """Return the error that says what is wrong with this operation."""
        return ArtifactError(
            f"the program is damaged: operation {self.type} ({self.name!r}) {why}", hint=_REMEDY
        )

    def has(self, parameter: str) -> bool:
        """Say whether an optional parameter is given."""
        return bool(self.inputs.get(parameter))

    def arguments(self, parameter: str) -> list[Argument]:
        """Return the operands of a parameter that takes any number of them."""
        found: list[Argument] = []
        for item in self.inputs.get(parameter, ()):
            if isinstance(item, Text):
                raise self.damaged(f"has text for parameter {parameter}")
            found.append(item if isinstance(item, str) else held(item))
        if not found:
            raise self.damaged(f"has no parameter {parameter}")
        return found

    def argument(self, parameter: str) -> Argument:
        """Return the operand of a parameter."""
        found = self.arguments(parameter)
        if len(found) != 1:
            raise self.damaged(f"has {len(found)} values for parameter {parameter}")
        return found[0]

    def constant(self, parameter: str) -> NDArray[Any]:
        """Return a parameter that must be known when the program is loaded."""
        items = self.inputs.get(parameter, ())
        if not items:
            raise self.damaged(f"has no parameter {parameter}")
        if len(items) != 1 or isinstance(items[0], Text):
            raise self.damaged(f"has no number for parameter {parameter}")
        item = items[0]
        if isinstance(item, str):
            raise self.refuse(f"its {parameter} is not constant")
        return item

    def tensor(self, parameter: str) -> torch.Tensor:
        """Return a constant tensor."""
        return held(self.constant(parameter))

    def integers(self, parameter: str, default: Sequence[int] | None = None) -> list[int]:
        """Return a constant list of integers."""
        if default is not None and not self.has(parameter):
            return list(default)
        return [int(v) for v in self.constant(parameter).reshape(-1)]

    def flags(self, parameter: str, default: Sequence[bool]) -> list[bool]:
        """Return a constant list of truth values."""
        if not self.has(parameter):
            return list(default)
        return [bool(v) for v in self.constant(parameter).reshape(-1)]

    def number(self, parameter: str, default: float | None = None) -> float:
        """Return a constant number."""
        if default is not None and not self.has(parameter):
            return default
        array = self.constant(parameter)
        if array.size != 1:
            raise self.damaged(f"has {array.size} numbers for parameter {parameter}")
        return float(array.reshape(())[()])

    def integer(self, parameter: str, default: int | None = None) -> int:
        """Return a constant integer."""
        return int(self.number(parameter, default))

    def flag(self, parameter: str, *, default: bool) -> bool:
        """Return a constant truth value."""
        return bool(self.number(parameter, float(default)))

    def text(self, parameter: str, default: str | None = None) -> str:
        """Return a constant string."""
        if default is not None and not self.has(parameter):
            return default
        items = self.inputs.get(parameter, ())
        if len(items) != 1 or not isinstance(items[0], Text):
            raise self.damaged(f"has no text for parameter {parameter}")
        return items[0].value


@dataclass(frozen=True)
class Program:
    """A program, decoded.

    Attributes:
        inputs: The function's inputs.
        outputs: Names of its outputs.
        operations: Its operations in order, without constants.
        constants: Its constant tensors by name, for outputs that are constant.
    """

    inputs: tuple[Declared, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, NDArray[Any]]


class _Reader:
    """Decodes the values of one program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BlobFile] = {}
        _, self._mil = message_modules()

    def close(self) -> None:
        """Close the weight files."""
        for file in self._files.values():
            file.__exit__(None, None, None)

    def kind(self, number: int) -> str:
        """Return the name of a data type."""
        try:
            return str(self._mil.DataType.Name(number))
        except ValueError as error:
            raise ArtifactError(f"the program has an unknown data type {number}", hint=_REMEDY) from error

    def declared(self, item: Any) -> Declared:
        """Return a named tensor's declaration."""
        if item.type.WhichOneof("type") != "tensorType":
            raise ArtifactError(
                f"the program is of a kind that cannot be executed: {item.name!r} is not a tensor",
                hint="classifiers and models with state are not supported: convert without them",
            )
        tensor = item.type.tensorType
        kind = self.kind(tensor.dataType)
        if kind not in _NUMPY:
            raise ArtifactError(f"{item.name!r} has elements of type {kind}, which cannot be executed")
        shape = self._shape(tensor, fixed=False)
        room([1 if d is None else d for d in shape], f"{item.name!r}")
        return Declared(str(item.name), kind, shape)

    @staticmethod
    def _shape(tensor: Any, *, fixed: bool) -> tuple[int | None, ...]:
        dims = tuple(
            int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None
            for d in tensor.dimensions
        )
        if len(dims) != tensor.rank or (fixed and None in dims):
            raise ArtifactError("the program declares a shape that does not make sense", hint=_REMEDY)
        return dims

    def value(self, value: Any) -> NDArray[Any] | Text:
        """Return a constant's value."""
        if value.type.WhichOneof("type") != "tensorType":
            raise ArtifactError("the program has a constant that is not a tensor", hint=_REMEDY)
        tensor = value.type.tensorType
        kind = self.kind(tensor.dataType)
        shape = tuple(d for d in self._shape(tensor, fixed=True) if d is not None)
        if value.WhichOneof("value") == "blobFileValue":
            if kind not in _NUMPY:
                raise ArtifactError(f"the program has weights of type {kind}, which cannot be executed")
            blob = value.blobFileValue
            return self._file(str(blob.fileName)).read(int(blob.offset), _NUMPY[kind], shape)
        stored = value.immediateValue.tensor
        field = str(stored.WhichOneof("value"))
        values: Any = getattr(stored, field).values if field != "None" else ()
        if kind == "STRING" and field == "strings" and len(values) == 1:
            return Text(str(values[0]))
        if kind not in _NUMPY:
            raise ArtifactError(f"the program has a constant of type {kind}, which cannot be executed")
        dtype = _NUMPY[kind]
        if field == "bytes":
            if len(values) != math.prod(shape) * dtype.itemsize:
                raise ArtifactError("the program has a constant of the wrong size", hint=_REMEDY)
            return np.frombuffer(values, dtype).reshape(shape)
        if field != _FIELDS.get(kind, "ints") or len(values) != math.prod(shape):
            raise ArtifactError("the program has a constant of the wrong size or type", hint=_REMEDY)
        try:
            return np.array(values, dtype).reshape(shape)
        except OverflowError as error:
            raise ArtifactError(
                f"the program has a constant that does not fit {kind}", hint=_REMEDY
            ) from error

    def _file(self, name: str) -> BlobFile:
        if name not in self._files:
            if not name.startswith(_MODEL_PATH):
                raise ArtifactError(
                    f"the program reads weights outside its package: {name!r}", hint="do not use this package"
                )
            path = inside(self._folder, name.removeprefix(_MODEL_PATH), "the weights")
            if not path.is_file():
                raise ArtifactError(f"the weights of the package are missing: {path}", hint=_REMEDY)
            self._files[name] = BlobFile(path)
        return self._files[name]


def read_program(spec: Any, folder: Path) -> Program:
    """Decode the main function of a model.

    Args:
        spec: The ``Model`` message.
        folder: Where ``@model_path`` is.

    Raises:
        ArtifactError: The program is damaged, its weights are missing, or its kind is not executed.
    """
    functions = spec.mlProgram.functions
    main = spec.description.defaultFunctionName or "main"
    if main not in functions:
        raise ArtifactError(f"the program has no function {main!r}", hint=_REMEDY)
    function = functions[main]
    if function.opset not in function.block_specializations:
        raise ArtifactError(f"the program has no block for its operator set {function.opset!r}", hint=_REMEDY)
    block = function.block_specializations[function.opset]
    reader = _Reader(folder)
    try:
        return _decode(reader, function, block)
    finally:
        reader.close()


def _decode(reader: _Reader, function: Any, block: Any) -> Program:
    inputs = tuple(reader.declared(item) for item in function.inputs)
    known = {item.name for item in inputs}
    if len(known) != len(inputs):
        raise ArtifactError("the program has two inputs of one name", hint=_REMEDY)
    constants: dict[str, NDArray[Any] | Text] = {}
    operations = []
    for item in block.operations:
        if item.type == "const":
            if len(item.outputs) != 1 or "val" not in item.attributes:
                raise ArtifactError("the program has a constant without a value", hint=_REMEDY)
            name = str(item.outputs[0].name)
            if name in known:
                raise ArtifactError(f"the program has two tensors of the name {name!r}", hint=_REMEDY)
            constants[name] = reader.value(item.attributes["val"])
            known.add(name)
            continue
        if not item.outputs:
            raise ArtifactError(f"the program has an operation {item.type} without a result", hint=_REMEDY)
        if (
            item.blocks
            or item.type.startswith("constexpr_")
            or item.outputs[0].type.WhichOneof("type") != "tensorType"
        ):
            raise UnsupportedOperatorError(str(item.outputs[0].name), str(item.type), NAME)
        bound: dict[str, list[str | NDArray[Any] | Text]] = {}
        for parameter, argument in item.inputs.items():
            bound[parameter] = [_operand(reader, b, constants, known, item.type) for b in argument.arguments]
        outputs = [reader.declared(out) for out in item.outputs]
        for out in outputs:
            if out.name in known:
                raise ArtifactError(f"the program has two tensors of the name {out.name!r}", hint=_REMEDY)
            known.add(out.name)
        operations.append(Operation(str(item.type), bound, outputs))
    results = tuple(str(name) for name in block.outputs)
    missing = [name for name in results if name not in known]
    if missing or not results:
        raise ArtifactError(f"the program has no tensor for its outputs {missing}", hint=_REMEDY)
    arrays = {name: value for name, value in constants.items() if not isinstance(value, Text)}
    return Program(inputs, results, tuple(operations), arrays)


def _operand(
    reader: _Reader,
    binding: Any,
    constants: Mapping[str, NDArray[Any] | Text],
    known: set[str],
    type: str,  # noqa: A002 - MIL's word
) -> str | NDArray[Any] | Text:
    if binding.WhichOneof("binding") == "value":
        return reader.value(binding.value)
    name = str(binding.name)
    if name not in known:
        raise ArtifactError(
            f"the program is damaged: operation {type} reads {name!r}, which nothing has computed",
            hint=_REMEDY,
        )
    return constants.get(name, name)
