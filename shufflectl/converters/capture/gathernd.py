"""GatherND with constant indices as Gather, which every target has.

torch.onnx writes indexing by lists of positions (``x[:, [2, 0, 1]]``, ``interpolate`` with mode
``nearest-exact``) as a GatherND between two Transposes that bring the indexed axes to the front and back.

Given, with indices that pick ``a_k[i_k]`` on the k-th of r axes (real: ``x[:, [5, 0, 3]]``, r = 1)::

    x [N, C, H, W] -> Transpose (1, 0, 2, 3) [C, N, H, W] -> GatherND [n, N, H, W] -> Transpose [N, n, H, W]

Result, one Gather an axis (case 1)::

    x [N, C, H, W] -> Gather axis 1 [N, n, H, W]

Where the Transposes do not cancel, or the positions are not a grid, the r axes become one (case 2)::

    x [d1, .., dr, rest] -> Reshape [d1 .. dr, rest] -> Gather axis 0 [indices.shape[:-1], rest]

Indices that are computed, batch dimensions and indexed axes of unknown size are left alone.
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph

__all__ = ["make_gathers_plain"]


def make_gathers_plain(model: ir.Model) -> bool:
    """Replace GatherND nodes in place; return whether any was."""
    found = [node for node in model.graph if node.op_type == "GatherND" and _rewrite(model.graph, node)]
    return bool(found)


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    data, indices = node.inputs[0], Graph.constant(node.inputs[1])
    if data is None or data.shape is None or indices is None:
        return False
    if node.attributes.get_int("batch_dims", 0) != 0:
        return False
    depth = indices.shape[-1]
    sizes = [d for d in data.shape[:depth] if isinstance(d, int)]
    rest = [d if isinstance(d, int) else -1 for d in data.shape[depth:]]
    if len(sizes) < depth or rest.count(-1) > 1:
        return False
    positions = indices % np.asarray(sizes)  # a negative position counts from the end
    picks = _grid(positions)
    around = _cancelling(node)
    if picks is not None and around is not None:  # case 1
        before, after = around
        source = before.inputs[0]
        axes = before.attributes.get_ints("perm", ())[:depth]
        assert source is not None  # noqa: S101 - a Transpose has an input
        value = source
        for count, (axis, pick) in enumerate(zip(axes, picks, strict=True)):
            last = count == depth - 1
            value = _gather(graph, node, value, pick, axis, result=after.outputs[0] if last else None)
        graph.remove(after, safe=True)
        graph.remove(node, safe=True)
        if not before.outputs[0].uses():
            graph.remove(before, safe=True)
        return True
    flat = np.ravel_multi_index(tuple(np.moveaxis(positions, -1, 0)), sizes)  # case 2
    if depth > 1:
        shape = [math.prod(sizes), *rest]
        merged = ir.Value(
            name=f"{node.outputs[0].name}_merged",
            shape=ir.Shape([shape[0], *data.shape[depth:]]),
            type=data.type,
        )
        target = _constant(graph, f"{node.outputs[0].name}_merged_shape", np.asarray(shape, np.int64))
        graph.insert_before(node, ir.Node("", "Reshape", [data, target], outputs=[merged]))
        data = merged
    _gather(graph, node, data, flat, 0, result=node.outputs[0])
    graph.remove(node, safe=True)
    return True


def _grid(positions: NDArray[np.int64]) -> list[NDArray[np.int64]] | None:
    """Return the positions on each axis where all combinations of them are picked, in order; else None."""
    depth = positions.shape[-1]
    if positions.ndim != depth + 1 or not positions.size:
        return None
    picks = []
    for axis in range(depth):
        line = positions[(*(slice(None) if a == axis else 0 for a in range(depth)), axis)]
        along = line.reshape([-1 if a == axis else 1 for a in range(depth)])
        if not np.array_equal(positions[..., axis], np.broadcast_to(along, positions.shape[:-1])):
            return None
        picks.append(line)
    return picks


def _cancelling(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the Transposes before and after a node where the second undoes the first, else None."""
    data, result = node.inputs[0], node.outputs[0]
    before = None if data is None else data.producer()
    uses = list(result.uses())
    if before is None or before.op_type != "Transpose" or result.is_graph_output() or len(uses) != 1:
        return None
    after = uses[0].node
    if after.op_type != "Transpose":
        return None
    first, second = (n.attributes.get_ints("perm", ()) for n in (before, after))
    if len(first) != len(second) or [first[i] for i in second] != list(range(len(first))):
        return None
    return before, after


def _gather(
    graph: ir.Graph,
    where: ir.Node,
    data: ir.Value,
    indices: NDArray[np.int64],
    axis: int,
    *,
    result: ir.Value | None,
) -> ir.Value:
    """Insert a Gather before a node; ``result`` takes its place in the graph where given."""
    assert data.shape is not None  # noqa: S101 - checked by the caller
    name = f"{where.outputs[0].name}_axis{axis}"
    shape = [*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]]
    output = ir.Value(name=name, shape=ir.Shape(shape), type=data.type)
    index = _constant(graph, f"{name}_indices", indices.astype(np.int64))
    gather = ir.Node("", "Gather", [data, index], [ir.AttrInt64("axis", axis)], outputs=[output])
    if result is not None:
        output.name, output.shape = result.name, result.shape
        output.metadata_props.update(result.metadata_props)
        for use in tuple(result.uses()):
            use.node.replace_input_with(use.idx, output)
        for position, value in enumerate(graph.outputs):
            if value is result:
                graph.outputs[position] = output
    graph.insert_before(where, gather)
    return output


def _constant(graph: ir.Graph, name: str, array: NDArray[np.int64]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
