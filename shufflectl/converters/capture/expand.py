"""Expand that the arithmetic behind it repeats, taken out.

``y.expand_as(x) * x``, as squeeze-and-excitation is often written, copies a figure a channel over the whole
image, and the multiplication would have done so itself (numpy's rule of broadcasting).

Given (real: squeeze-and-excitation with ``expand_as``)::

    s [N, C, 1, 1] -> Expand [N, C, H, W];  x [N, C, H, W] * that -> [N, C, H, W]

Result::

    x [N, C, H, W] * s [N, C, 1, 1] -> [N, C, H, W]

It is taken out where every reader is an operator of two operands that broadcasts, and the other operand has
the size of the result on every axis that the Expand repeats. An Expand that is an output stays.
"""

import onnx_ir as ir

__all__ = ["drop_expands"]

_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})


def drop_expands(model: ir.Model) -> bool:
    """Take out such nodes in place; return whether any was."""
    changed = False
    for node in list(model.graph):
        if node.op_type != "Expand" or node.inputs[0] is None or node.outputs[0].is_graph_output():
            continue
        source, wide = node.inputs[0], node.outputs[0]
        uses = tuple(wide.uses())
        if not all(_repeats(use.node, use.idx, source, wide) for use in uses):
            continue
        for use in uses:
            use.node.replace_input_with(use.idx, source)
        model.graph.remove(node, safe=True)
        changed = True
    return changed


def _repeats(reader: ir.Node, position: int, source: ir.Value, wide: ir.Value) -> bool:
    """Whether a reader gives the same for the tensor before the Expand."""
    if reader.op_type not in _BROADCASTING or len(reader.inputs) != 2:
        return False
    other, result = reader.inputs[1 - position], reader.outputs[0]
    if other is None or any(v.shape is None for v in (other, result, source, wide)):
        return False
    narrow, full, beside, given = (_reversed(v) for v in (source, wide, other, result))
    if len(given) != max(len(narrow), len(beside)):
        return False
    for axis, size in enumerate(full):
        kept = axis < len(narrow) and narrow[axis] == size
        if not kept and not (axis < len(beside) and beside[axis] == given[axis]):
            return False
    return True


def _reversed(value: ir.Value) -> list[int | str | None]:
    """Return a shape from its last axis on, as broadcasting aligns it."""
    assert value.shape is not None  # noqa: S101 - the caller has looked
    return [d if isinstance(d, int) else d.value for d in reversed(list(value.shape))]
