"""How operators are written with TFLite's that take each element by itself; activations are among them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op

from shufflectl.converters.bounds import clip_bounds
from shufflectl.converters.tflite.emitter import Emitter, Handler, Operand, Order, Site
from shufflectl.converters.tflite.flatbuffer import COUNTS, Tensor

__all__ = ["OPERATORS"]

_MAX_BROADCAST_RANK = 4


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


OPERATORS: Final[dict[str, Handler]] = {
    "Add": partial(binary, Op.ADD, schema.AddOptionsT),
    "Sub": partial(binary, Op.SUB, schema.SubOptionsT),
    "Mul": partial(binary, Op.MUL, schema.MulOptionsT),
    "Div": partial(binary, Op.DIV, schema.DivOptionsT),
    "Pow": partial(binary, Op.POW, schema.PowOptionsT),
    "Sum": partial(variadic, Op.ADD, schema.AddOptionsT),
    "Max": partial(variadic, Op.MAXIMUM, schema.MaximumMinimumOptionsT),
    "Min": partial(variadic, Op.MINIMUM, schema.MaximumMinimumOptionsT),
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
}
