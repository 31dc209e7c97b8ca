"""What a lowering is, what it reports, and the table of all of them.

A lowering is a way to materialise what every consumer of a channel map reads. All are exact: the rewritten
graph computes the same function, up to the order in which a convolution adds up its input channels. They
differ in rank, bytes moved, operators, and in what a runtime fuses; which is best is measured, so the table
is enumerable.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, cast

import onnx_ir as ir

from shufflectl.converters.collector import paused_collector
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.provenance import Provenance, Site
from shufflectl.errors import GraphError, UsageError, nearest

__all__ = [
    "LOWERINGS",
    "OLDEST_OPSET",
    "Entry",
    "Lowering",
    "Options",
    "RefusedError",
    "Report",
    "SiteReport",
    "apply",
    "bytes_moved",
    "kept",
    "largest_rank",
    "operators",
    "report",
    "unchanged",
]

_COPIES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Gather", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose"}
)
"""Data movement that reads and writes every element; the rest (Reshape ...) shares its input's buffer."""


OLDEST_OPSET = 13
"""From here on Split, Squeeze and Unsqueeze take their sizes and axes as inputs."""


class RefusedError(Exception):
    """A lowering does not apply to a site; the text says why."""


@dataclass(frozen=True)
class SiteReport:
    """What became of one site.

    Attributes:
        name: The site's name.
        description: What it does, in words.
        form: The form chosen: a lowering's name, or ``kept`` where the site stays as it was.
        why: Why that form, in one sentence.
        refused: What was refused here, and why.
        operators_before: Its operators, with counts.
        operators_after: The operators that stand in its place.
        bytes_before: The bytes that its operators read and write.
        bytes_after: The bytes that the operators in its place read and write.
    """

    name: str
    description: str
    form: str
    why: str
    refused: tuple[str, ...]
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "name": self.name,
            "description": self.description,
            "form": self.form,
            "why": self.why,
            "refused": list(self.refused),
            "operators_before": dict(self.operators_before),
            "operators_after": dict(self.operators_after),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


@dataclass(frozen=True)
class Report:
    """What a lowering changed.

    Attributes:
        lowering: Its name.
        changed: Whether the graph differs from the one it was given, if only by nodes that nothing read.
        sites: One report a site, in graph order.
        left_alone: Data movement that is no channel map, and why.
        notes: What else a reader should know: weights that are no longer shared, for example.
        operators_before: All operators of the graph, with counts.
        operators_after: The same, of the rewritten graph.
        bytes_before: Bytes that data movement reads and writes, in one inference of one image.
        bytes_after: The same, of the rewritten graph.
        rank_before: The largest rank of any tensor.
        rank_after: The same, of the rewritten graph.
    """

    lowering: str
    changed: bool
    sites: tuple[SiteReport, ...]
    left_alone: tuple[str, ...]
    notes: tuple[str, ...]
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    bytes_before: int
    bytes_after: int
    rank_before: int
    rank_after: int

    @property
    def refused(self) -> tuple[str, ...]:
        """Every refusal, each with the site's name."""
        return tuple(f"{site.name}: {why}" for site in self.sites for why in site.refused)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "lowering": self.lowering,
            "changed": self.changed,
            "sites": [site.to_json() for site in self.sites],
            "left_alone": list(self.left_alone),
            "notes": list(self.notes),
            "operators": {"before": dict(self.operators_before), "after": dict(self.operators_after)},
            "bytes_moved": {"before": self.bytes_before, "after": self.bytes_after},
            "largest_rank": {"before": self.rank_before, "after": self.rank_after},
        }


@dataclass(frozen=True)
class Options:
    """What a lowering can be told.

    Attributes:
        align: What channel counts are padded to a multiple of; 1 pads nothing.
        max_concat: The most inputs that a Concat may have, 0 for any number. XNNPACK takes up to five.
        merge: Lifetime classes with fewer channels share blocks of up to that many: what reads one reads all
            of its block, and has zero columns for the rest. 0 keeps every class apart.
        carry: Branches hand old channels on in the room that they have up to a multiple of this, so that
            later units read fewer branches; 0 carries nothing.
    """

    align: int = 1
    max_concat: int = 0
    merge: int = 0
    carry: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the options as JSON values."""
        return asdict(self)


class Lowering(Protocol):
    """Rewrites a graph.

    The module that holds it states its algebra, its conditions and what it refuses. A refusal never fails:
    the site stays as it was, with the reason in the report.
    """

    def __call__(self, graph: Graph, options: Options) -> tuple[Graph, Report]:
        """Return the rewritten graph and the report; the graph given is not changed."""


@dataclass(frozen=True)
class Entry:
    """One lowering of the table.

    Attributes:
        name: What users call it.
        summary: What it puts in a shuffle's place.
        folds: Whether it takes options: padding, the width of concats, merged classes.
        module: The module that holds its ``apply``.
    """

    name: str
    summary: str
    folds: bool
    module: str

    def load(self) -> Lowering:
        """Return the lowering."""
        return cast(Lowering, importlib.import_module(self.module).apply)


def _entry(name: str, summary: str, *, folds: bool = False) -> tuple[str, Entry]:
    module = f"shufflectl.converters.rewrite.{name.replace('-', '_')}"
    return name, Entry(name, summary, folds, module)


LOWERINGS: Final[Mapping[str, Entry]] = MappingProxyType(
    dict(
        [
            _entry("native", "as captured"),
            _entry("rank4", "transposes of [N, g, C/g, H*W]"),
            _entry("interleave", "concat on a new axis, then reshape"),
            _entry("gather", "constant indices"),
            _entry("conv", "1x1 convolution with a permutation matrix"),
            _entry("two-stream", "shuffled where it passes through, in the columns where it does not"),
            _entry("commute", "behind the depthwise convolution, in long runs"),
            _entry("fold", "in the weights; units read slices", folds=True),
            _entry("fold-split", "in the weights; convolutions split by lifetime", folds=True),
            _entry("masked", "fixed slots; convolution, multiply and add only", folds=True),
        ]
    )
)
"""Every lowering, by name, in the order in which they are tried and listed."""


def apply(name: str, graph: Graph, options: Options | None = None) -> tuple[Graph, Report]:
    """Return the graph in the named lowering, and the report.

    Raises:
        UsageError: There is no such lowering, or it does not take the options.
        GraphError: The graph's operator set is older than the operators that are written.
    """
    if name not in LOWERINGS:
        raise UsageError(f"there is no lowering named {name!r}", hint=nearest(name, LOWERINGS))
    entry, chosen = LOWERINGS[name], options or Options()
    if chosen.align < 1:
        raise UsageError(
            f"channels cannot be padded to a multiple of {chosen.align}", hint="use a positive number"
        )
    if chosen.align > 1 and not entry.folds:
        able = ", ".join(e.name for e in LOWERINGS.values() if e.folds)
        raise UsageError(f"the lowering {name!r} does not pad channels", hint=f"these do: {able}")
    if graph.opset < OLDEST_OPSET and name != "native":
        raise GraphError(
            f"the graph's operator set {graph.opset} is too old to be rewritten",
            hint=f"convert it to operator set {OLDEST_OPSET} or later with onnx.version_converter",
        )
    with paused_collector():  # tens of thousands of small objects, and none of them garbage
        return entry.load()(graph, chosen)


def operators(nodes: list[ir.Node]) -> dict[str, int]:
    """Return how often each operator occurs, in alphabetic order."""
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def bytes_moved(nodes: list[ir.Node]) -> int:
    """Return the bytes that data movement reads and writes, a symbolic batch taken as 1.

    A copy reads what it writes. Reshape and its like share their input's buffer and count nothing.
    """
    total = 0
    for node in nodes:
        if node.op_type not in _COPIES or node.domain not in ("", "ai.onnx"):
            continue
        for value in node.outputs:
            if value.shape is not None and value.dtype is not None and value.name:
                dims = Graph.shape(value)
                count = math.prod(d if isinstance(d, int) else 1 for d in dims)
                total += 2 * math.ceil(count * value.dtype.itemsize)
    return total


def _outline(graph: Graph) -> list[tuple[str, ...]]:
    """Return the nodes with all names. A rewrite gives every new tensor and constant a new name."""
    return [
        (node.op_type, *(str(v.name) if v is not None else "" for v in (*node.inputs, *node.outputs)))
        for node in graph.nodes
    ]


def largest_rank(graph: Graph) -> int:
    """Return the largest rank of any tensor that a node makes."""
    return max((len(v.shape) for n in graph.nodes for v in n.outputs if v.shape is not None), default=0)


def report(
    name: str,
    before: Graph,
    after: Graph,
    sites: tuple[SiteReport, ...],
    *,
    provenance: Provenance,
    notes: tuple[str, ...] = (),
) -> Report:
    """Return a lowering's report, the counts taken from both graphs."""
    return Report(
        lowering=name,
        changed=_outline(before) != _outline(after),
        sites=sites,
        left_alone=tuple(left.reason for left in provenance.left_alone),
        notes=notes,
        operators_before=operators(before.nodes),
        operators_after=operators(after.nodes),
        bytes_before=bytes_moved(before.nodes),
        bytes_after=bytes_moved(after.nodes),
        rank_before=largest_rank(before),
        rank_after=largest_rank(after),
    )


def kept(graph: Graph, site: Site, why: str, *refused: str) -> SiteReport:
    """Return the report of a site that stays as it was."""
    nodes = [n for n in graph.nodes if str(n.outputs[0].name) in site.nodes]
    counts, moved = operators(nodes), bytes_moved(nodes)
    return SiteReport(site.name, site.description, "kept", why, refused, counts, counts, moved, moved)


def unchanged(name: str, graph: Graph, why: str) -> tuple[Graph, Report]:
    """Return a graph that a lowering leaves as it was, and the report that says why."""
    provenance = analyze(graph)
    sites = tuple(kept(graph, site, why) for site in provenance.sites)
    copy = graph.clone()
    return copy, report(name, graph, copy, sites, provenance=provenance)
