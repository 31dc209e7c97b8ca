"""Gives the tensors of a rewritten graph the scales that calibration found on the captured one.

A rewrite permutes, divides and pads channels and removes moves; a scale belongs to a whole tensor, so what
holds channels of a captured tensor has that tensor's scale, in any order and number of pieces. What only
moves channels of such tensors has theirs. So every format, whatever form its shuffles have, computes in the
same codes.

Cases, for each tensor of the rewritten graph:

1. A pre-activation that arithmetic makes has no codes: the activation ends that arithmetic.
2. A tensor on record stands for a captured tensor: its scale.
3. Data movement hands on the scale of what it moves, which must be one scale.
4. Between layers in floating point nothing is rounded: a group of tied tensors that only such layers make
   and read has no codes.
5. Anything else is refused: a form whose tensors stand for nothing that was observed (``masked``), or which
   sends channels through tensors of another scale (``carry``), would round where the captured graph does not.

A ReLU whose input has the same scale, with no code below 0, does nothing to codes and is left out.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph, Quantization
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.quantize.ties import (
    Ties,
    activation_bounds,
    is_activation_tensor,
    moved_inputs,
    only_activation,
    ties,
)
from shufflectl.errors import GraphError

__all__ = ["annotated"]

_LOWEST = -128


def annotated(
    graph: Graph, captured: Graph, scales: Mapping[str, Scale], floats: frozenset[str] = frozenset()
) -> Graph:
    """Return a graph whose tensors have scales; it computes in codes where a target can.

    Args:
        graph: The captured graph, or a rewritten form of it.
        captured: The captured graph.
        scales: By captured tensor; see `Calibration.scales`.
        floats: Captured tensors whose makers stay in floating point.

    Raises:
        GraphError: A tensor has no scale, or channels of several scales.
    """
    copy = graph.clone()
    _name_apart(copy)
    tied = ties(captured)
    saturated, free = tied.saturated, _free(captured, tied, floats)
    found: dict[str, Scale] = {}
    left: set[str] = set()
    for value in [*copy.inputs, *(v for node in copy.nodes for v in node.outputs)]:
        if not is_activation_tensor(value) or _absorbed(value):
            continue
        name = str(value.name)
        if copy.record(name).origin in free or left.intersection(_moved(value)):  # case 4
            left.add(name)
        else:
            found[name] = _scale(copy, value, scales, found)
    _refuse_passengers(copy)
    _drop_finished_activations(copy, found)
    fed = {str(value.name) for value in copy.inputs}
    for name in list(found):
        record = copy.record(name)
        if record.origin in saturated and name not in fed:
            copy.records[name] = type(record)("")  # it holds 0 where the captured tensor is negative
    copy.quantization = Quantization(found, _float_nodes(copy, floats))
    return copy


def _free(captured: Graph, tied: Ties, floats: frozenset[str]) -> frozenset[str]:
    """Return the captured tensors that only layers in floating point make and read."""
    if not floats:
        return frozenset()
    held = {tied.groups[str(v.name)] for v in captured.inputs if str(v.name) in tied.groups}
    for node in captured.nodes:
        if moved_inputs(node):
            continue
        made = {str(v.name) for v in node.outputs}
        if activation_bounds(node) is not None and node.inputs[0] is not None:
            made.add(str(node.inputs[0].name))
        reader = only_activation(node.outputs[0])
        if reader is not None:
            made.update(str(v.name) for v in reader.outputs)
        if not made & floats:
            names = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None]
            held.update(tied.groups[name] for name in names if name in tied.groups)
    return frozenset(name for name, group in tied.groups.items() if group not in held)


def _moved(value: ir.Value) -> set[str]:
    maker = value.producer()
    return set() if maker is None else {str(v.name) for v in moved_inputs(maker)}


def _name_apart(graph: Graph) -> None:
    """Give every node a name of its own: those of an ONNX file may have none."""
    taken: set[str] = set()
    for node in graph.nodes:
        name = str(node.name or node.outputs[0].name)
        while name in taken:
            name = f"{name}_"
        node.name = name
        taken.add(name)


def _float_nodes(graph: Graph, floats: frozenset[str]) -> frozenset[str]:
    """Return the nodes that make captured tensors, with the arithmetic that an activation ends."""
    kept = set()
    for node in graph.nodes:
        if any(graph.record(str(value.name)).origin in floats for value in node.outputs):
            kept.add(str(node.name))
            given = node.inputs[0] if node.inputs else None
            maker = given.producer() if given is not None and _absorbed(given) else None
            if maker is not None:
                kept.add(str(maker.name))
    return frozenset(kept)


def _refuse_passengers(graph: Graph) -> None:
    """Refuse channels that belong to another captured tensor than the one whose scale they would get.

    On record they are -1, like padding; but padding is made by rows of zeros.
    """
    for node in graph.nodes:
        found, name = weighted(node), str(node.outputs[0].name)
        channels = graph.record(name).channels
        if found is None or channels is None:
            continue
        strangers = np.asarray(channels) < 0
        if np.take(found.weights, np.flatnonzero(strangers), axis=found.axis).any():
            raise GraphError(
                f"tensor {name!r} would hold channels of several scales",
                hint="choose another --shuffle for int8",
            )


def _absorbed(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and only_activation(value) is not None and not moved_inputs(maker)


def _scale(graph: Graph, value: ir.Value, scales: Mapping[str, Scale], found: Mapping[str, Scale]) -> Scale:
    origin = graph.record(str(value.name)).origin
    maker = value.producer()
    moved = [v for v in moved_inputs(maker) if is_activation_tensor(v)] if maker is not None else []
    handed = {found[str(v.name)] for v in moved if str(v.name) in found}
    known = scales.get(origin)
    if known is not None:
        handed.add(known)
    if len(handed) == 1:
        return handed.pop()
    name = str(value.name)
    if handed:
        raise GraphError(
            f"tensor {name!r} would hold channels of several scales",
            hint="choose another --shuffle for int8",
        )
    raise GraphError(
        f"tensor {name!r} stands for no tensor that was observed, so it has no scale",
        hint="choose another --shuffle for int8, as fold or fold-split",
    )


def _drop_finished_activations(graph: Graph, scales: dict[str, Scale]) -> None:
    for node in graph.nodes:
        if node.op_type != "Relu":
            continue
        given, made = node.inputs[0], node.outputs[0]
        if given is None or given.is_graph_input() or made.is_graph_output():
            continue
        before, after = scales.get(str(given.name)), scales.get(str(made.name))
        if before is None or before != after or before.zero_point != _LOWEST:
            continue
        graph.records[str(given.name)] = graph.record(str(made.name))
        for use in tuple(made.uses()):
            use.node.replace_input_with(use.idx, given)
        del scales[str(made.name)]
        graph.model.graph.remove(node, safe=True)
