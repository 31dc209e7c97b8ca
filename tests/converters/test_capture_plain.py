"""GatherND and Expand, said by plainer operators."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from shufflectl.converters.capture import capture
from shufflectl.converters.capture.expand import drop_expands
from shufflectl.converters.capture.gathernd import make_gathers_plain
from shufflectl.converters.graph import Graph
from support.graphs import graph_from_text


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def census(graph):
    return dict(Counter(node.op_type for node in graph.nodes))


def run(graph, x):
    proto = Graph(graph.model).to_proto()
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: x})[0]


CAPTURED = {
    "positions on one axis": (lambda x: x[:, [5, 0, -3]].relu(), {"Gather": 1, "Relu": 1}),
    "positions on two axes": (
        lambda x: functional.interpolate(x, scale_factor=1.6, mode="nearest-exact"),
        {"Gather": 2},
    ),
    "pairs of positions": (lambda x: x[:, :, [0, 8, 3], [9, 1, 1]].relu(), None),
    "expand_as before a product": (
        lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
        {"ReduceMean": 1, "Mul": 1},
    ),
    "expand before two sums": (
        lambda x: (x.mean(1, keepdim=True).expand(-1, 6, -1, -1) - x) / x,
        {"ReduceMean": 1, "Sub": 1, "Div": 1},
    ),
    "repetition that makes the size": (lambda x: x.repeat_interleave(2, dim=1), None),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CAPTURED)
def test_capture_holds_plain_operators_that_compute_the_same(case, dynamic):
    function, expected = CAPTURED[case]
    x = torch.randn(2, 6, 9, 10, generator=torch.Generator().manual_seed(0))
    graph = capture(Fn(function).eval(), (x,), name="net", dynamic_batch=dynamic)
    found = census(graph)
    assert "GatherND" not in found
    if expected is not None:
        assert expected == {k: v for k, v in found.items() if k != "Slice"}
    np.testing.assert_allclose(function(x).numpy(), run(graph, x.numpy()), rtol=1e-6, atol=1e-6)


def gathernd(body, indices, shape):
    text = f"g (float[{','.join(map(str, shape))}] x) => (float[] y) {{ {body} }}"
    return graph_from_text(text, {"i": np.asarray(indices, np.int64)})


@st.composite
def gathers(draw):
    """Positions on the first axes, as a grid or at random, of a tensor of rank 2 to 4."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    depth = draw(st.integers(1, len(shape)))
    sizes = shape[:depth]
    if draw(st.booleans()):
        lines = [draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=3)) for n in sizes]
        indices = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    else:
        outer = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
        rows = [
            np.asarray(draw(st.lists(st.integers(-n, n - 1), min_size=k, max_size=k))).reshape(outer)
            for n in sizes
            for k in [int(np.prod(outer))]
        ]
        indices = np.stack(rows, -1)
    return shape, indices, draw(st.permutations(range(len(shape)))), draw(st.booleans())


@given(gathers())
@settings(max_examples=40, deadline=None)
def test_any_constant_positions_become_gathers(case):
    shape, indices, perm, cancelling = case
    rank_after = indices.ndim - 1 + len(shape) - indices.shape[-1]
    body = f"t = Transpose<perm={list(perm)}>(x) "
    given = [shape[list(perm).index(a)] for a in range(len(shape))]
    if cancelling and rank_after == len(shape):
        body += f"n = GatherND(t, i) y = Transpose<perm={[int(a) for a in np.argsort(perm)]}>(n)"
    else:
        body += "y = GatherND(t, i)"
    graph = gathernd(body, indices, given)
    x = np.random.default_rng(0).standard_normal(given).astype(np.float32)
    expected = run(graph, x)
    assert make_gathers_plain(graph.model)
    assert "GatherND" not in census(graph)
    np.testing.assert_array_equal(expected, run(graph, x))


def test_transposes_go_where_they_cancel_and_stay_where_something_else_reads_them():
    body = "t = Transpose<perm=[1,0,2]>(x) n = GatherND(t, i) y = Transpose<perm=[1,0,2]>(n)"
    graph = gathernd(body, [[2], [0]], (2, 3, 4))
    assert make_gathers_plain(graph.model)
    assert {"Gather": 1} == census(graph)
    assert "y" == graph.outputs[0].name
    body = body.replace("y = ", "s = ") + " u = Relu(t) v = ReduceSum(u) w = Identity(s) y = Add(v, w)"
    graph = gathernd(body, [[2], [0]], (2, 3, 4))
    assert make_gathers_plain(graph.model)
    assert 1 == census(graph)["Transpose"]


def test_computed_positions_and_batch_dimensions_are_left_alone():
    for body in ("c = Cast<to=7>(x) y = GatherND(x, c)", "y = GatherND<batch_dims=1>(x, i)"):
        graph = gathernd(body, [[0], [1]], (2, 2))
        assert not make_gathers_plain(graph.model)


def expands(body, second="2,3,4,4"):
    text = f"g (float[2,3,1,1] x, float[{second}] z) => (float[] y) {{ e = Expand(x, s) {body} }}"
    return graph_from_text(text, {"s": np.array([2, 3, 4, 4])})


@pytest.mark.parametrize(
    ("body", "second"),
    [
        ("y = Mul(e, z)", "4,1"),  # the Expand gives the width
        ("y = Mul(e, z)", "1,1,1,1"),
        ("y = Relu(e)", "2,3,4,4"),
        ("y = Concat<axis=1>(e, z)", "2,3,4,4"),
        ("m = Mul(e, z) r = Relu(e) y = Add(m, r)", "2,3,4,4"),
    ],
)
def test_expand_that_makes_the_size_stays(body, second):
    graph = expands(body, second)
    assert not drop_expands(graph.model)
    assert 1 == census(graph)["Expand"]


@pytest.mark.parametrize("second", ["2,3,4,4", "3,4,4", "1,1,4,4", "4,4"])
@pytest.mark.parametrize("operator", ["Add(e, z)", "Sub(z, e)", "Div(e, z)", "Mul(z, e)"])
def test_expand_that_the_other_operand_repeats_goes(operator, second):
    graph = expands(f"y = {operator}", second)
    assert drop_expands(graph.model)
    assert "Expand" not in census(graph)
    assert ir.Shape([2, 3, 4, 4]) == graph.outputs[0].shape


def test_expand_of_the_batch_stays_where_the_result_would_lose_it():
    text = "g (float[1,3,1,1] x, float[1,3,4,4] z) => (float[] y) { e = Expand(x, s) y = Mul(e, z) }"
    graph = graph_from_text(text, {"s": np.array([5, 3, 1, 1])})
    assert not drop_expands(graph.model)
