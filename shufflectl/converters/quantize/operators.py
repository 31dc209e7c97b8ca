"""The operators that multiply by constant weights, and how they hold them."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph

__all__ = ["Weighted", "hold", "weighted"]


@dataclass(frozen=True)
class Weighted:
    """A node with constant weights.

    Attributes:
        node: A Conv, a Gemm, or a MatMul by a constant matrix.
        data: What is multiplied.
        weights: float32, as the node holds them.
        axis: Their axis of output channels.
        bias: float32, one number an output channel; None where there is none.
    """

    node: ir.Node
    data: ir.Value
    weights: NDArray[np.float32]
    axis: int
    bias: NDArray[np.float32] | None

    def along_rows(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one number an output channel in a shape that the weights broadcast with."""
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(self.weights.ndim)])

    def along_columns(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one number an input channel in a shape that the weights broadcast with.

        A row of a convolution with groups reads the channels of its group: ``[O, I/g, 1, 1]``.
        """
        if self.axis == 1:
            return values[:, None]
        groups = self.node.attributes.get_int("group", 1) if self.node.op_type == "Conv" else 1
        table = np.repeat(values.reshape(groups, -1), len(self.weights) // groups, axis=0)
        return table.reshape(*table.shape, *[1] * (self.weights.ndim - 2))


def weighted(node: ir.Node) -> Weighted | None:
    """Return a node's weights, if integer kernels take the node: no factors, a bias a channel."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    data = node.inputs[0]
    weights = Graph.constant(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = Graph.constant(given)
    if data is None or weights is None or weights.dtype != np.float32 or weights.ndim < 2:
        return None
    if given is not None and bias is None:
        return None
    axis = 0
    if node.op_type == "Gemm":
        factors = [node.attributes.get_float("alpha", 1.0)]
        factors += [node.attributes.get_float("beta", 1.0)] if bias is not None else []
        if node.attributes.get_int("transA", 0) or any(factor != 1 for factor in factors):
            return None
        axis = 0 if node.attributes.get_int("transB", 0) else 1
    elif node.op_type == "MatMul":
        if weights.ndim != 2:
            return None
        axis = 1
    if bias is not None and bias.shape != (weights.shape[axis],):
        return None
    return Weighted(node, data, weights, axis, bias)


def hold(graph: Graph, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Give a node a constant of its own in place of one that others may read."""
    old = node.inputs[index]
    base = f"{node.name}.{index}" if old is None else str(old.name)
    held = graph.model.graph.initializers
    if old is not None and base in held and len(old.uses()) == 1 and not old.is_graph_input():
        del held[base]  # which leaves its name
    name, number = base, 1
    while name in held:
        name, number = f"{base}_{number}", number + 1
    tensor = ir.tensor(array.astype(np.float32), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.model.graph.register_initializer(value)
    node.replace_input_with(index, value)
