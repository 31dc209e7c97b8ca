"""`masked`: one tensor with a fixed slot for every channel; convolution, multiply and add only.

A stage keeps its C channels in slots. A unit reads all of them, with zero columns for those that are not its
own, and writes its C/2 results into the slots whose channels nobody reads any more. With the others masked::

    Given, each unit                                Result
    x [N, C, H, W]                                  X [N, C, H, W]
    p, q = Split(shuffle(x))   [N, C/2, H, W]       h  = branch(Conv(X, W1'))             [N, C/2, H, W]
    h = branch(Conv(q, W1))    [N, C/2, H, W]       X' = Relu(Conv(h, W2') + m * X)       [N, C, H, W]
    b = Relu(Conv(h, W2))      [N, C/2, H, W]
    x = Concat(p, b)           [N, C, H, W]

W1' has C columns, W2' has C rows, zero where there is nothing; m is 1 in slots that keep their channel and 0
in those that are written. In a slot that is kept ``Relu(0 + X) = X``, which needs X >= 0; in one that is
written ``Relu(W2 h + 0) = b``. No Split, Slice or Concat is left in a stage, at about half as many
multiply-adds again.

Conditions, for a region of data movement: all its tensors are channel maps; what enters first is at least 0
by the operator that makes it; whatever enters later is ``Relu(Conv(...))``, read by the region alone, and
finds as many slots free as it has channels. Refused otherwise, with the reason. What other nodes read is
picked by index and, like every region that is refused, goes to `fold`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite import fold
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.edit import Editor, channel_axis_size
from shufflectl.converters.rewrite.lowering import (
    Options,
    RefusedError,
    Report,
    SiteReport,
    bytes_moved,
    operators,
    report,
)
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import Channel, Provenance, Region, Site, label
from shufflectl.converters.rewrite.roles import Mixes, role

__all__ = ["apply"]

_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Softmax", "Exp", "Abs"})


@dataclass(frozen=True)
class _Consumer:
    """A node (None: the graph's output) that reads a tensor of the region."""

    time: int
    tensor: str
    node: ir.Node | None
    index: int


@dataclass
class _State:
    """All live channels, in one tensor."""

    value: ir.Value
    slots: list[Channel]


class _Region:
    """One region, checked and rewritten."""

    def __init__(self, editor: Editor, provenance: Provenance, region: Region) -> None:
        self.editor = editor
        self.maps = provenance.maps
        self.region = region
        self.times = {str(v.name): i for i, n in enumerate(editor.graph.nodes) for v in n.outputs}
        self.end = len(self.times) + 1
        self.consumers = self._consumers()
        self.sources = sorted(region.sources, key=lambda s: self.times.get(s, -1))

    def _consumers(self) -> list[_Consumer]:
        found = []
        for name in self.region.outputs:
            if name not in self.maps:
                raise RefusedError(f"{name!r} is no channel map")
            value = self.editor.value(name)
            if value.is_graph_output():
                found.append(_Consumer(self.end, name, None, 0))
            for use in value.uses():
                if not is_movement(use.node):
                    time = self.times.get(label(use.node))
                    if time is None:
                        raise RefusedError(f"{name!r} is read inside a subgraph")
                    found.append(_Consumer(time, name, use.node, use.idx))
        return sorted(found, key=lambda c: c.time)

    def _check_source(self, name: str, shape: Sequence[int | str], *, later: bool) -> None:
        value = self.editor.value(name)
        dims = Graph.shape(value)
        if len(dims) != 4 or [dims[0], *dims[2:]] != [shape[0], *shape[2:]]:
            raise RefusedError(f"{name!r} has another shape")
        if not later:
            maker = value.producer()
            if maker is None or maker.op_type not in _NOT_NEGATIVE:
                raise RefusedError(f"{name!r} is not known to be at least 0")
            return
        relu = value.producer()
        conv = None if relu is None or relu.inputs[0] is None else relu.inputs[0].producer()
        if relu is None or conv is None or relu.op_type != "Relu" or conv.op_type != "Conv":
            raise RefusedError(f"{name!r} is no convolution with ReLU")
        alone = len(conv.outputs[0].uses()) == 1 and not conv.outputs[0].is_graph_output()
        if not isinstance(role(conv), Mixes) or not alone or value.is_graph_output():
            raise RefusedError(f"{name!r} is no convolution with one group that nobody else reads")
        if any(label(use.node) not in self.region.nodes for use in value.uses()):
            raise RefusedError(f"{name!r} is also read as it is")

    def rewrite(self) -> None:
        """Check everything, then rewrite."""
        if len(self.region.nodes) < 2 or not self.consumers:
            raise RefusedError("it moves nothing that could be masked")
        outputs = [self.editor.value(name) for name in self.region.outputs]
        shape = Graph.shape(self.editor.value(self.sources[0]))
        for value in outputs:
            if Graph.shape(value)[2:] != shape[2:]:
                raise RefusedError("it also changes the spatial shape")
        start = self.consumers[0].time
        first = [s for s in self.sources if self.times.get(s, -1) < start]
        later = [s for s in self.sources if s not in first]
        if not later:
            raise RefusedError("nothing is written while channels pass through")
        for name in self.sources:
            self._check_source(name, shape, later=name in later)
        slots = self._slots(first, later)
        self._write(first, later, slots)

    def _slots(self, first: Sequence[str], later: Sequence[str]) -> list[list[Channel]]:
        """Return what each slot holds, after each later source.

        Raises:
            RefusedError: There are not enough free slots.
        """
        last: dict[Channel, int] = {}
        for consumer in self.consumers:
            last.update(dict.fromkeys(self.maps[consumer.tensor].channels, consumer.time))
        sizes = {s: channel_axis_size(self.editor.value(s)) for s in self.sources}
        slots = [Channel(s, c) for s in first for c in range(sizes[s])]
        states = [slots]
        for name in later:
            free = [i for i, c in enumerate(slots) if last.get(c, -1) < self.times[name]]
            if len(free) < sizes[name]:
                raise RefusedError(f"{name!r} has {sizes[name]} channels, and {len(free)} slots are free")
            slots = list(slots)
            for channel, slot in enumerate(free[: sizes[name]]):
                slots[slot] = Channel(name, channel)
            states.append(slots)
        return states

    def _write(self, first: Sequence[str], later: Sequence[str], slots: list[list[Channel]]) -> None:
        editor = self.editor
        values = [editor.value(s) for s in first]
        editor.after(values)
        state = _State(editor.concat(values, f"{first[0]}.slots"), slots[0])
        pending = list(self.consumers)
        for name, after in zip(later, slots[1:], strict=True):
            self._serve(pending, state, self.times[name])
            state = self._update(name, state, after)
        self._serve(pending, state, self.end + 1)

    def _update(self, name: str, state: _State, after: list[Channel]) -> _State:
        """Return the state with a source written into its slots."""
        editor = self.editor
        relu = editor.value(name).producer()
        conv = relu.inputs[0].producer() if relu is not None and relu.inputs[0] is not None else None
        assert conv is not None  # noqa: S101 - `_check_source` has seen it
        weight = Graph.constant(conv.inputs[1])
        assert weight is not None  # noqa: S101 - the same
        rows = [(slot, c.number) for slot, c in enumerate(after) if c.source == name]
        new = np.zeros((len(after), *weight.shape[1:]), weight.dtype)
        new[[s for s, _ in rows]] = weight[[c for _, c in rows]]
        inputs = [conv.inputs[0], editor.constant(f"{name}.slots.weight", new)]
        bias = Graph.constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        if bias is not None:
            wide = np.zeros(len(after), bias.dtype)
            wide[[s for s, _ in rows]] = bias[[c for _, c in rows]]
            inputs.append(editor.constant(f"{name}.slots.bias", wide))
        mask = np.ones((1, len(after), 1, 1), weight.dtype)
        mask[0, [s for s, _ in rows]] = 0
        editor.after([conv.outputs[0], state.value])
        made = editor.copy(conv, inputs, len(after), f"{name}.slots.conv")
        written = [c.number if c.source == name else -1 for c in after]
        editor.record(made, written, str(conv.outputs[0].name))
        shape = Graph.shape(made)
        held = editor.constant(f"{name}.slots.mask", mask)
        kept = editor.node("Mul", [state.value, held], [shape], f"{name}.slots.kept")[0]
        total = editor.node("Add", [made, kept], [shape], f"{name}.slots.sum")[0]
        value = editor.node("Relu", [total], [shape], f"{name}.slots")[0]
        editor.record(value, written, name)
        return _State(value, after)

    def _serve(self, pending: list[_Consumer], state: _State, until: int) -> None:
        """Give every consumer before a time what it reads."""
        picked: dict[str, ir.Value] = {}
        where = {channel: slot for slot, channel in enumerate(state.slots)}
        while pending and pending[0].time < until:
            consumer = pending.pop(0)
            order = [where[c] for c in self.maps[consumer.tensor].channels]
            found = role(consumer.node) if consumer.node is not None else None
            if consumer.node is not None and isinstance(found, Mixes) and found.data == consumer.index:
                columns = found.columns
                weight = Graph.constant(consumer.node.inputs[columns.index])
                assert weight is not None  # noqa: S101 - roles say that it is constant
                wide = np.zeros(
                    [len(state.slots) if a == columns.axis else d for a, d in enumerate(weight.shape)],
                    weight.dtype,
                )
                moved = np.moveaxis(wide, columns.axis, 0)
                np.add.at(moved, order, np.moveaxis(weight, columns.axis, 0))
                self.editor.own_constant(consumer.node, columns.index, wide)
                consumer.node.replace_input_with(consumer.index, state.value)
                continue
            if consumer.tensor not in picked:
                self.editor.after([state.value])
                name = f"{consumer.tensor}.picked"
                natural = order == list(range(len(state.slots)))
                value = state.value if natural else self.editor.gather(state.value, order, name)
                if value is not state.value:
                    self.editor.record(value, range(len(order)), consumer.tensor)
                picked[consumer.tensor] = value
            value = picked[consumer.tensor]
            if consumer.node is None:
                self.editor.replace(self.editor.value(consumer.tensor), value)
            else:
                consumer.node.replace_input_with(consumer.index, value)


def _stand_ins(result: Graph, site: Site) -> list[ir.Node]:
    """Return the nodes that stand for a site: what forms and masks its slots, what picks from them."""
    names = (*(f"{name}.slots" for name, _ in site.inputs), *(f"{o.name}.picked" for o in site.outputs))
    return [
        node
        for node in result.nodes
        if node.op_type not in ("Conv", "Relu") and any(_begins(label(node), name) for name in names)
    ]


def _begins(name: str, base: str) -> bool:
    return name == base or name.startswith(f"{base}.")


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:
    """Return the graph with stages in fixed slots, the rest folded, and the report."""
    provenance = analyze(graph)
    editor = Editor(graph)
    done: set[str] = set()
    refused: dict[str, str] = {}
    for region in provenance.regions:
        try:
            _Region(editor, provenance, region).rewrite()
            done.update(region.nodes)
        except RefusedError as error:
            refused.update(dict.fromkeys(region.nodes, f"masked: {error}"))
    result, rest = fold.apply(editor.finish(), options)
    others = {site.name: site for site in rest.sites}
    sites = []
    for site in provenance.sites:
        before = [n for n in graph.nodes if label(n) in site.nodes]
        counts, moved = operators(before), bytes_moved(before)
        if site.nodes[0] in done:
            why = "channels stay in their slots; each unit masks those that it writes"
            made = _stand_ins(result, site)
            new = SiteReport(
                site.name,
                site.description,
                "masked",
                why,
                (),
                counts,
                operators(made),
                moved,
                bytes_moved(made),
            )
        else:
            other = others[site.name]
            new = SiteReport(
                site.name,
                site.description,
                other.form,
                other.why,
                (refused[site.nodes[0]], *other.refused),
                counts,
                other.operators_after,
                moved,
                other.bytes_after,
            )
        sites.append(new)
    notes = (
        *(f"{name!r} was shared by several nodes; each has its own copy now" for name in editor.shared),
        *rest.notes,
    )
    return result, report("masked", graph, result, tuple(sites), provenance=provenance, notes=notes)
