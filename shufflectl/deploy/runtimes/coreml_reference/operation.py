"""One operation of a program as builders read it: its operands, its results, and what is refused."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shufflectl.errors import ArtifactError, UnsupportedOperatorError

__all__ = [
    "MAX_CONSTANTS",
    "MAX_LIVE",
    "NAME",
    "NUMPY",
    "Argument",
    "Compute",
    "Declared",
    "Operation",
    "Text",
    "held",
    "room",
]

NAME: Final = "coreml-reference"

MAX_ELEMENTS: Final = 1 << 29
"""Elements of one tensor (2 GiB of fp32): a program that asks for more is refused, not tried."""

MAX_CONSTANTS: Final = 1 << 29
"""Elements of all constants, as often as a program declares them."""

MAX_LIVE: Final = 1 << 31
"""Elements of all tensors that are held at one time."""

Argument = str | torch.Tensor
"""An operand: the name of a tensor that is computed, or a constant."""

Compute = Callable[..., Any]
"""What an operation does: tensors to a tensor, or to a tuple of them where it has several outputs."""

_REMEDY: Final = "export the model again, and copy the whole .mlpackage folder"

NUMPY: Final = MappingProxyType(
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
"""MIL's data types as numpy types, without those narrower than a byte."""


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
        return NUMPY[self.kind]


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
        tensors: Constants as the runtime holds them, by the identity of their arrays, which outlive it: what
            many operations read is held once.
    """

    def __init__(
        self,
        type: str,  # noqa: A002 - MIL's word
        inputs: Mapping[str, Sequence[str | NDArray[Any] | Text]],
        outputs: Sequence[Declared],
        tensors: dict[int, torch.Tensor] | None = None,
    ) -> None:
        self.type = type
        self.inputs = inputs
        self.outputs = tuple(outputs)
        self._tensors = {} if tensors is None else tensors

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
            found.append(item if isinstance(item, str) else self._held(item))
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
        return self._held(self.constant(parameter))

    def _held(self, array: NDArray[Any]) -> torch.Tensor:
        if id(array) not in self._tensors:
            self._tensors[id(array)] = held(array)
        return self._tensors[id(array)]

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
