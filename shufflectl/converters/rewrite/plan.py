"""The order in which every tensor holds its channels, so that no channel has to be moved.

Given the channel map of every consumer's input, this decides for each tensor a *layout*: for each physical
channel the captured tensor's channel, -1 for padding. What follows from it is exact, whatever is decided: a
node that mixes channels has its columns permuted to what it reads and its rows to what it gives, a node that
carries channels has its constants permuted, and whatever needs the captured order gets it from a gather.

1. Tensors whose channels stand or fall together form a *class*: what a carrying node reads and gives. A class
   is *fixed* to the captured order when something in it cannot be permuted: a graph input, an opaque node's
   result, a tensor that an opaque node or a graph output reads as it is.
2. A *read* is a channel map that is not one whole tensor in its order: what a unit reads after split and
   shuffle, for example. All consumers of the same map share it.
3. A channel's *life* is the list of the reads that it goes into, with its life there where the read is
   carried on. Channels of one life are always read together. Sorted by life, with the first read first, every
   read takes runs of its sources: in ShuffleNet V2 one run of each source. That is the layout of a class
   whose channels come from mixing nodes.
4. The layout of a class that begins with a read is what the runs give, sorted by their own lives.
5. With residual connections a channel is read again and again, next to ever other channels (SE-ShuffleNetV2's
   basic units): then lives are single channels. A read that would take many runs of few channels is fixed.

The order among lives is that of the nodes, so the same graph always gives the same layouts.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import onnx_ir as ir

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.layouts import Class, Plan, Port, Read, Run
from shufflectl.converters.rewrite.lowering import Options
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import Channel, ChannelMap, Provenance, label
from shufflectl.converters.rewrite.roles import Carries, Mixes, Opaque, role

__all__ = ["make_plan"]

_MANY_RUNS: Final = 16
_SHORT_RUN: Final = 16
"""More runs than the one, of fewer channels on average than the other, are not copied one by one."""


def _channels(value: ir.Value) -> int:
    if value.shape is None or len(value.shape) < 2 or not isinstance(value.shape[1], int):
        return 0
    return value.shape[1]


def _ranks(lists: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    order = {item: i for i, item in enumerate(sorted({tuple(item) for item in lists}))}
    return [order[tuple(item)] for item in lists]


class _Planner:
    def __init__(
        self,
        graph: Graph,
        provenance: Provenance,
        options: Options,
        *,
        split: bool,
        fixed: Mapping[str, str],
    ) -> None:
        self.plan = Plan(graph, provenance)
        self.options = options
        self.split = split
        self.nodes = graph.nodes
        self.values = {str(v.name): v for v in (*graph.inputs, *(v for n in self.nodes for v in n.outputs))}
        self.reshaped = {o.name for s in provenance.sites for o in s.outputs if o.reshaped}
        self.union: DisjointSets[str] = DisjointSets()
        self.fixed = dict(fixed)
        self._reads: dict[tuple[Channel, ...], Read] = {}

    # Which tensors belong together.

    def _fix(self, tensor: str, why: str) -> None:
        """Keep a tensor, or what data movement makes it of, in the captured order."""
        if tensor not in self.values:
            return  # a constant
        found = self.plan.provenance.maps.get(tensor)
        known = found is not None and all(_channels(self.values[s]) for s in found.sources)
        if known and tensor not in self.reshaped:
            self.plan.natural.setdefault(tensor, why)  # it can be put in order where it is needed
            return
        producer = self.values[tensor].producer()
        if producer is not None and is_movement(producer):
            for value in producer.inputs:
                if value is not None:
                    self._fix_source(str(value.name), why)
            return
        self._fix_source(tensor, why)

    def _fix_source(self, tensor: str, why: str) -> None:
        """Keep everything that a tensor is moved from in the captured order: the movement stays as it is."""
        value = self.values.get(tensor)
        if value is None:
            return
        producer = value.producer()
        if producer is not None and is_movement(producer):
            for given in producer.inputs:
                if given is not None:
                    self._fix_source(str(given.name), why)
        else:
            self.fixed.setdefault(tensor, why)

    def _port(self, value: ir.Value) -> Port | None:
        """Return what a tensor is to a consumer that takes any order; None where it is no channel map."""
        name = str(value.name)
        producer = value.producer()
        made = producer is not None and is_movement(producer)
        if not made:
            return Port(name, name, None, reshaped=False) if _channels(value) else None
        found = self.plan.provenance.maps.get(name)
        if found is None or any(not _channels(self.values[s]) for s in found.sources):
            return None
        reshaped = name in self.reshaped
        source = found.channels[0].source
        if found == ChannelMap.identity(source, _channels(self.values[source])):
            return Port(name, source, None, reshaped)
        read = self._reads.get(found.channels)
        if read is None:
            read = Read(len(self.plan.reads), name, found)
            self._reads[found.channels] = read
            self.plan.reads.append(read)
        return Port(name, read.item, read, reshaped)

    def _node(self, node: ir.Node) -> None:
        key = label(node)
        found = role(node)
        ports: dict[int, Port] = {}
        if not isinstance(found, Opaque):
            data = (found.data,) if isinstance(found, Mixes) else found.data
            for index in data:
                value = node.inputs[index]
                port = None if value is None else self._port(value)
                if port is None:
                    found = Opaque("its input is no channel map")
                    break
                ports[index] = port
        self.plan.roles[key] = found
        if isinstance(found, Opaque):
            what = f"{node.op_type} {key!r}"
            for value in node.inputs:
                if value is not None:
                    self._fix(str(value.name), f"{what}: {found.why}")
            for value in node.outputs:
                self.fixed.setdefault(str(value.name), f"{what}: {found.why}")
            return
        self.plan.ports.update({(key, index): port for index, port in ports.items()})
        out = str(node.outputs[0].name)
        if isinstance(found, Carries):
            self.union.tie([out, *(p.item for p in ports.values())])

    def _collect(self) -> None:
        for value in self.plan.graph.inputs:
            self.fixed[str(value.name)] = "it is an input of the graph"
        for node in self.nodes:
            if not is_movement(node):
                self._node(node)
        for value in self.plan.graph.outputs:
            self._fix(str(value.name), "it is an output of the graph")
        for left in (n for n in self.nodes if is_movement(n)):
            # What is no channel map and is read by nobody known stays, on sources in their order.
            outside = [v for v in left.outputs if v.name and str(v.name) not in self.plan.provenance.maps]
            for value in outside:
                if any(not is_movement(u.node) for u in value.uses()) or value.is_graph_output():
                    self._fix_source(str(value.name), "data movement that is no channel map reads it")

    # Classes and their layouts.

    def _classes(self) -> list[Class]:
        items = [str(v.name) for v in self.values.values() if _channels(v)]
        items = [i for i in items if (p := self.values[i].producer()) is None or not is_movement(p)]
        sizes = {i: _channels(self.values[i]) for i in items}
        for read in self.plan.reads:
            items.append(read.item)
            sizes[read.item] = len(read.map)
        groups: dict[str, list[str]] = {}
        for item in items:
            groups.setdefault(self.union.find(item), []).append(item)
        classes = []
        for members in groups.values():
            why = next((self.fixed[m] for m in members if m in self.fixed), "")
            found = Class(members, sizes[members[0]], why)
            classes.append(found)
            self.plan.classes.update(dict.fromkeys(members, found))
        for key, what in self.plan.roles.items():
            own = self.plan.classes.get(key)
            if own is not None and isinstance(what, Carries):
                own.pads &= what.pads
        return classes

    def _splittable(self, found: Class) -> bool:
        """Whether a class is made of convolutions and activations alone."""
        for member in found.members:
            if member.startswith("\0"):
                return False
            what, maker = self.plan.roles.get(member), self.values[member].producer()
            convolution = isinstance(what, Mixes) and maker is not None and maker.op_type == "Conv"
            if not convolution and not (isinstance(what, Carries) and what.elementwise):
                return False
        return True

    def _by_index(self, item: str) -> Read:
        return self.plan.reads[int(item[1:])]

    def _begin(self, classes: Sequence[Class]) -> None:
        """Choose the read that each class's layout follows from, without going in circles."""

        def reaches(start: Class, goal: Class, seen: set[int]) -> bool:
            if start is goal:
                return True
            if id(start) in seen or start.begins is None:
                return False
            seen.add(id(start))
            return any(reaches(self.plan.classes[s], goal, seen) for s in start.begins.map.sources)

        for found in classes:
            reads = [self._by_index(m) for m in found.members if m.startswith("\0")]
            if found.fixed or not reads:
                continue
            for read in sorted(reads, key=lambda r: r.index):
                if len(set(read.map.channels)) < len(read.map):
                    continue  # a repeated channel has no one place
                if not any(reaches(self.plan.classes[s], found, set()) for s in read.map.sources):
                    found.begins = read
                    break
            if found.begins is None and not any(
                isinstance(self.plan.roles.get(m), Mixes) for m in found.members
            ):
                found.fixed = "its channels come in several orders at once"

    def _live(self, classes: Sequence[Class]) -> None:
        """Rank the lives of each class's channels, later readers first."""
        readers: dict[int, list[tuple[Read, Class]]] = {}
        for read in self.plan.reads:
            for source in read.map.sources:
                own = self.plan.classes[source]
                readers.setdefault(id(own), []).append((read, self.plan.classes[read.item]))
        ordered: dict[int, list[tuple[int, Channel]]] = {}
        for tensor in self.plan.natural:
            for place, channel in enumerate(self.plan.provenance.maps[tensor].channels):
                ordered.setdefault(id(self.plan.classes[channel.source]), []).append((place, channel))
        done: set[int] = set()
        active: set[int] = set()

        def rank(found: Class) -> None:
            if id(found) in done:
                return
            active.add(id(found))
            lives: list[list[tuple[int, int]]] = [[] for _ in range(found.channels)]
            groups: list[list[tuple[int, int]]] = [[] for _ in range(found.channels)]
            seen: set[int] = set()
            for read, target in readers.get(id(found), []):
                if read.index in seen:
                    continue
                seen.add(read.index)
                if id(target) not in active:
                    rank(target)
                for place, channel in enumerate(read.map.channels):
                    if self.plan.classes[channel.source] is found:
                        known = bool(target.lives) and not target.fixed
                        tail = place if target.fixed else target.lives[place] if known else 0
                        lives[channel.number].append((read.index, tail))
                        groups[channel.number].append((read.index, target.groups[place] if known else 0))
            for place, channel in ordered.get(id(found), []):
                if not lives[channel.number]:  # nobody else cares, so let it lie in that order
                    lives[channel.number].append((len(self.plan.reads), place))
                    groups[channel.number].append((len(self.plan.reads), 0))
            found.lives, found.groups = _ranks(lives), _ranks(groups)
            active.discard(id(found))
            done.add(id(found))

        for found in classes:
            rank(found)

    def _padded(self, channels: list[int], *, pads: bool) -> list[int]:
        return channels + [-1] * (-len(channels) % self.options.align if pads else 0)

    @staticmethod
    def _groups(found: Class, merge: int) -> list[list[int]]:
        """Return the channels by life; those smaller than ``merge`` share groups of that size."""
        groups: dict[int, list[int]] = {}
        for channel in sorted(range(found.channels), key=lambda c: (found.lives[c], c)):
            groups.setdefault(found.groups[channel], []).append(channel)
        found_groups: list[list[int]] = []
        shared: list[int] | None = None
        for life in sorted(groups):
            size = len(groups[life])
            if size >= merge:
                found_groups.append(groups[life])
            elif shared is not None and len(shared) + size <= merge:
                shared += groups[life]
            else:
                shared = list(groups[life])
                found_groups.append(shared)
        return found_groups

    def _lay_out(self, found: Class) -> None:
        if found.pieces:
            return
        if found.fixed:
            found.pieces = [list(range(found.channels))]
            return
        if found.begins is None:
            can = self.split and self._splittable(found)
            merge = self.options.merge if can else 0
            groups = [self._padded(g, pads=found.pads) for g in self._groups(found, merge)]
            found.splits = can and len(groups) > 1
            found.pieces = groups if found.splits else [[c for g in groups for c in g]]
            return
        read = found.begins
        for source in read.map.sources:
            self._lay_out(self.plan.classes[source])
        place = {channel: i for i, channel in enumerate(read.map.channels)}
        runs = self._runs(read, found, place)
        layout = [place.get(c, -1) if c is not None else -1 for run in runs for c in self.plan.at(run)]
        if not found.pads and -1 in layout:
            found.begins, found.fixed = None, "padded channels cannot pass"
            found.pieces = [list(range(found.channels))]
            return
        self.plan.runs[read.item] = runs
        found.pieces = [layout]

    def _runs(self, read: Read, found: Class, place: dict[Channel, int]) -> list[Run]:
        """Return the runs that hold a read's channels, those of an earlier life first, then the smallest."""
        runs: list[tuple[int, Run]] = []
        for source in read.map.sources:
            for number, piece in enumerate(self.plan.classes[source].pieces):
                first, life = -1, -1
                for position, channel in enumerate([*piece, None]):
                    wanted = channel is not None and (channel < 0 or Channel(source, channel) in place)
                    if channel is not None and channel >= 0 and wanted:
                        now = found.groups[place[Channel(source, channel)]]
                    else:
                        now = life
                    if first >= 0 and (not wanted or now != life):
                        runs.append((life, Run(source, number, first, position)))
                        first = -1
                    if first < 0 and wanted and channel is not None and channel >= 0:
                        first, life = position, now
        blocks = self._blocks(runs)
        blocks.sort(key=lambda r: (r[0], r[1].end - r[1].first, r[1].source, r[1].piece, r[1].first))
        return [run for _, run in blocks]

    def _blocks(self, runs: list[tuple[int, Run]]) -> list[tuple[int, Run]]:
        """Widen runs of split tensors to whole pieces: a slice would cost more than the columns it saves."""
        if not self.options.merge:
            return runs
        found: dict[tuple[str, int], tuple[int, Run]] = {}
        rest = []
        for life, run in runs:
            own = self.plan.classes[run.source]
            if not own.splits:
                rest.append((life, run))
                continue
            whole = Run(run.source, run.piece, 0, len(own.pieces[run.piece]))
            found.setdefault((run.source, run.piece), (life, whole))
        return [*found.values(), *rest]

    def make(self) -> Plan:
        self._collect()
        classes = self._classes()
        self._begin(classes)
        self._live(classes)
        for found in classes:
            self._lay_out(found)
        return self.plan


def make_plan(graph: Graph, provenance: Provenance, options: Options, *, split: bool) -> Plan:
    """Return a layout for every tensor.

    Args:
        graph: The graph.
        provenance: What `analyze` returned for it.
        options: Padding and merging.
        split: Whether tensors that come straight from a convolution are held in one piece a life.
    """
    fixed: dict[str, str] = {}
    while True:
        plan = _Planner(graph, provenance, options, split=split, fixed=fixed).make()
        scattered = {item: runs for item, runs in plan.runs.items() if _scattered(plan, runs)}
        if not scattered:
            return plan
        for item, runs in scattered.items():
            fixed[item] = f"its channels would be picked from {len(runs)} places"


def _scattered(plan: Plan, runs: Sequence[Run]) -> bool:
    """Whether so many short runs would be copied that the shuffle costs less; padding makes no run longer."""
    channels = sum(channel is not None for run in runs for channel in plan.at(run))
    sources = len({run.source for run in runs})
    return len(runs) > max(_MANY_RUNS, 2 * sources) and channels < _SHORT_RUN * len(runs)
