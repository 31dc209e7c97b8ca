"""A graph in half precision: weights, arithmetic and every float tensor between nodes.

fp16 holds 65504 at most, 6.1e-5 as its smallest normal number and 6.0e-8 as its smallest denormal one
(IEEE 754 binary16). A weight that is too large would become infinite, so it is refused; one that is too small
becomes a denormal or zero, an error of at most 3e-8, which is below what the sum it enters can resolve.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.errors import GraphError

__all__ = ["to_half"]

_FP32_INPUTS = {"Resize": (2,)}
"""Inputs that the operator's definition keeps in fp32, by position: the scales of Resize."""

_MAX = float(np.finfo(np.float16).max)


def _half(name: str, array: NDArray[np.float32]) -> NDArray[np.float16]:
    # What rounds to infinity lies half a unit in the last place above the largest number.
    with np.errstate(over="ignore", under="ignore"):
        half = array.astype(np.float16)
    bad = ~np.isfinite(half)
    if bad.any():
        worst = float(np.abs(array[bad]).max())
        raise GraphError(
            f"tensor {name!r} does not fit fp16: it holds {worst:g}, and fp16 ends at {_MAX:g}",
            hint="export with --precision fp32, or check the weights: such values are rarely meant",
        )
    return half


def _half_tensor(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(_half(name, np.asarray(tensor.numpy())), name=tensor.name)


def _stays(value: ir.Value) -> bool:
    """Whether every consumer wants the tensor in fp32."""
    uses = list(value.uses())
    return bool(uses) and all(use.idx in _FP32_INPUTS.get(use.node.op_type, ()) for use in uses)


def _split(model: ir.Model, value: ir.Value) -> None:
    """Give the consumers that want fp32 a constant of their own."""
    uses = [use for use in value.uses() if use.idx in _FP32_INPUTS.get(use.node.op_type, ())]
    if not uses or len(uses) == len(list(value.uses())):
        return
    name = f"{value.name}.fp32"
    copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
    model.graph.register_initializer(copy)
    for use in uses:
        use.node.replace_input_with(use.idx, copy)


def _attributes(node: ir.Node) -> None:
    for attribute in list(node.attributes.values()):
        if attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT:
            if attribute.value == ir.DataType.FLOAT:
                node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT16))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT:
            tensor = _half_tensor(str(node.name), attribute.value)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
    if node.op_type == "Constant" and "value_float" in node.attributes:
        number = np.asarray(node.attributes.pop("value_float").value, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_half(str(node.name), number)))
    if node.op_type == "Constant" and "value_floats" in node.attributes:
        numbers = np.asarray(node.attributes.pop("value_floats").value, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_half(str(node.name), numbers)))


def to_half(model: ir.Model) -> None:
    """Turn every fp32 tensor of a graph, its inputs and outputs included, into fp16, in place.

    Raises:
        GraphError: A weight does not fit fp16.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        _split(model, value)
        if _stays(value):
            continue
        value.const_value = _half_tensor(str(value.name), value.const_value)
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    for node in graph:
        keeps = node.op_type == "Constant" and _stays(node.outputs[0])
        if not keeps:
            _attributes(node)
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and not keeps:
                value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
