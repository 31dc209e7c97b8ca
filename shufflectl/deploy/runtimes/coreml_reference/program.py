"""A MIL program as a plan: constants decoded once, weights that are held in fewer bits included."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shufflectl.deploy.runtimes.coreml_reference.blob import NARROW_TYPES, BlobFile
from shufflectl.deploy.runtimes.coreml_reference.compressed import (
    COMPRESSED,
    MAX_WEIGHTS,
    decompressed,
    unpacked,
)
from shufflectl.deploy.runtimes.coreml_reference.operation import (
    MAX_CONSTANTS,
    NAME,
    NUMPY,
    Declared,
    Operation,
    Text,
    room,
)
from shufflectl.deploy.runtimes.coreml_reference.package import inside
from shufflectl.deploy.runtimes.coreml_reference.protos import message_modules
from shufflectl.errors import ArtifactError, UnsupportedOperatorError

__all__ = ["Program", "read_program"]

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
        self._budget = MAX_CONSTANTS
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
        if kind not in NUMPY:
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
        room(shape, "a constant", self._budget)
        self._budget -= math.prod(shape)
        if kind in NARROW_TYPES:
            return self._narrow(value, kind, shape)
        if value.WhichOneof("value") == "blobFileValue":
            if kind not in NUMPY:
                raise ArtifactError(f"the program has weights of type {kind}, which cannot be executed")
            blob = value.blobFileValue
            return self._file(str(blob.fileName)).read(int(blob.offset), NUMPY[kind], shape)
        stored = value.immediateValue.tensor
        field = str(stored.WhichOneof("value"))
        values: Any = getattr(stored, field).values if field != "None" else ()
        if kind == "STRING" and field == "strings" and len(values) == 1:
            return Text(str(values[0]))
        if kind not in NUMPY:
            raise ArtifactError(f"the program has a constant of type {kind}, which cannot be executed")
        dtype = NUMPY[kind]
        if field == "bytes":
            if len(values) != math.prod(shape) * dtype.itemsize:
                raise ArtifactError("the program has a constant of the wrong size", hint=_REMEDY)
            return np.frombuffer(values, dtype).reshape(shape).copy()  # torch wants to write
        if field != _FIELDS.get(kind, "ints") or len(values) != math.prod(shape):
            raise ArtifactError("the program has a constant of the wrong size or type", hint=_REMEDY)
        try:
            return np.array(values, dtype).reshape(shape)
        except OverflowError as error:
            raise ArtifactError(
                f"the program has a constant that does not fit {kind}", hint=_REMEDY
            ) from error

    def _narrow(self, value: Any, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a constant whose numbers are narrower than a byte, in bytes."""
        bits, count = int(kind[-1]), math.prod(shape)
        size = -(-count * bits // 8)
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            data = self._file(str(blob.fileName)).read_packed(int(blob.offset), kind, size)
        else:
            data = np.frombuffer(value.immediateValue.tensor.bytes.values, np.uint8)
            if data.size != size:
                raise ArtifactError("the program has a constant of the wrong size", hint=_REMEDY)
        return unpacked(data, bits, count, signed=kind == "INT4").reshape(shape)

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
    tensors: dict[int, torch.Tensor] = {}
    budget = MAX_WEIGHTS
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
            or (item.type.startswith("constexpr_") and item.type not in COMPRESSED)
            or item.outputs[0].type.WhichOneof("type") != "tensorType"
        ):
            raise UnsupportedOperatorError(str(item.outputs[0].name), str(item.type), NAME)
        bound: dict[str, list[str | NDArray[Any] | Text]] = {}
        for parameter, argument in item.inputs.items():
            bound[parameter] = [_operand(reader, b, constants, known, item.type) for b in argument.arguments]
        if item.type in COMPRESSED:
            # Before iOS 18 they have their operands among the attributes.
            bound |= {key: [reader.value(held)] for key, held in item.attributes.items() if key != "name"}
        outputs = [reader.declared(out) for out in item.outputs]
        for out in outputs:
            if out.name in known:
                raise ArtifactError(f"the program has two tensors of the name {out.name!r}", hint=_REMEDY)
            known.add(out.name)
        operation = Operation(str(item.type), bound, outputs, tensors)
        if item.type in COMPRESSED:
            found = _constant(operation, budget)
            constants[operation.name] = found
            budget -= found.size
            continue
        operations.append(operation)
    results = tuple(str(name) for name in block.outputs)
    missing = [name for name in results if name not in known]
    if missing or not results:
        raise ArtifactError(f"the program has no tensor for its outputs {missing}", hint=_REMEDY)
    arrays = {name: value for name, value in constants.items() if not isinstance(value, Text)}
    return Program(inputs, results, tuple(operations), arrays)


def _constant(operation: Operation, budget: int) -> NDArray[Any]:
    try:
        return decompressed(operation, budget)
    except (ArithmeticError, IndexError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise operation.damaged("has parameters that do not make sense") from error


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
