"""Weights that a program holds in fewer bits, as the constants that they stand for.

``constexpr_...`` operations read constants alone, so each is computed once, while the program is read, in
fp32, and rounded to the type that it declares:

- ``constexpr_affine_dequantize``: ``(code - zero point) * scale``, for the whole tensor or along one axis;
- ``constexpr_blockwise_shift_scale``: the same for blocks of a tensor;
- ``constexpr_lut_to_dense``: places in a table, packed into bytes (iOS 16), or of a type of their width with
  tables for blocks and entries that are vectors (iOS 18);
- ``constexpr_cast``.

The definitions are those of ``iOS16/constexpr_ops.py`` and ``iOS18/compression.py`` in coremltools.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.runtimes.coreml_reference.operation import Operation, room

__all__ = ["COMPRESSED", "MAX_WEIGHTS", "decompressed", "unpacked"]

MAX_WEIGHTS: Final = 1 << 27
"""Numbers that all compressed weights of a program may stand for (half a gibibyte of fp32): few bytes can
stand for many, many times over."""

_CHUNK: Final = 1 << 20
"""Numbers that are unpacked at a time, a multiple of 8."""

Array = NDArray[Any]


def unpacked(data: Array, bits: int, count: int, *, signed: bool = False) -> NDArray[Any]:
    """Return numbers of so many bits that lie in bytes without gaps, each from its lowest bit on.

    Args:
        data: uint8, at least as many as it takes.
        bits: How many bits a number has, 1 to 8.
        count: How many numbers there are.
        signed: Whether the highest bit is a sign.
    """
    out = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        part = data[start * bits // 8 : -(-(start + size) * bits // 8)]
        flags = np.unpackbits(part, bitorder="little", count=size * bits).reshape(size, bits)
        out[start : start + size] = np.packbits(flags, axis=1, bitorder="little")[:, 0]
    if not signed:
        return out
    high = 1 << (bits - 1)
    return ((out.astype(np.int16) ^ high) - high).astype(np.int8)


def decompressed(op: Operation, budget: int) -> NDArray[Any]:
    """Return the constant that an operation of `COMPRESSED` makes.

    Args:
        op: The operation, whose operands are constants.
        budget: How many numbers there is room for.

    Raises:
        ArtifactError: Its operands do not fit one another, or it makes too much.
    """
    if len(op.outputs) != 1:
        raise op.damaged(f"declares {len(op.outputs)} results and has 1")
    declared = op.outputs[0]
    shape = tuple(-1 if size is None else size for size in declared.shape)
    room(shape, f"operation {op.name!r}", budget)
    result = COMPRESSED[op.type](op, shape)
    if result.shape != shape:
        raise op.damaged(f"declares a result of shape {list(shape)} and has {list(result.shape)}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(result, declared.dtype)


def _floats(op: Operation, parameter: str) -> NDArray[np.float32]:
    return op.constant(parameter).astype(np.float32)


def _along(op: Operation, values: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Return a scalar, or one number for each position along an axis, in a shape that broadcasts."""
    if values.ndim == 0:
        return values
    if not -len(shape) <= axis < len(shape) or values.shape != (shape[axis],):
        raise op.damaged(f"has {list(values.shape)} numbers for axis {axis} of {list(shape)}")
    return values.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])


def _affine(op: Operation, _: tuple[int, ...]) -> Array:
    codes, axis = op.constant("quantized_data"), op.integer("axis")
    scale = _along(op, _floats(op, "scale"), codes.shape, axis)
    zero = _along(op, _floats(op, "zero_point"), codes.shape, axis)
    return (codes.astype(np.float32) - zero) * scale


def _blockwise(op: Operation, _: tuple[int, ...]) -> Array:
    data, scale = op.constant("data"), _floats(op, "scale")
    blocks = _blocks(op, data.shape, scale.shape)
    numbers = data.astype(np.float32).reshape([n for pair in blocks for n in pair])
    # [a, b] in blocks of [a / i, b / j] -> [i, a / i, j, b / j]; scales [i, 1, j, 1]
    spread = [n for count, _ in blocks for n in (count, 1)]
    if op.has("offset"):
        offset = _floats(op, "offset")
        if offset.shape != scale.shape:
            raise op.damaged("has an offset and a scale that do not fit")
        numbers = numbers - offset.reshape(spread)
    return (numbers * scale.reshape(spread)).reshape(data.shape)


def _blocks(op: Operation, shape: tuple[int, ...], counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return for each axis how many blocks it has and how long they are."""
    if len(shape) != len(counts) or any(c < 1 or s % c for s, c in zip(shape, counts, strict=True)):
        raise op.damaged(f"divides {list(shape)} into {list(counts)} blocks")
    return [(count, size // count) for size, count in zip(shape, counts, strict=True)]


def _table(op: Operation, shape: tuple[int, ...]) -> Array:
    places, table = op.constant("indices"), op.constant("lut")
    if op.has("shape"):
        if op.integers("shape") != list(shape):
            raise op.damaged(f"declares a result of shape {list(shape)} and has {op.integers('shape')}")
        bits = max(len(table).bit_length() - 1, 1) if table.ndim == 1 else 0
        count = math.prod(shape)
        if table.ndim != 1 or len(table) != 1 << bits or not 1 <= bits <= 8:
            raise op.damaged(f"has a table of shape {list(table.shape)}")
        if places.dtype != np.uint8 or places.shape != (-(-count * bits // 8),):
            raise op.damaged(f"has {places.size} bytes for {count} places of {bits} bits")
        dense: Array = table[unpacked(places, bits, count)].reshape(shape)
        return dense
    return _tables(op, shape, places, table)


def _tables(op: Operation, shape: tuple[int, ...], places: Array, table: Array) -> Array:
    """Look up in tables for blocks, ``[blocks..., entries, length of a vector]``."""
    if table.ndim != places.ndim + 2 or places.ndim == 0 or places.dtype.kind != "u":
        raise op.damaged(f"has tables of shape {list(table.shape)} for places of {list(places.shape)}")
    entries, length = table.shape[-2:]
    blocks = _blocks(op, places.shape, table.shape[:-2])
    axis = op.integer("vector_axis", 0 if length == 1 else None)
    if not -places.ndim <= axis < places.ndim:
        raise op.damaged(f"has no axis {axis}")
    axis %= places.ndim
    if shape != tuple(size * (length if a == axis else 1) for a, size in enumerate(places.shape)):
        raise op.damaged(f"declares a result of shape {list(shape)}")
    if places.size and int(places.max()) >= entries:
        raise op.damaged(f"reads outside a table of {entries} entries")
    block = np.zeros([1] * places.ndim, np.int32)
    for a, (count, size) in enumerate(blocks):
        along = (np.arange(count * size, dtype=np.int32) // size).reshape(
            [-1 if b == a else 1 for b in range(places.ndim)]
        )
        block = block * count + along
    flat = table.reshape(-1, length)
    found = flat[block * entries + places]  # [places..., length]
    dense: Array = np.moveaxis(found, -1, axis + 1).reshape(shape)
    return dense


def _cast(op: Operation, _: tuple[int, ...]) -> Array:
    return _floats(op, "source_val")


COMPRESSED: Final[Mapping[str, Callable[[Operation, tuple[int, ...]], Array]]] = MappingProxyType(
    {
        "constexpr_affine_dequantize": _affine,
        "constexpr_blockwise_shift_scale": _blockwise,
        "constexpr_cast": _cast,
        "constexpr_lut_to_dense": _table,
    }
)
