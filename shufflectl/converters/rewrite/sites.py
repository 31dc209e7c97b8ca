"""Data movement cut into regions, and what was executed of it into steps and sites; see `provenance`."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.follow import Execution
from shufflectl.converters.rewrite.movement import data_inputs
from shufflectl.converters.rewrite.provenance import (
    ChannelMap,
    LeftAlone,
    Output,
    Region,
    Shuffle,
    Site,
    label,
)

__all__ = ["SiteFinder", "find_regions"]


def _outside(value: ir.Value, inside: Iterable[str]) -> bool:
    """Whether a graph output or a node other than those named reads a tensor."""
    return value.is_graph_output() or any(label(use.node) not in inside for use in value.uses())


def find_regions(graph: Graph, nodes: Sequence[ir.Node]) -> tuple[Region, ...]:
    """Return the regions of a graph's data-movement nodes, in the order of their first nodes."""
    inside = {label(n) for n in nodes}
    sets = DisjointSets[str]()
    for node in nodes:
        for value in node.inputs:
            producer = None if value is None else value.producer()
            if producer is not None and label(producer) in inside:
                sets.tie([label(producer), label(node)])
    groups: dict[str, list[ir.Node]] = {}
    for node in nodes:
        groups.setdefault(sets.find(label(node)), []).append(node)
    regions = []
    for members in groups.values():
        made = {v for n in members for v in n.outputs}
        names = {label(n) for n in members}
        sources = dict.fromkeys(
            str(v.name)
            for n in members
            for v in n.inputs
            if v is not None and v not in made and graph.constant(v) is None
        )
        outputs = [str(v.name) for n in members for v in n.outputs if _outside(v, names)]
        regions.append(Region(tuple(label(n) for n in members), tuple(sources), tuple(outputs)))
    return tuple(regions)


def _form(site: Site) -> tuple[Shuffle | None, list[int | None]]:
    """Return the channel shuffle of the joined inputs of which all outputs are runs, and their starts."""
    total = site.channels
    wanted = [site.joined(output) for output in site.outputs]
    for groups in (g for g in range(1, total + 1) if total % g == 0):
        shuffle = Shuffle(groups, total)
        order = shuffle.order()
        size = total // groups
        starts: list[int | None] = []
        for channels in wanted:
            first = int(channels[0])
            start = (first % size) * groups + first // size
            if not np.array_equal(order[start : start + len(channels)], channels):
                break
            starts.append(start)
        else:
            return shuffle, starts
    return None, [None] * len(wanted)


class SiteFinder:
    """Cuts executed data movement into sites.

    Attributes:
        left: Once the sites are found: what was executed and is no channel map, and why.
    """

    def __init__(self, graph: Graph, nodes: Sequence[ir.Node], execution: Execution) -> None:
        self.graph = graph
        self.execution = execution
        self.nodes = [n for n in nodes if label(n) not in execution.failed]
        self.left: list[LeftAlone] = []

    def _clean(self, value: ir.Value) -> bool:
        made = self.execution.made.get(str(value.name))
        return made is not None and made.map is not None and not made.reshaped

    def _steps(self) -> DisjointSets[str]:
        sets = DisjointSets[str]()
        for node in self.nodes:
            for value in data_inputs(node):
                producer = value.producer()
                made = str(value.name) in self.execution.made
                if made and producer is not None and not self._clean(value):
                    sets.tie([label(producer), label(node)])
        return sets

    def _bases(self, members: Sequence[ir.Node]) -> dict[str, ir.Value]:
        """Return what the nodes read that they do not make."""
        made = {v for n in members for v in n.outputs}
        return {str(v.name): v for n in members for v in data_inputs(n) if v not in made}

    def find(self) -> list[Site]:
        """Return the sites, in graph order."""
        steps = self._steps()
        by_step: dict[str, list[ir.Node]] = {}
        for node in self.nodes:
            by_step.setdefault(steps.find(label(node)), []).append(node)
        sites = DisjointSets[str]()
        for members in by_step.values():
            for node in members[1:]:
                sites.tie([label(members[0]), label(node)])
            bases = self._bases(members)
            value = next(iter(bases.values()))
            producer = value.producer()
            if len(bases) == 1 and str(value.name) in self.execution.made and producer is not None:
                sites.tie([label(producer), label(members[0])])
        by_site: dict[str, list[ir.Node]] = {}
        for node in self.nodes:
            by_site.setdefault(sites.find(label(node)), []).append(node)
        return [site for members in by_site.values() if (site := self._site(members)) is not None]

    def _site(self, members: list[ir.Node]) -> Site | None:
        names = tuple(label(n) for n in members)
        bases = self._bases(members)
        maps: dict[str, ChannelMap] = {}
        outputs, opaque, reasons = [], [], []
        for value in (v for node in members for v in node.outputs if v.name):
            name = str(value.name)
            made = self.execution.made[name]
            if made.map is not None:
                own = made.map.over(maps)
                if not made.reshaped:
                    maps[name] = own
            if not _outside(value, names):
                continue
            if made.map is None:
                opaque.append(name)
                reasons.append(made.reason)
            else:
                outputs.append(Output(name, own, None, made.reshaped))
        if reasons:
            self.left.append(LeftAlone(names, reasons[0]))
        if not outputs:
            return None
        inputs = tuple((name, self._channels(value)) for name, value in bases.items())
        total = sum(count for _, count in inputs)
        name = next((m for m in reversed(maps) if len(maps[m]) == total), outputs[0].name)
        draft = Site(name, names, inputs, tuple(outputs), None, tuple(opaque))
        form, starts = _form(draft)
        placed = tuple(
            Output(o.name, o.map, start, o.reshaped) for o, start in zip(outputs, starts, strict=True)
        )
        return Site(name, names, inputs, placed, form, tuple(opaque))

    @staticmethod
    def _channels(value: ir.Value) -> int:
        assert value.shape is not None  # noqa: S101 - it was executed, so its shape is known
        return int(value.shape[1]) if len(value.shape) > 1 else 1  # type: ignore[arg-type]  # the same
