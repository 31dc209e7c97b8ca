"""Layouts of a graph: the order in which every tensor holds its channels, and what is read from them.

`plan` makes them, `relayout` applies them.
"""

from dataclasses import dataclass, field

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.provenance import Channel, ChannelMap, Provenance
from shufflectl.converters.rewrite.roles import Role

__all__ = ["Class", "Plan", "Port", "Read", "Run"]


@dataclass(frozen=True)
class Read:
    """A channel map that consumers read.

    Attributes:
        index: Its place among all reads, in graph order.
        tensor: The tensor of the captured graph that has it.
        map: The map, over tensors that no data movement makes.
    """

    index: int
    tensor: str
    map: ChannelMap

    @property
    def item(self) -> str:
        """The read's name among the members of classes."""
        return f"\0{self.index}"


@dataclass(frozen=True)
class Port:
    """What a node's data input is.

    Attributes:
        tensor: The tensor of the captured graph.
        item: The member of a class that it is: a tensor that a node makes, or a read.
        read: The read, if it is one.
        reshaped: Whether its spatial shape differs from its sources'.
    """

    tensor: str
    item: str
    read: Read | None
    reshaped: bool


@dataclass(frozen=True)
class Run:
    """Consecutive physical channels ``[first, end)`` of one piece of a tensor."""

    source: str
    piece: int
    first: int
    end: int


@dataclass
class Class:
    """Tensors and reads whose channels are in the same order.

    Attributes:
        members: Tensor names and the items of reads.
        channels: How many channels each has.
        fixed: Why the captured order must be kept; empty where it need not.
        pads: Whether padded channels may pass.
        begins: The read that the layout follows from, if it does.
        pieces: The layout, in the pieces in which the tensors are held: one, unless the class is split.
        lives: For each channel the rank of its life, in which a place in a fixed order counts.
        groups: For each channel the rank of its life, in which it does not: what is read together.
        splits: Whether every tensor may be held in pieces: it comes from convolutions through activations.
    """

    members: list[str]
    channels: int
    fixed: str = ""
    pads: bool = True
    begins: Read | None = None
    pieces: list[list[int]] = field(default_factory=list)
    lives: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    splits: bool = False

    @property
    def layout(self) -> list[int]:
        """The layout of the whole."""
        return [channel for piece in self.pieces for channel in piece]

    @property
    def natural(self) -> bool:
        """Whether the captured order is kept, with nothing added."""
        return self.layout == list(range(self.channels))


@dataclass
class Plan:
    """Layouts for a graph.

    Attributes:
        graph: The graph.
        provenance: Its channel maps.
        roles: What each node that computes does, by its first result.
        reads: All reads.
        ports: The data inputs of nodes that mix or carry, by (first result, index of the input).
        classes: The class of every tensor and read.
        runs: For each read whose class begins with it, the runs that make it up.
        natural: Tensors that data movement makes and that somebody needs in the captured order, with who.
    """

    graph: Graph
    provenance: Provenance
    roles: dict[str, Role] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    ports: dict[tuple[str, int], Port] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    runs: dict[str, list[Run]] = field(default_factory=dict)
    natural: dict[str, str] = field(default_factory=dict)

    def at(self, run: Run) -> list[Channel | None]:
        """Return the channels of a run, None for padding."""
        piece = self.classes[run.source].pieces[run.piece]
        return [Channel(run.source, c) if c >= 0 else None for c in piece[run.first : run.end]]
