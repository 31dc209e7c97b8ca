"""`two-stream`: half of the shuffle, unit by unit.

What a unit works on is read by a convolution, which takes any order; only what passes through must be
shuffled. With C channels, and Q the first C/4 of a half::

    Given                                          Result
    p, b [N, C/2, H, W]                            p, b [N, C/2, H, W]
    y = shuffle(Concat(p, b))   [N, C, H, W]       p' = interleave(p[:Q], b[:Q])    [N, C/2, H, W]
    p', q = Split(y)            [N, C/2, H, W]     q  = Concat(p[Q:], b[Q:])        [N, C/2, H, W]
    h = Conv(q, W)                                 h  = Conv(q, W[columns of q])

Unlike `fold` it changes nothing but the site and the columns behind it, so it goes wherever that convolution
goes.

Conditions: some output of the site is read by convolutions with one group (or dense layers) alone; every
other output is a run of one input or interleaves equal runs of the inputs (C/2 even). Refused: sites of one
tensor, and those in which nothing may be reordered; they become `interleave` or `rank4`.
"""

from collections.abc import Sequence

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.edit import Editor, take
from shufflectl.converters.rewrite.interleave import INTERLEAVE, interleave
from shufflectl.converters.rewrite.lowering import Options, RefusedError, Report
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import Channel, ChannelMap, Output, Site
from shufflectl.converters.rewrite.rank4 import RANK4
from shufflectl.converters.rewrite.roles import Mixes, role
from shufflectl.converters.rewrite.sitewise import rewrite_sites

__all__ = ["apply"]


def _mixers(editor: Editor, output: Output) -> list[tuple[ir.Node, Mixes]] | None:
    """Return the nodes that read an output, where all of them take any order; otherwise None."""
    value = editor.value(output.name)
    if value.is_graph_output():
        return None
    found = []
    for use in value.uses():
        what = None if is_movement(use.node) else role(use.node)
        if not isinstance(what, Mixes) or what.data != use.idx:
            return None
        found.append((use.node, what))
    return found


def _pieces(editor: Editor, channels: Sequence[Channel]) -> list[ir.Value]:
    """Return the runs of a list of channels."""
    return [
        editor.slice(editor.value(source), first, end, f"{source}.channels_{first}_{end}")
        for source, first, end in ChannelMap(tuple(channels)).runs()
    ]


def _passed(site: Site, output: Output) -> list[list[Channel]]:
    """Return the runs of the inputs that an output interleaves; one alone is that run.

    Raises:
        RefusedError: It is neither.
    """
    channels = output.map.channels
    if len(output.map.runs()) == 1:
        return [list(channels)]
    count = len(site.inputs)
    parts = [list(channels[i::count]) for i in range(count)]
    equal = len({len(part) for part in parts}) == 1
    if not equal or any(len(ChannelMap(tuple(part)).runs()) > 1 for part in parts):
        raise RefusedError(f"{output.name!r} does not interleave equal runs of the inputs")
    return parts


def _build(editor: Editor, site: Site) -> list[ir.Value]:
    if len(site.inputs) == 1:
        raise RefusedError("it shuffles one tensor")
    mixers = [_mixers(editor, output) for output in site.outputs]
    if not any(mixers):
        raise RefusedError("nothing that reads it takes another order")
    passed = [
        None if found else _passed(site, output) for output, found in zip(site.outputs, mixers, strict=True)
    ]
    made = []
    for output, found, parts in zip(site.outputs, mixers, passed, strict=True):
        if parts is not None:
            values = [v for part in parts for v in _pieces(editor, part)]
            made.append(values[0] if len(values) == 1 else interleave(editor, values, output.name))
            continue
        joined = site.joined(output)
        layout = sorted(range(len(joined)), key=lambda i: (int(joined[i]), i))
        made.append(
            editor.concat(_pieces(editor, [output.map.channels[i] for i in layout]), f"{output.name}.concat")
        )
        editor.record(editor.value(output.name), layout)
        for node, what in found or []:
            weight = Graph.constant(node.inputs[what.columns.index])
            assert weight is not None  # noqa: S101 - roles say that it is constant
            columns = take(weight, what.columns.axis, layout, what.columns.padding)
            editor.own_constant(node, what.columns.index, columns)
    return made


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:  # noqa: ARG001 - every lowering's signature
    """Return the graph with half of each shuffle in the next convolution's columns, and the report."""
    return rewrite_sites(
        graph, "two-stream", "only what passes through is shuffled", _build, (INTERLEAVE, RANK4)
    )
