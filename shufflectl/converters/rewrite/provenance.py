"""Channel provenance: which channel of which tensor every channel of a graph is.

A channel shuffle, chunk, split, stack, slice or constant gather only moves elements. So none is recognised by
its spelling: each connected region of data-movement nodes is *executed* on tensors that hold, instead of
values, the number of each element. A result is a *channel map* when at every batch index n and position p it
holds, in channel c, the element (n, s(c), p) of one and the same source channel s(c). That is read off the
whole result, not sampled, so the map holds for whatever values the tensors take.

With a symbolic batch N the region is executed for N = 2 and N = 3, and both must give the same map. All
constants of the region are the same in both, and what could still tell larger batches apart, a bound that
cuts a batch-dependent axis short, is refused.

Definitions:

- *source*: a tensor that no data-movement node makes (or one that could not be executed). It is its own map.
- *step*: the fewest nodes that lead from channel maps to channel maps; torchvision's Reshape, Transpose,
  Reshape is one step, as is Megvii's Reshape, Transpose, Reshape, Gather, Gather.
- *site*: a step and all steps behind it that read nothing else, so Concat + shuffle + Split is one site. A
  step that joins several tensors starts a site of its own.
- *region*: all nodes of data movement that hang together.

What is not a channel map is left alone, with the reason on record.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.movement import (
    MAX_ELEMENTS,
    CannotExecuteError,
    clamped_lengths,
    data_inputs,
    execute,
    is_movement,
)
from shufflectl.errors import GraphError

__all__ = [
    "Channel",
    "ChannelMap",
    "LeftAlone",
    "Output",
    "Provenance",
    "Region",
    "Shuffle",
    "Site",
    "analyze",
    "label",
]

Codes = NDArray[Any]  # int32, or int64 where the numbers do not fit

_MULTIPLE: Final = re.compile(r"(\d{1,9})\*\w+")
"""The name of a dimension that holds several images' parts, as ``58*batch``."""

_MAX_CHANNELS: Final = 1 << 21
"""The most channels that are followed in a graph, over all tensors: some hundred megabytes of maps."""


class Channel(NamedTuple):
    """One channel of one tensor."""

    source: str
    number: int


@dataclass(frozen=True)
class ChannelMap:
    """For each channel of a tensor the channel that it is.

    Attributes:
        channels: In the tensor's order.
    """

    channels: tuple[Channel, ...]

    @classmethod
    def identity(cls, name: str, count: int) -> "ChannelMap":
        """Return the map of a tensor that is its own source."""
        return cls(tuple(Channel(name, index) for index in range(count)))

    def __len__(self) -> int:
        return len(self.channels)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The tensors that the channels come from, in order of first use."""
        return tuple(dict.fromkeys(channel.source for channel in self.channels))

    def over(self, maps: Mapping[str, "ChannelMap"]) -> "ChannelMap":
        """Return this map with each source that has a map itself replaced by that."""
        return ChannelMap(
            tuple(maps[s].channels[i] if s in maps else Channel(s, i) for s, i in self.channels)
        )

    def runs(self) -> list[tuple[str, int, int]]:
        """Return the map as (source, first channel, end) of consecutive channels."""
        found: list[tuple[str, int, int]] = []
        for source, index in self.channels:
            if found and found[-1][0] == source and found[-1][2] == index:
                found[-1] = (source, found[-1][1], index + 1)
            else:
                found.append((source, index, index + 1))
        return found


@dataclass(frozen=True)
class Shuffle:
    """A channel shuffle: ``out[j] = in[(j % groups) * (channels / groups) + j // groups]``.

    Attributes:
        groups: The groups whose channels are interleaved.
        channels: All channels.
    """

    groups: int
    channels: int

    def order(self) -> NDArray[np.int64]:
        """Return the input channel of each output channel."""
        return np.arange(self.channels).reshape(self.groups, -1).T.ravel()


@dataclass(frozen=True)
class Output:
    """A tensor that leaves a site.

    Attributes:
        name: The tensor.
        map: Its channels over the site's inputs.
        start: Where it begins in the site's shuffled (or joined) channels, when the site has a `form`; its
            channels follow one another from there.
        reshaped: Whether its spatial shape differs from the inputs' (the positions are the same when both are
            flattened), as after Flatten of [N, C, 1, 1].
    """

    name: str
    map: ChannelMap
    start: int | None = None
    reshaped: bool = False


@dataclass(frozen=True)
class Site:
    """A place where channels are joined, moved and divided.

    Attributes:
        name: The site's last tensor that holds all its channels, or its first output.
        nodes: The nodes, by the names of their first results, in graph order.
        inputs: The tensors that it reads, in the order in which it joins them, with their channel counts.
        outputs: The tensors that leave it.
        form: The channel shuffle of the joined inputs of which every output is a run of channels (``groups``
            1: no channel changes its place); None for any other permutation or selection.
        opaque: Tensors of the site that other nodes read and that are no channel maps.
    """

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[Output, ...]
    form: Shuffle | None
    opaque: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """The number of channels that enter."""
        return sum(count for _, count in self.inputs)

    @property
    def shuffles(self) -> bool:
        """Whether some output is not a concatenation of runs of the inputs in their order."""
        return self.form is None or self.form.groups > 1

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each input begins in the joined channels."""
        found, total = {}, 0
        for name, count in self.inputs:
            found[name] = total
            total += count
        return found

    def joined(self, output: Output) -> NDArray[np.int64]:
        """Return an output's channels as channels of the concatenation of the inputs."""
        return np.asarray([self.offsets[s] + i for s, i in output.map.channels], np.int64)

    @property
    def kind(self) -> str:
        """``shuffle``, ``permutation`` (any other move of channels), ``concat``, ``split``, ``identity``."""
        if self.form is None:
            return "permutation"
        if self.form.groups > 1:
            return "shuffle"
        if len(self.inputs) > 1:
            return "concat"
        whole = len(self.outputs) == 1 and len(self.outputs[0].map) == self.channels
        return "identity" if whole else "split"

    @property
    def description(self) -> str:
        """The site in words."""
        parts = []
        if len(self.inputs) > 1:
            parts.append("concat of " + " + ".join(str(count) for _, count in self.inputs))
        if self.form is None:
            moved = sorted({len(o.map) for o in self.outputs})
            parts.append(f"selection of {', '.join(map(str, moved))} of {self.channels} channels")
        elif self.form.groups > 1:
            parts.append(f"channel shuffle g={self.form.groups} of {self.channels} channels")
        pieces = [o for o in self.outputs if len(o.map) < self.channels]
        if pieces and self.form is not None:
            text = " + ".join(str(len(o.map)) for o in pieces)
            parts.append(f"split into {text}" if len(pieces) > 1 else f"slice of {text}")
        return ", ".join(parts) or f"identity of {self.channels} channels"


@dataclass(frozen=True)
class LeftAlone:
    """Data movement that is not a channel map.

    Attributes:
        nodes: The nodes, by name.
        reason: One sentence.
    """

    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Region:
    """Data-movement nodes that hang together.

    Attributes:
        nodes: Their names, in graph order.
        sources: The tensors that enter.
        outputs: The tensors that other nodes or the graph's outputs read.
    """

    nodes: tuple[str, ...]
    sources: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What is known about where channels come from.

    Attributes:
        regions: All data movement of the graph.
        sites: The sites, in graph order.
        maps: For each tensor that data movement makes and that is a channel map, that map over sources
            outside data movement.
        left_alone: The rest of the data movement, and why.
    """

    regions: tuple[Region, ...]
    sites: tuple[Site, ...]
    maps: Mapping[str, ChannelMap]
    left_alone: tuple[LeftAlone, ...] = ()
    _graph: Graph | None = field(default=None, repr=False, compare=False)

    def map(self, value: ir.Value) -> ChannelMap | None:
        """Return a tensor's channel map; its own channels if no data movement makes it.

        None where it has no channel axis of known length.
        """
        name = str(value.name)
        if name in self.maps:
            return self.maps[name]
        if value.shape is None or len(value.shape) < 2 or not isinstance(value.shape[1], int):
            return None
        return ChannelMap.identity(name, value.shape[1])

    def site_of(self, tensor: str) -> Site | None:
        """Return the site that a tensor leaves."""
        return next((s for s in self.sites if any(o.name == tensor for o in s.outputs)), None)


@dataclass
class _Base:
    """A tensor whose elements are numbered: a source, or a channel map inside a region."""

    name: str
    offset: int
    shape: tuple[int, ...]


@dataclass
class _Made:
    """What a tensor that data movement makes turned out to be."""

    map: ChannelMap | None
    reshaped: bool = False
    reason: str = ""


class _Execution:
    """One execution of all data-movement nodes, with one batch size."""

    def __init__(
        self,
        graph: Graph,
        batch: int | None,
        unclean: set[str],
        cut: set[str],
        refused: Mapping[str, str],
    ) -> None:
        self.graph = graph
        self.batch = batch
        self.cut = cut
        self.refused = refused
        self.unclean = unclean
        self.made: dict[str, _Made] = {}
        self.failed: dict[str, str] = {}
        self.reads: dict[str, list[str]] = {}
        self.codes: dict[str, Codes] = {}
        self.clamps: dict[str, list[int]] = {}
        self._bases: list[_Base] = []
        self._by_name: dict[str, _Base] = {}
        self._next = 0
        self._held = 0
        self._channels = 0
        self._left: dict[str, int] = {}
        self._run()

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        try:
            dims = self.graph.shape(value)
        except GraphError as error:
            raise CannotExecuteError(error.message) from error
        sizes = []
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                sizes.append(dim)
            elif axis == 0 and self.batch is not None:
                several = _MULTIPLE.fullmatch(dim)
                sizes.append(self.batch * (int(several[1]) if several else 1))
            else:
                raise CannotExecuteError(f"axis {axis} of {value.name!r} has no known length")
        if (count := math.prod(sizes)) > MAX_ELEMENTS:
            raise CannotExecuteError(f"{value.name!r} has {count} elements, too many to follow")
        return tuple(sizes)

    def _encode(self, value: ir.Value) -> Codes:
        """Return the numbers of a base's elements; no two elements of the graph share one."""
        name = str(value.name)
        base = self._by_name.get(name)
        if base is None:
            base = _Base(name, self._next, self._shape(value))
            self._next += max(math.prod(base.shape), 1)
            self._bases.append(base)
            self._by_name[name] = base
        end = base.offset + math.prod(base.shape)
        dtype = np.int32 if end < 1 << 31 else np.int64
        return np.arange(base.offset, end, dtype=dtype).reshape(base.shape)

    def _input(self, value: ir.Value) -> Codes:
        name = str(value.name)
        if name not in self.codes:
            return self._encode(value)
        self._left[name] -= 1
        if self._left[name]:
            return self.codes[name]
        # The last reader takes it, so that memory holds no more than the nodes at work need.
        array = self.codes.pop(name)
        self._held -= array.size
        return array

    def _check_bounds(self, node: ir.Node, key: str, array: Codes) -> list[int]:
        if key in self.cut:
            raise CannotExecuteError("it cuts an axis whose length depends on the batch")
        return clamped_lengths(node, array.shape)

    def _execute(self, node: ir.Node, arrays: Sequence[Codes]) -> list[Codes]:
        outputs = execute(node, arrays)
        if self._held + sum(a.size for a in outputs) > MAX_ELEMENTS:
            raise CannotExecuteError("too many elements would have to be followed at a time")
        return outputs

    def _run(self) -> None:
        for node in self.graph.nodes:
            if not is_movement(node):
                continue
            key = label(node)
            if key in self.refused:
                self.failed[key] = self.refused[key]
                continue
            try:
                values = data_inputs(node)
                self.reads[key] = [str(v.name) for v in values]
                arrays = [self._input(value) for value in values]
                self.clamps[key] = self._check_bounds(node, key, arrays[0])
                outputs = self._execute(node, arrays)
            except CannotExecuteError as error:
                self.failed[key] = f"{node.op_type} {key!r}: {error}"
                continue
            for value, array in zip(node.outputs, outputs, strict=True):
                if value.name:  # an optional result that nobody reads has none
                    self._read(value, array)

    def _read(self, value: ir.Value, array: Codes) -> None:
        name = str(value.name)
        made = self._map(name, array)
        if name in self.unclean:
            made = _Made(None, reason=f"{name!r} is not the same map for every batch size")
        self.made[name] = made
        if made.map is None or made.reshaped:
            self.codes[name] = array
            self._held += array.size
            self._left[name] = max(sum(is_movement(u.node) for u in value.uses()), 1)

    def _map(self, name: str, array: Codes) -> _Made:
        if array.ndim < 2 or not array.size:
            return _Made(None, reason=f"{name!r} has no channel axis")
        batch, count, *spatial = array.shape
        if self._channels + count > _MAX_CHANNELS:
            return _Made(None, reason=f"{name!r} has {count} channels, too many to follow")
        self._channels += count
        flat = array.reshape(batch, count, -1)
        first = flat[0, :, 0].astype(np.int64)
        owner = np.searchsorted([b.offset for b in self._bases], first, side="right") - 1
        channels, strides, reshaped = [], [], False
        for c, (code, index) in enumerate(zip(first.tolist(), owner.tolist(), strict=True)):
            base = self._bases[index]
            size = math.prod(base.shape[2:])
            if len(base.shape) < 2 or base.shape[0] != batch or size != flat.shape[2]:
                return _Made(
                    None,
                    reason=f"{name!r} {list(array.shape)} does not have the batch and positions of "
                    f"{base.name!r} {list(base.shape)}, whose elements it holds",
                )
            source, position = divmod(code - base.offset, size)
            if position or source >= base.shape[1]:
                return _Made(None, reason=self._where(name, c, 0, 0, code))
            reshaped |= list(base.shape[2:]) != spatial
            channels.append(Channel(base.name, source))
            strides.append(base.shape[1] * size)
        expected = first[None, :, None] + np.arange(batch)[:, None, None] * np.asarray(strides)[None, :, None]
        wrong = flat != expected.astype(array.dtype) + np.arange(flat.shape[2], dtype=array.dtype)
        if wrong.any():
            at = int(wrong.argmax())
            batch_index, rest = divmod(at, count * flat.shape[2])
            c, p = divmod(rest, flat.shape[2])
            return _Made(None, reason=self._where(name, c, p, batch_index, int(flat.flat[at])))
        return _Made(ChannelMap(tuple(channels)), reshaped)

    def _where(self, name: str, c: int, p: int, n: int, code: int) -> str:
        offsets = [b.offset for b in self._bases]
        base = self._bases[int(np.searchsorted(offsets, code, side="right")) - 1]
        index = tuple(int(i) for i in np.unravel_index(code - base.offset, base.shape))
        return (
            f"{name!r} is not a channel map: its channel {c} holds, at batch index {n} and position {p}, "
            f"the element {list(index)} of {base.name!r}"
        )


def _execute(graph: Graph) -> _Execution:
    """Execute the graph's data movement; with a symbolic batch, twice, and keep what agrees."""
    symbolic = any(
        v.shape is not None and len(v.shape) > 0 and not isinstance(v.shape[0], int) for v in graph.inputs
    )
    if not symbolic:
        return _Execution(graph, None, set(), set(), {})
    unclean: set[str] = set()
    cut: set[str] = set()
    refused: dict[str, str] = {}
    while True:
        small, large = (_Execution(graph, batch, unclean, cut, refused) for batch in (2, 3))
        failed = large.failed | small.failed
        if small.failed.keys() != large.failed.keys():  # it fits one batch, as where that is baked in
            refused |= failed
            continue
        # Reasons name elements, which two batch sizes count differently: only maps must agree.
        differ = {
            name
            for name in small.made | large.made
            if small.made.get(name) != large.made.get(name) and (_holds(small, name) or _holds(large, name))
        } - unclean
        varies = {node for node in small.clamps if small.clamps[node] != large.clamps.get(node)} - cut
        if not differ and not varies:
            small.failed = failed
            return small
        unclean |= differ
        cut |= varies


def _holds(execution: _Execution, name: str) -> bool:
    made = execution.made.get(name)
    return made is not None and made.map is not None


def label(node: ir.Node) -> str:
    """Return what a node is called here: the name of its first result, which is unique in any valid graph."""
    return next((str(v.name) for v in node.outputs if v.name), str(node.name))


def _outside(value: ir.Value, inside: Iterable[str]) -> bool:
    """Whether a graph output or a node other than those named reads a tensor."""
    return value.is_graph_output() or any(label(use.node) not in inside for use in value.uses())


def _regions(graph: Graph, nodes: Sequence[ir.Node]) -> tuple[Region, ...]:
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


class _Sites:
    """Cuts executed data movement into sites."""

    def __init__(self, graph: Graph, nodes: Sequence[ir.Node], execution: _Execution) -> None:
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


def analyze(graph: Graph) -> Provenance:
    """Return where every channel comes from.

    Args:
        graph: Any graph with known shapes, of any exporter; it is not changed.

    Returns:
        Sites and channel maps, and the data movement that is left alone with the reasons.
    """
    nodes = [node for node in graph.nodes if is_movement(node)]
    execution = _execute(graph)
    finder = _Sites(graph, nodes, execution)
    sites = finder.find()
    maps: dict[str, ChannelMap] = {}
    for name, made in execution.made.items():  # in graph order: a map's bases come before it
        if made.map is not None:
            maps[name] = made.map.over(maps)
    failed = [LeftAlone((name,), reason) for name, reason in execution.failed.items()]
    return Provenance(_regions(graph, nodes), tuple(sites), maps, (*failed, *finder.left), graph)
