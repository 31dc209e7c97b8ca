"""Chooses grids on which every runtime rounds a result to the same code.

Runtimes compute the same result in codes with an arithmetic of their own, and where it lies next to the
middle of two codes, one rounds up and the other down. Every layer behind spreads the difference: with grids
as they come, up to half of V1's logits had other codes in TFLite than in ONNX. So results are kept away from
the middle, or rounded there by one rule.

Sums. Of ``c = a + b`` in codes, counted from their zero points, runtimes compute
``round((code(a) * scale(a) + code(b) * scale(b)) / scale(c))``: XNNPACK in integers, with ratios of 21 bits,
ONNX Runtime in fp32. They differ in one sum of 5,000. Let ``scale(a)`` and ``scale(b)`` be whole multiples of
a step ``u``, and ``scale(c)`` an odd one, ``m u``. The quotient is then ``n / m`` with a whole ``n``. The
middle of two codes is ``(2 k + 1) / 2``, and ``2 n`` is even where ``m (2 k + 1)`` is odd: the quotient is at
least ``1 / (2 m)`` away from it. XNNPACK is off by 255 codes of either tensor times half of 2^-20 at most, or
as many times that as a term's scale is the result's; with no multiple of more than 10 bits, that is half of
the distance. There are no ties, which XNNPACK rounds up and the others to even. Tensors that sums link have
one step, since the result of one is a term of the next. It is a power of two, so fp16 holds these scales.

Products and means. Both are computed in fp32, but XNNPACK rounds to even before it adds the zero point, and
ONNX Runtime after. That is the same where the zero point is even. Of a mean, XNNPACK rounds the ratio of the
scales first, and ONNX Runtime divides last: the scale of its result is one with which no sum of codes makes a
tie, or only the largest do.

A range grows by half a hundredth for this, typically.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Final

import onnx_ir as ir

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.scales import Scale, over, representable
from shufflectl.converters.quantize.ties import Ties, only_activation

__all__ = ["agreeing"]

_BITS: Final = 10
"""The largest scale around linked sums is a multiple of the step of so many bits."""
_FEWEST: Final = 16
"""A scale that would be a smaller multiple stays as it is: rounding it up would cost too much."""
_MEANS: Final = frozenset({"GlobalAveragePool", "ReduceMean"})
_ROUNDED: Final = _MEANS | {"Mul", "AveragePool"}
_LEVELS: Final = 255
_TRIES: Final = 16
"""Scales that are tried for a mean with the fewest ties: the last is a hundredth wider."""

Ends = tuple[float, float]


def agreeing(
    graph: Graph, tied: Ties, scales: Mapping[str, Scale], ends: Mapping[str, Ends]
) -> dict[str, Scale]:
    """Return the grids of groups, a little wider where runtimes would round to other codes.

    Args:
        graph: A captured graph.
        tied: Its groups.
        scales: By group.
        ends: What a group must hold, with 0; a group without keeps its grid.
    """
    steps = _steps(graph, tied, scales)
    sums = {tied.groups[name] for name in _results(graph, {"Add"}) if name in tied.groups} & steps.keys()
    rounded = {tied.groups[name] for name in _results(graph, _ROUNDED) if name in tied.groups}
    found = dict(scales)
    for group in (steps.keys() | rounded) & ends.keys():
        wider = _wider(scales[group].scale, steps.get(group), odd=group in sums)
        found[group] = next(
            grid for scale in wider if (grid := _over(ends[group], scale, even=group in rounded)) is not None
        )
    for node in graph.nodes:
        if node.op_type not in _MEANS or node.domain not in ("", "ai.onnx"):
            continue
        source, result = (tied.groups.get(str(v.name)) for v in (node.inputs[0], node.outputs[0]) if v)
        if source is not None and result in ends.keys() - steps.keys():
            averaged = _averaged(graph, node)
            found[result] = _without_ties(found[result], ends[result], found[source].scale, averaged)
    return found


def _averaged(graph: Graph, node: ir.Node) -> int:
    """Return how many numbers go into a mean."""
    whole, means = (
        math.prod(d for d in graph.shape(v)[1:] if isinstance(d, int))
        for v in (node.inputs[0], node.outputs[0])
        if v is not None
    )
    return whole // means


def _without_ties(grid: Scale, ends: Ends, source: float, count: int) -> Scale:
    """Return a grid on which a mean of codes is hardly ever the middle of two codes."""
    best, furthest = grid, 0
    for scale, _ in zip(_wider(grid.scale, None, odd=False), range(_TRIES), strict=False):
        # A sum of n codes is a tie where 2 n source / (count scale) is an odd number.
        doubled = 2 * Fraction(source) / (Fraction(scale) * count)
        first = doubled.denominator if doubled.numerator % 2 else _LEVELS * count + 1
        wider = _over(ends, scale, even=True)
        if wider is not None and first > furthest:
            best, furthest = wider, first
        if furthest > _LEVELS * count:
            break
    return best


def _results(graph: Graph, operators: Iterable[str]) -> Iterator[str]:
    """Yield what arithmetic of some kind makes of tensors, or the activation that ends it."""
    for node in graph.nodes:
        if node.op_type in operators and node.domain in ("", "ai.onnx"):
            ending = only_activation(node.outputs[0])
            yield str((node if ending is None else ending).outputs[0].name)


def _steps(graph: Graph, tied: Ties, scales: Mapping[str, Scale]) -> dict[str, float]:
    """Return the step of each group that sums read or make, but of those that are too few steps wide."""
    linked, groups = DisjointSets[str](), set[str]()
    for node in graph.nodes:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        ending = only_activation(node.outputs[0])
        values: list[ir.Value | None] = [*node.inputs, (node if ending is None else ending).outputs[0]]
        joined = [tied.groups[str(v.name)] for v in values if v is not None and str(v.name) in tied.groups]
        if len(joined) == len(values):  # a constant has no codes of its own
            linked.tie(joined)
            groups.update(joined)
    largest: dict[str, float] = {}
    for group in groups:
        of = linked.find(group)
        largest[of] = max(largest.get(of, 0.0), scales[group].scale)
    found = {group: math.ldexp(1.0, math.frexp(largest[linked.find(group)])[1] - _BITS) for group in groups}
    return {group: step for group, step in found.items() if scales[group].scale > step * (_FEWEST - 1)}


def _wider(scale: float, step: float | None, *, odd: bool) -> Iterator[float]:
    """Yield scales from the first on that is not narrower: multiples of a step, or what fp16 holds."""
    if step is None:
        while True:
            yield scale
            scale = representable(scale * (1 + 2**-11))
    multiple = math.ceil(scale / step)
    if odd and multiple % 2 == 0:
        multiple += 1
    while True:
        yield multiple * step
        multiple += 2 if odd else 1


def _over(ends: Ends, scale: float, *, even: bool) -> Scale | None:
    """Return the grid of a scale over a range; None where no even zero point holds both ends.

    An end is held by a code half a step away.
    """
    grid = over(ends[0], scale)
    for zero_point in (grid.zero_point, grid.zero_point - 1, grid.zero_point + 1):
        if not even:
            return grid
        shifted = Scale(scale, zero_point)
        first, last = shifted.range
        if zero_point % 2 == 0 and first <= ends[0] + scale / 2 and last >= ends[1] - scale / 2:
            return shifted
    return None
