"""A lower bound for lowerings: the same convolutions, with every copy left out that can be.

The result is wrong. Each tensor that data movement makes is replaced by the newest of the tensors whose
channels it holds that has as many channels; where none has, by a plain Concat of those that nothing reads
yet and the newest ones, in the order in which they are computed. So ShuffleNet V2 keeps one Concat at the end
of a stage and none inside, V1 the Concat of its downsampling units; no convolution loses its reader.

In ONNX Runtime it is a bound for forms without padding only: channel counts that fill a block make the
convolutions themselves faster.
"""

from collections import Counter

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.edit import Editor, channel_axis_size

__all__ = ["floor"]


def floor(graph: Graph) -> Graph:
    """Return a graph with the same arithmetic and hardly any data movement.

    Raises:
        ValueError: The graph's channel counts do not allow it.
    """
    provenance = analyze(graph)
    editor = Editor(graph)
    age = {str(v.name): i for i, n in enumerate(editor.graph.nodes) for v in n.outputs}
    unread = {str(v.name) for n in editor.graph.nodes for v in n.outputs}
    unread -= {str(v.name) for n in editor.graph.nodes if not _moves(n) for v in n.inputs if v is not None}
    left = [name for region in provenance.regions for name in region.outputs]
    for name in sorted(left, key=lambda n: age[n]):
        value, channels = editor.value(name), provenance.maps.get(name)
        if channels is None or any(
            Graph.shape(editor.value(s))[2:] != Graph.shape(value)[2:] for s in channels.sources
        ):
            continue
        sources = sorted(channels.sources, key=lambda s: age.get(s, -1), reverse=True)
        chosen = _choose(len(channels), [(s, channel_axis_size(editor.value(s))) for s in sources], unread)
        if chosen is None:
            raise ValueError(f"no tensors of {sources} have {len(channels)} channels together")
        unread -= set(chosen)
        values = [editor.value(s) for s in sorted(chosen, key=lambda s: age.get(s, -1))]
        editor.after(values)
        editor.replace(value, editor.concat(values, f"{name}.floor"))
    result = editor.finish()
    before, after = _arithmetic(graph), _arithmetic(result)
    if before != after:
        raise ValueError(f"the arithmetic has changed: {before - after}, {after - before}")
    return result


def _choose(count: int, sources: list[tuple[str, int]], unread: set[str]) -> list[str] | None:
    """Return tensors with that many channels together, of sources from the newest to the oldest."""
    newest, size = sources[0]
    if size == count:
        return [newest]
    ordered = sorted(sources, key=lambda s: s[0] not in unread)  # stable: the newest first of either kind
    chosen, total = [], 0
    for name, channels in ordered:
        if total + channels <= count:
            chosen.append(name)
            total += channels
    if total == count:
        return chosen
    return next(([name] for name, channels in sources if channels == count), None)


def _moves(node: ir.Node) -> bool:
    return node.op_type in _MOVEMENT


_MOVEMENT = frozenset(
    {
        "Concat",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def _arithmetic(graph: Graph) -> Counter[tuple[str, str]]:
    """Return what is computed: operators and the shapes of their weights and results."""
    return Counter(
        (n.op_type, str([list(Graph.shape(v)) for v in (*n.inputs[1:], *n.outputs) if v is not None]))
        for n in graph.nodes
        if not _moves(n)
    )
