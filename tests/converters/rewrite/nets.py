"""Networks whose shuffles are spelled in other ways, and what runs them."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from support.nets import depthwise, randomise


def run(model: Graph | onnx.ModelProto, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return the outputs that ONNX Runtime gives, by name, with its own optimiser out of the way."""
    proto = model.to_proto() if isinstance(model, Graph) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def noise(graph: Graph, seed: int = 0, batch: int = 2) -> dict[str, NDArray]:
    """Return random float32 inputs."""
    rng = np.random.default_rng(seed)
    return {
        str(v.name): rng.standard_normal(
            [d if isinstance(d, int) else batch for d in graph.shape(v)], dtype=np.float32
        )
        for v in graph.inputs
    }


def difference(before: Graph, after: Graph, seed: int = 0) -> float:
    """Return the largest difference of any output, relative to the output's largest value."""
    feeds = noise(before, seed)
    old, new = run(before, feeds), run(after, feeds)
    assert list(old) == list(new)
    worst = 0.0
    for name, value in old.items():
        assert value.shape == new[name].shape
        assert np.isfinite(new[name]).all()
        worst = max(worst, float(np.abs(value - new[name]).max() / max(np.abs(value).max(), 1e-6)))
    return worst


def counts(graph: Graph) -> dict[str, int]:
    """Return how often each operator occurs."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return dict(sorted(found.items()))


class MegviiUnit(nn.Module):
    """The unit of Megvii's own V2 code: the shuffle folds the batch and divides into even and odd channels.

    ``parts`` says how the two rows are taken apart: indexing (gathers), ``chunk`` or ``unbind``.
    """

    def __init__(self, inp: int, oup: int, stride: int, parts: str = "index") -> None:
        super().__init__()
        self.stride = stride
        self.parts = parts
        mid = oup // 2
        outputs = oup - inp
        self.branch_main = nn.Sequential(
            nn.Conv2d(inp, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            depthwise(mid, stride),
            nn.BatchNorm2d(mid),
            nn.Conv2d(mid, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )
        self.branch_proj: nn.Module | None = None
        if stride == 2:
            self.branch_proj = nn.Sequential(
                depthwise(inp, stride),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, inp, 1, bias=False),
                nn.BatchNorm2d(inp),
                nn.ReLU(inplace=True),
            )

    def forward(self, old: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat((self.branch_proj(old), self.branch_main(old)), 1)
        kept, worked = self.channel_shuffle(old)
        return torch.cat((kept, self.branch_main(worked)), 1)

    def channel_shuffle(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        x = x.reshape(batch * channels // 2, 2, height * width)
        x = x.permute(1, 0, 2)
        x = x.reshape(2, -1, channels // 2, height, width)
        if self.parts == "chunk":
            even, odd = x.chunk(2, dim=0)
            return even.squeeze(0), odd.squeeze(0)
        if self.parts == "unbind":
            even, odd = x.unbind(0)
            return even, odd
        return x[0], x[1]


class MegviiV2(nn.Module):
    """Megvii's ShuffleNetV2 at any size."""

    def __init__(
        self, repeats: tuple[int, ...], channels: tuple[int, ...], num_classes: int = 10, parts: str = "index"
    ) -> None:
        super().__init__()
        stem, *stages, last = channels
        self.first_conv = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        units, width = [], stem
        for count, out in zip(repeats, stages, strict=True):
            units.append(MegviiUnit(width, out, 2, parts))
            units += [MegviiUnit(out // 2, out, 1, parts) for _ in range(count - 1)]
            width = out
        self.features = nn.Sequential(*units)
        self.conv_last = nn.Sequential(
            nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)
        )
        self.globalpool = nn.AvgPool2d(2)
        self.classifier = nn.Linear(last, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_last(self.features(self.maxpool(self.first_conv(x))))
        return self.classifier(x.mean([2, 3]))


def captured(module: nn.Module, *, size: int = 32, dynamic_batch: bool = False, channels: int = 3) -> Graph:
    """Return a module with random weights as a graph; input ``[1, channels, size, size]``."""
    example = torch.zeros(1, channels, size, size)
    return capture(randomise(module), (example,), name="net", dynamic_batch=dynamic_batch)
