"""A symbolic batch: no arithmetic on it is left, and any batch runs."""

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

from shufflectl.converters.capture import capture
from shufflectl.converters.capture.batch import check_batch_free, make_batch_free
from shufflectl.converters.graph import Graph
from shufflectl.errors import GraphError
from support.graphs import graph_from_text
from support.nets import example, randomise, tiny_graph, tiny_v2


class Net(nn.Module):
    """A convolution to 8 channels at half size, and a function of its result."""

    def __init__(self, head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x))


def megvii(x: Tensor) -> Tensor:
    """Megvii's shuffle, which folds the batch into the channels: [N, C, H, W] -> [N*C/2, 2, H*W] -> ..."""
    n, c, h, w = x.size()
    halves = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return torch.cat((halves[0], halves[1]), 1)


def dense(inputs: int, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a dense layer over the last axis of what ``move`` gives."""
    weight = torch.randn(5, inputs, generator=torch.Generator().manual_seed(1)) / inputs
    return lambda y: F.linear(move(y), weight, torch.ones(5))


def assert_any_batch(module: nn.Module, graph: Graph, size: int) -> None:
    session = ort.InferenceSession(graph.to_bytes())
    for batch in (1, 2, 5):
        x = example(size, batch, seed=batch)
        with torch.no_grad():
            expected = module(x).numpy()
        (actual,) = session.run(None, {"image": x.numpy()})
        assert expected.shape == actual.shape
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_shufflenet_runs_at_any_batch() -> None:
    assert_any_batch(tiny_v2(), tiny_graph(dynamic_batch=True), 32)


def test_the_batch_is_a_symbol_of_that_name_everywhere() -> None:
    graph = tiny_graph(dynamic_batch=True)
    values = [*graph.inputs, *graph.outputs, *(v for n in graph.nodes for v in n.outputs)]
    assert {"batch"} == {Graph.shape(value)[0] for value in values}
    assert all(isinstance(d, int) for value in values for d in Graph.shape(value)[1:])


def test_sizes_that_count_the_batch_are_said_so() -> None:
    head = dense(8, lambda y: y.permute(0, 2, 3, 1))
    graph = capture(Net(head).eval(), (example(16),), name="m", dynamic_batch=True)
    shapes = {Graph.shape(n.outputs[0])[0] for n in graph.nodes}
    assert {"batch", "64*batch"} == shapes


def test_a_dynamic_graph_has_the_names_and_operators_of_the_static_one() -> None:
    static, dynamic = tiny_graph(), tiny_graph(dynamic_batch=True)
    assert [(n.op_type, n.name) for n in static.nodes] == [(n.op_type, n.name) for n in dynamic.nodes]
    assert list(static.model.graph.initializers) == list(dynamic.model.graph.initializers)


def test_no_reshape_bakes_in_the_batch() -> None:
    graph = tiny_graph(dynamic_batch=True)
    shapes = [Graph.constant(n.inputs[1]) for n in graph.nodes if n.op_type == "Reshape"]
    assert 8 == len(shapes)
    assert {-1} == {int(shape[0]) for shape in shapes if shape is not None}


@pytest.mark.parametrize(
    "head",
    [
        megvii,
        lambda y: y * y.mean((2, 3)).view(y.shape[0], -1, 1, 1).expand_as(y),
        lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
        lambda y: F.interpolate(y, size=(16, 16), mode="nearest"),
        lambda y: F.interpolate(y, size=(13, 7), mode="bilinear"),
        lambda y: torch.flatten(F.adaptive_avg_pool2d(y, 1), 1),
        nn.ChannelShuffle(4),
        lambda y: y.flatten(1).softmax(1),
        dense(8, lambda y: y.permute(0, 2, 3, 1)),
        dense(64, lambda y: y.flatten(2)),
        lambda y: y[:, 1:5, :6, :4].relu(),
    ],
    ids=[
        *("megvii", "expand", "resize by scale", "resize to size", "resize by an odd factor"),
        *("flatten", "nn.ChannelShuffle", "softmax", "dense over channels", "dense over places", "slice"),
    ],
)
def test_forms_that_torch_writes_with_the_batch_run_at_any_batch(head: Callable[[Tensor], Tensor]) -> None:
    module = randomise(Net(head))
    assert_any_batch(module, capture(module, (example(16),), name="m", dynamic_batch=True), 16)


def test_arithmetic_on_the_batch_is_refused() -> None:
    with pytest.raises(GraphError, match="computes with the batch size") as caught:
        capture(Net(lambda y: y / y.shape[0]).eval(), (example(16),), name="m", dynamic_batch=True)
    assert "static batch" in caught.value.hint


def test_a_model_for_one_batch_only_is_refused() -> None:
    with pytest.raises(GraphError) as caught:
        capture(Net(lambda y: y.view(2, 8, 64)).eval(), (example(16, 2),), name="m", dynamic_batch=True)
    assert "static batch" in caught.value.hint


def test_a_scalar_input_has_no_batch() -> None:
    with pytest.raises(GraphError, match="no batch dimension"):
        capture(nn.ReLU().eval(), (torch.tensor(1.0),), name="m", dynamic_batch=True)


COMPUTED = """
g (float[batch,6,4,4] x) => (float[batch,2,3,4,4] y)
<int64[1] zero = {0}, int64[4] rest = {2, 3, 4, 4}>
{
    s = Shape (x)
    n = Gather (s, zero)
    t = Concat <axis: int = 0> (n, rest)
    y = Reshape (x, t)
}
"""


def test_a_computed_reshape_becomes_constant() -> None:
    graph = graph_from_text(COMPUTED)
    with pytest.raises(GraphError):
        check_batch_free(graph.model)
    assert make_batch_free(graph.model)
    node = graph.nodes[-1]
    constant = Graph.constant(node.inputs[1])
    assert constant is not None
    assert [-1, 2, 3, 4, 4] == constant.tolist()
    assert not make_batch_free(graph.model)


def test_a_reshape_with_two_unknown_dimensions_stays() -> None:
    text = """
    g (float[batch,6,4,width] x) => (float[batch,2,3,4,width] y)
    <int64[1] zero = {0}, int64[3] rest = {2, 3, 4}, int64[1] three = {3}>
    {
        s = Shape (x)
        n = Gather (s, zero)
        w = Gather (s, three)
        t = Concat <axis: int = 0> (n, rest, w)
        y = Reshape (x, t)
    }
    """
    assert not make_batch_free(graph_from_text(text).model)


def test_a_resize_by_an_inexact_factor_names_the_sizes_of_height_and_width() -> None:
    text = """
    g (float[batch,1,3,3] x) => (float[batch,1,7,7] y) <int64[1] zero = {0}, int64[3] rest = {1, 7, 7}>
    {
        s = Shape (x)
        n = Gather (s, zero)
        t = Concat <axis: int = 0> (n, rest)
        y = Resize (x, , , t)
    }
    """
    graph = graph_from_text(text)
    assert make_batch_free(graph.model)
    (node,) = [n for n in graph.nodes if n.op_type == "Resize"]
    sizes = Graph.constant(node.inputs[3])
    assert sizes is not None
    assert ([2, 3], [7, 7]) == (list(node.attributes.get_ints("axes", ())), sizes.tolist())


def test_a_resize_of_the_channels_by_an_inexact_factor_keeps_its_sizes() -> None:
    text = """
    g (float[batch,3,3] x) => (float[batch,7,3] y) <int64[1] zero = {0}, int64[2] rest = {7, 3}>
    {
        s = Shape (x)
        n = Gather (s, zero)
        t = Concat <axis: int = 0> (n, rest)
        y = Resize (x, , , t)
    }
    """
    assert not make_batch_free(graph_from_text(text).model)
