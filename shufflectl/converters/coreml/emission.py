"""The state of one emission: which MIL variable, or constant, holds each tensor of the graph."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.coreml.names import Namer
from shufflectl.converters.coreml.palette import Palette
from shufflectl.converters.coreml.weights import Codes, HeldWeights, operand
from shufflectl.converters.graph import Graph
from shufflectl.errors import UnsupportedOperatorError

__all__ = ["Emission", "Operator", "label"]

_INT32 = np.iinfo(np.int32)


def label(node: ir.Node) -> str:
    """Return what a message calls a node: its name, or its first output's where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else "") or "?"


class Emission:
    """What an operator function reads and writes.

    Args:
        mb: coremltools' MIL builder; operators are appended to the function that is being built.
        types: MIL's types.
        graph: The graph that is emitted.
        namer: Gives the graph's tensors their names in the program.
        held: Says how the program holds a node's weights; None where it holds them as numbers.
        dense: Whether the operator set is that of iOS 18; see `weights.operand`.
    """

    def __init__(
        self,
        mb: Any,
        types: Any,
        graph: Graph,
        namer: Namer,
        held: Callable[[ir.Node], HeldWeights | None] = lambda _: None,
        *,
        dense: bool = False,
    ) -> None:
        self.mb = mb
        self.types = types
        self.graph = graph
        self.namer = namer
        self.held = held
        self.dense = dense
        self.values: dict[str, Any] = {}
        self.splits: dict[str, str] = {}
        """For an output of an operator with several outputs: the name that the cast pass derives from."""

    def refuse(self, node: ir.Node, why: str = "", hint: str = "") -> UnsupportedOperatorError:
        """Return the error that says why this node cannot be emitted."""
        return UnsupportedOperatorError(label(node), node.op_type, "coreml", why=why, hint=hint)

    def has(self, node: ir.Node, index: int) -> bool:
        """Say whether the optional input is given."""
        return index < len(node.inputs) and node.inputs[index] is not None

    def source(self, node: ir.Node, index: int = 0) -> ir.Value:
        """Return an input that the operator's definition requires."""
        if index >= len(node.inputs) or (value := node.inputs[index]) is None:
            raise self.refuse(node, f"input {index} is missing")
        return value

    def constant(self, node: ir.Node, index: int) -> NDArray[Any] | None:
        """Return an input's value where it is constant, or None where it is absent or computed."""
        return self.graph.constant(node.inputs[index]) if self.has(node, index) else None

    def required(self, node: ir.Node, index: int, what: str) -> NDArray[Any]:
        """Return the value of an input that MIL wants at compile time."""
        array = self.constant(node, index)
        if array is None:
            raise self.refuse(node, f"its {what} must be constant")
        return array

    def integers(self, node: ir.Node, attribute: str, index: int) -> list[int] | None:
        """Return a list that older operator sets hold as an attribute and newer ones as an input."""
        ints = node.attributes.get_ints(attribute, ())
        if ints:
            return [int(i) for i in ints]
        if not self.has(node, index):
            return None
        return [int(i) for i in self.required(node, index, attribute).reshape(-1)]

    def value(self, node: ir.Node, index: int = 0) -> Any:
        """Return an input as the MIL builder takes it: a variable, or a numpy array where it is constant."""
        source = self.source(node, index)
        array = self.graph.constant(source)
        return self.values[str(source.name)] if array is None else self.literal(node, array)

    def literal(self, node: ir.Node, array: NDArray[Any]) -> Any:
        """Return a constant in a type that MIL has: 64-bit types become 32-bit ones."""
        if array.dtype == np.int64:
            if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
                raise self.refuse(node, "an integer constant does not fit 32 bits")
            array = array.astype(np.int32)
        elif array.dtype == np.float64:
            array = array.astype(np.float32)
        return array[()] if array.ndim == 0 else np.ascontiguousarray(array)

    def weights(self, node: ir.Node, weights: NDArray[Any] | Codes | Palette) -> Any:
        """Return an operator's weights as the MIL builder takes them."""
        if isinstance(weights, np.ndarray):
            return self.literal(node, weights)
        return operand(self.mb, self.types, weights, self.helper(node, "weights"), dense=self.dense)

    def shape(self, node: ir.Node, index: int = 0) -> tuple[int | str, ...]:
        """Return an input's shape; a symbolic dimension is its name."""
        return self.graph.shape(self.source(node, index))

    def spatial(self, node: ir.Node) -> tuple[int, ...]:
        """Return the spatial sizes of the input ``[N, C, *spatial]``, which must be static."""
        sizes = self.shape(node)[2:]
        if not sizes or len(sizes) > 3:
            raise self.refuse(node, f"MIL has it for 1 to 3 spatial dimensions, not {len(sizes)}")
        if not all(isinstance(size, int) for size in sizes):
            raise self.refuse(node, "its spatial dimensions are not static")
        return cast("tuple[int, ...]", sizes)

    def axis(self, node: ir.Node, axis: int) -> int:
        """Return an axis counted from the front."""
        rank = len(self.shape(node))
        if not -rank <= axis < rank:
            raise self.refuse(node, f"axis {axis} does not exist in a tensor of rank {rank}")
        return axis % rank

    def name(self, node: ir.Node, index: int = 0) -> str:
        """Return the name in the program of one of the node's outputs."""
        return self.namer.tensor(str(node.outputs[index].name))

    def helper(self, node: ir.Node, role: str) -> str:
        """Return a new name for an intermediate result of the node."""
        return self.namer.helper(self.name(node), role)

    def bind(self, node: ir.Node, value: Any, index: int = 0) -> None:
        """Record what holds one of the node's outputs."""
        self.values[str(node.outputs[index].name)] = value


Operator = Callable[[Emission, ir.Node], None]
"""Writes a node."""
