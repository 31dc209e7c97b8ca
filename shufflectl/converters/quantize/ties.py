"""Which tensors of a captured graph share a scale, and which have none.

- A tensor that an operator only *moves* (concat, slice, split, shuffle, reshape), pools or resizes shares its
  scale with the result, in both directions: a channel that passes through is never rounded again. Through a
  concat all its inputs share one. (TFLite's kernels and XNNPACK ask the same of their int8 concat, pooling
  and resizing.)
- A *pre-activation*, a tensor that a bounded activation alone reads (ReLU, ReLU6), has no codes of its own.
  Where arithmetic makes it, the activation is the end of that arithmetic. Where data movement makes it and a
  ReLU reads it, it shares the scale of the ReLU's result: codes end at 0, so the codes of both are equal and
  the ReLU has nothing left to do. This is V1's ReLU behind the concat of a downsampling unit. It holds only
  if nobody else reads what is moved there, or that is never negative; otherwise the ReLU is arithmetic like
  any other.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from shufflectl.converters.bounds import clip_bounds, non_negative
from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.movement import CannotExecuteError, data_inputs, is_movement

__all__ = [
    "Ties",
    "activation_bounds",
    "is_activation_tensor",
    "moved_inputs",
    "only_activation",
    "ties",
]

_POOLING = frozenset({"AveragePool", "MaxPool", "Resize"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def is_activation_tensor(value: ir.Value | None) -> bool:
    """Whether a tensor holds numbers that depend on the input."""
    return value is not None and value.dtype in _FLOATS and Graph.constant(value) is None


def activation_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return between what bounds an activation passes numbers on; None where the node is none such."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Relu":
        return 0.0, float("inf")
    return clip_bounds(node) if node.op_type == "Clip" else None


def only_activation(value: ir.Value) -> ir.Node | None:
    """Return the bounded activation that alone reads a tensor, if one does."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node if activation_bounds(uses[0].node) is not None else None


def moved_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs that share a scale with what the node makes of them; none for arithmetic."""
    if node.op_type in _POOLING and node.domain in ("", "ai.onnx"):
        return [v for v in node.inputs[:1] if v is not None]
    if node.op_type == "Pad" and node.domain in ("", "ai.onnx"):
        return [v for v in node.inputs[:1] if v is not None] if _pads_zero(node) else []
    if not is_movement(node):
        return []
    try:
        return data_inputs(node)
    except CannotExecuteError:
        return [v for v in node.inputs if v is not None and is_activation_tensor(v)]


def _pads_zero(node: ir.Node) -> bool:
    mode = node.attributes.get_string("mode", "constant")
    fill = Graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return mode != "constant" or fill is None or not fill.any()


@dataclass(frozen=True)
class Ties:
    """Which tensors share a scale.

    Attributes:
        groups: Each tensor that has codes, with the name of its group.
        absorbed: Pre-activations that have none.
        saturated: Pre-activations that share the scale of their ReLU's result, and what is moved into them:
            they hold 0 where the captured tensor is negative.
    """

    groups: dict[str, str]
    absorbed: frozenset[str]
    saturated: frozenset[str]

    def members(self, group: str) -> list[str]:
        """Return the tensors of a group."""
        return [name for name, of in self.groups.items() if of == group]


def _moved_into(value: ir.Value) -> list[ir.Value]:
    """Return a tensor and all that is moved into it, unless that is never negative."""
    found, pending = [], [value]
    while pending:
        current = pending.pop()
        if current in found or non_negative(current):
            continue
        found.append(current)
        maker = current.producer()
        if maker is not None:
            pending += [v for v in moved_inputs(maker) if is_activation_tensor(v)]
    return found


def _saturated(values: Iterable[ir.Value]) -> set[str]:
    """Return the tensors that may end at 0 because, in the end, ReLUs alone read them."""
    candidates = set()
    for value in values:
        reader, maker = only_activation(value), value.producer()
        if reader is not None and reader.op_type == "Relu" and maker is not None and moved_inputs(maker):
            candidates |= set(_moved_into(value))
    while True:
        wrong = {value for value in candidates if not _ends(value, candidates)}
        if not wrong:
            return {str(value.name) for value in candidates}
        # What a wrong one is moved into would hold its negative numbers.
        candidates = {v for v in candidates if v not in wrong and not wrong & set(_moved_into(v))}


def _ends(value: ir.Value, candidates: set[ir.Value]) -> bool:
    if value.is_graph_output():
        return False
    return all(
        use.node.op_type == "Relu" or all(v in candidates for v in use.node.outputs) for use in value.uses()
    )


def ties(graph: Graph) -> Ties:
    """Return which tensors of a captured graph share a scale."""
    union = DisjointSets[str]()
    values = [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]
    values = [v for v in values if is_activation_tensor(v)]
    moved = {str(v.name) for node in graph.nodes for v in moved_inputs(node)}
    saturated = _saturated(values)
    absorbed = set()
    for value in values:
        reader, maker = only_activation(value), value.producer()
        if reader is None or maker is None or str(value.name) in moved:
            continue
        if str(value.name) in saturated:
            union.tie([str(value.name), str(reader.outputs[0].name)])
        elif not moved_inputs(maker):
            absorbed.add(str(value.name))
    for node in graph.nodes:
        sources = [v for v in moved_inputs(node) if is_activation_tensor(v)]
        made = [v for v in node.outputs if is_activation_tensor(v)]
        if sources and made:
            union.tie([str(v.name) for v in (*sources, *made)])
    groups = {str(v.name): union.find(str(v.name)) for v in values if str(v.name) not in absorbed}
    return Ties(groups, frozenset(absorbed), frozenset(saturated))
