"""A loaded Core ML program: its interface, its plan, and a run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shufflectl.converters.quantize.scales import Scale
from shufflectl.deploy.files import own_metadata
from shufflectl.deploy.runtimes.base import Arrays, Integers, TensorSpec, check_inputs
from shufflectl.deploy.runtimes.coreml_reference.operation import (
    MAX_LIVE,
    NAME,
    Argument,
    Compute,
    Declared,
    Operation,
    held,
    room,
)
from shufflectl.deploy.runtimes.coreml_reference.operations.table import EXACT, OPERATIONS
from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from shufflectl.deploy.runtimes.coreml_reference.program import read_program
from shufflectl.errors import ArtifactError, DataError, UnsupportedOperatorError

__all__ = ["CoreMLReferenceSession"]

_REMEDY: Final = "export the model again, and copy the whole .mlpackage folder"

# What torch raises where operands do not fit one another; it has no exception of its own.
_FAILURES: Final = (
    ArithmeticError,
    AssertionError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class _Step:
    """One operation of the plan.

    Attributes:
        operation: What it executes, for messages.
        compute: The closure.
        arguments: Its operands.
        outputs: What it declares.
        rounds: Whether each output is rounded to fp16.
        release: Names that no later step reads.
    """

    operation: Operation
    compute: Compute
    arguments: tuple[Argument, ...]
    outputs: tuple[Declared, ...]
    rounds: tuple[bool, ...]
    release: tuple[str, ...]


@dataclass(frozen=True)
class _Bounds:
    """The sizes that an input accepts, by dimension; no upper bound is infinity."""

    lower: tuple[int, ...]
    upper: tuple[float, ...]


class CoreMLReferenceSession:
    """A loaded package; a `Session`.

    Args:
        artifact: The ``.mlpackage`` folder.
        threads: How many threads torch may use.

    Attributes:
        pictures: For each input that is a picture, the order of its colours: ``RGB`` or ``BGR``.
    """

    def __init__(self, artifact: Path, threads: int = 1) -> None:
        spec, folder = read_model(artifact)
        program = read_program(spec, folder)
        self._artifact = artifact
        self._threads = threads
        self._declared: dict[str, Declared] = {item.name: item for item in program.inputs}
        for operation in program.operations:
            self._declared.update((out.name, out) for out in operation.outputs)
        self._constants = {
            name: program.constants[name] for name in program.outputs if name in program.constants
        }
        self._plan = _plan(program.operations, program.outputs)
        self.inputs = tuple(self._input(feature) for feature in spec.description.input)
        self.pictures = {
            str(f.name): str(f.type.imageType.ColorSpace.Name(f.type.imageType.colorSpace))
            for f in spec.description.input
            if _is_image(f)
        }
        self._bounds = {feature.name: _bounds(feature) for feature in spec.description.input}
        self.outputs = tuple(self._output(feature) for feature in spec.description.output)
        if {s.name for s in self.inputs} != {d.name for d in program.inputs}:
            raise ArtifactError(f"{artifact} declares other inputs than its program has", hint=_REMEDY)
        if {s.name for s in self.outputs} != set(program.outputs):
            raise ArtifactError(f"{artifact} declares other outputs than its program has", hint=_REMEDY)
        self.info, self.trace = own_metadata(spec.description.metadata.userDefined, artifact)
        self.integers = Integers(_grids(program.operations))

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        """Execute the program once; see `Session.run`."""
        for name in taps:
            if name not in self._declared and name not in self._constants:
                raise ArtifactError(
                    f"{self._artifact} has no tensor {name!r}", hint="see the session's trace"
                )
        check_inputs(self.inputs, inputs)
        values: dict[str, torch.Tensor] = {}
        for spec in self.inputs:
            self._check_bounds(spec, inputs[spec.name])
            given = held(inputs[spec.name])
            values[spec.name] = given.float() if spec.name in self.pictures else given
        wanted = [spec.name for spec in self.outputs]
        wanted += [name for name in taps if name not in wanted]
        kept = set(wanted)
        with torch.inference_mode(), _thread_count(self._threads):
            live = sum(value.numel() for value in values.values())
            for step in self._plan:
                _execute(step, values)
                live += sum(values[out.name].numel() for out in step.outputs)
                room([live], f"operation {step.operation.name!r}", MAX_LIVE)
                for name in step.release:
                    if name not in kept:
                        live -= values.pop(name).numel()
        types = {spec.name: spec.dtype for spec in self.outputs}
        return {name: self._result(name, values, types.get(name)) for name in wanted}

    def _result(
        self, name: str, values: Mapping[str, torch.Tensor], dtype: np.dtype[Any] | None
    ) -> NDArray[Any]:
        if name in self._constants:
            array = self._constants[name]
            return array if dtype is None else array.astype(dtype)
        array = values[name].numpy()
        # A copy: a result may share its memory with another, or with a constant.
        return np.array(array, dtype or self._declared[name].dtype, order="C")

    def _check_bounds(self, spec: TensorSpec, array: NDArray[Any]) -> None:
        """Check sizes that are free within bounds."""
        bounds = self._bounds[spec.name]
        ranges = zip(array.shape, bounds.lower, bounds.upper, strict=True)
        if not all(low <= size <= high for size, low, high in ranges):
            allowed = ", ".join(
                str(low) if low == high else f"{low} to {high}"
                for low, high in zip(bounds.lower, bounds.upper, strict=True)
            )
            raise DataError(
                f"input {spec.name!r} has shape {list(array.shape)}, and the model takes [{allowed}]",
                hint="split the batch, or export with --batch dynamic",
            )

    def _input(self, feature: Any) -> TensorSpec:
        bounds = _bounds(feature)
        declared = self._declared.get(feature.name)
        if declared is None or len(declared.shape) != len(bounds.lower):
            raise ArtifactError(f"the program has no input like {feature.name!r}", hint=_REMEDY)
        if any(size not in (None, low) for size, low in zip(declared.shape, bounds.lower, strict=True)):
            raise ArtifactError(f"input {feature.name!r} has two shapes", hint=_REMEDY)
        shape = tuple(
            low if low == high else None for low, high in zip(bounds.lower, bounds.upper, strict=True)
        )
        if _is_image(feature):
            return TensorSpec(str(feature.name), shape, np.dtype(np.uint8))
        return TensorSpec(str(feature.name), shape, _element_type(_array_type(feature), feature.name))

    def _output(self, feature: Any) -> TensorSpec:
        array = _array_type(feature)
        dtype = _element_type(array, feature.name)
        if feature.name in self._constants:
            return TensorSpec(str(feature.name), self._constants[feature.name].shape, dtype)
        declared = self._declared.get(feature.name)
        if declared is None:
            raise ArtifactError(f"the program has no output {feature.name!r}", hint=_REMEDY)
        return TensorSpec(str(feature.name), declared.shape, dtype)


def _execute(step: _Step, values: dict[str, torch.Tensor]) -> None:
    """Compute one operation's results into ``values``, rounded and checked against their declarations."""
    operands = [values[a] if isinstance(a, str) else a for a in step.arguments]
    try:
        results = step.compute(*operands)
    except _FAILURES as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise step.operation.damaged(f"cannot be executed: {reason}") from error
    if isinstance(results, torch.Tensor):
        results = (results,)
    if len(results) != len(step.outputs):
        raise step.operation.damaged(f"declares {len(step.outputs)} results and has {len(results)}")
    for result, declared, rounds in zip(results, step.outputs, step.rounds, strict=True):
        if result.ndim != len(declared.shape) or any(
            want not in (None, have) for want, have in zip(declared.shape, result.shape, strict=True)
        ):
            raise step.operation.damaged(
                f"declares a result of shape {_text(declared.shape)} and has {list(result.shape)}"
            )
        values[declared.name] = result.half().float() if rounds else result


def _plan(operations: Sequence[Operation], outputs: Sequence[str]) -> tuple[_Step, ...]:
    """Build each operation's closure, and find where each tensor is read last."""
    built: list[tuple[Operation, Compute, list[Argument]]] = []
    halves: set[str] = set()
    last: dict[str, int] = {}
    for index, operation in enumerate(operations):
        builder = OPERATIONS.get(operation.type)
        if builder is None:
            raise UnsupportedOperatorError(operation.name, operation.type, NAME)
        try:
            compute, arguments = builder(operation)
        except _FAILURES as error:
            raise operation.damaged("has parameters that do not make sense") from error
        built.append((operation, compute, arguments))
        last.update((a, index) for a in arguments if isinstance(a, str))
        last.update((out.name, index) for out in operation.outputs if out.name not in last)
    keep = set(outputs)
    steps = []
    for index, (operation, compute, arguments) in enumerate(built):
        exact = operation.type in EXACT and all(isinstance(a, str) and a in halves for a in arguments)
        rounds = tuple(out.kind == "FLOAT16" and not exact for out in operation.outputs)
        halves.update(out.name for out in operation.outputs if out.kind == "FLOAT16")
        names = {a for a in arguments if isinstance(a, str)} | {out.name for out in operation.outputs}
        release = tuple(sorted(name for name in names if last[name] == index and name not in keep))
        steps.append(_Step(operation, compute, tuple(arguments), operation.outputs, rounds, release))
    return tuple(steps)


def _grids(operations: Sequence[Operation]) -> dict[str, Scale]:
    """Return the grid of every tensor that is made codes of one scale, or made of such."""
    kinds = {out.name: out.kind for op in operations for out in op.outputs}
    found: dict[str, Scale] = {}
    for op in operations:
        if op.type not in ("quantize", "dequantize") or not op.outputs:
            continue
        scale, given = op.constant("scale"), op.inputs["input"][0]
        codes = op.name if op.type == "quantize" else given
        kind = kinds.get(codes) if isinstance(codes, str) else None
        zero = int(op.constant("zero_point").reshape(-1)[0]) if "zero_point" in op.inputs else 0
        if scale.size != 1 or kind not in ("INT8", "UINT8"):
            continue
        grid = Scale(float(scale.reshape(())), zero - (128 if kind == "UINT8" else 0))
        if op.type == "dequantize":
            found[op.name] = grid
        elif isinstance(given, str):
            found.setdefault(given, grid)
    return found


def _is_image(feature: Any) -> bool:
    """Say whether an input is a picture of three colours, of 8 bits each.

    Core ML hands it to the program as ``[1, 3, H, W]`` in the order of colours that the file says.
    """
    if feature.type.WhichOneof("Type") != "imageType":
        return False
    image = feature.type.imageType
    return bool(image.colorSpace in (image.RGB, image.BGR) and image.WhichOneof("SizeFlexibility") is None)


def _array_type(feature: Any) -> Any:
    kind = feature.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise ArtifactError(
            f"{feature.name!r} is of kind {kind}, and only arrays and pictures are executed",
            hint="convert the model with array inputs and outputs or pictures of three colours and one size",
        )
    return feature.type.multiArrayType


def _element_type(array: Any, name: str) -> np.dtype[Any]:
    kinds = {65552: np.float16, 65568: np.float32, 65600: np.float64, 131104: np.int32}
    if array.dataType not in kinds:
        raise ArtifactError(f"{name!r} has elements of an unknown type {array.dataType}", hint=_REMEDY)
    return np.dtype(kinds[array.dataType])


def _bounds(feature: Any) -> _Bounds:
    """Return the sizes that an input accepts: fixed, a range, or what the enumerated shapes span."""
    if _is_image(feature):
        image = feature.type.imageType
        size = (1, 3, int(image.height), int(image.width))
        room(size, f"input {feature.name!r}")
        return _Bounds(size, size)
    array = _array_type(feature)
    kind = array.WhichOneof("ShapeFlexibility")
    if kind == "shapeRange":
        ranges = array.shapeRange.sizeRanges
        lower = tuple(int(r.lowerBound) for r in ranges)
        upper = tuple(math.inf if r.upperBound < 0 else int(r.upperBound) for r in ranges)
    elif kind == "enumeratedShapes":
        shapes = [tuple(int(d) for d in s.shape) for s in array.enumeratedShapes.shapes]
        if len({len(s) for s in shapes}) != 1:
            raise ArtifactError(f"input {feature.name!r} has shapes of several ranks", hint=_REMEDY)
        lower = tuple(min(sizes) for sizes in zip(*shapes, strict=True))
        upper = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    else:
        lower = tuple(int(d) for d in array.shape)
        upper = lower
    room(lower, f"input {feature.name!r}")
    return _Bounds(lower, upper)


def _text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("any" if d is None else str(d) for d in shape) + "]"


@contextmanager
def _thread_count(threads: int) -> Iterator[None]:
    """Let torch use that many threads; the number is the process's, so it is set back."""
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)
