"""How each ONNX operator is written with TFLite's builtin operators: one table, one small function a kind.

Every function takes the emitter and the node. It asks for its inputs in the order of axes that the TFLite
operator wants (`Emitter.settle`), makes its outputs (`Emitter.result`) and appends operators. What it cannot
express exactly it refuses with a reason. ``docs/add-an-operator.md`` walks through an addition.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op
from numpy.typing import NDArray

from shufflectl.converters.bounds import clip_bounds, non_negative
from shufflectl.converters.graph import Graph
from shufflectl.converters.tflite.emitter import Emitter, Handler, Operand, Order, Site, fixed_sizes
from shufflectl.converters.tflite.flatbuffer import COUNTS, Tensor
from shufflectl.converters.tflite.layout import Dim, Shape, View
from shufflectl.converters.tflite.resize import resize
from shufflectl.converters.trace import NHWC

__all__ = ["OPERATORS"]

_LOWEST = np.float32(np.finfo(np.float32).min)
_MAX_BROADCAST_RANK = 4


def _int32(values: Any) -> NDArray[np.int32]:
    return np.asarray(values, np.int32)


# Convolution and pooling.


class _Window:
    """The geometry of a convolution or pooling window over H and W, and its padding in TFLite's terms."""

    def __init__(self, site: Site, source: Shape, kernel: Sequence[int]) -> None:
        if len(source) != 4 or len(kernel) != 2:
            site.refuse(f"only windows over two spatial axes are supported, not {len(source) - 2}")
        self.kernel = list(kernel)
        self.strides = site.ints("strides", [1, 1])
        self.dilations = site.ints("dilations", [1, 1])
        self.source = fixed_sizes(site, source, (2, 3))
        self.result = fixed_sizes(site, site.shape, (2, 3))
        self.extent = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        # what the outputs read beyond the input, whatever the declared padding at the end is
        span = [(o - 1) * s + e for o, s, e in zip(self.result, self.strides, self.extent, strict=True)]
        self.declared = site.ints("pads", [0, 0, 0, 0])
        auto = site.text("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = [max(n - size, 0) for n, size in zip(span, self.source, strict=True)]
            small = [t // 2 for t in total]
            large = [t - b for t, b in zip(total, small, strict=True)]
            self.declared = [*small, *large] if auto == "SAME_UPPER" else [*large, *small]
        elif auto == "VALID":
            self.declared = [0, 0, 0, 0]
        self.before = self.declared[:2]
        self.after = [max(n - b - s, 0) for n, b, s in zip(span, self.before, self.source, strict=True)]

    @property
    def padding(self) -> int | None:
        """TFLite's padding scheme where one means exactly the same; None where a PAD is needed."""
        rows = range(2)
        valid = [(self.source[i] - self.extent[i]) // self.strides[i] + 1 for i in rows]
        if self.before == [0, 0] and valid == self.result:
            return int(schema.Padding.VALID)
        if [-(-self.source[i] // self.strides[i]) for i in rows] == self.result:
            total = [(self.result[i] - 1) * self.strides[i] + self.extent[i] - self.source[i] for i in rows]
            if [max(t, 0) // 2 for t in total] == self.before:
                return int(schema.Padding.SAME)
        return None

    def counts(self, *, include_pad: bool) -> NDArray[np.float32]:
        """Return how many elements each average is over, ``[1, OH, OW, 1]``."""
        rows = []
        for i in range(2):
            start = np.arange(self.result[i]) * self.strides[i] - self.before[i]
            low = -self.before[i] if include_pad else 0
            high = self.source[i] + (self.declared[i + 2] if include_pad else 0)
            end = np.minimum(start + self.kernel[i], high)
            rows.append(end - np.maximum(start, low))
        table: NDArray[np.float32] = np.multiply.outer(rows[0], rows[1]).astype(np.float32)
        return table[None, :, :, None]


def _pad_window(e: Emitter, site: Site, source: Tensor, window: _Window, value: np.float32) -> Tensor:
    """Pad H and W of an NHWC tensor explicitly."""
    batch, height, width, channels = source.dims
    (top, left), (bottom, right) = window.before, window.after
    sizes = [int(height) + top + bottom, int(width) + left + right]
    padded = e.inner(site, "pad", [batch, *sizes, channels])
    _pad_operator(e, source, padded, [(0, 0), (top, bottom), (left, right), (0, 0)], value)
    return padded


def _pad_operator(
    e: Emitter, source: Tensor, target: Tensor, pads: Sequence[tuple[int, int]], value: Any
) -> None:
    amounts = e.constant(_int32(pads), "paddings")
    if value == 0:
        e.add(Op.PAD, [source, amounts], [target], schema.PadOptionsT())
    else:
        fill = e.constant(np.asarray(value, source.dtype), "padding")
        e.add(Op.PADV2, [source, amounts, fill], [target], schema.PadV2OptionsT())


def conv(e: Emitter, site: Site) -> None:
    """Write Conv as CONV_2D (dense or grouped) or DEPTHWISE_CONV_2D."""
    data = e.operand(site.input(0))
    weights = site.constant(1, "weight")
    window = _Window(site, data.shape, weights.shape[2:])
    outputs, group_inputs = weights.shape[:2]
    groups = site.integer("group", 1)
    bias = site.optional(2, "bias")
    bias = np.zeros(outputs, np.float32) if bias is None else bias
    source = e.settle(data, NHWC)
    padding = window.padding
    if padding is None:
        source, padding = _pad_window(e, site, source, window, np.float32(0)), schema.Padding.VALID
    common = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
        "fusedActivationFunction": site.activation,
    }
    name = site.node.inputs[1].name if site.node.inputs[1] is not None else None
    name = name or f"{site.output.name}/weight"
    if groups > 1 and group_inputs == 1:
        code, options = Op.DEPTHWISE_CONV_2D, schema.DepthwiseConv2DOptionsT(**common)
        options.depthMultiplier = outputs // groups
        kernel = weights.transpose(1, 2, 3, 0)  # [C·m, 1, KH, KW] -> [1, KH, KW, C·m]
    else:
        code, options = Op.CONV_2D, schema.Conv2DOptionsT(**common)
        kernel = weights.transpose(0, 2, 3, 1)  # [O, I/g, KH, KW] -> [O, KH, KW, I/g]
    bias_value = site.node.inputs[2] if site.has(2) else None
    bias_name = (bias_value.name if bias_value is not None else None) or f"{site.output.name}/bias"
    inputs = [source, e.weight(np.ascontiguousarray(kernel), name), e.weight(bias, bias_name)]
    e.add(code, inputs, [e.result(site.output, NHWC)], options)


def _pool_options(window: _Window, padding: int | None, activation: int) -> Any:
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
    window = _Window(site, data.shape, site.ints("kernel_shape", []))
    if window.dilations != [1, 1]:
        site.refuse("dilated pooling is not supported")
    source, padding = e.settle(data, NHWC), window.padding
    if padding is None:
        # Zero is below nothing after a ReLU, and XNNPACK takes PAD but not PADV2.
        fill = np.float32(0) if non_negative(site.input(0)) else _LOWEST
        source, padding = _pad_window(e, site, source, window, fill), schema.Padding.VALID
    options = _pool_options(window, padding, site.activation)
    e.add(Op.MAX_POOL_2D, [source], [e.result(site.output, NHWC)], options)


def average_pool(e: Emitter, site: Site) -> None:
    """Write AveragePool; where TFLite divides by another count, a factor for each position corrects it."""
    data = e.operand(site.input(0))
    window = _Window(site, data.shape, site.ints("kernel_shape", []))
    if window.dilations != [1, 1]:
        site.refuse("dilated pooling is not supported")
    counts = window.counts(include_pad=bool(site.integer("count_include_pad", 0)))
    source, padding = e.settle(data, NHWC), window.padding
    # SAME divides by the elements inside the input; VALID by the window's size
    given = window.counts(include_pad=False)
    if padding != schema.Padding.SAME or not np.array_equal(counts, given):
        if padding != schema.Padding.VALID:
            source, padding = _pad_window(e, site, source, window, np.float32(0)), schema.Padding.VALID
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
    where = e.constant(_int32(sorted(order.index(a) for a in over)), "axes")
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
    where = e.constant(_int32(sorted(order.index(a) for a in axes)), "axes")
    e.add(code, [source, where], [target], schema.ReducerOptionsT(keepDims=keep))


# Dense layers.


def gemm(e: Emitter, site: Site) -> None:
    """Write Gemm with constant weights as FULLY_CONNECTED."""
    if site.integer("transA", 0):
        site.refuse("a transposed first matrix is not supported")
    weights = site.constant(1, "weight")
    weights = weights if site.integer("transB", 0) else weights.T  # [M, K]
    alpha, beta = site.number("alpha", 1.0), site.number("beta", 1.0)
    if alpha != 1:
        weights = weights * np.float32(alpha)
    bias = site.optional(2, "bias")
    if bias is None:
        bias = np.zeros(len(weights), np.float32)
    if bias.size not in (1, len(weights)) or (bias.ndim == 2 and bias.shape[0] != 1):
        site.refuse(
            f"a bias of shape {list(bias.shape)} is not one figure for each of {len(weights)} outputs"
        )
    bias = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (len(weights),))
    _fully_connected(e, site, weights, bias)


def matmul(e: Emitter, site: Site) -> None:
    """Write MatMul: FULLY_CONNECTED where the second operand is one constant matrix, else BATCH_MATMUL."""
    weights = Graph.constant(site.input(1))
    if weights is not None and weights.ndim == 2 and e.operand(site.input(0)).rank >= 2:
        _fully_connected(e, site, weights.T, np.zeros(weights.shape[1], np.float32))
        return
    left, right = e.operand(site.input(0)), e.operand(site.input(1))
    if left.rank < 2 or right.rank < 2:
        site.refuse(f"a product of shapes {list(left.shape)} and {list(right.shape)} is not supported")
    sources = [e.ordered(o, tuple(range(o.rank))) for o in (left, right)]
    e.add(Op.BATCH_MATMUL, sources, [e.result(site.output)], schema.BatchMatMulOptionsT())


def _fully_connected(e: Emitter, site: Site, weights: NDArray[Any], bias: NDArray[Any]) -> None:
    """Write a dense layer over the last axis; ``weights`` is ``[M, K]``."""
    data = e.operand(site.input(0))
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=site.activation)
    source: Tensor | None = None
    order: Order = (0, 1)
    if data.rank > 2:
        options.keepNumDims = True
        order = (*(a for a in data.natural_order if a != data.rank - 1), data.rank - 1)
        source = e.settle(data, order)
    elif data.held is not None and not data.settled:
        # A flattened image may lie in the file as [N, H, W, C]: permute the weights' columns, not the image.
        tensor, view = data.held
        rows, columns = view.real(0), view.real(1)
        if max(rows, default=-1) < min(columns, default=len(view.dims)):
            sizes = [int(view.dims[f]) for f in columns]
            moved = np.argsort(np.asarray(columns, np.int64))
            grid = weights.reshape(len(weights), *sizes).transpose(0, *(1 + moved))
            weights, source = grid.reshape(len(weights), -1), tensor
    if source is None:
        source = e.settle(data, order)
    given = site.node.inputs[1]
    name = (given.name if given is not None else None) or f"{site.output.name}/weight"
    inputs = [
        source,
        e.weight(np.ascontiguousarray(weights), name),
        e.weight(bias, f"{site.output.name}/bias"),
    ]
    e.add(Op.FULLY_CONNECTED, inputs, [e.result(site.output, order)], options)


# Elementwise.


def _aligned(e: Emitter, site: Site, operands: Sequence[Operand]) -> tuple[list[Tensor], Order]:
    """Bring operands that broadcast (as numpy does) to one rank and order of axes."""
    rank = len(site.shape)
    full = []
    for operand in operands:
        if operand.rank < rank and operand.shape:
            lifted = (1,) * (rank - operand.rank) + operand.shape
            full.append(e.reshaped(operand, lifted, f"{operand.name}/lifted"))
        else:
            full.append(operand)
    order = e.common_order([o for o in full if o.rank == rank])
    sources = [e.ordered(o, order if o.rank == rank else ()) for o in full]
    ranks = {s.dims for s in sources if s.dims}
    if rank > _MAX_BROADCAST_RANK and len(ranks) > 1:
        site.refuse(f"broadcasting at rank {rank} is not supported", "reshape the operands to rank 4")
    return sources, order


def binary(code: int, options: Callable[..., Any] | None, e: Emitter, site: Site) -> None:
    """Write an operator of two operands that broadcast."""
    sources, order = _aligned(e, site, [e.operand(site.input(i)) for i in range(2)])
    made = None if options is None else options()
    if made is not None and hasattr(made, "fusedActivationFunction"):
        made.fusedActivationFunction = site.activation
    e.add(code, sources, [e.result(site.output, order)], made)


def variadic(code: int, options: Callable[..., Any], e: Emitter, site: Site) -> None:
    """Write Sum, Max or Min of any number of operands as a chain of two."""
    sources, order = _aligned(e, site, [e.operand(site.input(i)) for i in range(len(site.node.inputs))])
    if len(sources) == 1:
        e.alias(site.output, e.operand(site.input(0)))
        return
    target = e.result(site.output, order)
    left = sources[0]
    for index, right in enumerate(sources[1:], start=1):
        last = index == len(sources) - 1
        dims = np.broadcast_shapes(left.shape, right.shape)
        symbolic = tuple(target.dims[i] if d == target.shape[i] else d for i, d in enumerate(dims))
        made = (
            target
            if last
            else e.inner(site, f"part{index}", symbolic if len(dims) == len(target.dims) else dims)
        )
        e.add(code, [left, right], [made], options())
        left = made


def unary(code: int, options: Callable[[Site], Any] | None, e: Emitter, site: Site) -> None:
    """Write an operator that treats every element alike, in the order of axes that its input has."""
    source, target = e.elementwise(site)
    e.add(code, [source], [target], None if options is None else options(site))


def _scalar(e: Emitter, value: float) -> Tensor:
    return e.constant(np.asarray(value, np.float32), "scalar")


def clip(e: Emitter, site: Site) -> None:
    """Write Clip as one of the bounded ReLUs, or MAXIMUM and MINIMUM.

    RELU_0_TO_1 would be one operator, but no delegate takes it: it would cut the graph in two. A bound where
    codes end needs no operator.
    """
    bounds = clip_bounds(site.node)
    if bounds is None:
        site.refuse("its bounds are not constant")
    code = {
        (0.0, math.inf): Op.RELU,
        (0.0, 6.0): Op.RELU6,
        (-1.0, 1.0): Op.RELU_N1_TO_1,
    }.get(bounds)
    data = e.operand(site.input(0))
    if code is not None and data.dtype == np.float32:
        unary(code, None, e, site)
        return
    steps = [(Op.MAXIMUM, bounds[0])] * (bounds[0] > -math.inf) + [(Op.MINIMUM, bounds[1])] * (
        bounds[1] < math.inf
    )
    steps = [(step, bound) for step, bound in steps if not e.ends_at(site, bound)]
    if not steps:
        e.alias(site.output, data)
        return
    order = e.common_order([data])
    source, target = e.settle(data, order), e.result(site.output, order)
    for index, (step, bound) in enumerate(steps):
        last = index == len(steps) - 1
        made = target if last else e.inner(site, "maximum", target.dims, target.dtype)
        limit = e.constant(np.asarray(bound, data.dtype), "bound")
        e.add(step, [source, limit], [made], schema.MaximumMinimumOptionsT())
        source = made


def hard_sigmoid(e: Emitter, site: Site) -> None:
    """Write HardSigmoid, ``max(0, min(1, a x + b))``, as ``relu6(6 a x + 6 b) / 6``."""
    alpha, beta = site.number("alpha", 0.2), site.number("beta", 0.5)
    data = e.operand(site.input(0))
    order = e.common_order([data])
    source, target = e.settle(data, order), e.result(site.output, order)
    slope = np.float32(6 * alpha)
    if abs(slope - 1) > np.finfo(np.float32).eps:
        scaled = e.inner(site, "scaled", target.dims)
        e.add(Op.MUL, [source, _scalar(e, float(slope))], [scaled], schema.MulOptionsT())
        source = scaled
    bounded = e.inner(site, "bounded", target.dims)
    options = schema.AddOptionsT(fusedActivationFunction=schema.ActivationFunctionType.RELU6)
    e.add(Op.ADD, [source, _scalar(e, 6 * beta)], [bounded], options)
    e.add(Op.MUL, [bounded, _scalar(e, 1 / 6)], [target], schema.MulOptionsT())


def elu(e: Emitter, site: Site) -> None:
    """Write Elu; for a slope other than TFLite's 1 the negative part alone is bent and scaled."""
    alpha = site.number("alpha", 1.0)
    if alpha == 1:
        unary(Op.ELU, None, e, site)
        return
    source, target = e.elementwise(site)
    positive, negative, bent, scaled = (
        e.inner(site, role, source.dims) for role in ("positive", "negative", "bent", "scaled")
    )
    e.add(Op.RELU, [source], [positive])
    e.add(Op.MINIMUM, [source, _scalar(e, 0.0)], [negative], schema.MaximumMinimumOptionsT())
    e.add(Op.ELU, [negative], [bent])
    e.add(Op.MUL, [bent, _scalar(e, alpha)], [scaled], schema.MulOptionsT())
    e.add(Op.ADD, [positive, scaled], [target], schema.AddOptionsT())


def _softplus_operators(e: Emitter, site: Site, source: Tensor, target: Tensor) -> None:
    """Append ``max(x, 0) + log(1 + exp(-|x|))``, in which no exponential overflows."""
    size, below, power, more, rest, positive = (
        e.inner(site, role, source.dims) for role in ("size", "below", "power", "more", "rest", "positive")
    )
    e.add(Op.ABS, [source], [size], schema.AbsOptionsT())
    e.add(Op.NEG, [size], [below], schema.NegOptionsT())
    e.add(Op.EXP, [below], [power], schema.ExpOptionsT())
    e.add(Op.ADD, [power, _scalar(e, 1.0)], [more], schema.AddOptionsT())
    e.add(Op.LOG, [more], [rest])
    e.add(Op.RELU, [source], [positive])
    e.add(Op.ADD, [positive, rest], [target], schema.AddOptionsT())


def softplus(e: Emitter, site: Site) -> None:
    """Write Softplus, which TFLite has not, by its definition."""
    source, target = e.elementwise(site)
    _softplus_operators(e, site, source, target)


def mish(e: Emitter, site: Site) -> None:
    """Write Mish, ``x * tanh(softplus(x))``."""
    source, target = e.elementwise(site)
    soft, gate = e.inner(site, "softplus", source.dims), e.inner(site, "gate", source.dims)
    _softplus_operators(e, site, source, soft)
    e.add(Op.TANH, [soft], [gate])
    e.add(Op.MUL, [source, gate], [target], schema.MulOptionsT())


def prelu(e: Emitter, site: Site) -> None:
    """Write PRelu with constant slopes."""
    data = e.operand(site.input(0))
    slope = site.constant(1, "slope")
    order = e.common_order([data])
    if slope.size > 1:
        slope = slope.reshape((1,) * (data.rank - slope.ndim) + slope.shape).transpose(order)
    if slope.ndim == data.rank:
        if slope.shape[0] != 1:
            site.refuse("a slope for each image of the batch is not supported")
        slope = slope[0]  # TFLite's slopes have no batch axis
    name = f"{site.output.name}/slope"
    sources = [e.settle(data, order), e.weight(np.ascontiguousarray(slope), name)]
    e.add(Op.PRELU, sources, [e.result(site.output, order)])


def batch_normalization(e: Emitter, site: Site) -> None:
    """Write BatchNormalization (inference) as one multiplication and one addition for each channel."""
    if site.integer("training_mode", 0):
        site.refuse("training mode is not supported")
    scale, shift, mean, variance = (site.constant(i, "statistics").astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + site.number("epsilon", 1e-5))
    data = e.operand(site.input(0))
    order = e.common_order([data])
    along = [1] * data.rank
    along[order.index(1)] = len(factor)
    weights = [a.astype(np.float32).reshape(along) for a in (factor, shift - mean * factor)]
    target = e.result(site.output, order)
    scaled = e.inner(site, "scaled", target.dims)
    factors, shifts = (
        e.weight(w, f"{site.output.name}/{n}") for w, n in zip(weights, ("factor", "shift"), strict=True)
    )
    e.add(Op.MUL, [e.settle(data, order), factors], [scaled], schema.MulOptionsT())
    e.add(Op.ADD, [scaled, shifts], [target], schema.AddOptionsT())


def softmax(code: int, options: Callable[[], Any], e: Emitter, site: Site) -> None:
    """Write Softmax or LogSoftmax, which TFLite has over the file's last axis."""
    data = e.operand(site.input(0))
    axis = site.axis("axis", -1, data.rank)
    order = data.natural_order
    if order[-1] != axis:
        order = (*(a for a in order if a != axis), axis)
    e.add(code, [e.settle(data, order)], [e.result(site.output, order)], options())


def gelu(e: Emitter, site: Site) -> None:
    """Write Gelu, exact or with the hyperbolic tangent."""
    unary(
        Op.GELU, lambda s: schema.GeluOptionsT(approximate=s.text("approximate", "none") == "tanh"), e, site
    )


def reciprocal(e: Emitter, site: Site) -> None:
    """Write Reciprocal as one divided by the input."""
    data = e.operand(site.input(0))
    order = e.common_order([data])
    source = e.settle(data, order)
    e.add(Op.DIV, [_scalar(e, 1.0), source], [e.result(site.output, order)], schema.DivOptionsT())


def cast(e: Emitter, site: Site) -> None:
    """Write Cast between the types that a file can hold."""
    data = e.operand(site.input(0))
    dtype = np.dtype(np.float32) if site.output.dtype is None else site.output.dtype.numpy()
    if dtype == data.dtype:
        e.alias(site.output, data)
        return
    if not e.file.holds(dtype):
        site.refuse(f"type {dtype} is not supported")
    if (
        data.dtype == np.uint8
        and dtype == np.float32
        and data.held is not None
        and data.held[0].grid is COUNTS
    ):
        # The GPU delegate and XNNPACK take DEQUANTIZE of 8-bit integers; CAST of them neither does (see
        # inspect/gpu.py and xnnpack.py, which cite their sources).
        order = data.natural_order
        e.add(Op.DEQUANTIZE, [data.held[0]], [e.result(site.output, order)], schema.DequantizeOptionsT())
        return
    order = e.common_order([data])
    e.add(Op.CAST, [e.settle(data, order)], [e.result(site.output, order)], schema.CastOptionsT())


# Data movement.


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
        along = e.constant(_int32(where), "axis")
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
    _box(e, source, target, begin, extent)


def _box(e: Emitter, source: Tensor, target: Tensor, begin: Sequence[int], extent: Sequence[Dim]) -> None:
    """Take a box of the file's tensor; axes whose size is not fixed are taken whole.

    It is a SLICE, or a masked STRIDED_SLICE where a size is not fixed: XNNPACK refuses a SLICE "to the end".
    """
    whole = sum(1 << i for i, size in enumerate(extent) if isinstance(size, str))
    sizes = [0 if isinstance(size, str) else size for size in extent]
    first = e.constant(_int32(begin), "begin")
    if not whole:
        inputs = [source, first, e.constant(_int32(sizes), "size")]
        e.add(Op.SLICE, inputs, [target], schema.SliceOptionsT())
        return
    end = e.constant(_int32([b + n for b, n in zip(begin, sizes, strict=True)]), "end")
    inputs = [source, first, end, e.constant(_int32([1] * len(sizes)), "strides")]
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
        _box(e, source, target, [ranges[a].start if a in ranges else 0 for a in order], target.dims)
        return
    # an axis taken whole is masked; so is an end before the first element, which has no number
    begin = [ranges[a].start if a in ranges else 0 for a in order]
    end = [ranges[a].stop if a in ranges else 0 for a in order]
    stride = [ranges[a].step if a in ranges else 1 for a in order]
    whole = sum(1 << i for i in range(rank) if order[i] not in ranges)
    ends_mask = sum(1 << i for i in range(rank) if order[i] not in ranges or ranges[order[i]].stop < 0)
    options = schema.StridedSliceOptionsT(beginMask=whole, endMask=ends_mask)
    names = zip((begin, end, stride), ("begin", "end", "strides"), strict=True)
    e.add(Op.STRIDED_SLICE, [source, *(e.constant(_int32(v), n) for v, n in names)], [target], options)


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
    multiples = e.constant(_int32([repeats[a] for a in order]), "multiples")
    e.add(Op.TILE, [e.settle(data, order), multiples], [e.result(site.output, order)], schema.TileOptionsT())


def _pad_by_gathers(
    e: Emitter, site: Site, source: Tensor, target: Tensor, pads: NDArray[np.int64], mode: str
) -> None:
    """Repeat the border (``edge``) or the other side (``wrap``): a GATHER for each axis that grows."""
    grown = [axis for axis, amounts in enumerate(pads) if amounts.any()]
    for axis in grown:
        size = source.dims[axis]
        if isinstance(size, str):
            site.refuse("an axis with no fixed size cannot be padded so")
        places = np.arange(-pads[axis, 0], size + pads[axis, 1])
        places = places.clip(0, size - 1) if mode == "edge" else places % size
        dims = [*source.dims[:axis], len(places), *source.dims[axis + 1 :]]
        made = target if axis == grown[-1] else e.inner(site, "padded", dims, source.dtype)
        index = e.constant(_int32(places), "indices")
        e.add(Op.GATHER, [source, index], [made], schema.GatherOptionsT(axis=axis))
        source = made


def pad(e: Emitter, site: Site) -> None:
    """Write Pad; negative amounts cut first.

    It is PAD or PADV2 for a constant, MIRROR_PAD for a reflection, and a GATHER for each axis where the
    border or the other side is repeated.
    """
    data = e.operand(site.input(0))
    mode = site.text("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        site.refuse(f"mode {mode!r} is not supported", "use mode 'constant', 'reflect', 'edge' or 'wrap'")
    amounts = site.constant(1, "list of amounts").astype(np.int64)
    fill = site.optional(2, "value")
    given = site.optional(3, "list of axes")
    axes = range(data.rank) if given is None else [int(a) % data.rank for a in given]
    pads = np.zeros((data.rank, 2), np.int64)
    for i, axis in enumerate(axes):
        pads[axis] = amounts[i], amounts[i + len(axes)]
    value = 0 if fill is None or fill.size == 0 else fill.item()
    if not math.isfinite(value):
        value = float(np.clip(value, _LOWEST, -_LOWEST))
        site.refuse("an infinite value is not supported", f"use {value} instead")
    order = e.common_order([data])
    source = e.settle(data, order)
    cut, grow = np.maximum(-pads, 0)[list(order)], np.maximum(pads, 0)[list(order)]
    if cut.any():
        dims: list[Dim] = []
        for size, (low, high) in zip(source.dims, cut, strict=True):
            if isinstance(size, str) and (low or high):
                site.refuse("an axis with no fixed size cannot be cut")
            dims.append(size if isinstance(size, str) else size - int(low) - int(high))
        last = not grow.any()
        kept = e.result(site.output, order) if last else e.inner(site, "cut", dims, data.dtype)
        _box(e, source, kept, [int(low) for low in cut[:, 0]], dims)
        source = kept
        if last:
            return
    if not grow.any():
        e.alias(site.output, data)
        return
    target = e.result(site.output, order)
    if mode in ("edge", "wrap"):
        _pad_by_gathers(e, site, source, target, grow, mode)
    elif mode == "reflect":
        amount = e.constant(_int32(grow), "paddings")
        options = schema.MirrorPadOptionsT(mode=schema.MirrorPadMode.REFLECT)
        e.add(Op.MIRROR_PAD, [source, amount], [target], options)
    else:
        _pad_operator(e, source, target, [(int(a), int(b)) for a, b in grow], value)


OPERATORS: Final[dict[str, Handler]] = {
    # Convolution and pooling.
    "Conv": conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": partial(global_pool, Op.MEAN),
    "GlobalMaxPool": partial(global_pool, Op.REDUCE_MAX),
    "ReduceMean": partial(reduction, Op.MEAN),
    "ReduceSum": partial(reduction, Op.SUM),
    "ReduceL2": reduce_l2,
    "ReduceMax": partial(reduction, Op.REDUCE_MAX),
    "ReduceMin": partial(reduction, Op.REDUCE_MIN),
    "BatchNormalization": batch_normalization,
    # Dense layers.
    "Gemm": gemm,
    "MatMul": matmul,
    # Elementwise, two operands or more.
    "Add": partial(binary, Op.ADD, schema.AddOptionsT),
    "Sub": partial(binary, Op.SUB, schema.SubOptionsT),
    "Mul": partial(binary, Op.MUL, schema.MulOptionsT),
    "Div": partial(binary, Op.DIV, schema.DivOptionsT),
    "Pow": partial(binary, Op.POW, schema.PowOptionsT),
    "Sum": partial(variadic, Op.ADD, schema.AddOptionsT),
    "Max": partial(variadic, Op.MAXIMUM, schema.MaximumMinimumOptionsT),
    "Min": partial(variadic, Op.MINIMUM, schema.MaximumMinimumOptionsT),
    # Elementwise, one operand.
    "Relu": partial(unary, Op.RELU, None),
    "Clip": clip,
    "Sigmoid": partial(unary, Op.LOGISTIC, None),
    "Tanh": partial(unary, Op.TANH, None),
    "HardSwish": partial(unary, Op.HARD_SWISH, lambda _: schema.HardSwishOptionsT()),
    "HardSigmoid": hard_sigmoid,
    "LeakyRelu": partial(
        unary, Op.LEAKY_RELU, lambda s: schema.LeakyReluOptionsT(alpha=s.number("alpha", 0.01))
    ),
    "PRelu": prelu,
    "Elu": elu,
    "Gelu": gelu,
    "Softplus": softplus,
    "Mish": mish,
    "Sqrt": partial(unary, Op.SQRT, None),
    "Exp": partial(unary, Op.EXP, lambda _: schema.ExpOptionsT()),
    "Log": partial(unary, Op.LOG, None),
    "Abs": partial(unary, Op.ABS, lambda _: schema.AbsOptionsT()),
    "Neg": partial(unary, Op.NEG, lambda _: schema.NegOptionsT()),
    "Floor": partial(unary, Op.FLOOR, None),
    "Ceil": partial(unary, Op.CEIL, None),
    "Reciprocal": reciprocal,
    "Softmax": partial(softmax, Op.SOFTMAX, lambda: schema.SoftmaxOptionsT(beta=1.0)),
    "LogSoftmax": partial(softmax, Op.LOG_SOFTMAX, schema.LogSoftmaxOptionsT),
    "Cast": cast,
    # Data movement.
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
    "Pad": pad,
    "Resize": resize,
}
"""The emit function of each operator of ONNX."""
