"""Chooses the scales around sums so that every runtime rounds a sum to the same code.

Of ``c = a + b`` in codes, counted from their zero points, runtimes compute
``round((code(a) * scale(a) + code(b) * scale(b)) / scale(c))``, each in an arithmetic of its own: XNNPACK in
integers, with ratios of 21 bits, ONNX Runtime in fp32. Where the exact quotient is nearer to the middle of
two codes than they are exact, one rounds up and the other down. With scales as they come that is one sum in
5,000, and every layer behind it spreads the difference: up to half of V1's logits had other codes.

Let ``scale(a)`` and ``scale(b)`` be whole multiples of a step ``u``, and ``scale(c)`` an odd one, ``m u``.
The quotient is then ``n / m`` with a whole ``n``. The middle of two codes is ``(2 k + 1) / 2``, and ``2 n``
is even where ``m (2 k + 1)`` is odd: the quotient is at least ``1 / (2 m)`` away from it. XNNPACK is off by
255 codes of either tensor times half of 2^-20 at most, or as many times that as a term's scale is the
result's; with no multiple of more than 10 bits, that is half of the distance. There are no ties, which
XNNPACK rounds up and the others to even.

Tensors that sums link have one step, since the result of one is a term of the next. It is a power of two, so
these scales, too, are numbers that fp16 holds. Ranges grow by a hundredth at most, typically by half of that.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from shufflectl.converters.disjoint_sets import DisjointSets
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.scales import Scale, over
from shufflectl.converters.quantize.ties import Ties, only_activation

__all__ = ["with_exact_sums"]

_BITS: Final = 10
"""The largest scale around linked sums is a multiple of the step of so many bits."""
_FEWEST: Final = 16
"""A scale that would be a smaller multiple stays as it is: rounding it up would cost too much."""


def with_exact_sums(
    graph: Graph, tied: Ties, scales: Mapping[str, Scale], lowest: Mapping[str, float]
) -> dict[str, Scale]:
    """Return the grids of groups; those that sums read or make are a little wider.

    Args:
        graph: A captured graph.
        tied: Its groups.
        scales: By group.
        lowest: The smallest number that a group must hold; a group without one keeps its grid.
    """
    found = dict(scales)
    sums = list(_sums(graph, tied))
    made = {result for _, result in sums}
    linked = DisjointSets[str]()
    for terms, result in sums:
        linked.tie([*terms, result])
    groups = {group for terms, result in sums for group in (*terms, result)}
    steps: dict[str, float] = {}
    for group in groups:
        steps[linked.find(group)] = max(steps.get(linked.find(group), 0.0), _step(scales[group].scale))
    for group in groups & lowest.keys():
        step = steps[linked.find(group)]
        multiple = _multiple(scales[group].scale, step, odd=group in made)
        if multiple >= _FEWEST:
            found[group] = over(lowest[group], multiple * step)
    return found


def _sums(graph: Graph, tied: Ties) -> Iterable[tuple[list[str], str]]:
    """Yield the groups of the terms and of the result of each sum of two tensors that have codes."""
    for node in graph.nodes:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        result = node.outputs[0]
        ending = only_activation(result)
        names = [str(v.name) for v in (*node.inputs, result if ending is None else ending.outputs[0]) if v]
        groups = [tied.groups[name] for name in names if name in tied.groups]
        if len(groups) == 3:
            yield groups[:2], groups[2]


def _step(scale: float) -> float:
    """Return the power of two of which a scale is less than 2 ** _BITS times."""
    return math.ldexp(1.0, math.frexp(scale)[1] - _BITS)


def _multiple(scale: float, step: float, *, odd: bool) -> int:
    """Return the next multiple of a step."""
    multiple = math.ceil(scale / step)
    return multiple + 1 if odd and multiple % 2 == 0 else multiple
