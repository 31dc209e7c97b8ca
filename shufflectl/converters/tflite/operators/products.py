"""How convolutions, matrix products and batch norm are written with TFLite's operators."""

from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.tflite.emitter import Emitter, Handler, Order, Site
from shufflectl.converters.tflite.flatbuffer import Tensor
from shufflectl.converters.tflite.operators.windows import Window, pad_window
from shufflectl.converters.trace import NHWC

__all__ = ["OPERATORS"]


def conv(e: Emitter, site: Site) -> None:
    """Write Conv as CONV_2D (dense or grouped) or DEPTHWISE_CONV_2D."""
    data = e.operand(site.input(0))
    weights = site.constant(1, "weight")
    window = Window(site, data.shape, weights.shape[2:])
    outputs, group_inputs = weights.shape[:2]
    groups = site.integer("group", 1)
    bias = site.optional(2, "bias")
    bias = np.zeros(outputs, np.float32) if bias is None else bias
    source = e.settle(data, NHWC)
    padding = window.padding
    if padding is None:
        source, padding = pad_window(e, site, source, window, np.float32(0)), schema.Padding.VALID
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


OPERATORS: Final[dict[str, Handler]] = {
    "Conv": conv,
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "MatMul": matmul,
}
