"""What is known of the numbers that a tensor can hold, from the operators that made it."""

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph

__all__ = ["clip_bounds", "non_negative"]

_POSITIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Sqrt", "Abs"})
_KEEPING = frozenset(
    {
        *("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("Concat", "Gather", "Slice", "Split", "Transpose"),
        *("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
    }
)


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
