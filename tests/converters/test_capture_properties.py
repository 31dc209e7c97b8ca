"""Random networks: torch, the captured graph and ONNX files agree, at any batch."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.onnx.emit import emit
from shufflectl.converters.targets import EmitOptions
from shufflectl.deploy.runtimes.ort import OnnxRuntime
from support.nets import channel_shuffle, example, randomise

CALM = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    # An example is a capture of about a second, so a failure is reported as drawn: shrinking takes minutes.
    phases=[Phase.explicit, Phase.generate],
)


@dataclass(frozen=True)
class Block:
    """One grouped convolution and what surrounds it; ``width`` is channels a group."""

    groups: int
    width: int
    kernel: int
    stride: int
    dilation: int
    bias: bool
    norm: str
    activation: str
    shuffle: bool
    join: str


blocks = st.builds(
    Block,
    groups=st.sampled_from([1, 2, 3, 4]),
    width=st.integers(1, 5),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    bias=st.booleans(),
    norm=st.sampled_from(["after", "before", "behind activation", "none"]),
    activation=st.sampled_from(["relu", "relu6", "hardswish", "none"]),
    shuffle=st.booleans(),
    join=st.sampled_from(["none", "add", "cat", "split"]),
)

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "none": nn.Identity}


class Unit(nn.Module):
    """A block as a module; odd widths, uneven halves and all."""

    def __init__(self, inp: int, block: Block) -> None:
        super().__init__()
        self.block = block
        self.out = block.groups * block.width
        # A pointwise convolution makes the input divisible by the groups.
        self.enter = nn.Conv2d(inp, self.out, 1)
        self.conv = nn.Conv2d(
            self.out,
            self.out,
            block.kernel,
            block.stride,
            block.dilation * (block.kernel // 2),
            block.dilation,
            block.groups,
            block.bias,
        )
        self.norm = nn.BatchNorm2d(self.out) if block.norm != "none" else nn.Identity()
        self.activation = ACTIVATIONS[block.activation]()
        self.width = self.out * 2 if block.join == "cat" else self.out

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        y = self.enter(x)
        if block.norm == "before":
            z = self.activation(self.conv(self.norm(y)))
        elif block.norm == "behind activation":
            z = self.norm(self.activation(self.conv(y)))
        else:
            z = self.activation(self.norm(self.conv(y)))
        if block.shuffle:
            z = channel_shuffle(z, block.groups)
        if block.join == "add" and block.stride == 1:
            z = z + y
        elif block.join == "cat":
            z = torch.cat((z, z * 0.5), 1)
        elif block.join == "split" and self.out > 1:
            a, b = z.split([self.out // 2, self.out - self.out // 2], 1)
            z = torch.cat((b, a), 1)
        return z


class Net(nn.Module):
    """Units, global pooling and a classifier."""

    def __init__(self, units: Sequence[Block]) -> None:
        super().__init__()
        self.units = nn.Sequential()
        width = 3
        for index, block in enumerate(units):
            unit = Unit(width, block)
            self.units.add_module(f"u{index}", unit)
            width = unit.width
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.units(x).mean((2, 3)))


def assert_agree(
    net: nn.Module, graph: Graph, options: EmitOptions, batches: Sequence[int], size: int
) -> None:
    """Compare the logits, and one inner tensor through names and layout, with torch."""
    limit = 1e-5 if options.precision == "fp32" else 3e-2
    # A batch norm right behind the first convolution takes it in, and its name is the batch norm's.
    tap = next(name for name in ("units.u0.enter", "units.u0.norm") if name in {n.name for n in graph.nodes})

    def assert_near(actual: np.ndarray, expected: np.ndarray) -> None:
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(actual.astype(np.float32) / scale, expected / scale, atol=limit)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        emit(graph, ModelInfo("m"), options, path)
        with OnnxRuntime().load(path) as session:
            for batch in batches:
                x = example(size, batch, seed=batch)
                inner: list[np.ndarray] = []
                hook = net.get_submodule(tap).register_forward_hook(
                    lambda _m, _i, out, inner=inner: inner.append(out.detach().clone().numpy())
                )
                with torch.no_grad():
                    expected = net(x).numpy()
                hook.remove()
                view = session.trace[tap]
                found = session.run({"image": session.trace["image"].to_file(x.numpy())}, taps=[view.name])
                assert_near(found["logits"], expected)
                assert_near(view.to_logical(found[view.name]), inner[0])


@CALM
@given(units=st.lists(blocks, min_size=1, max_size=3), size=st.integers(7, 12))
def test_a_static_network_agrees_with_torch(units: list[Block], size: int) -> None:
    net = randomise(Net(units))
    graph = capture(net, (example(size),), name="m")
    assert "BatchNormalization" not in {node.op_type for node in graph.nodes}
    assert_agree(net, graph, EmitOptions(), (1,), size)
    assert_agree(net, graph, EmitOptions("fp16", "nhwc"), (1,), size)


@CALM
@given(units=st.lists(blocks, min_size=1, max_size=3), size=st.integers(7, 12))
def test_a_network_with_a_symbolic_batch_agrees_with_torch(units: list[Block], size: int) -> None:
    net = randomise(Net(units))
    graph = capture(net, (example(size),), name="m", dynamic_batch=True)
    assert_agree(net, graph, EmitOptions(layout="nhwc"), (1, 2, 5), size)


@CALM
@given(units=st.lists(blocks, min_size=1, max_size=2))
def test_names_are_unique_and_constants_used(units: list[Block]) -> None:
    graph = capture(randomise(Net(units)), (example(8),), name="m")
    constants = graph.model.graph.initializers
    tensors = ["image", *(str(v.name) for n in graph.nodes for v in n.outputs), *constants]
    assert len(set(tensors)) == len(tensors)
    assert all(value.uses() for value in constants.values())
