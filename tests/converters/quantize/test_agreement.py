"""Grids that runtimes round alike on: sums stay off the middle of two codes, ties off odd zero points."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.rewrite.nets import captured
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.calibration import Calibration, graph_digest
from shufflectl.converters.quantize.prescribed import UNIT
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.quantize.ties import only_activation, ties

Sum = tuple[Scale, Scale, Scale]


class Residual(nn.Module):
    """A chain of residual sums: one ends with a ReLU, the last adds a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 1) for i in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        x = (x + self.layers[1](x)).relu()
        x = x + self.layers[2](x)
        x = self.layers[3](x) + x
        return x + self.layers[4](x).sigmoid()


class Gated(nn.Module):
    """A squeeze and excitation gate on numbers of both signs, with a residual sum behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.squeeze = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made = self.branch(x)
        gate = self.squeeze(made.mean((2, 3), keepdim=True)).sigmoid()
        return (x + made * gate) * x


@pytest.fixture(scope="module")
def gated() -> Graph:
    return captured(Gated())


@pytest.fixture(scope="module")
def graph() -> Graph:
    return captured(Residual())


def calibration(graph: Graph, ends: list[tuple[float, float]]) -> Calibration:
    """Return a calibration that saw these ranges, over and over."""
    names = [str(v.name) for v in (*graph.inputs, *(v for node in graph.nodes for v in node.outputs))]
    ranges = {name: ends[place % len(ends)] for place, name in enumerate(names)}
    return Calibration(graph_digest(graph), "minmax", "noise", 1, 0, ranges)


def sums(graph: Graph, scales: dict[str, Scale]) -> list[Sum]:
    """Return the grids of both terms and the result of each sum."""
    found = []
    for node in graph.nodes:
        if node.op_type == "Add":
            ending = only_activation(node.outputs[0])
            result = (node if ending is None else ending).outputs[0]
            found.append(tuple(scales[str(v.name)] for v in (*node.inputs, result)))
    return found


def all_codes(first: Scale, second: Scale) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every pair of codes, counted from the zero points."""
    codes = np.arange(-128, 128)
    a, b = np.meshgrid(codes - first.zero_point, codes - second.zero_point)
    return a, b


def exact(a: NDArray, b: NDArray, of: Sum) -> tuple[NDArray, NDArray]:
    """Return sums in steps of the result: rounded, and how far they are from the middle of two codes."""
    wide = (a * of[0].scale + b * of[1].scale) / of[2].scale  # both are exact: float64 has bits to spare
    return np.rint(wide), np.abs(np.abs(wide - np.floor(wide)) - 0.5)


def in_integers(a: NDArray, b: NDArray, of: Sum) -> NDArray:
    """XNNPACK's qs8-vadd: ratios as integers, the larger of 21 bits; half is added and the rest cut off."""
    ratios = [float(np.float32(term.scale) / np.float32(of[2].scale)) for term in of[:2]]
    shift = 20 - (math.frexp(max(ratios))[1] - 1)
    first, second = (round(math.ldexp(ratio, shift)) for ratio in ratios)
    return (a * first + b * second + (1 << (shift - 1))) >> shift


def in_floats(a: NDArray, b: NDArray, of: Sum) -> NDArray:
    """ONNX Runtime's QLinearAdd: everything in fp32, half to even."""
    first, second = (np.float32(term.scale) / np.float32(of[2].scale) for term in of[:2])
    return np.rint(a.astype(np.float32) * first + b.astype(np.float32) * second)


def visible(codes: NDArray, of: Sum) -> NDArray:
    return np.clip(codes + of[2].zero_point, -128, 127)


ends = st.tuples(st.floats(-8.0, 0.0), st.floats(0.5, 8.0))


@settings(max_examples=15)
@given(ranges=st.lists(ends, min_size=3, max_size=9))
def test_every_sum_of_two_codes_is_the_same_in_every_arithmetic(
    graph: Graph, ranges: list[tuple[float, float]]
) -> None:
    for of in sums(graph, calibration(graph, ranges).scales(graph)):
        a, b = all_codes(*of[:2])
        right, distance = exact(a, b, of)
        inside = (right + of[2].zero_point >= -128) & (right + of[2].zero_point <= 127)
        assert distance[inside].min() > 1 / 2**12
        for arithmetic in (in_integers, in_floats):
            assert np.array_equal(visible(arithmetic(a, b, of), of), visible(right, of))


@given(ranges=st.lists(ends, min_size=3, max_size=9))
def test_ranges_are_held_and_hardly_wider(graph: Graph, ranges: list[tuple[float, float]]) -> None:
    found = calibration(graph, ranges)
    scales, groups = found.scales(graph), ties(graph).groups
    for name, scale in scales.items():
        if scale == UNIT:  # what lies above gets the last code
            continue
        low = min(found.ranges[n][0] for n in groups if groups[n] == groups[name])
        high = max(found.ranges[n][1] for n in groups if groups[n] == groups[name])
        assert scale.range[0] <= low + scale.scale / 2
        assert scale.range[1] >= high - scale.scale / 2
        assert scale.scale * 255 <= max(high - low, 1 / 16) * 1.13
        assert float(np.float16(scale.scale)) == scale.scale


@given(ranges=st.lists(ends, min_size=3, max_size=9))
def test_products_and_means_have_even_zero_points(gated: Graph, ranges: list[tuple[float, float]]) -> None:
    found = calibration(gated, ranges)
    scales = found.scales(gated)
    rounded = [node for node in gated.nodes if node.op_type in ("Mul", "ReduceMean", "GlobalAveragePool")]
    assert len(rounded) >= 3
    for node in rounded:
        name = str(node.outputs[0].name)
        scale, (low, high) = scales[name], found.ranges[name]
        assert scale.zero_point % 2 == 0
        assert scale.range[0] <= low + scale.scale / 2
        assert scale.range[1] >= high - scale.scale / 2
        assert scale.scale * 255 <= (high - low) * 1.13


def test_hardly_a_sum_of_codes_makes_a_mean_that_is_a_tie() -> None:
    graph = captured(Gated(), size=4)
    (mean,) = [node for node in graph.nodes if node.op_type in ("ReduceMean", "GlobalAveragePool")]
    source, result = (str(v.name) for v in (mean.inputs[0], mean.outputs[0]))
    wide = calibration(graph, [(-1.0, 1.0)])
    # 228 codes of these would be 24.5 of those, as in a stage of SE-ShuffleNet V2-164.
    steps = {source: 1666 * 2.0**-17, result: 969 * 2.0**-17}
    ranges = dict(wide.ranges) | {name: (-102 * step, 153 * step) for name, step in steps.items()}
    assert ties_of_a_mean(steps[source], steps[result], 16) == [
        228,
        684,
        1140,
        1596,
        2052,
        2508,
        2964,
        3420,
        3876,
    ]
    scales = Calibration(wide.graph, "minmax", "noise", 1, 0, ranges).scales(graph)
    assert min(ties_of_a_mean(scales[source].scale, scales[result].scale, 16)) > 0.9 * 255 * 16
    assert scales[result].scale == pytest.approx(steps[result], rel=0.01)


def ties_of_a_mean(source: float, result: float, count: int) -> list[int]:
    """Return the sums of codes whose mean is in the middle of two codes."""
    doubled = [2 * total * Fraction(source) / (count * Fraction(result)) for total in range(255 * count + 1)]
    return [total for total, d in enumerate(doubled) if d.denominator == 1 and d.numerator % 2]


def test_a_term_far_smaller_than_the_others_keeps_its_scale(graph: Graph) -> None:
    ranges = [(-4.0, 4.0)]
    wide = calibration(graph, ranges)
    name = next(str(n.inputs[1].name) for n in graph.nodes if n.op_type == "Add")
    small = dict(wide.ranges) | {name: (-1e-3, 1e-3)}
    scale = Calibration(wide.graph, "minmax", "noise", 1, 0, small).scales(graph)[name]
    assert scale.scale == pytest.approx(2e-3 / 255, rel=1e-3)


def test_the_grid_of_a_sigmoid_stays(graph: Graph) -> None:
    name = next(str(n.outputs[0].name) for n in graph.nodes if n.op_type == "Sigmoid")
    assert UNIT == calibration(graph, [(0.0, 0.9)]).scales(graph)[name]
