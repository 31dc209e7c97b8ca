"""What the three readers make of a file: one list of operations that the costs are computed from.

A reader knows its format's names, attribute encodings and axis orders; what follows (`costs`,
`guidelines`) knows none of them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shufflectl.converters.metadata import ModelInfo

__all__ = [
    "Codes",
    "Contraction",
    "Operation",
    "Program",
    "Role",
    "Shape",
    "Value",
    "at",
    "elements",
    "is_scalar",
    "known_shape",
    "role_table",
    "size_in_bytes",
    "trained",
]

Shape = tuple[int | None, ...]
"""None for a dimension that is not fixed."""

Role = Literal[
    "convolution",
    "dense",
    "pooling",
    "elementwise",
    "movement",
    "view",
    "weights",
    "other",
    "unknown",
]
"""What an operator does to memory.

``view`` gives a tensor another shape and moves nothing, ``movement`` copies, reorders or converts elements,
``weights`` prepares constants when the model is loaded, ``other`` computes without multiplying matrices,
``unknown`` may do anything.
"""

# No machine holds a tensor of more; what damaged files declare beyond that is treated as unknown.
_MOST_ELEMENTS = 2**62

_BITS = {
    "bool": 8,
    "uint1": 1,
    "int2": 2,
    "uint2": 2,
    "uint3": 3,
    "int4": 4,
    "uint4": 4,
    "uint6": 6,
    "int8": 8,
    "uint8": 8,
    "int16": 16,
    "uint16": 16,
    "float16": 16,
    "bfloat16": 16,
    "int32": 32,
    "uint32": 32,
    "float32": 32,
    "int64": 64,
    "uint64": 64,
    "float64": 64,
    "complex64": 64,
    "complex128": 128,
}


@dataclass(frozen=True)
class Value:
    """A tensor as the file declares it.

    Attributes:
        name: Its name in the file.
        shape: In the file's axis order; a free batch counts as 1; None where even the rank is unknown.
        dtype: A numpy-like name (``float16``); None where unknown.
        constant: Whether it is the same in every run.
        held: The type in which the file stores a constant that an operator unpacks; None where it is
            ``dtype``.
        codes: What its elements stand for where the file says so of the tensor itself.
    """

    name: str
    shape: Shape | None
    dtype: str | None
    constant: bool = False
    held: str | None = None
    codes: "Codes | None" = None


@dataclass(frozen=True)
class Codes:
    """The grid of a tensor of integers that stand for ``scale * (code - zero_point)``.

    Attributes:
        dtype: Of the integers, ``int8`` or ``uint8``; None where unknown.
        scale: The distance of two codes.
        zero_point: The code of 0, as the file has it.
    """

    dtype: str | None
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Contraction:
    """A convolution, dense layer or matrix product in the terms of the ShuffleNet V2 paper.

    Attributes:
        in_channels: c1.
        out_channels: c2.
        groups: g.
        window: The kernel's spatial sizes; empty for a dense layer.
        positions: Where the kernel is applied, over the whole batch: N·h·w of the output (of the input for a
            transposed convolution).
    """

    in_channels: int
    out_channels: int
    positions: int
    groups: int = 1
    window: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """Elements of the kernel: c1·c2·window / g."""
        return self.in_channels * self.out_channels * math.prod(self.window) // self.groups

    @property
    def multiply_adds(self) -> int:
        """Multiplications, each with its addition: what the papers call FLOPs."""
        return self.positions * self.weights

    @property
    def depthwise(self) -> bool:
        """Whether every input channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1x1 convolution."""
        return bool(self.window) and math.prod(self.window) == 1


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        name: Its name in the file, or its first output's where the file has none.
        type: The format's own name of the operator.
        role: What it does to memory.
        inputs: Tensors that it reads and that differ from run to run.
        outputs: Tensors that it writes.
        weights: Trained constants that it reads.
        biases: How many of ``weights``, at the end, are biases, which the paper's memory access cost omits.
        contraction: Its dimensions where it multiplies matrices; None where it does not, or where they are
            unknown.
        codes: The grid of the codes that a conversion makes, or reads; None for other operators, and where it
            is not one grid for the whole tensor.
    """

    name: str
    type: str
    role: Role
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    weights: tuple[Value, ...] = ()
    biases: int = 0
    contraction: Contraction | None = None
    codes: Codes | None = None


@dataclass(frozen=True)
class Program:
    """A file's content.

    Attributes:
        format: ``onnx``, ``tflite``, ``coreml``, or ``graph`` for a captured graph.
        inputs: As declared: a free dimension is None.
        outputs: Likewise.
        operations: In execution order.
        producer: The program that wrote the file, as far as it says so.
        info: The model's description where shufflectl wrote the file.
    """

    format: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operations: Sequence[Operation] = field(default_factory=tuple)
    producer: str = ""
    info: ModelInfo | None = None


def elements(value: Value) -> int | None:
    """Return how many elements a tensor has, or None where a dimension is unknown."""
    shape = known_shape(value)
    return None if shape is None else math.prod(shape)


def known_shape(value: Value | None) -> tuple[int, ...] | None:
    """Return a tensor's shape, or None where it, or one of its dimensions, is unknown or absurd."""
    if value is None or value.shape is None:
        return None
    known = tuple(d for d in value.shape if d is not None)
    return known if len(known) == len(value.shape) and math.prod(known) <= _MOST_ELEMENTS else None


def is_scalar(value: Value) -> bool:
    """Whether a tensor has one element, whatever its rank."""
    return elements(value) == 1


def at(inputs: Sequence[Value | None], index: int | None) -> Value | None:
    """Return an operator's optional input, None where it is not given or has no position."""
    return inputs[index] if index is not None and index < len(inputs) else None


def trained(
    kernels: Iterable[Value | None], biases: Iterable[Value | None] = ()
) -> tuple[tuple[Value, ...], int]:
    """Return the constants among what an operator may have learned, biases last, and how many are biases."""
    first = [v for v in kernels if v is not None and v.constant]
    last = [v for v in biases if v is not None and v.constant]
    return (*first, *last), len(last)


def role_table(names: Mapping[Role, str]) -> dict[str, Role]:
    """Return the role of each operator, from the operators of each role (names between blanks)."""
    return {name: role for role, text in names.items() for name in text.split()}


def size_in_bytes(value: Value) -> int | None:
    """Return how many bytes a tensor takes, or None where its shape or type is unknown."""
    count, name = elements(value), value.dtype
    width = None if name is None else 8 if name.startswith("float8") else _BITS.get(name)
    return None if count is None or width is None else -(-count * width // 8)
