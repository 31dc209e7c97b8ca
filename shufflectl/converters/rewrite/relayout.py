"""Writes a graph in which every tensor holds its channels as a plan says.

Per node, with L the layout of what it reads and M the layout of what it gives (-1: padding, a zero row or
column):

1. mixes:   ``W'[i, j] = W[M[i], L[j]]``, ``b'[i] = b[M[i]]``
2. carries: every constant with an entry for each channel becomes ``p'[i] = p[M[i]]``; L = M
3. opaque:  as it was; what it reads is put in the captured order where it is not

With tensors in pieces, a node that mixes becomes one node a piece, each with its rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite import commute
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.carry import Carried, carry
from shufflectl.converters.rewrite.edit import Editor, channel_axis_size, take
from shufflectl.converters.rewrite.layouts import Class, Plan, Port, Read
from shufflectl.converters.rewrite.lowering import (
    Options,
    Report,
    SiteReport,
    bytes_moved,
    operators,
    report,
)
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.plan import make_plan
from shufflectl.converters.rewrite.provenance import Channel, Site, label
from shufflectl.converters.rewrite.roles import Carries, Mixes, Parameter

__all__ = ["relayout"]


class _Writer:
    def __init__(self, plan: Plan, options: Options) -> None:
        self.plan = plan
        self.options = options
        self.editor = Editor(plan.graph)
        self.pieces: dict[str, list[ir.Value]] = {}
        self.wholes: dict[str, ir.Value] = {}
        self.reads: dict[str, ir.Value] = {}
        self.ordered: dict[str, ir.Value] = {}
        self.made_for: dict[str, list[str]] = {}
        self._makers = {str(v.name): n for n in plan.graph.nodes for v in n.outputs}
        self._as_it_was: dict[str, bool] = {}
        self._places: dict[Channel, tuple[int, int]] = {}

    # What is read.

    def _held(self, tensor: str) -> list[ir.Value]:
        return self.pieces.get(tensor) or [self.editor.value(tensor)]

    def _whole(self, tensor: str) -> ir.Value:
        """Return a tensor in one piece, in its class's layout."""
        held = self._held(tensor)
        if len(held) == 1:
            return held[0]
        if tensor not in self.wholes:
            self.editor.after(held)
            whole = self._concat(held, f"{tensor}.whole")
            self.editor.record(whole, self.plan.classes[tensor].layout, tensor)
            self.wholes[tensor] = whole
        return self.wholes[tensor]

    def _concat(self, values: list[ir.Value], base: str) -> ir.Value:
        """Return the tensors joined, by several Concats where one may not have so many inputs.

        The neighbours with the fewest channels are joined first: they are copied more than once.
        """
        most = self.options.max_concat
        values = list(values)
        while most > 1 and len(values) > most:
            width = min(most, len(values) - most + 1)
            sizes = [channel_axis_size(v) for v in values]
            first = min(range(len(values) - width + 1), key=lambda i: sum(sizes[i : i + width]))
            part = self.editor.concat(values[first : first + width], f"{base}.few")
            values[first : first + width] = [part]
        return self.editor.concat(values, base)

    def _place(self, channel: Channel) -> tuple[int, int]:
        if channel not in self._places:
            for number, piece in enumerate(self.plan.classes[channel.source].pieces):
                for position, held in enumerate(piece):
                    if held >= 0:
                        self._places[Channel(channel.source, held)] = (number, position)
        return self._places[channel]

    def _exact(self, wanted: Sequence[Channel | None], base: str) -> ir.Value:
        """Return the channels in exactly this order (None: any channel will do)."""
        runs: list[tuple[str, int, int, int]] = []
        some = next(c for c in wanted if c is not None)
        for channel in wanted:
            source = (channel or some).source
            piece, position = self._place(channel or some)
            if runs and runs[-1][:2] == (source, piece) and runs[-1][3] == position:
                runs[-1] = (source, piece, runs[-1][2], position + 1)
            else:
                runs.append((source, piece, position, position + 1))
        blocks = list(dict.fromkeys(run[:2] for run in runs))
        values = {block: self._held(block[0])[block[1]] for block in blocks}
        self.editor.after(list(values.values()))
        if len(runs) <= 2 * len(blocks):
            parts = [
                self.editor.slice(values[s, p], first, end, f"{base}.channels_{first}_{end}")
                for s, p, first, end in runs
            ]
            return self._concat(parts, base)
        starts, total, parts = {}, 0, []
        for block in blocks:
            first = min(r[2] for r in runs if r[:2] == block)
            end = max(r[3] for r in runs if r[:2] == block)
            starts[block] = total - first
            total += end - first
            parts.append(self.editor.slice(values[block], first, end, f"{base}.channels_{first}_{end}"))
        index = [starts[s, p] + c for s, p, first, end in runs for c in range(first, end)]
        whole = self._concat(parts, f"{base}.all")
        return whole if index == list(range(total)) else self.editor.gather(whole, index, base)

    def _untouched(self, tensor: str) -> bool:
        """Whether the data movement that made a tensor still makes it: all that it touches is as it was."""
        if tensor not in self._as_it_was:
            producer = self._makers.get(tensor)
            if producer is not None and is_movement(producer):
                given = [str(v.name) for v in producer.inputs if v is not None]
                self._as_it_was[tensor] = all(self._untouched(name) for name in given)
            else:
                own = self.plan.classes.get(tensor)
                self._as_it_was[tensor] = own is None or (own.natural and len(own.pieces) == 1)
        return self._as_it_was[tensor]

    def _note(self, tensor: str, before: set[str]) -> None:
        self.made_for.setdefault(tensor, []).extend(
            label(n) for n in self.editor.graph.nodes if label(n) not in before
        )

    def _read(self, read: Read) -> ir.Value:
        """Return what holds a read, in the layout of its class."""
        if read.item in self.reads:
            return self.reads[read.item]
        own = self.plan.classes[read.item]
        if own.natural and self._untouched(read.tensor) and read.item not in self.plan.runs:
            value = self.editor.value(read.tensor)
        else:
            before = {label(n) for n in self.editor.graph.nodes}
            base = f"{read.tensor}.read"
            runs = self.plan.runs.get(read.item) if own.begins is read else None
            if runs is not None:
                values = [self._held(r.source)[r.piece] for r in runs]
                self.editor.after(values)
                parts = [
                    self.editor.slice(v, r.first, r.end, f"{r.source}.channels_{r.first}_{r.end}")
                    for v, r in zip(values, runs, strict=True)
                ]
                value = self._concat(parts, base)
            else:
                wanted = [read.map.channels[c] if c >= 0 else None for c in own.layout]
                value = self._exact(wanted, base)
            self._note(read.tensor, before)
            if str(value.name).startswith(base):
                self.editor.record(value, own.layout, read.tensor)
        self.reads[read.item] = value
        return value

    def _in_order(self, tensor: str) -> ir.Value:
        """Return a tensor that data movement makes in the captured order."""
        channels = self.plan.provenance.maps[tensor]
        if self._untouched(tensor):
            return self.editor.value(tensor)
        if tensor not in self.ordered:
            before = {label(n) for n in self.editor.graph.nodes}
            value = self._exact(channels.channels, f"{tensor}.ordered")
            self._note(tensor, before)
            if str(value.name).startswith(f"{tensor}.ordered"):
                self.editor.record(value, range(len(channels)), tensor)
            self.ordered[tensor] = value
        return self.ordered[tensor]

    def _port(self, port: Port) -> ir.Value:
        """Return a node's input as one tensor, in its class's layout."""
        if port.read is not None:
            value = self._read(port.read)
        elif port.reshaped or port.tensor != port.item:
            value = self._whole(port.item)
        else:
            return self._whole(port.tensor)
        if not port.reshaped:
            return value
        if value is self.editor.value(port.tensor):
            return value
        own = self.plan.classes[port.item]
        if port.read is None and own.natural and len(own.pieces) == 1:
            return self.editor.value(port.tensor)
        batch, _, *rest = Graph.shape(self.editor.value(port.tensor))
        self.editor.after([value])
        # [N, C', 1, 1] -> [N, C']
        name = f"{port.tensor}.reshaped"
        value = self.editor.reshape(value, [batch, channel_axis_size(value), *rest], name)
        self.editor.record(value, own.layout, port.tensor)
        return value

    # What is computed.

    def _constant(self, node: ir.Node, parameters: Sequence[tuple[Parameter, Sequence[int]]]) -> None:
        """Give a node constants in new orders, one (axis, layout) after the other for each input."""
        for index in dict.fromkeys(p.index for p, _ in parameters):
            array = self._permuted(node, index, parameters)
            if array is not None:
                self.editor.own_constant(node, index, array)

    @staticmethod
    def _permuted(
        node: ir.Node, index: int, parameters: Sequence[tuple[Parameter, Sequence[int]]]
    ) -> NDArray[Any] | None:
        """Return a constant input in new orders; None where it stays as it is."""
        old = Graph.constant(node.inputs[index])
        assert old is not None  # noqa: S101 - roles say that it is constant
        new = old
        for parameter, layout in parameters:
            if parameter.index == index and list(layout) != list(range(old.shape[parameter.axis])):
                new = take(new, parameter.axis, layout, parameter.padding)
        return None if new is old else new

    def _finish(self, node: ir.Node, own: Class) -> None:
        """Tell the shape and the order of a node's result, which is in one piece."""
        out = node.outputs[0]
        if len(own.layout) != channel_axis_size(out):
            out.shape = ir.Shape(self.editor.with_channels(out, len(own.layout)))
        self.editor.record(out, own.layout)

    def _mixes(self, node: ir.Node, role: Mixes) -> None:
        key = label(node)
        port = self.plan.ports[key, role.data]
        value = self._port(port)
        columns = (role.columns, self.plan.classes[port.item].layout)
        own = self.plan.classes[str(node.outputs[0].name)]
        if len(own.pieces) == 1:
            node.replace_input_with(role.data, value)
            self._constant(node, [columns, *((p, own.layout) for p in role.rows)])
            self._finish(node, own)
            return
        parts = []
        self.editor.behind(node)
        for number, piece in enumerate(own.pieces):
            name = f"{key}.part{number}"
            orders = [columns, *((p, piece) for p in role.rows)]
            inputs = list(node.inputs)
            inputs[role.data] = value
            for index in dict.fromkeys(p.index for p, _ in orders):
                array = self._permuted(node, index, orders)
                if array is not None:
                    inputs[index] = self.editor.constant(
                        f"{name}.{'weight' if index == 1 else 'bias'}", array
                    )
            parts.append(self.editor.copy(node, inputs, len(piece), name))
            self.editor.record(parts[-1], piece, key)
        self.pieces[key] = parts

    def _carries(self, node: ir.Node, role: Carries) -> None:
        key = label(node)
        own = self.plan.classes[str(node.outputs[0].name)]
        if len(own.pieces) > 1:  # an activation behind a split convolution
            held = self._held(self.plan.ports[key, role.data[0]].item)
            self.editor.behind(node)
            self.pieces[key] = [
                self.editor.copy(node, [v, *node.inputs[1:]], len(piece), f"{key}.part{number}")
                for number, (v, piece) in enumerate(zip(held, own.pieces, strict=True))
            ]
            for part, piece in zip(self.pieces[key], own.pieces, strict=True):
                self.editor.record(part, piece, key)
            return
        for index in role.data:
            node.replace_input_with(index, self._port(self.plan.ports[key, index]))
        self._constant(node, [(p, own.layout) for p in role.parameters])
        if role.depthwise:
            node.attributes.add(ir.AttrInt64("group", len(own.layout)))
        self._finish(node, own)

    def write(self) -> Graph:
        for node in self.editor.graph.nodes:
            if is_movement(node):
                continue
            role = self.plan.roles[label(node)]
            if isinstance(role, Mixes):
                self._mixes(node, role)
            elif isinstance(role, Carries):
                self._carries(node, role)
            else:
                for index, value in enumerate(node.inputs):
                    if value is not None and str(value.name) in self.plan.natural:
                        node.replace_input_with(index, self._in_order(str(value.name)))
        for output in self.editor.graph.outputs:
            name = str(output.name)
            if name in self.plan.natural:
                self.editor.replace(output, self._in_order(name))
        return self.editor.finish()


def _site_reports(
    writer: _Writer,
    graph: Graph,
    sites: Sequence[Site],
    stands_for: Mapping[str, str],
    after: Graph,
    name: str,
    why: str,
    rest: Sequence[SiteReport],
) -> tuple[SiteReport, ...]:
    made_for: dict[str, list[str]] = {}
    for tensor, labels in writer.made_for.items():
        made_for.setdefault(stands_for.get(tensor, tensor), []).extend(labels)
    alive = {label(n): n for n in after.nodes}
    lowered = {site.name: site for site in rest if site.form != "kept"}
    found = []
    for site in sites:
        before = [n for n in graph.nodes if label(n) in site.nodes]
        left = [alive[n] for n in site.nodes if n in alive]
        refused = _refusals(writer.plan, site) if left else ()
        if site.name in lowered:
            inner = lowered[site.name]
            new = (inner.operators_after, inner.bytes_after)
            form, reason = inner.form, f"{inner.why}; {name} leaves it"
        elif left:
            form, reason = "kept", f"{name} has nothing to gain here" if not refused else f"{name} leaves it"
            new = (operators(left), bytes_moved(left))
        else:
            made = [
                alive[n]
                for tensor in (o.name for o in site.outputs)
                for n in made_for.get(tensor, [])
                if n in alive
            ]
            form, reason = name, why
            new = (operators(made), bytes_moved(made))
        found.append(
            SiteReport(
                site.name,
                site.description,
                form,
                reason,
                refused,
                operators(before),
                new[0],
                bytes_moved(before),
                new[1],
            )
        )
    return tuple(found)


def _refusals(plan: Plan, site: Site) -> tuple[str, ...]:
    """Return why the tensors around a site keep their order."""
    reasons = []
    for tensor, _ in site.inputs:
        for source in plan.provenance.maps[tensor].sources if tensor in plan.provenance.maps else (tensor,):
            own = plan.classes.get(source)
            if own is not None and own.fixed:
                reasons.append(f"{source!r} keeps its order: {own.fixed}")
    for output in site.outputs:
        read = next((r for r in plan.reads if r.tensor == output.name), None)
        if read is not None and plan.classes[read.item].fixed:
            reasons.append(f"{output.name!r} keeps its order: {plan.classes[read.item].fixed}")
    return tuple(dict.fromkeys(reasons))


def relayout(graph: Graph, options: Options, *, name: str, why: str, split: bool) -> tuple[Graph, Report]:
    """Return the graph in the layouts of a plan; what shuffles remain are moved and lowered to rank 4.

    Args:
        graph: The graph; it is not changed.
        options: Padding, merging, width of concats.
        name: The lowering's name, for the report.
        why: Why it is chosen, for the report.
        split: Whether convolutions are split by the lives of their channels.
    """
    provenance = analyze(graph)
    carried = carry(graph, provenance, options.carry) if options.carry else Carried(graph, {}, {})
    plan = make_plan(
        carried.graph, analyze(carried.graph) if carried.counts else provenance, options, split=split
    )
    writer = _Writer(plan, options)
    folded = writer.write()
    left = any(site.shuffles for site in analyze(folded).sites)
    result, rest = commute.apply(folded, options) if left else (folded, None)
    left_sites = rest.sites if rest is not None else ()
    sites = _site_reports(writer, graph, provenance.sites, carried.stands_for, result, name, why, left_sites)
    notes = tuple(
        f"{shared!r} was shared by several nodes; each has its own copy now"
        for shared in writer.editor.shared
    ) + tuple(
        f"{tensor!r} carries {count} channels of older branches in its padding"
        for tensor, count in carried.counts.items()
    )
    return result, report(name, graph, result, sites, provenance=provenance, notes=notes)
