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

from shufflectl.converters.bounds import clip_bounds
from shufflectl.converters.graph import Graph

__all__ = ["Fusion", "activation", "fusions"]

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
