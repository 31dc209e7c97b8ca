"""Channel provenance: which channel of which tensor every channel of a graph is.

A channel shuffle, chunk, split, stack, slice or constant gather only moves elements. What it makes is a
*channel map* when at every batch index n and position p it holds, in channel c, the element (n, s(c), p) of
one and the same source channel s(c). `analyze` finds the maps of a graph; this is what it says of them.

Definitions:

- *source*: a tensor that no data-movement node makes (or one that could not be executed). It is its own map.
- *step*: the fewest nodes that lead from channel maps to channel maps; torchvision's Reshape, Transpose,
  Reshape is one step, as is Megvii's Reshape, Transpose, Reshape, Gather, Gather.
- *site*: a step and all steps behind it that read nothing else, so Concat + shuffle + Split is one site. A
  step that joins several tensors starts a site of its own.
- *region*: all nodes of data movement that hang together.

What is not a channel map is left alone, with the reason on record.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "Channel",
    "ChannelMap",
    "LeftAlone",
    "Output",
    "Provenance",
    "Region",
    "Shuffle",
    "Site",
    "label",
]


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


def label(node: ir.Node) -> str:
    """Return what a node is called here: the name of its first result, which is unique in any valid graph."""
    return next((str(v.name) for v in node.outputs if v.name), str(node.name))
