"""How convolutions, matrix products and batch norm are spelled in MIL."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_ir as ir

from shufflectl.converters.coreml.emission import Emission, Operator
from shufflectl.converters.coreml.operators.pads import interleaved, spatial_pads

__all__ = ["OPERATORS"]


def _conv(e: Emission, node: ir.Node) -> None:
    weight = e.required(node, 1, "weight")
    rank = len(e.spatial(node))
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    begin, end = spatial_pads(e, node, weight.shape[2:], strides, dilations)
    held = e.held(node)
    vector = held.bias if held is not None else e.required(node, 2, "bias") if e.has(node, 2) else None
    bias = {} if vector is None else {"bias": e.literal(node, vector)}
    e.bind(
        node,
        e.mb.conv(
            x=e.value(node),
            weight=e.weights(node, weight if held is None else held.weights),
            strides=strides,
            pad_type="custom",
            pad=interleaved(begin, end),
            dilations=dilations,
            groups=node.attributes.get_int("group", 1),
            name=e.name(node),
            **bias,
        ),
    )


_LINEAR_RANK: Final = 3


def _gemm(e: Emission, node: ir.Node) -> None:
    alpha = np.float32(node.attributes.get_float("alpha", 1.0))
    beta = np.float32(node.attributes.get_float("beta", 1.0))
    transpose_a = bool(node.attributes.get_int("transA", 0))
    transpose_b = bool(node.attributes.get_int("transB", 0))
    weight, bias = e.constant(node, 1), e.constant(node, 2)
    held = e.held(node)
    if held is not None:
        stored = held.weights if transpose_b else held.weights.transposed()
        extra = {} if held.bias is None else {"bias": e.literal(node, held.bias)}
        weights = e.weights(node, stored)
        e.bind(node, e.mb.linear(x=e.value(node), weight=weights, name=e.name(node), **extra))
        return
    if weight is not None and not transpose_a and (bias is not None or not e.has(node, 2)):
        rows = weight if transpose_b else weight.T
        if alpha != 1:
            rows = rows * alpha
        features = rows.shape[0]
        if bias is None:
            bias = np.zeros(features, rows.dtype)
        if bias.size in (1, features) and all(d == 1 for d in bias.shape[:-1]):
            # [1], [1, 1], [out] or [1, out] -> [out]
            vector = np.broadcast_to((bias if beta == 1 else bias * beta).reshape(-1), (features,))
            linear = e.mb.linear(
                x=e.value(node), weight=e.literal(node, rows), bias=e.literal(node, vector), name=e.name(node)
            )
            e.bind(node, linear)
            return
    plain = alpha == 1 and not e.has(node, 2)
    product = e.mb.matmul(
        x=e.value(node),
        y=e.value(node, 1),
        transpose_x=transpose_a,
        transpose_y=transpose_b,
        name=e.name(node) if plain else e.helper(node, "product"),
    )
    if alpha != 1:
        name = e.helper(node, "alpha") if e.has(node, 2) else e.name(node)
        product = e.mb.mul(x=product, y=alpha, name=name)
    if e.has(node, 2):
        term = e.value(node, 2)
        if beta != 1:
            term = e.mb.mul(x=term, y=beta, name=e.helper(node, "beta"))
        product = e.mb.add(x=product, y=term, name=e.name(node))
    e.bind(node, product)


def _matmul(e: Emission, node: ir.Node) -> None:
    if min(len(e.shape(node, 0)), len(e.shape(node, 1))) < 2:
        raise e.refuse(node, "an operand is a vector", "give both operands two dimensions or more")
    held = e.held(node)
    if held is not None and len(e.shape(node)) <= _LINEAR_RANK:
        weight = e.weights(node, held.weights.transposed())
        e.bind(node, e.mb.linear(x=e.value(node), weight=weight, name=e.name(node)))
        return
    if held is not None:
        y = e.weights(node, held.weights)
        e.bind(node, e.mb.matmul(x=e.value(node), y=y, name=e.name(node)))
        return
    e.bind(node, e.mb.matmul(x=e.value(node), y=e.value(node, 1), name=e.name(node)))


def _batch_norm(e: Emission, node: ir.Node) -> None:
    if node.attributes.get_int("training_mode", 0):
        raise e.refuse(node, "it is in training mode", "export the model in evaluation mode")
    gamma, beta, mean, variance = (
        e.required(node, i, what) for i, what in enumerate(("scale", "bias", "mean", "variance"), 1)
    )
    norm = e.mb.batch_norm(
        x=e.value(node),
        mean=e.literal(node, mean),
        variance=e.literal(node, variance),
        gamma=e.literal(node, gamma),
        beta=e.literal(node, beta),
        epsilon=np.float32(node.attributes.get_float("epsilon", 1e-5)),
        name=e.name(node),
    )
    e.bind(node, norm)


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "BatchNormalization": _batch_norm,
        "Conv": _conv,
        "Gemm": _gemm,
        "MatMul": _matmul,
    }
)
