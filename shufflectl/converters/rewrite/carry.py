"""Carrying old channels through the padding of a branch, so that nobody reads far back.

With the shuffles folded, a unit of ShuffleNet V2 reads a run of every branch before it in the stage: 58,
29, 15, 7, 4, ... channels. In a blocked layout each of the short runs costs a whole block, and everywhere
each costs a copy. But a branch of 116 channels that is computed as 128 has 12 channels that compute
nothing. They can hold the short runs for those who read them later::

    q [N, C, H, W]      q' = Concat(q, s)          s [N, n, H, W]: what is left to be read of an old branch
    h = Relu(W1 q)      W1' = | W1 0 |             h' = Concat(h, s)     since Relu(s) = s
    d = depthwise(h)    kernels of s: 1 in the middle, 0 elsewhere
    b = Relu(W2 d)      W2' = | W2 0 |             b' = Concat(b, s)
                              | 0  1 |

Every product is s * 1 or x * 0, so s comes out as it went in. Who reads s after b reads it from b', and the
old branch is read by the units next to it only.

Conditions, all proved on the graph: the branch is made of convolutions that can be the identity (one group
or depthwise, odd kernel, stride 1, output as large as the input) and of Relu; what is carried is the result
of a Relu, so at least 0; nothing but data movement reads the result, and nothing but the next node the
inner tensors. Weights are finite, since a zero times an infinity is none. Only as many channels are carried
as there is room for up to a multiple of the width, those of the oldest branch first, and never a part of
what is left of one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.edit import Editor, channel_axis_size
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import Channel, Provenance, label
from shufflectl.converters.rewrite.roles import Carries, Mixes, role

__all__ = ["Carried", "carry"]


@dataclass(frozen=True)
class Carried:
    """A graph in which branches carry old channels.

    Attributes:
        graph: The graph.
        counts: For each branch that carries, by the tensor that it makes, how many channels.
        stands_for: For each tensor that is now read in the place of one of the graph given, which that is.
    """

    graph: Graph
    counts: Mapping[str, int]
    stands_for: Mapping[str, str]


@dataclass(frozen=True)
class _Branch:
    """Nodes, one after the other, that can hand a channel through unchanged.

    Attributes:
        nodes: Their names, the first reads data movement, the result of the last is read by data movement.
        room: How many channels can be added before the next multiple of the width.
    """

    nodes: tuple[str, ...]
    room: int


def _can_be_identity(node: ir.Node) -> bool:
    """Whether a node can hand a channel that is at least 0 through, next to what it computes."""
    if node.op_type == "Relu":
        return True
    what = role(node)
    depthwise = isinstance(what, Carries) and what.depthwise
    if node.op_type != "Conv" or not (isinstance(what, Mixes) or depthwise):
        return False
    given, weight, made = node.inputs[0], Graph.constant(node.inputs[1]), node.outputs[0]
    if given is None or weight is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    kernel = weight.shape[2:]
    pads = _ints(node, "pads", [0] * 2 * len(kernel))
    dilations = _ints(node, "dilations", [1] * len(kernel))
    middle = [d * (k // 2) for k, d in zip(kernel, dilations, strict=True)]
    return (
        all(k % 2 for k in kernel)
        and all(s == 1 for s in _ints(node, "strides", [1]))
        and pads == [*middle, *middle]
        and Graph.shape(given)[2:] == Graph.shape(made)[2:]
        and all(np.isfinite(a).all() for v in node.inputs[1:] if (a := Graph.constant(v)) is not None)
    )


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


class _Carrier:
    def __init__(self, graph: Graph, provenance: Provenance, width: int) -> None:
        self.graph = graph
        self.provenance = provenance
        self.width = width
        self.editor = Editor(graph)
        self.order = {label(n): i for i, n in enumerate(graph.nodes)}
        self.nodes = {label(n): n for n in graph.nodes}
        self.now: dict[Channel, Channel] = {}
        """Where a channel of the graph given is found by those who come next."""
        self.stands_for: dict[str, str] = {}
        self.readers = self._readers()

    def _readers(self) -> dict[Channel, list[int]]:
        """Return for each channel the places of the nodes that read it, data movement left out."""
        found: dict[Channel, list[int]] = {}
        for node in self.graph.nodes:
            if is_movement(node):
                continue
            for value in node.inputs:
                channels = None if value is None else self.provenance.map(value)
                for channel in () if channels is None else dict.fromkeys(channels.channels):
                    found.setdefault(channel, []).append(self.order[label(node)])
        for value in self.graph.outputs:
            channels = self.provenance.map(value)
            for channel in () if channels is None else channels.channels:
                found.setdefault(channel, []).append(len(self.order))
        return found

    def _branch(self, first: ir.Node) -> _Branch | None:
        """Return the branch that a node begins, if it begins one."""
        given = first.inputs[0] if first.inputs else None
        maker = None if given is None else given.producer()
        if given is None or maker is None or not is_movement(maker) or first.op_type != "Conv":
            return None
        nodes, node, sizes = [], first, [channel_axis_size(given)]
        while _can_be_identity(node):
            nodes.append(label(node))
            out = node.outputs[0]
            sizes.append(channel_axis_size(out))
            uses = [use.node for use in out.uses()]
            if out.is_graph_output():
                return None
            if all(is_movement(n) for n in uses):
                return _Branch(tuple(nodes), min(-size % self.width for size in sizes))
            if len(uses) != 1:
                return None
            node = uses[0]
        return None

    def _chosen(self, branch: _Branch) -> list[Channel]:
        """Return what a branch carries: the rest of the oldest branches that it reads anyway."""
        given = self.nodes[branch.nodes[0]].inputs[0]
        found = None if given is None else self.provenance.map(given)
        if found is None:
            return []
        here, after = self.order[branch.nodes[0]], self.order[branch.nodes[-1]]
        read = dict.fromkeys(self.now.get(c, c) for c in found.channels)
        held: dict[str, list[Channel]] = {source: [] for source, _ in read}
        for channel, places in self.readers.items():
            where = self.now.get(channel, channel)
            if where.source in held and any(p > here for p in places):
                held[where.source].append(channel)
        chosen: list[Channel] = []
        for source in sorted(held, key=lambda s: self.order.get(s, -1)):
            rest = held[source]
            early = any(here < p <= after for c in rest for p in self.readers[c])
            again = any(self.now.get(c, c) in read for c in rest)
            maker = self.nodes.get(source)
            positive = maker is not None and maker.op_type == "Relu"
            if len(chosen) + len(rest) > branch.room:
                break
            if positive and not early and not again:
                chosen += rest
        return chosen

    def _assemble(self, channels: Sequence[Channel], base: str) -> ir.Value:
        """Return the channels as one tensor, made by data movement."""
        sources = list(dict.fromkeys(c.source for c in channels))
        values = [self.editor.value(s) for s in sources]
        self.editor.after(values)
        starts, total = {}, 0
        for source, value in zip(sources, values, strict=True):
            starts[source] = total
            total += channel_axis_size(value)
        whole = self.editor.concat(values, f"{base}.all")
        index = [starts[s] + i for s, i in channels]
        return whole if index == list(range(total)) else self.editor.gather(whole, index, base)

    def _follow(self, node: ir.Node) -> None:
        """Let a node read carried channels where they are now."""
        for index, value in enumerate(self.nodes[label(node)].inputs):
            name = "" if value is None else str(value.name)
            found = self.provenance.maps.get(name)
            if found is None:
                continue
            channels = [self.now.get(c, c) for c in found.channels]
            area = Graph.shape(self.editor.value(channels[0].source))[2:]
            if channels != list(found.channels) and Graph.shape(self.editor.value(name))[2:] == area:
                moved = self._assemble(channels, f"{name}.carried")
                self.editor.record(moved, range(len(channels)), name)
                self.stands_for[str(moved.name)] = name
                node.replace_input_with(index, moved)

    def _widen(self, branch: _Branch, extra: list[Channel]) -> None:
        """Add channels to a branch."""
        count = len(extra)
        first = self.editor.producer(branch.nodes[0])
        given = first.inputs[0]
        assert given is not None  # noqa: S101 - a branch begins with what it reads
        size = channel_axis_size(given)
        carried = self._assemble([self.now.get(c, c) for c in extra], f"{branch.nodes[0]}.carried")
        self.editor.after([given, carried])
        joined = self.editor.concat([given, carried], f"{branch.nodes[0]}.joined")
        self.editor.record(joined, [*range(size), *[-1] * count], str(given.name))
        self.stands_for[str(joined.name)] = self.stands_for.get(str(given.name), str(given.name))
        first.replace_input_with(0, joined)
        for name in branch.nodes:
            node = self.editor.producer(name)
            out = node.outputs[0]
            made = channel_axis_size(out)
            if node.op_type == "Conv":
                self._widen_weights(node, count)
            out.shape = ir.Shape(self.editor.with_channels(out, made + count))
            self.editor.record(out, [*range(made), *[-1] * count])
        last = self.editor.value(branch.nodes[-1])
        made = channel_axis_size(last) - count
        uses = [(use.node, use.idx) for use in last.uses()]
        self.editor.behind(self.editor.producer(branch.nodes[-1]))
        own = self.editor.slice(last, 0, made, f"{branch.nodes[-1]}.own")
        for node, index in uses:
            node.replace_input_with(index, own)
        for number, channel in enumerate(extra):
            self.now[channel] = Channel(branch.nodes[-1], made + number)

    def _widen_weights(self, node: ir.Node, count: int) -> None:
        old = Graph.constant(node.inputs[1])
        assert old is not None  # noqa: S101 - it was proved when the branch was found
        rows, columns, *kernel = old.shape
        depthwise = node.attributes.get_int("group", 1) > 1
        new = np.zeros((rows + count, columns if depthwise else columns + count, *kernel), old.dtype)
        new[:rows, :columns] = old
        middle = tuple(k // 2 for k in kernel)
        for number in range(count):
            new[(rows + number, 0 if depthwise else columns + number, *middle)] = 1
        self.editor.own_constant(node, 1, new)
        if len(node.inputs) > 2 and (bias := Graph.constant(node.inputs[2])) is not None:
            self.editor.own_constant(node, 2, np.concatenate([bias, np.zeros(count, bias.dtype)]))
        if depthwise:
            node.attributes.add(ir.AttrInt64("group", rows + count))

    def run(self) -> Carried:
        counts: dict[str, int] = {}
        for original in self.graph.nodes:
            if is_movement(original):
                continue
            node = self.editor.producer(label(original))
            if self.now:
                self._follow(node)
            branch = self._branch(original)
            extra = self._chosen(branch) if branch is not None and branch.room else []
            if branch is not None and extra:
                self._widen(branch, extra)
                counts[branch.nodes[-1]] = len(extra)
        return Carried(self.editor.finish(), counts, self.stands_for)


def carry(graph: Graph, provenance: Provenance, width: int) -> Carried:
    """Return the graph with old channels carried through branches that have room for them.

    Args:
        graph: The graph; it is not changed.
        provenance: What `analyze` returned for it.
        width: Branches have room up to a multiple of it.
    """
    return _Carrier(graph, provenance, width).run()
