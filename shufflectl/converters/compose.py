"""A file's trace, composed of what a rewrite has put on record and what an emitter did afterwards.

A rewrite knows which captured tensor each of its tensors stands for and in which order of channels
(`Graph.records`); an emitter knows which of those tensors its file still holds, under which name and in which
order of axes. The trace joins both:

1. A tensor that holds all channels of a captured one is a view of it, the first in graph order.
2. Else tensors that hold all its channels between them are its pieces (a convolution that was split by the
   units that read its rows).
3. Else the captured tensor is not in the file: pieces that a file dropped leave a tensor that cannot be
   compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.trace import TensorView, Trace

__all__ = ["Located", "compose"]


@dataclass(frozen=True)
class Located:
    """A tensor of the graph that a file holds.

    Attributes:
        value: The tensor of the graph that was emitted.
        name: Its name in the file.
        axes: The order of its axes in the file, as `TensorView.axes`.
    """

    value: ir.Value
    name: str
    axes: tuple[int, ...] | None = None


def _held(graph: Graph, value: ir.Value) -> frozenset[int]:
    """Return the channels of its origin that a tensor holds; none where it has no channel axis."""
    record = graph.record(str(value.name))
    if record.channels is not None:
        return frozenset(c for c in record.channels if c >= 0)
    if value.shape is None or len(value.shape) < 2 or not isinstance(value.shape[1], int):
        return frozenset()
    return frozenset(range(value.shape[1]))


def compose(graph: Graph, located: Iterable[Located]) -> Trace:
    """Return the trace of a file.

    Args:
        graph: The graph that was emitted, captured or rewritten.
        located: Its tensors that the file holds, inputs first, then in graph order.
    """
    whole: dict[str, frozenset[int]] = {}
    for value in (*graph.inputs, *(out for node in graph.nodes for out in node.outputs)):
        origin = graph.record(str(value.name)).origin
        whole[origin] = whole.get(origin, frozenset()) | _held(graph, value)
    found: dict[str, list[tuple[TensorView, frozenset[int]]]] = {}
    for item in located:
        record = graph.record(str(item.value.name))
        if record.origin:
            view = TensorView(item.name, item.axes, record.channels, area=record.area)
            found.setdefault(record.origin, []).append((view, _held(graph, item.value)))
    views = {}
    for origin, held in found.items():
        composed = _view(held, whole[origin])
        if composed is not None:
            views[origin] = composed
    return Trace(views)


def _view(held: list[tuple[TensorView, frozenset[int]]], whole: frozenset[int]) -> TensorView | None:
    for view, channels in held:  # case 1
        if view.channels is None or channels == whole:
            return view
    pieces: list[TensorView] = []
    covered: frozenset[int] = frozenset()
    for view, channels in held:  # case 2
        if channels and not channels & covered:
            pieces.append(view)
            covered |= channels
    if covered != whole or len({view.axes for view in pieces}) > 1:
        return None  # case 3
    first, *rest = pieces
    return replace(first, rest=tuple(rest))
