"""How operators are written with TFLite's that move elements."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op

from shufflectl.converters.graph import Graph
from shufflectl.converters.tflite.emitter import Emitter, Handler, Operand, Site, fixed_sizes, int32
from shufflectl.converters.tflite.flatbuffer import Tensor
from shufflectl.converters.tflite.layout import Dim, View

__all__ = ["OPERATORS", "box"]


def identity(e: Emitter, site: Site) -> None:
    """Write nothing: the output is the input."""
    if any(v.uses() or v.is_graph_output() for v in site.node.outputs[1:]):
        site.refuse("its mask is not supported")
    e.alias(site.output, e.operand(site.input(0)))


def transpose(e: Emitter, site: Site) -> None:
    """Write nothing: relabel the axes."""
    data = e.operand(site.input(0))
    perm = site.ints("perm", range(data.rank)[::-1])
    if data.held is None:
        e.alias(site.output, e.constant_operand(data.array.transpose(perm), data.name))
        return
    tensor, view = data.held
    moved = view.transpose(perm)
    e.alias(site.output, Operand(data.name, moved.shape, data.dtype, (tensor, moved)))


def reshape(e: Emitter, site: Site) -> None:
    """Write Reshape, Flatten, Squeeze or Unsqueeze: whatever leads to the output's shape."""
    name = site.output.name or "reshape"
    e.alias(site.output, e.reshaped(e.operand(site.input(0)), site.shape, name))


def concat(e: Emitter, site: Site) -> None:
    """Write Concat along the axis where it lies in the file."""
    operands = [e.operand(site.input(i)) for i in range(len(site.node.inputs))]
    axis = site.axis("axis", 0, len(site.shape))
    order = e.common_order(operands)
    sources = [e.ordered(o, order) for o in operands]
    options = schema.ConcatenationOptionsT(axis=order.index(axis))
    e.add(Op.CONCATENATION, sources, [e.result(site.output, order)], options)


def split(e: Emitter, site: Site) -> None:
    """Write Split: SPLIT where there are 2 to 4 equal parts (all that XNNPACK takes), else SLICEs."""
    data = e.operand(site.input(0))
    axis = site.axis("axis", 0, data.rank)
    order = e.common_order([data])
    source = e.settle(data, order)
    where = order.index(axis)
    sizes = [fixed_sizes(site, Graph.shape(v), [axis])[0] for v in site.outputs]
    if len(set(sizes)) == 1 and 2 <= len(sizes) <= 4:
        along = e.constant(int32(where), "axis")
        targets = [e.result(v, order) for v in site.outputs]
        e.add(Op.SPLIT, [along, source], targets, schema.SplitOptionsT(numSplits=len(sizes)))
        return
    starts = np.cumsum([0, *sizes[:-1]])
    for value, start, size in zip(site.outputs, starts, sizes, strict=True):
        _slice_axis(e, source, e.result(value, order), where, (int(start), size))


def _slice_axis(e: Emitter, source: Tensor, target: Tensor, axis: int, part: tuple[int, int]) -> None:
    """Take ``part`` (start and size) of one axis of the file's tensor."""
    start, size = part
    begin = [0] * len(source.dims)
    begin[axis] = start
    extent = list(source.dims)
    extent[axis] = size
    box(e, source, target, begin, extent)


def box(e: Emitter, source: Tensor, target: Tensor, begin: Sequence[int], extent: Sequence[Dim]) -> None:
    """Take a box of the file's tensor; axes whose size is not fixed are taken whole.

    It is a SLICE, or a masked STRIDED_SLICE where a size is not fixed: XNNPACK refuses a SLICE "to the end".
    """
    whole = sum(1 << i for i, size in enumerate(extent) if isinstance(size, str))
    sizes = [0 if isinstance(size, str) else size for size in extent]
    first = e.constant(int32(begin), "begin")
    if not whole:
        inputs = [source, first, e.constant(int32(sizes), "size")]
        e.add(Op.SLICE, inputs, [target], schema.SliceOptionsT())
        return
    end = e.constant(int32([b + n for b, n in zip(begin, sizes, strict=True)]), "end")
    inputs = [source, first, end, e.constant(int32([1] * len(sizes)), "strides")]
    options = schema.StridedSliceOptionsT(beginMask=whole, endMask=whole)
    e.add(Op.STRIDED_SLICE, inputs, [target], options)


def slice_(e: Emitter, site: Site) -> None:
    """Write Slice as SLICE, or STRIDED_SLICE where it steps."""
    data = e.operand(site.input(0))
    starts, ends = (site.constant(i, what) for i, what in ((1, "start"), (2, "end")))
    given, steps = site.optional(3, "list of axes"), site.optional(4, "step")
    axes = range(len(starts)) if given is None else [int(a) % data.rank for a in given]
    order = e.common_order([data])
    ranges: dict[int, range] = {}
    for i, axis in enumerate(axes):
        step = 1 if steps is None else int(steps[i])
        size = data.shape[axis]
        if isinstance(size, str):
            if step == 1 and int(starts[i]) == 0 and int(ends[i]) >= np.iinfo(np.int32).max:
                continue  # all of an axis whose size is not fixed
            site.refuse(f"axis {axis} has no fixed size")
        ranges[axis] = range(size)[slice(int(starts[i]), _end(int(ends[i]), size, step), step)]
    source, target = e.settle(data, order), e.result(site.output, order)
    rank = data.rank
    if all(r.step == 1 for r in ranges.values()):
        box(e, source, target, [ranges[a].start if a in ranges else 0 for a in order], target.dims)
        return
    # an axis taken whole is masked; so is an end before the first element, which has no number
    begin = [ranges[a].start if a in ranges else 0 for a in order]
    end = [ranges[a].stop if a in ranges else 0 for a in order]
    stride = [ranges[a].step if a in ranges else 1 for a in order]
    whole = sum(1 << i for i in range(rank) if order[i] not in ranges)
    ends_mask = sum(1 << i for i in range(rank) if order[i] not in ranges or ranges[order[i]].stop < 0)
    options = schema.StridedSliceOptionsT(beginMask=whole, endMask=ends_mask)
    names = zip((begin, end, stride), ("begin", "end", "strides"), strict=True)
    e.add(Op.STRIDED_SLICE, [source, *(e.constant(int32(v), n) for v, n in names)], [target], options)


def _end(end: int, size: int, step: int) -> int | None:
    """Return an ONNX end as Python's: below ``-size`` a negative step runs through the first element."""
    return None if step < 0 and end < -size else end


def gather(e: Emitter, site: Site) -> None:
    """Write Gather with constant indices: a SLICE where they are a run, else GATHER."""
    data = e.operand(site.input(0))
    axis = site.axis("axis", 0, data.rank)
    indices = site.constant(1, "index")
    (size,) = fixed_sizes(site, data.shape, [axis])
    if indices.size and (int(indices.min()) < -size or int(indices.max()) >= size):
        site.refuse(f"an index is outside axis {axis} of size {size}")
    flat = indices.reshape(-1).astype(np.int64) % size
    order = e.common_order([data])
    source, where = e.settle(data, order), order.index(axis)
    picked: list[Dim] = list(data.shape)
    picked[axis] = len(flat)
    dims = tuple(picked[a] for a in order)
    inner = indices.ndim != 1
    name = f"{site.output.name}/taken" if inner else site.output.name or "gather"
    target = e.file.tensor(name, dims, data.dtype)
    if len(flat) and np.array_equal(flat, np.arange(flat[0], flat[0] + len(flat))):
        _slice_axis(e, source, target, where, (int(flat[0]), len(flat)))
    else:
        index = e.constant(flat.astype(np.int32), "indices")
        e.add(Op.GATHER, [source, index], [target], schema.GatherOptionsT(axis=where))
    shape = tuple(picked)
    taken = Operand(name, shape, data.dtype, (target, View.of(shape, order)), settled={order: target})
    if inner:  # the indices' own axes, or none for a scalar, take the place of the axis
        taken = e.reshaped(taken, site.shape, site.output.name or "gather")
    e.alias(site.output, taken)


def expand(e: Emitter, site: Site) -> None:
    """Write Expand as TILE, over axes that it adds as well."""
    data = e.operand(site.input(0))
    lifted = (1,) * (len(site.shape) - data.rank) + data.shape
    if data.rank < len(site.shape):
        data = e.reshaped(data, lifted, f"{data.name}/lifted")
    repeats = []
    for before, after in zip(lifted, site.shape, strict=True):
        if before != after and not (before == 1 and isinstance(after, int)):
            site.refuse("it repeats an axis with no fixed size")
        repeats.append(1 if before == after else int(after))
    _tile(e, site, data, repeats)


def tile(e: Emitter, site: Site) -> None:
    """Write Tile with constant numbers of repetitions."""
    repeats = [int(n) for n in site.constant(1, "number of repetitions").reshape(-1)]
    _tile(e, site, e.operand(site.input(0)), repeats)


def _tile(e: Emitter, site: Site, data: Operand, repeats: Sequence[int]) -> None:
    order = e.common_order([data])
    multiples = e.constant(int32([repeats[a] for a in order]), "multiples")
    e.add(Op.TILE, [e.settle(data, order), multiples], [e.result(site.output, order)], schema.TileOptionsT())


OPERATORS: Final[dict[str, Handler]] = {
    "Identity": identity,
    "Dropout": identity,
    "Transpose": transpose,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Expand": expand,
    "Tile": tile,
}
