"""Data-movement operators, executed with numpy.

They put elements elsewhere and change none, so what they do to a tensor of element numbers is all there is to
know about them. Everything but the data must be constant. Attribute forms of older operator sets (Split,
Squeeze, Unsqueeze, Slice) are read as well.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph

__all__ = ["MAX_ELEMENTS", "CannotExecuteError", "clamped_lengths", "data_inputs", "execute", "is_movement"]

Array = NDArray[Any]

MAX_ELEMENTS = 1 << 27
"""The largest tensor that is executed: half a gibibyte of element numbers."""

_UNBOUNDED = (1 << 31) - 1
"""An end of a slice from here on means "to the end" (exporters write INT32_MAX or INT64_MAX)."""


class CannotExecuteError(Exception):
    """A node cannot be executed on element numbers; the text says why."""


def _room(count: int) -> None:
    if count > MAX_ELEMENTS:
        raise CannotExecuteError(f"it makes a tensor of {count} elements, too many to follow")


def _constant(node: ir.Node, index: int, what: str) -> list[int] | None:
    """Return a constant integer input as a list, None where the node has none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    array = Graph.constant(value)
    if array is None:
        raise CannotExecuteError(f"its {what} are computed in the graph, not constant")
    return [int(x) for x in np.atleast_1d(array).ravel()]


def _integers(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """Return an integer list that is an input, or an attribute in older operator sets."""
    found = _constant(node, index, attribute)
    if found is None and attribute in node.attributes:
        found = list(node.attributes[attribute].as_ints())
    return found


def _reshape(node: ir.Node, x: Array) -> list[Array]:
    shape = _integers(node, 1, "shape")
    if shape is None:
        raise CannotExecuteError("it has no shape")
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[axis] if d == 0 else d for axis, d in enumerate(shape)]
    return [x.reshape(shape)]


def _flatten(node: ir.Node, x: Array) -> list[Array]:
    axis = node.attributes.get_int("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return [x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))]


def _transpose(node: ir.Node, x: Array) -> list[Array]:
    perm = node.attributes.get_ints("perm")
    return [x.transpose(perm)]


def _identity(_node: ir.Node, x: Array) -> list[Array]:
    return [x]


def _dropout(node: ir.Node, x: Array) -> list[Array]:
    training = _constant(node, 2, "training mode")
    if len(node.outputs) > 1 or any(training or []):
        raise CannotExecuteError("it drops elements")
    return [x]


def _squeeze(node: ir.Node, x: Array) -> list[Array]:
    axes = _integers(node, 1, "axes")
    return [np.squeeze(x, None if axes is None else tuple(axes))]


def _unsqueeze(node: ir.Node, x: Array) -> list[Array]:
    axes = _integers(node, 1, "axes")
    if axes is None:
        raise CannotExecuteError("it has no axes")
    return [np.expand_dims(x, tuple(axes))]


def _split(node: ir.Node, x: Array) -> list[Array]:
    axis = node.attributes.get_int("axis", 0)
    sizes = _integers(node, 1, "split")
    length = x.shape[axis]
    if sizes is None:
        count = len(node.outputs)
        part = -(-length // count)
        sizes = [part] * (count - 1) + [length - part * (count - 1)]
    if sum(sizes) != length or min(sizes) < 0:
        raise CannotExecuteError(f"its sizes {sizes} do not divide {length}")
    return list(np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis))


def _slices(node: ir.Node, rank: int) -> list[tuple[int, int, int, int]]:
    """Return (axis, start, end, step) of each sliced axis."""
    starts, ends = _integers(node, 1, "starts"), _integers(node, 2, "ends")
    if starts is None or ends is None:
        raise CannotExecuteError("it has no bounds")
    axes = _integers(node, 3, "axes") or list(range(len(starts)))
    steps = _constant(node, 4, "steps") or [1] * len(starts)
    axes = [a + rank if a < 0 else a for a in axes]
    return list(zip(axes, starts, ends, steps, strict=True))


def _slice(node: ir.Node, x: Array) -> list[Array]:
    for axis, first, last, step in _slices(node, x.ndim):
        length = x.shape[axis]
        start, end = (v + length if v < 0 else v for v in (first, last))
        low, high = (0, length) if step > 0 else (-1, length - 1)
        start = min(max(start, low, 0), high)
        end = min(max(end, low), high)
        index = np.arange(start, end, step)
        # A view where numpy has one: most slices take a run.
        contiguous = step == 1
        where = (slice(None),) * axis
        x = x[(*where, slice(start, max(end, start)))] if contiguous else np.take(x, index, axis=axis)
    return [x]


def clamped_lengths(node: ir.Node, shape: Sequence[int]) -> list[int]:
    """Return the lengths that cut a slice short of the end that it names.

    Where such a length depends on the batch, what holds for two batch sizes need not hold for all.
    """
    if node.op_type != "Slice":
        return []
    return [
        shape[axis]
        for axis, start, end, _ in _slices(node, len(shape))
        if shape[axis] < end < _UNBOUNDED or shape[axis] < start or -shape[axis] > start
    ]


def _concat(node: ir.Node, *arrays: Array) -> list[Array]:
    _room(sum(a.size for a in arrays))
    return [np.concatenate(arrays, axis=node.attributes.get_int("axis", 1))]


def _gather(node: ir.Node, x: Array) -> list[Array]:
    axis = node.attributes.get_int("axis", 0)
    indices = Graph.constant(node.inputs[1])
    if indices is None:
        raise CannotExecuteError("its indices are computed in the graph, not constant")
    _room(x.size // max(x.shape[axis], 1) * indices.size)
    return [np.take(x, indices, axis=axis)]


def _expand(node: ir.Node, x: Array) -> list[Array]:
    shape = _constant(node, 1, "shape")
    target = np.broadcast_shapes(x.shape, tuple(shape or ()))
    _room(math.prod(target))
    return [np.broadcast_to(x, target)]


def _tile(node: ir.Node, x: Array) -> list[Array]:
    repeats = _constant(node, 1, "repeats") or []
    _room(x.size * math.prod(repeats))
    return [np.tile(x, repeats)]


def _depth_to_space(node: ir.Node, x: Array) -> list[Array]:
    n, c, h, w = x.shape
    b = node.attributes.get_int("blocksize")
    if node.attributes.get_string("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [y.reshape(n, c // b**2, h * b, w * b)]


def _space_to_depth(node: ir.Node, x: Array) -> list[Array]:
    n, c, h, w = x.shape
    b = node.attributes.get_int("blocksize")
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return [y.reshape(n, c * b**2, h // b, w // b)]


_OPERATORS: dict[str, Callable[..., list[Array]]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def is_movement(node: ir.Node) -> bool:
    """Whether the operator only moves elements."""
    return node.op_type in _OPERATORS and node.domain in ("", "ai.onnx")


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that hold the elements which the node moves.

    Raises:
        CannotExecuteError: One is missing or constant.
    """
    slots = list(node.inputs) if node.op_type == "Concat" else list(node.inputs[:1])
    found = []
    for value in slots:
        if value is None:
            raise CannotExecuteError("an input is missing")
        if Graph.constant(value) is not None:
            raise CannotExecuteError(f"its input {value.name!r} is constant")
        found.append(value)
    return found


def execute(node: ir.Node, inputs: Sequence[Array]) -> list[Array]:
    """Return a data-movement node's outputs.

    Args:
        node: The node, for which `is_movement` holds.
        inputs: The values of its `data_inputs`.

    Raises:
        CannotExecuteError: A shape, index or bound is not constant or does not fit, or a result is too large.
    """
    try:
        outputs = _OPERATORS[node.op_type](node, *inputs)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise CannotExecuteError(f"it does not fit its input: {error}") from error
    if len(outputs) != len(node.outputs):
        raise CannotExecuteError(f"it gives {len(outputs)} tensors, not {len(node.outputs)}")
    return outputs
