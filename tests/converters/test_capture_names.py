"""Names of captured tensors point back to the module."""

import pytest
from torch import Tensor, nn

from shufflectl.converters.capture import capture
from support.nets import example, randomise, tiny_graph


class Blocks(nn.Module):
    """A module called twice, one with an operator of its own, and two functional calls of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(3, 4, 1)
        self.add = nn.Sequential(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.conv(x))
        z = y + self.add(y)
        return self.relu(z + 1.5) * y


def names(module: nn.Module) -> list[str]:
    return [str(v.name) for n in capture(randomise(module), (example(8),), name="m").nodes for v in n.outputs]


def test_a_unit_of_a_shufflenet_reads_like_its_module() -> None:
    unit = [n.name for n in tiny_graph().nodes if str(n.name).startswith("stage2.1")]
    expected = [
        "stage2.1.split.0",
        "stage2.1.branch2.1",
        "stage2.1.branch2.2",
        "stage2.1.branch2.4",
        "stage2.1.branch2.6",
        "stage2.1.branch2.7",
        "stage2.1.concat",
        "stage2.1.reshape",
        "stage2.1.transpose",
        "stage2.1.reshape_1",
    ]
    assert expected == unit


def test_the_ends_of_the_graph_have_the_names_that_were_asked_for() -> None:
    graph = tiny_graph()
    assert ["image"] == [v.name for v in graph.inputs]
    assert ["logits"] == [v.name for v in graph.outputs]


def test_names_are_unique_among_tensors_weights_and_nodes() -> None:
    graph = tiny_graph()
    tensors = [v.name for n in graph.nodes for v in n.outputs] + list(graph.model.graph.initializers)
    tensors += [v.name for v in graph.inputs]
    assert len(set(tensors)) == len(tensors)
    nodes = [n.name for n in graph.nodes]
    assert len(set(nodes)) == len(nodes)


def test_weights_are_named_by_parameter_or_role() -> None:
    weights = set(tiny_graph().model.graph.initializers)
    assert {"conv1.1.weight", "conv1.1.bias", "fc.weight", "fc.bias"} < weights
    assert {"stage2.0.reshape.shape", "reducemean.axes"} < weights


def test_functional_calls_are_numbered_and_a_shared_module_names_no_tensor() -> None:
    assert ["conv", "relu.relu", "add.0", "add", "add_1", "relu.relu_1", "logits"] == names(Blocks())


def test_a_module_with_two_nodes_gives_its_name_to_the_last() -> None:
    net = nn.Sequential(nn.ChannelShuffle(3), nn.Conv2d(3, 2, 1))
    assert ["0.reshape", "0.transpose", "0", "logits"] == names(net)


@pytest.mark.parametrize("taken", ["image", "logits"])
def test_a_module_with_the_name_of_an_input_or_output_yields(taken: str) -> None:
    net = nn.Sequential()
    net.add_module(taken, nn.ReLU())
    net.add_module("last", nn.Conv2d(3, 2, 1))
    assert [f"{taken}_1", "logits"] == names(net)
