"""How operators are spelled in MIL that move elements."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.coreml.emission import Emission, Operator
from shufflectl.converters.coreml.operators.pads import interleaved

__all__ = ["OPERATORS"]


def _concat(e: Emission, node: ir.Node) -> None:
    values = [e.value(node, i) for i in range(len(node.inputs))]
    if len(values) == 1:
        e.bind(node, values[0])
        return
    axis = e.axis(node, node.attributes.get_int("axis", 0))
    e.bind(node, e.mb.concat(values=values, axis=axis, name=e.name(node)))


def _split(e: Emission, node: ir.Node) -> None:
    axis = e.axis(node, node.attributes.get_int("axis", 0))
    size, count = e.shape(node)[axis], len(node.outputs)
    sizes = e.integers(node, "split", 1)
    if sizes is None:
        if not isinstance(size, int):
            raise e.refuse(node, "it splits a dimension that is not static")
        chunk = -(-size // count)
        sizes = [chunk] * (count - 1) + [size - chunk * (count - 1)]
    if count == 1:
        e.bind(node, e.value(node))
        return
    name = e.helper(node, "split")
    how = {"num_splits": count} if len(set(sizes)) == 1 else {"split_sizes": sizes}
    for index, part in enumerate(e.mb.split(x=e.value(node), axis=axis, name=name, **how)):
        part.name = e.name(node, index)
        e.splits[part.name] = f"{name}_cast_fp16_{index}"
        e.bind(node, part, index)


def _slice(e: Emission, node: ir.Node) -> None:
    starts, ends = e.integers(node, "starts", 1), e.integers(node, "ends", 2)
    if starts is None or ends is None:
        raise e.refuse(node, "it has no range")
    axes = e.integers(node, "axes", 3) or list(range(len(starts)))
    steps = e.integers(node, "steps", 4) or [1] * len(starts)
    shape = e.shape(node)
    rank = len(shape)
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    whole = [True] * rank
    open_end = [True] * rank
    for axis, first, last, step in zip((e.axis(node, a) for a in axes), starts, ends, steps, strict=True):
        size = shape[axis]
        if not isinstance(size, int):
            if first == 0 and step == 1 and last >= _INT32_MAX:
                continue
            raise e.refuse(node, "it slices a dimension that is not static")
        # Python's rule is ONNX's: clamp, and count negative positions from the end.
        begin[axis], end[axis], stride[axis] = slice(first, last, step).indices(size)
        if (end[axis] - begin[axis]) * step <= 0:
            raise e.refuse(node, "the slice is empty")
        whole[axis] = False
        open_end[axis] = end[axis] < 0
        end[axis] = max(end[axis], 0)
    sliced = e.mb.slice_by_index(
        x=e.value(node),
        begin=begin,
        end=end,
        stride=stride,
        begin_mask=whole,
        end_mask=open_end,
        name=e.name(node),
    )
    e.bind(node, sliced)


_INT32_MAX: Final = 2**31 - 1


def _gather(e: Emission, node: ir.Node) -> None:
    axis = e.axis(node, node.attributes.get_int("axis", 0))
    indices = e.constant(node, 1)
    size = e.shape(node)[axis]
    if indices is not None and isinstance(size, int):
        if indices.size and (indices.min() < -size or indices.max() >= size):
            raise e.refuse(node, f"an index is outside a dimension of {size}")
        indices = indices % size
    elif indices is not None and indices.size and indices.min() < 0:
        raise e.refuse(node, "a negative index counts from the end of a dimension that is not static")
    x = e.value(node)
    if indices is not None and indices.ndim == 0:
        rank = len(e.shape(node))
        mask = [a == axis for a in range(rank)]
        begin = [int(indices) if m else 0 for m in mask]
        whole = [not m for m in mask]
        picked = e.mb.slice_by_index(
            x=x,
            begin=begin,
            end=[b + 1 for b in begin],
            begin_mask=whole,
            end_mask=whole,
            squeeze_mask=mask,
            name=e.name(node),
        )
        e.bind(node, picked)
        return
    where = e.value(node, 1) if indices is None else e.literal(node, indices)
    e.bind(node, e.mb.gather(x=x, indices=where, axis=axis, name=e.name(node)))


def _target_shape(e: Emission, node: ir.Node, requested: NDArray[Any] | None) -> list[int]:
    """Return the shape that a reshape gives, at most one dimension -1.

    The inferred shape of the output decides, because it also covers targets that the graph computes from the
    batch; zeros of the requested shape (copy from the input) are worked out where it is unknown.
    """
    known = node.outputs[0].shape
    if known is not None:
        sizes = [d if isinstance(d, int) else -1 for d in known]
        if sizes.count(-1) <= 1:
            return sizes
    if requested is None:
        raise e.refuse(node, "the shape that it gives is not known", "export with a static batch")
    sizes = [int(d) for d in requested.reshape(-1)]
    if not node.attributes.get_int("allowzero", 0):
        given = e.shape(node)
        copied = [given[i] if d == 0 and i < len(given) else d for i, d in enumerate(sizes)]
        sizes = [d if isinstance(d, int) else -1 for d in copied]
    if sizes.count(-1) > 1:
        raise e.refuse(node, "two dimensions of the shape that it gives are not static")
    return sizes


def _reshape(e: Emission, node: ir.Node) -> None:
    shape = _target_shape(e, node, e.constant(node, 1))
    e.bind(node, e.mb.reshape(x=e.value(node), shape=shape, name=e.name(node)))


def _flatten(e: Emission, node: ir.Node) -> None:
    given = e.shape(node)
    axis = node.attributes.get_int("axis", 1)
    axis = axis + len(given) if axis < 0 else axis
    halves: list[int] = []
    for part in (given[:axis], given[axis:]):
        static = [d for d in part if isinstance(d, int)]
        halves.append(int(np.prod(static)) if len(static) == len(part) else -1)
    if halves.count(-1) > 1:
        raise e.refuse(node, "two dimensions of the shape that it gives are not static")
    e.bind(node, e.mb.reshape(x=e.value(node), shape=halves, name=e.name(node)))


def _transpose(e: Emission, node: ir.Node) -> None:
    rank = len(e.shape(node))
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    e.bind(node, e.mb.transpose(x=e.value(node), perm=perm, name=e.name(node)))


def _squeeze(e: Emission, node: ir.Node) -> None:
    axes = e.integers(node, "axes", 1)
    shape = e.shape(node)
    axes = [i for i, d in enumerate(shape) if d == 1] if axes is None else [e.axis(node, a) for a in axes]
    e.bind(node, e.mb.squeeze(x=e.value(node), axes=sorted(axes), name=e.name(node)))


def _unsqueeze(e: Emission, node: ir.Node) -> None:
    axes = e.integers(node, "axes", 1) or []
    rank = len(e.shape(node)) + len(axes)
    e.bind(node, e.mb.expand_dims(x=e.value(node), axes=sorted(a % rank for a in axes), name=e.name(node)))


def _expand(e: Emission, node: ir.Node) -> None:
    given, result = e.shape(node), e.graph.shape(node.outputs[0])
    lifted: tuple[int | str, ...] = (1,) * (len(result) - len(given)) + tuple(given)
    repeats = []
    for before, after in zip(lifted, result, strict=True):
        if before != after and not (before == 1 and isinstance(after, int)):
            raise e.refuse(node, "it repeats a dimension that is not static")
        repeats.append(1 if before == after else int(after))
    x = e.value(node)
    if len(lifted) > len(given):
        axes = list(range(len(lifted) - len(given)))
        x = e.mb.expand_dims(x=x, axes=axes, name=e.helper(node, "lifted"))
    e.bind(node, e.mb.tile(x=x, reps=repeats, name=e.name(node)))


def _tile(e: Emission, node: ir.Node) -> None:
    repeats = [int(n) for n in e.required(node, 1, "number of repetitions").reshape(-1)]
    if min(repeats, default=1) < 1:
        raise e.refuse(node, "the result is empty")
    e.bind(node, e.mb.tile(x=e.value(node), reps=repeats, name=e.name(node)))


_PAD_MODES: Final = MappingProxyType({"constant": "constant", "reflect": "reflect", "edge": "replicate"})


def _cut(e: Emission, node: ir.Node, before: Sequence[int], after: Sequence[int]) -> Any:
    """Return the input with what negative padding cuts off taken away."""
    shape = e.shape(node)
    cut = [(max(-first, 0), max(-last, 0)) for first, last in zip(before, after, strict=True)]
    if not any(first or last for first, last in cut):
        return e.value(node)
    ends = []
    for size, (first, last) in zip(shape, cut, strict=True):
        if (first or last) and not isinstance(size, int):
            raise e.refuse(node, "it cuts a dimension that is not static")
        ends.append(int(size) - last if first or last else 0)
        if (first or last) and ends[-1] <= first:
            raise e.refuse(node, "it cuts off everything")
    whole = [not (first or last) for first, last in cut]
    only = min((*before, *after)) < 0 and max((*before, *after)) <= 0
    return e.mb.slice_by_index(
        x=e.value(node),
        begin=[first for first, _ in cut],
        end=ends,
        begin_mask=whole,
        end_mask=whole,
        name=e.name(node) if only else e.helper(node, "cut"),
    )


def _pad(e: Emission, node: ir.Node) -> None:
    mode = node.attributes.get_string("mode", "constant")
    pads = e.integers(node, "pads", 1)
    if mode not in _PAD_MODES or pads is None:
        raise e.refuse(node, f"MIL's pad has no mode {mode}")
    rank = len(e.shape(node))
    axes = list(range(rank))
    if e.has(node, 3):
        axes = [e.axis(node, int(a)) for a in e.required(node, 3, "axes").reshape(-1)]
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    x = _cut(e, node, before, after)
    before, after = [max(p, 0) for p in before], [max(p, 0) for p in after]
    first = next((i for i in range(rank) if before[i] or after[i]), rank)
    if first == rank:
        e.bind(node, x)
        return
    value = np.float32(node.attributes.get_float("value", 0.0))
    if e.has(node, 2):
        value = np.float32(e.required(node, 2, "value").reshape(()))
    if mode != "constant":
        # Core ML reflects and replicates on the last two dimensions alone.
        if first < rank - 2:
            raise e.refuse(node, f"mode {mode} on a dimension before the last two")
        value = np.float32(0)
    padded = e.mb.pad(
        x=x,
        pad=interleaved(before[first:], after[first:]),
        mode=_PAD_MODES[mode],
        constant_val=value,
        name=e.name(node),
    )
    e.bind(node, padded)


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "Concat": _concat,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "Pad": _pad,
        "Reshape": _reshape,
        "Slice": _slice,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": _tile,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)
