"""Exact sizes, which may depend on the batch: ``a * batch + b``, and shapes of them.

What is found equal, or constant, is so for every batch, not for those that were tried.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from shufflectl.converters.rewrite.movement import CannotExecuteError

__all__ = [
    "BATCH",
    "Affine",
    "Dims",
    "Size",
    "broadcast",
    "dimension_text",
    "dims_of",
    "equal",
    "parsed",
    "product",
    "quotient",
    "ratio",
]

BATCH: Final = "batch"
"""What the batch is called in shapes."""

_MULTIPLE: Final = re.compile(rf"(?:(\d{{1,9}})\*)?{BATCH}")


@dataclass(frozen=True)
class Affine:
    """The number ``scale * batch + offset``, for every batch from 1 upwards; scale is not 0."""

    scale: int
    offset: int = 0

    @staticmethod
    def _parts(other: object) -> tuple[int, int]:
        if isinstance(other, Affine):
            return other.scale, other.offset
        if isinstance(other, int | np.integer) and not isinstance(other, bool):
            return 0, int(other)
        raise CannotExecuteError("it computes with the batch size and something that is no size")

    def __add__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        return _affine(self.scale + scale, self.offset + offset)

    __radd__ = __add__

    def __neg__(self) -> "Size":
        return _affine(-self.scale, -self.offset)

    def __sub__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        return _affine(self.scale - scale, self.offset - offset)

    def __rsub__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        return _affine(scale - self.scale, offset - self.offset)

    def __mul__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        if scale:
            raise CannotExecuteError("it multiplies the batch size by itself")
        return _affine(self.scale * offset, self.offset * offset)

    __rmul__ = __mul__


Size = int | Affine
Dims = tuple[Size | None, ...]


def _affine(scale: int, offset: int) -> Size:
    return Affine(scale, offset) if scale else offset


def quotient(a: Size, b: Size) -> Size:
    """Divide as ONNX divides integers, towards zero."""
    if isinstance(b, Affine):
        raise CannotExecuteError("it divides by the batch size")
    if b == 0:
        raise CannotExecuteError("it divides by zero")
    if isinstance(a, Affine):
        if a.scale % b or a.offset % b:
            raise CannotExecuteError(f"it divides the batch size by {b}")
        return _affine(a.scale // b, a.offset // b)
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def equal(a: Size, b: Size) -> bool:
    """Say whether two sizes are equal; refused where they are for one batch and not for another."""
    difference = a - b
    if not isinstance(difference, Affine):
        return difference == 0
    batch, rest = divmod(-difference.offset, difference.scale)
    if not rest and batch >= 1:
        raise CannotExecuteError(f"it asks whether the batch is {batch}")
    return False


def parsed(dim: int | str | None) -> Size | None:
    """Return a dimension as a size, None where it is neither fixed nor a multiple of the batch."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    found = _MULTIPLE.fullmatch(dim or "")
    return None if found is None else Affine(int(found[1] or 1))


def dims_of(value: ir.Value | None) -> Dims | None:
    """Return a tensor's shape as sizes; None where it has none."""
    if value is None or value.shape is None:
        return None
    return tuple(parsed(d if isinstance(d, int) else d.value) for d in value.shape)


def dimension_text(size: Size | None) -> int | str | None:
    """Return a size as a dimension of a shape, None where no dimension says it."""
    if not isinstance(size, Affine):
        return size
    if size.offset or size.scale < 1:
        return None
    return BATCH if size.scale == 1 else f"{size.scale}*{BATCH}"


def product(dims: Sequence[Size | None]) -> Size | None:
    """Return how many elements there are; None where a size is unknown, or the batch multiplied by itself."""
    total: Size = 1
    for dim in dims:
        if dim is None:
            return None
        try:
            total = total * dim
        except CannotExecuteError:
            return None
    return total


def ratio(total: Size | None, rest: Size | None) -> Size | None:
    """Return the size that a shape of ``total`` elements has beside ``rest``; None where none is certain."""
    if total is None or rest is None or rest == 0:
        return None
    if isinstance(rest, Affine):
        if not isinstance(total, Affine) or total.offset or rest.offset or total.scale % rest.scale:
            return None
        return total.scale // rest.scale
    return quotient(total, rest)


def broadcast(source: Dims, target: Dims) -> Dims | None:
    """Return the shape that two shapes broadcast to; sizes that are not certain are None."""
    rank = max(len(source), len(target))
    padded = ((1,) * (rank - len(source)) + source, (1,) * (rank - len(target)) + target)
    found: list[Size | None] = []
    for s, t in zip(*padded, strict=True):
        found.append(s if t in (1, s) else t if s == 1 else None)
    return tuple(found)
