"""How poolings and reductions are written with TFLite's operators."""

import math
from functools import partial
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op

from shufflectl.converters.bounds import non_negative
from shufflectl.converters.tflite.emitter import Emitter, Handler, Site, int32
from shufflectl.converters.tflite.operators.padding import LOWEST
from shufflectl.converters.tflite.operators.windows import Window, pad_window
from shufflectl.converters.trace import NHWC

__all__ = ["OPERATORS"]


def _pool_options(window: Window, padding: int | None, activation: int) -> Any:
    return schema.Pool2DOptionsT(
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
        fusedActivationFunction=activation,
    )


def max_pool(e: Emitter, site: Site) -> None:
    """Write MaxPool: SAME where it is the same, else over an explicitly padded tensor."""
    if any(v.uses() or v.is_graph_output() for v in site.node.outputs[1:]):
        site.refuse("the indices of the maxima are not supported")
    data = e.operand(site.input(0))
    window = Window(site, data.shape, site.ints("kernel_shape", []))
    if window.dilations != [1, 1]:
        site.refuse("dilated pooling is not supported")
    source, padding = e.settle(data, NHWC), window.padding
    if padding is None:
        # Zero is below nothing after a ReLU, and XNNPACK takes PAD but not PADV2.
        fill = np.float32(0) if non_negative(site.input(0)) else LOWEST
        source, padding = pad_window(e, site, source, window, fill), schema.Padding.VALID
    options = _pool_options(window, padding, site.activation)
    e.add(Op.MAX_POOL_2D, [source], [e.result(site.output, NHWC)], options)


def average_pool(e: Emitter, site: Site) -> None:
    """Write AveragePool; where TFLite divides by another count, a factor for each position corrects it."""
    data = e.operand(site.input(0))
    window = Window(site, data.shape, site.ints("kernel_shape", []))
    if window.dilations != [1, 1]:
        site.refuse("dilated pooling is not supported")
    counts = window.counts(include_pad=bool(site.integer("count_include_pad", 0)))
    source, padding = e.settle(data, NHWC), window.padding
    # SAME divides by the elements inside the input; VALID by the window's size
    given = window.counts(include_pad=False)
    if padding != schema.Padding.SAME or not np.array_equal(counts, given):
        if padding != schema.Padding.VALID:
            source, padding = pad_window(e, site, source, window, np.float32(0)), schema.Padding.VALID
        given = np.full_like(counts, math.prod(window.kernel))
    target = e.result(site.output, NHWC)
    if np.array_equal(counts, given):
        e.add(Op.AVERAGE_POOL_2D, [source], [target], _pool_options(window, padding, site.activation))
        return
    mean = e.inner(site, "mean", target.dims)
    e.add(Op.AVERAGE_POOL_2D, [source], [mean], _pool_options(window, padding, 0))
    factor = e.constant(given / counts, f"{site.output.name}/factor")
    e.add(Op.MUL, [mean, factor], [target], schema.MulOptionsT(fusedActivationFunction=site.activation))


def global_pool(code: int, e: Emitter, site: Site) -> None:
    """Write GlobalAveragePool or GlobalMaxPool as a reduction that keeps its axes."""
    rank = e.operand(site.input(0)).rank
    _reduce(e, site, code, list(range(2, rank)), keep=True)


def reduction(code: int, e: Emitter, site: Site) -> None:
    """Write ReduceMean, ReduceSum, ReduceMax or ReduceMin."""
    data = e.operand(site.input(0))
    given = site.optional(1, "list of axes")
    axes = site.ints("axes", []) if given is None else [int(a) for a in given.reshape(-1)]
    if not axes:
        if site.integer("noop_with_empty_axes", 0):
            e.alias(site.output, data)
            return
        axes = list(range(data.rank))
    _reduce(e, site, code, [a % data.rank for a in axes], keep=bool(site.integer("keepdims", 1)))


def reduce_l2(e: Emitter, site: Site) -> None:
    """Write ReduceL2 as the root of a sum of squares."""
    data = e.operand(site.input(0))
    order = e.common_order([data])
    source = e.settle(data, order)
    given = site.optional(1, "list of axes")
    axes = site.ints("axes", []) if given is None else [int(a) for a in given.reshape(-1)]
    if not axes and site.integer("noop_with_empty_axes", 0):
        site.refuse("a norm over no axes is not supported")
    over = {a % data.rank for a in axes} or set(range(data.rank))
    keep = bool(site.integer("keepdims", 1))
    names = [a for a in range(data.rank) if keep or a not in over]
    target = e.result(site.output, tuple(names.index(a) for a in order if keep or a not in over))
    squares, total = e.inner(site, "squares", source.dims), e.inner(site, "total", target.dims)
    where = e.constant(int32(sorted(order.index(a) for a in over)), "axes")
    e.add(Op.MUL, [source, source], [squares], schema.MulOptionsT())
    e.add(Op.SUM, [squares, where], [total], schema.ReducerOptionsT(keepDims=keep))
    e.add(Op.SQRT, [total], [target])


def _reduce(e: Emitter, site: Site, code: int, axes: list[int], *, keep: bool) -> None:
    data = e.operand(site.input(0))
    order = e.common_order([data])
    source = e.settle(data, order)
    left = [a for a in order if keep or a not in axes]
    names = [a for a in range(data.rank) if keep or a not in axes]
    target = e.result(site.output, tuple(names.index(a) for a in left))
    where = e.constant(int32(sorted(order.index(a) for a in axes)), "axes")
    e.add(code, [source, where], [target], schema.ReducerOptionsT(keepDims=keep))


OPERATORS: Final[dict[str, Handler]] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": partial(global_pool, Op.MEAN),
    "GlobalMaxPool": partial(global_pool, Op.REDUCE_MAX),
    "ReduceMean": partial(reduction, Op.MEAN),
    "ReduceSum": partial(reduction, Op.SUM),
    "ReduceL2": reduce_l2,
    "ReduceMax": partial(reduction, Op.REDUCE_MAX),
    "ReduceMin": partial(reduction, Op.REDUCE_MIN),
}
