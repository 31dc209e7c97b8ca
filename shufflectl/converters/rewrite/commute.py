"""`commute`: the shuffle of one tensor where it costs least, and only as much of it as is needed (V1).

Let P be the shuffle, S what it reads, D whatever carries channels behind it (ReLU, depthwise convolution), G
the convolution that ends the chain::

    Given                                        Result
    s = Relu(G1(x))      [N, m, H, W]            s = Relu(G1(x))      [N, m, H, W]
    y = P(s)             [N, m, H, W]            d = D'(s)            [N, m, H/2, W/2]
    d = D(y)             [N, m, H/2, W/2]        t = R(d)             [N, m, H/2, W/2]
    z = G(d)             [N, C, H/2, W/2]        z = G'(t)            [N, C, H/2, W/2]

1. D carries channels, so D(P(s)) = P(D'(s)), where D' has its constants permuted with the inverse of P. The
   move is put behind the chain's smallest tensor: behind a depthwise convolution of stride 2 it moves a
   quarter of the bytes (ShuffleNet V1, every downsampling unit).
2. G with one group takes any order: its columns are permuted and R is nothing.
3. G with g groups of n channels needs the right channels in each group, in any order there. So R only has to
   bring whole runs of P into their groups: with g | n it is a transpose of [g, g, n/g, H*W], g^2 long runs
   instead of m channels, and the columns of G are permuted within each group. P cannot fold into grouped
   weights wholly: products of block-diagonal matrices stay block-diagonal. In NHWC a run is what lies
   together at one position, so runs shorter than `_LONG_RUN` are not worth it.
4. Otherwise R is P, at rank 4.

Conditions: the site shuffles one tensor into one; every tensor of the chain has one reader and is no output
of the graph. Refused: other sites, which become `rank4`. An uneven division (g does not divide n, as with
g = 3 and 20 channels a group: group k of G reads channels ceil((k*n - r) / g) to ceil(((k+1)*n - r) / g) of
group r, 6 or 7) is case 4. Padding each of the g^2 runs to ceil(n/g) channels would make it case 3, with
g * ceil(n/g) / n times the rows of G1, of D and the columns of G (5 % more at g = 3, 33 % at g = 8 and 12
channels); so would slices, at twice the bytes of the transpose. Neither pays where case 3 itself gains at
most 2 % (docs/lowerings.md).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite import rank4
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.edit import Editor, take
from shufflectl.converters.rewrite.lowering import (
    Options,
    RefusedError,
    Report,
    SiteReport,
    bytes_moved,
    kept,
    largest_rank,
    operators,
    report,
)
from shufflectl.converters.rewrite.movement import is_movement
from shufflectl.converters.rewrite.provenance import Shuffle, Site, label
from shufflectl.converters.rewrite.roles import Carries, Mixes, role

__all__ = ["apply"]

_LONG_RUN: Final = 16
"""Channels of a run from which on runs are moved: XNNPACK transposes single channels 4 or 8 at a time.

ShuffleNet V1 1x in LiteRT (x86-64, one thread), against `native`: g = 2, runs of 25 and 50 channels, 0.92 in
runs and 0.945 in channels; g = 8, runs of 3 and 6, 1.04 and 1.01. ONNX Runtime does not care.
"""
_RANK = 4
"""What the TFLite GPU delegate and NNAPI take at most."""


@dataclass(frozen=True)
class _Chain:
    """What stands behind a shuffle: the nodes that carry its channels, and the convolution at the end."""

    links: tuple[ir.Node, ...]
    end: ir.Node | None


def _follow(value: ir.Value) -> _Chain:
    """Follow a tensor through nodes that carry channels as long as nobody else reads."""
    links: list[ir.Node] = []
    while not value.is_graph_output() and len(value.uses()) == 1:
        (use,) = value.uses()
        node = use.node
        if is_movement(node) or node.graph is not value.graph:
            break
        found = role(node)
        if isinstance(found, Carries) and found.data == (use.idx,):
            links.append(node)
            value = node.outputs[0]
            continue
        mixes = isinstance(found, Mixes) and use.idx == found.data
        grouped = node.op_type == "Conv" and use.idx == 0
        constant = Graph.constant(node.inputs[1]) is not None if mixes or grouped else False
        return _Chain(tuple(links), node if constant else None)
    return _Chain(tuple(links), None)


def _coarse(order: Sequence[int]) -> Shuffle | None:
    """Return the shuffle of equal blocks that an order is, and the number of blocks; None if it is none."""
    starts = [i for i, c in enumerate(order) if i == 0 or c != order[i - 1] + 1]
    size = len(order)
    for block in (b for b in range(size, 0, -1) if size % b == 0):
        if any(s % block for s in starts):
            continue
        blocks = np.asarray(order[::block])
        if (blocks % block).any():
            continue
        count = size // block
        for groups in (g for g in range(1, count + 1) if count % g == 0):
            if np.array_equal(blocks // block, Shuffle(groups, count).order()):
                return Shuffle(groups, count)
    return None


def _wanted(chain: _Chain, order: Sequence[int]) -> list[int]:
    """Return the order of the source's channels that is enough for the end of a chain (cases 2 to 4)."""
    total, end = len(order), chain.end
    if end is None:
        return list(order)
    groups = end.attributes.get_int("group", 1) if end.op_type == "Conv" else 1
    size = total // groups
    return [c for k in range(groups) for c in sorted(order[k * size : (k + 1) * size])]


def _move(editor: Editor, value: ir.Value, form: Shuffle, base: str) -> ir.Value:
    """Return the tensor with equal blocks of channels shuffled."""
    batch, channels, *rest = Graph.shape(value)
    run, area = int(channels) // form.channels, math.prod(int(d) for d in rest)
    if batch == 1 and run > 1:
        # [1, C, H, W] -> [g, B/g, C/B, H*W] -> [B/g, g, C/B, H*W] -> [1, C, H, W]
        # The channels of a run keep an axis of their own, so that in NHWC they are moved as they lie.
        groups, size = form.groups, form.channels // form.groups
        x = editor.reshape(value, [groups, size, run, area], f"{base}.blocks")
        x = editor.transpose(x, (1, 0, 2, 3), f"{base}.transpose")
        return editor.reshape(x, [batch, channels, *rest], f"{base}.moved")
    run *= area
    # [N, C, H, W] -> [N, g, B/g, C/B*H*W] -> [N, B/g, g, C/B*H*W] -> [N, C, H, W]
    x = editor.reshape(value, [batch, form.groups, form.channels // form.groups, run], f"{base}.blocks")
    x = editor.transpose(x, (0, 2, 1, 3), f"{base}.transpose")
    return editor.reshape(x, [batch, channels, *rest], f"{base}.moved")


def _permute_columns(editor: Editor, node: ir.Node, layout: Sequence[int]) -> None:
    """Permute a convolution's (or dense layer's) columns to a layout that keeps channels in their groups."""
    weight = Graph.constant(node.inputs[1])
    assert weight is not None  # noqa: S101 - `_follow` has checked it
    found = role(node)
    if isinstance(found, Mixes):
        editor.own_constant(node, 1, take(weight, found.columns.axis, layout, 0.0))
        return
    groups, size = node.attributes.get_int("group", 1), weight.shape[1]
    rows = weight.shape[0] // groups
    new = weight.copy()
    for k in range(groups):
        columns = [c - k * size for c in layout[k * size : (k + 1) * size]]
        new[k * rows : (k + 1) * rows] = weight[k * rows : (k + 1) * rows][:, columns]
    editor.own_constant(node, 1, new)


def _rewrite(editor: Editor, site: Site) -> str:
    """Rewrite one site; return in words what was done."""
    if len(site.inputs) != 1 or len(site.outputs) != 1 or site.outputs[0].reshaped:
        raise RefusedError("it joins or divides tensors")
    order = [int(c) for c in site.joined(site.outputs[0])]
    if sorted(order) != list(range(site.channels)):
        raise RefusedError("it drops or repeats channels")
    source, output = editor.value(site.inputs[0][0]), editor.value(site.outputs[0].name)
    if len(Graph.shape(source)) < 3:
        raise RefusedError(f"{site.inputs[0][0]!r} has no spatial axes")
    chain = _follow(output)
    wanted = _wanted(chain, order)
    form = _coarse(wanted)
    if form is None or (form.groups > 1 and len(order) < _LONG_RUN * form.channels):
        wanted = list(order)
        form = site.form
        if form is None:
            raise RefusedError("the channels do not follow from one channel shuffle")
    inverse = np.argsort(order)
    before = [int(c) for c in inverse]  # captured channel of each channel of the source
    after = [int(inverse[c]) for c in wanted]
    tensors = [source, *(node.outputs[0] for node in chain.links)]
    sizes = [math.prod(d for d in Graph.shape(v)[1:] if isinstance(d, int)) for v in tensors]
    identity = wanted == list(range(len(wanted)))
    at = len(tensors) - 1 if identity else sizes.index(min(sizes))
    value, origin = source, site.outputs[0].name
    for index in range(len(tensors)):
        if index:
            node = chain.links[index - 1]
            node.replace_input_with(_data(node), value)
            layout = before if index <= at else after
            _permute_constants(editor, node, layout)
            value, origin = node.outputs[0], str(node.outputs[0].name)
            editor.record(value, layout)
        if index == at and not identity:
            editor.after([value])
            moved = _move(editor, value, form, origin)
            editor.record(moved, after, origin)
            value = moved
    if chain.end is not None:
        chain.end.replace_input_with(0, value)
        if after != list(range(len(after))):
            _permute_columns(editor, chain.end, after)
    elif at == len(tensors) - 1:  # nothing follows the move, so it stands for the captured tensor itself
        _stand_in(editor, tensors[-1] if at else output, value, alone=not at)
    if identity:
        return "the next convolution takes the order; its columns are permuted"
    where = f"behind {str(tensors[at].name)!r}, " if at else ""
    if form.channels < len(order):
        return f"{where}in {form.channels} runs of channels; the next convolution's columns do the rest"
    return f"{where}at rank 4"


def _data(node: ir.Node) -> int:
    found = role(node)
    assert isinstance(found, Carries)  # noqa: S101 - links carry
    return found.data[0]


def _permute_constants(editor: Editor, node: ir.Node, layout: Sequence[int]) -> None:
    found = role(node)
    assert isinstance(found, Carries)  # noqa: S101 - links carry
    for parameter in found.parameters:
        array = Graph.constant(node.inputs[parameter.index])
        assert array is not None  # noqa: S101 - roles say that it is constant
        if list(layout) != list(range(array.shape[parameter.axis])):
            editor.own_constant(node, parameter.index, take(array, parameter.axis, layout, 0.0))


def _stand_in(editor: Editor, old: ir.Value, new: ir.Value, *, alone: bool) -> None:
    """Let what reads a tensor read the moved one; the move itself goes on reading the tensor."""
    if alone:
        editor.replace(old, new)
        return
    movers = _behind(old, new)
    name = str(old.name)
    order = editor.graph.records.pop(name, None)
    editor.graph.records.pop(str(new.name), None)
    editor.replace(old, new)
    for node in movers:
        for index, value in enumerate(node.inputs):
            if value is new:
                node.replace_input_with(index, old)
    if order is not None:
        editor.graph.records[str(old.name)] = order


def _behind(old: ir.Value, new: ir.Value) -> list[ir.Node]:
    """Return the nodes on the way back from a moved tensor that read the tensor itself."""
    node, found = new.producer(), []
    while node is not None:
        if any(v is old for v in node.inputs):
            found.append(node)
            break
        first = node.inputs[0]
        node = None if first is None else first.producer()
    return found


def _merged(site: SiteReport, lowered: SiteReport | None) -> SiteReport:
    """Return the report of a site that was refused and then lowered."""
    if site.form != "kept" or lowered is None:
        return site
    return dataclasses.replace(lowered, refused=site.refused)


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:
    """Return the graph with shuffles of single tensors moved and made coarse, and the report."""
    provenance = analyze(graph)
    editor = Editor(graph)
    sites: list[SiteReport] = []
    for site in provenance.sites:
        if not site.shuffles:
            sites.append(kept(graph, site, "no channel changes its place among its neighbours"))
            continue
        existing = {label(n) for n in editor.graph.nodes}
        try:
            why = _rewrite(editor, site)
        except RefusedError as error:
            sites.append(kept(graph, site, "commute does not apply", f"commute: {error}"))
            continue
        new = [n for n in editor.graph.nodes if label(n) not in existing and is_movement(n)]
        before = [n for n in graph.nodes if label(n) in site.nodes]
        sites.append(
            SiteReport(
                site.name,
                site.description,
                "commute",
                why,
                (),
                operators(before),
                operators(new),
                bytes_moved(before),
                bytes_moved(new),
            )
        )
    result = editor.finish()
    notes = tuple(
        f"{shared!r} was shared by several nodes; each has its own copy now" for shared in editor.shared
    )
    if largest_rank(result) > _RANK:
        # After the move, because that sees whole chains; what joins or divides tensors is left for this.
        result, rest = rank4.apply(result, options)
        lowered = {site.name: site for site in rest.sites if site.form != "kept"}
        sites = [_merged(site, lowered.get(site.name)) for site in sites]
    return result, report("commute", graph, result, tuple(sites), provenance=provenance, notes=notes)
