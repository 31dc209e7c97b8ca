"""Batch norm folded in the module and in the graph."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

from shufflectl.converters.capture import capture
from shufflectl.converters.capture.batchnorm import fold_graph, fold_module
from shufflectl.converters.graph import Graph
from support.graphs import graph_from_text
from support.nets import example, randomise


class Twice(nn.Module):
    """A convolution whose result has a second consumer besides the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Shared(nn.Module):
    """A convolution that is called with and without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x * 2)


class Functional(nn.Module):
    """Batch norm as a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False)


class Branching(nn.Module):
    """What torch.fx cannot trace: control flow on a size, after the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.shape[2] > 1 else x


def kinds(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in module.modules() if not any(part.children())]


def assert_same(module: nn.Module, folded: nn.Module) -> None:
    x = example(8, 2, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_and_its_batch_norm_become_one(*, affine: bool, bias: bool, groups: int) -> None:
    conv = nn.Conv2d(3, 6, 3, groups=groups, bias=bias)
    module = randomise(nn.Sequential(conv, nn.BatchNorm2d(6, affine=affine), nn.ReLU()))
    folded = fold_module(module)
    assert ["Identity", "Conv2d", "ReLU"] == kinds(folded)
    assert_same(module, folded)


def test_folding_rounds_once() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    conv, norm = module[0], module[1]
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    expected = (conv.weight.double() * scale[:, None, None, None]).float()
    assert torch.equal(expected, fold_module(module)[1].weight)


@pytest.mark.parametrize("make", [Twice, Shared, Functional, Branching])
def test_a_module_stays_where_a_fold_would_be_wrong_or_cannot_be_seen(
    make: type[nn.Module],
) -> None:
    module = randomise(make())
    assert fold_module(module) is module


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)),
    ],
    ids=["batch statistics", "transposed", "parametrised"],
)
def test_anything_but_a_plain_convolution_and_batch_norm_stays(conv: nn.Module, norm: nn.Module) -> None:
    module = randomise(nn.Sequential(conv, norm))
    assert fold_module(module) is module


def test_a_convolution_with_a_hook_stays() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    module[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    assert fold_module(module) is module


def test_folding_shares_the_tensors_it_does_not_change() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))
    assert module[2].weight is fold_module(module)[2].weight


@pytest.mark.parametrize(
    ("module", "operators"),
    [
        (Twice(), ["Conv", "Mul", "Add", "Add"]),
        (Shared(), ["Conv", "Conv", "Add"]),
        (Functional(), ["Conv"]),
        (Branching(), ["Conv"]),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)), ["Mul", "Add", "Relu", "Conv"]),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), ["Conv", "Relu", "Mul", "Add"]),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)), ["ConvTranspose", "Mul", "Add"]),
    ],
    ids=["second consumer", "shared", "functional", "branching", "before", "after relu", "transposed"],
)
def test_no_batch_norm_is_left_in_a_captured_graph(module: nn.Module, operators: list[str]) -> None:
    module = randomise(module)
    graph = capture(module, (example(8),), name="m")
    assert sorted(operators) == sorted(node.op_type for node in graph.nodes)
    x = example(8, seed=4)
    with torch.no_grad():
        expected = module(x).numpy()
    (actual,) = ort.InferenceSession(graph.to_bytes()).run(None, {"image": x.numpy()})
    np.testing.assert_allclose(actual, expected, atol=1e-5)


GRAPH = """
g (float[1,3,4,4] x) => (OUTPUTS)
{
    c = Conv (x, w BIAS)
    y = BatchNormalization <epsilon: float = 0.01> (c, gamma, beta, mean, var)
    z = Relu (y)
}
"""


def weights(*, bias: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.uniform(0.5, 1.5, 2).astype(np.float32) for name in ("gamma", "beta", "mean", "var")}
    made["w"] = rng.normal(size=(2, 3, 3, 3)).astype(np.float32)
    return made | ({"b": rng.normal(size=2).astype(np.float32)} if bias else {})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("outputs", "operators"),
    [
        ("float[1,2,2,2] z", ["Conv", "Relu"]),
        ("float[1,2,2,2] y", ["Conv", "Relu"]),
        ("float[1,2,2,2] c, float[1,2,2,2] z", ["Conv", "Mul", "Add", "Relu"]),
    ],
    ids=["inner", "batch norm is an output", "convolution is an output"],
)
def test_a_graph_folds_to_the_same_function(outputs: str, operators: list[str], *, bias: bool) -> None:
    text = GRAPH.replace("OUTPUTS", outputs).replace("BIAS", ", b" if bias else "")
    graph = graph_from_text(text, weights(bias=bias))
    x = {"x": np.random.default_rng(1).normal(size=(1, 3, 4, 4)).astype(np.float32)}
    expected = ort.InferenceSession(graph.to_bytes()).run(None, x)
    assert fold_graph(graph.model)
    assert operators == [node.op_type for node in graph.nodes]
    for want, got in zip(expected, ort.InferenceSession(graph.to_bytes()).run(None, x), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert not fold_graph(graph.model)


def test_a_batch_norm_in_training_mode_stays() -> None:
    text = GRAPH.replace("OUTPUTS", "float[1,2,2,2] z").replace("BIAS", "")
    text = text.replace("y = Batch", "y, m, v = Batch").replace("= 0.01>", "= 0.01, training_mode: int = 1>")
    graph: Graph = graph_from_text(text, weights(bias=False))
    assert not fold_graph(graph.model)
