"""Sees through codes of eight bits in an ONNX file of any exporter (Q/DQ form), to the graph in floats.

QuantizeLinear followed by DequantizeLinear rounds a tensor and moves nothing, so channels go through the two
as if they were not there; quantisers put such a pair behind every Reshape and Transpose of a shuffle. Weights
that are held as codes are constants like any other.

What is left has the file's structure and its tensors' names, not its numbers to the last bit.
"""

from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.movement import MAX_ELEMENTS

__all__ = ["holds_codes", "without_codes"]

_STANDARD: Final = ("", "ai.onnx")


def holds_codes(model: ir.Model) -> bool:
    """Whether a model rounds tensors to codes, or reads weights from them."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph)


def without_codes(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a model without the codes that can be seen through, and what was taken out, a sentence each.

    Left in place: codes that come in or go out, and what is no pair of one grid.

    Args:
        proto: The model, its weights loaded. It is valid, as `onnx.checker` sees it.
    """
    model = ir.from_proto(proto)
    weights = pairs = spent = 0
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or node.domain not in _STANDARD:
            continue
        output = node.outputs[0]
        source = _rounded(node)
        if source is not None:
            if not output.is_graph_output():
                ir.convenience.replace_all_uses_with(output, source)
                pairs += 1
            continue
        numbers = _numbers(node)
        if numbers is None or output.is_graph_output() or (spent := spent + numbers.size) > MAX_ELEMENTS:
            continue
        name = str(output.name)
        output.name = f"{name}.codes"
        constant = ir.Value(name=name, const_value=ir.tensor(numbers, name=name))
        constant.shape, constant.dtype = ir.Shape(numbers.shape), ir.DataType.FLOAT
        model.graph.register_initializer(constant)
        ir.convenience.replace_all_uses_with(output, constant)
        weights += 1
    common.RemoveUnusedNodesPass()(model)
    said = (
        (pairs, "tensors that are rounded to codes are looked at as if they were not"),
        (weights, "constants that are held as codes became floats"),
    )
    return ir.to_proto(model), tuple(f"{count} {text}" for count, text in said if count)


def _rounded(node: ir.Node) -> ir.Value | None:
    """Return what a DequantizeLinear gives back rounded; None where it does something else."""
    codes = node.inputs[0]
    maker = None if codes is None else codes.producer()
    if maker is None or maker.op_type != "QuantizeLinear" or maker.domain not in _STANDARD:
        return None
    for mine, its in zip(node.inputs[1:], maker.inputs[1:], strict=False):
        first, second = (None if v is None else Graph.constant(v) for v in (mine, its))
        if first is None or second is None or not np.array_equal(first, second):
            return None
    return maker.inputs[0] if len(node.inputs) == len(maker.inputs) else None


def _numbers(node: ir.Node) -> NDArray[np.float32] | None:
    """Return the numbers of constant codes; None where they are not constant, in blocks, or make no sense."""
    codes, scale, *zeros = [None if v is None else Graph.constant(v) for v in node.inputs]
    if codes is None or scale is None or codes.dtype.kind not in "iu" or scale.dtype.kind != "f":
        return None
    zero = zeros[0] if zeros else np.zeros(scale.shape, codes.dtype)
    block = node.attributes.get_int("block_size", 0)
    if zero is None or zero.size != scale.size or block:
        return None
    shape = [1] * codes.ndim
    if scale.size > 1:
        axis = node.attributes.get_int("axis", 1)
        if not -codes.ndim <= axis < codes.ndim or codes.shape[axis] != scale.size:
            return None
        shape[axis] = -1
    steps = codes.astype(np.int64) - zero.astype(np.int64).reshape(shape)
    return np.asarray(steps * scale.astype(np.float64).reshape(shape), np.float32)
