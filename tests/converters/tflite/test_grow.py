"""Poolings that need no PAD: the same numbers with one operator less, and the cases that are left alone."""

import numpy as np
import pytest

from shufflectl.converters.graph import Graph
from shufflectl.converters.tflite.grow import grow
from support.graphs import graph_from_text
from support.tflite import census, compare, emit_bytes, shapes, trace_of

RNG = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32) * 0.3


W = {"k": weights(6, 3, 3, 3), "b": weights(6), "d": weights(6, 1, 3, 3), "p": weights(5, 6, 1, 1)}
STEM = "c = Conv <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (image, k, b)\n r = Relu (c)\n"
POOL = "m = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (r)\n"
DOWN = "y = Conv <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], group=6> (m, d)\n"


def net(body: str, *, size: int = 32, out: str = "float[1,6,4,4] y") -> Graph:
    return graph_from_text(f"g (float[1,3,{size},{size}] image) => ({out}) {{\n{body}}}", W)


def pads_in_front_of_pools(graph: Graph) -> int:
    """Return how many PADs the file holds beyond one for each padded convolution."""
    convs = sum(n.op_type == "Conv" and any(n.attributes["pads"].as_ints()) for n in graph.nodes)
    return census(emit_bytes(graph)).get("PAD", 0) - convs


def test_a_padded_pooling_needs_no_pad() -> None:
    graph = net(STEM + POOL + DOWN)
    assert 0 == pads_in_front_of_pools(graph)
    assert compare(graph).worst < 3e-6


def test_pointwise_operators_hand_the_row_on() -> None:
    body = (
        STEM
        + POOL
        + (
            "q = Conv <kernel_shape=[1,1], pads=[0,0,0,0]> (m, p)\n s = Relu (q)\n"
            "t = AveragePool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1> (s)\n"
        )
        + DOWN
    )
    graph = net(body, out="float[1,6,4,4] y, float[1,5,4,4] t")
    grown = grow(graph)
    assert (9, 9) == Graph.shape(next(v for n in grown.nodes for v in n.outputs if v.name == "s"))[2:]
    assert (4, 4) == Graph.shape(grown.outputs[0])[2:]
    assert compare(graph).worst < 3e-6


def test_the_trace_says_which_part_is_meant() -> None:
    graph = net(STEM + POOL + DOWN)
    content = emit_bytes(graph)
    trace = trace_of(content)
    assert (8, 8) == trace["m"].area
    assert (1, 9, 9, 6) == shapes(content)[trace["m"].name]
    held = RNG.standard_normal((1, 9, 9, 6)).astype(np.float32)
    np.testing.assert_array_equal(held.transpose(0, 3, 1, 2)[..., :8, :8], trace["m"].to_logical(held))
    assert trace["m"] == type(trace).from_json(trace.to_json())["m"]


@pytest.mark.parametrize(
    ("why", "body", "size", "out"),
    [
        ("a graph output", STEM + POOL, 32, "float[1,6,8,8] m"),
        ("a second reader of the stem", STEM + POOL + DOWN + "z = Neg (r)\n", 32,
         "float[1,6,4,4] y, float[1,6,16,16] z"),
        ("no convolution in front", "r = Relu (image)\n" + POOL + "y = Relu (m)\n", 32, "float[1,3,16,16] y"),
        ("a reader that is padded at the end", STEM + POOL
         + "y = Conv <kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1], group=6> (m, d)\n", 32,
         "float[1,6,8,8] y"),
        ("a reader that needs the last row", STEM + POOL + DOWN, 20, "float[1,6,3,3] y"),
        ("a reader of the whole", STEM + POOL + "y = GlobalAveragePool (m)\n", 32, "float[1,6,1,1] y"),
        ("an odd size, which SAME pads alike", STEM + POOL + DOWN, 26, "float[1,6,4,4] y"),
    ],
)  # fmt: skip
def test_left_as_it_is(why: str, body: str, size: int, out: str) -> None:
    graph = net(body, size=size, out=out)
    after = grow(graph)
    for old, new in zip(graph.nodes, after.nodes, strict=True):
        assert [v.shape for v in old.outputs] == [v.shape for v in new.outputs], why
    assert compare(graph).worst < 3e-6


@pytest.mark.parametrize("size", range(16, 49))
def test_every_size(size: int) -> None:
    """With odd and even sizes at each of the three strides."""
    quarter = ((size + 1) // 2 + 1) // 2
    graph = net(STEM + POOL + DOWN, size=size, out=f"float[1,6,{(quarter + 1) // 2},{(quarter + 1) // 2}] y")
    assert compare(graph).worst < 3e-6
