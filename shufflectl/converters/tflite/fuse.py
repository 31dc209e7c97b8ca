"""Which activations a TFLite operator takes into itself.

Given::

    y = Conv(x, w, b)      # [N, C, H, W], read by the Relu alone, no graph output
    z = Relu(y)

Result: one CONV_2D with fused_activation_function RELU that writes ``z``; ``y`` does not exist in the file.
The same holds for Add, Sub, Mul, Div, Gemm, MatMul with constant weights and the pooling operators, and for
Relu6 = Clip(0, 6) and Clip(-1, 1). Refused: a pre-activation with a second reader, or one that is an output.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from ai_edge_litert.schema_py_generated import ActivationFunctionType as Activation

from shufflectl.converters.graph import Graph

__all__ = ["Fusion", "activation", "clip_bounds", "fusions", "non_negative"]

_HOSTS = frozenset({"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool"})
_BOUNDS = {
    (0.0, np.inf): Activation.RELU,
    (0.0, 6.0): Activation.RELU6,
    (-1.0, 1.0): Activation.RELU_N1_TO_1,
}


@dataclass(frozen=True)
class Fusion:
    """An activation that its producer carries out.

    Attributes:
        activation: The fused activation function.
        node: The activation's own node, for which nothing is emitted.
    """

    activation: int
    node: ir.Node


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds of a Clip (infinite where open); None where they are not constant."""
    bounds = []
    for index, (key, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None:
            bounds.append(float(node.attributes.get_float(key, default)))
            continue
        const = Graph.constant(value)
        if const is None or const.size != 1:
            return None
        bounds.append(float(const.item()))
    return bounds[0], bounds[1]


def activation(node: ir.Node) -> int | None:
    """Return the fused activation function that a node is; None for any other node."""
    if node.op_type == "Relu":
        return int(Activation.RELU)
    if node.op_type == "Clip":
        bounds = clip_bounds(node)
        return None if bounds is None else _BOUNDS.get(bounds)
    return None


def fusions(nodes: Sequence[ir.Node]) -> dict[ir.Node, Fusion]:
    """Return the activation that each node carries out, for the nodes that do."""
    result = {}
    for node in nodes:
        function = activation(node)
        source = node.inputs[0] if node.inputs else None
        if function is None or source is None:
            continue
        host = source.producer()
        if host is None or host.op_type not in _HOSTS or host.outputs[0] is not source:
            continue
        if host.op_type == "MatMul" and Graph.constant(host.inputs[1]) is None:
            continue
        if len(source.uses()) == 1 and not source.is_graph_output():
            result[host] = Fusion(function, node)
    return result


_POSITIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Sqrt", "Abs"})
_KEEPING = frozenset(
    {
        *("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("Concat", "Gather", "Slice", "Split", "Transpose"),
        *("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
    }
)


def non_negative(value: ir.Value | None) -> bool:
    """Say whether a tensor is known to hold no negative number, from the operators that made it."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if current is None:
            return False
        if current in seen:
            continue
        seen.add(current)
        const = Graph.constant(current)
        if const is not None:
            if (const < 0).any():
                return False
            continue
        node = current.producer()
        if node is None:
            return False
        if node.op_type in _POSITIVE:
            continue
        if node.op_type == "Clip":
            bounds = clip_bounds(node)
            if bounds is None or bounds[0] < 0:
                return False
        elif node.op_type in ("Add", "Mul"):
            pending.extend(node.inputs)
        elif node.op_type in _KEEPING:
            pending.extend(node.inputs if node.op_type == "Concat" else node.inputs[:1])
        else:
            return False
    return True
