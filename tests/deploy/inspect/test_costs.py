"""Costs and guidelines against figures computed by hand."""

import math
from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from shufflectl.deploy.inspect import Finding, Summary, summarize_graph
from shufflectl.deploy.inspect.guidelines import grouped_mac, pointwise_bound, pointwise_mac
from shufflectl.deploy.inspect.program import Contraction
from support.graphs import graph_from_text

SIZES = st.integers(1, 300)


def summary_of(text: str, weights: Mapping[str, NDArray[Any]] | None = None) -> Summary:
    return summarize_graph(graph_from_text(text, weights), "test")


def finding(summary: Summary, guideline: str) -> Finding:
    (found,) = (f for f in summary.findings if f.guideline == guideline)
    return found


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def test_a_pointwise_convolution_costs_what_the_paper_says() -> None:
    summary = summary_of(
        "g (float[1,24,28,28] x) => (float[1,58,28,28] y) { y = Conv (x, w, b) }",
        {"w": zeros(58, 24, 1, 1), "b": zeros(58)},
    )
    (conv,) = summary.operators
    hw, c1, c2 = 28 * 28, 24, 58
    assert hw * c1 * c2 == conv.multiply_adds
    assert c1 * c2 + c2 == conv.parameters
    assert hw * (c1 + c2) + c1 * c2 == conv.memory_access
    assert 4 * (hw * (c1 + c2) + c1 * c2) == conv.memory_bytes
    bound = 2 * math.sqrt(hw * hw * c1 * c2) + c1 * c2
    assert pytest.approx((hw * (c1 + c2) + c1 * c2) / bound) == finding(summary, "G1").figure


def test_equal_width_is_at_the_bound() -> None:
    summary = summary_of(
        "g (float[1,16,7,7] x) => (float[1,16,7,7] y) { y = Conv (x, w) }", {"w": zeros(16, 16, 1, 1)}
    )
    found = finding(summary, "G1")
    assert pytest.approx(1.0) == found.figure
    assert "furthest" not in found.text


@given(SIZES, SIZES, SIZES)
@settings(max_examples=50, deadline=None)
def test_no_pointwise_convolution_is_below_the_bound(c1: int, c2: int, positions: int) -> None:
    layer = Contraction(c1, c2, positions, window=(1, 1))
    assert pointwise_mac(layer) >= pointwise_bound(layer) * (1 - 1e-12)


@given(st.integers(1, 8), st.integers(1, 30), st.integers(1, 30), SIZES)
@settings(max_examples=50, deadline=None)
def test_grouping_never_lowers_memory_access(g: int, m: int, n: int, positions: int) -> None:
    layer = Contraction(g * m, g * n, positions, groups=g, window=(1, 1))
    assert pytest.approx(pointwise_mac(layer)) == grouped_mac(layer, g)
    assert grouped_mac(layer, g) >= grouped_mac(layer, 1)


def test_a_group_convolution_is_compared_with_the_ungrouped_one_of_the_same_flops() -> None:
    summary = summary_of(
        "g (float[1,24,14,14] x) => (float[1,60,14,14] y) { y = Conv <group = 3> (x, w) }",
        {"w": zeros(60, 8, 1, 1)},
    )
    (conv,) = summary.operators
    hw = 14 * 14
    assert hw * 24 * 60 // 3 == conv.multiply_adds
    assert hw * (24 + 60) + 24 * 60 // 3 == conv.memory_access
    # The same FLOPs without groups: 20 output channels.
    expected = (hw * (24 + 60) + 24 * 60 / 3) / (hw * (24 + 20) + 24 * 20)
    assert pytest.approx(expected) == finding(summary, "G2").figure
    assert None is finding(summary, "G1").figure


def test_a_depthwise_convolution_is_no_group_convolution() -> None:
    summary = summary_of(
        "g (float[1,8,14,14] x) => (float[1,8,7,7] y) "
        "{ y = Conv <group = 8, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }",
        {"w": zeros(8, 1, 3, 3)},
    )
    (conv,) = summary.operators
    assert 7 * 7 * 8 * 9 == conv.multiply_adds
    assert 8 * 14 * 14 + 8 * 7 * 7 + 8 * 9 == conv.memory_access
    assert (8, (3, 3)) == (conv.groups, conv.window)
    assert None is finding(summary, "G2").figure
    assert 1.0 == finding(summary, "G4").details["depthwise_share"]


def test_elementwise_and_movement_have_their_shares() -> None:
    summary = summary_of(
        "g (float[1,4,4,4] x) => (float[1,8,4,4] z) { y = Relu (x)  z = Concat <axis = 1> (x, y) }"
    )
    assert [2 * 64, 2 * 128] == [o.memory_access for o in summary.operators]
    found = finding(summary, "G4")
    assert 1.0 == found.figure
    assert pytest.approx(1 / 3) == found.details["elementwise_share"]


def test_a_reshape_moves_nothing() -> None:
    summary = summary_of(
        "g (float[1,4,4,4] x) => (float[1,64] y) <int64[2] s = {1, 64}> { y = Reshape (x, s) }"
    )
    assert (0, 0, 0) == (summary.memory_access, summary.parameters, summary.multiply_adds)


@pytest.mark.parametrize(
    ("text", "weights", "expected"),
    [
        (
            "g (float[5,7] x) => (float[5,3] y) { y = Gemm <transB = 1> (x, w, b) }",
            {"w": (3, 7), "b": (3,)},
            (105, 24),
        ),
        ("g (float[5,7] x) => (float[5,3] y) { y = Gemm (x, w) }", {"w": (7, 3)}, (105, 21)),
        ("g (float[2,5,7] x) => (float[2,5,3] y) { y = MatMul (x, w) }", {"w": (7, 3)}, (210, 21)),
        ("g (float[2,5,7] x, float[2,7,3] w) => (float[2,5,3] y) { y = MatMul (x, w) }", {}, (210, 0)),
        ("g (float[7] x) => (float[3] y) { y = MatMul (x, w) }", {"w": (7, 3)}, (21, 21)),
        (
            "g (float[1,4,5,5] x) => (float[1,6,10,10] y) { y = ConvTranspose <strides = [2, 2]> (x, w) }",
            {"w": (4, 6, 2, 2)},
            (25 * 4 * 6 * 4, 96),
        ),
        ("g (float[1,4,5,5] x) => (float[1,4,5,5] y) { y = Mul (x, w) }", {"w": (1, 4, 1, 1)}, (0, 4)),
        ("g (float[1,4,5,5] x) => (float[1,4,5,5] y) { y = Add (x, w) }", {"w": ()}, (0, 0)),
        ("g (float[1,4,5,5] x) => (float[1,4,5,5] y) { y = PRelu (x, w) }", {"w": (4, 1, 1)}, (0, 4)),
    ],
    ids=["gemm-t", "gemm", "matmul", "matmul-two", "vector", "transposed", "scale", "scalar", "prelu"],
)
def test_multiply_adds_and_parameters(
    text: str, weights: dict[str, tuple[int, ...]], expected: tuple[int, int]
) -> None:
    summary = summary_of(text, {name: zeros(*shape) for name, shape in weights.items()})
    assert expected == (summary.multiply_adds, summary.parameters)


def test_equal_constants_count_for_every_operator_that_reads_them() -> None:
    summary = summary_of(
        "g (float[1,4,4,4] x) => (float[1,4,4,4] z) { y = Conv (x, w)  z = Conv (y, w) }",
        {"w": zeros(4, 4, 1, 1)},
    )
    assert 32 == summary.parameters


def test_weights_that_are_converted_at_load_are_no_traffic() -> None:
    summary = summary_of(
        "g (float[1,4,4,4] x) => (float[1,4,4,4] z) { w = Cast <to = 1> (h)  z = Conv (x, w) }",
        {"h": np.zeros((4, 4, 1, 1), np.float16)},
    )
    cast, conv = summary.operators
    assert ("weights", 0) == (cast.role, cast.memory_access)
    assert (16, 16) == (conv.parameters, summary.parameters)


def test_a_chain_has_no_fragments() -> None:
    summary = summary_of("g (float[1,4,4,4] x) => (float[1,4,4,4] z) { y = Relu (x)  z = Sigmoid (y) }")
    assert None is finding(summary, "G3").figure


def test_what_comes_before_the_fork_is_not_in_the_block() -> None:
    summary = summary_of(
        """g (float[1,4,4,4] x) => (float[1,4,4,4] z) {
            stem = Conv (x, w)
            a = Conv (stem, w)
            b = Conv (a, w)
            z = Add (stem, b)
        }""",
        {"w": zeros(4, 4, 1, 1)},
    )
    details = finding(summary, "G3").details
    assert (1, 2, 2) == (details["blocks"], details["branches"], details["operators"])


def test_the_largest_rank_is_over_activations() -> None:
    summary = summary_of(
        "g (float[1,4,4,4] x) => (float[1,1,4,4,4] y) <int64[5] s = {1, 1, 4, 4, 4}> { y = Reshape (x, s) }"
    )
    assert summary.largest_rank is not None
    assert (5, "y", 1) == (summary.largest_rank.rank, summary.largest_rank.tensor, summary.largest_rank.count)


def test_the_histogram_begins_with_the_most_frequent() -> None:
    summary = summary_of(
        "g (float[4] x) => (float[4] z) { a = Relu (x)  b = Sigmoid (a)  c = Relu (b)  z = Abs (c) }"
    )
    assert [("Relu", 2), ("Abs", 1), ("Sigmoid", 1)] == list(summary.histogram.items())
