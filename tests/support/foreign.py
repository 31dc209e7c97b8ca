"""ONNX files with what is found in the wild, small: written by torch's exporters, or by hand."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from support.nets import InvertedResidual, randomise

__all__ = [
    "TwoHeads",
    "TwoInputs",
    "dynamic_shuffle",
    "half_file",
    "nested",
    "save",
    "torchscript",
    "unfolded_norm",
]


class TwoHeads(nn.Module):
    """A backbone with class scores and a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.unit = InvertedResidual(8, 16, 2)
        self.scores = nn.Linear(16, 5)
        self.boxes = nn.Conv2d(16, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.unit(torch.relu(self.stem(x)))
        return self.scores(y.mean([2, 3])), self.boxes(y)


class TwoInputs(nn.Module):
    """An image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.unit = InvertedResidual(8, 16, 2)
        self.fc = nn.Linear(16 + 6, 5)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        y = self.unit(torch.relu(self.stem(x))).mean([2, 3])
        return self.fc(torch.cat((y, extra), 1))


def torchscript(module: nn.Module, path: Path, inputs: tuple[Tensor, ...], **options: Any) -> Path:
    """Write a module with TorchScript's exporter."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it is deprecated, and says so
        torch.onnx.export(randomise(module), inputs, str(path), dynamo=False, **options)
    return path


def save(path: Path, text: str, weights: dict[str, Any]) -> Path:
    """Write a graph in ONNX's text form, with its weights."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _weights(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(shape[0])
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _norm(name: str, channels: int) -> dict[str, Any]:
    rng = np.random.default_rng(channels)
    ranges = {"s": (0.5, 1.5), "b": (-0.3, 0.3), "m": (-0.3, 0.3), "v": (0.5, 1.5)}
    return {f"{name}{part}": rng.uniform(*ends, channels).astype(np.float32) for part, ends in ranges.items()}


def unfolded_norm(path: Path, opset: int = 13) -> Path:
    """Write batch norm behind a convolution, and in front of one, behind a shuffle."""
    return save(
        path,
        f"""<ir_version: 7, opset_import: ["" : {opset}]>
        net (float[N, 3, 12, 12] image) => (float[N, 8, 12, 12] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (image, w1)
            n = BatchNormalization <epsilon = 0.001> (c, as, ab, am, av)
            r = Relu (n)
            five = Reshape (r, shape5)
            t = Transpose <perm = [0, 2, 1, 3, 4]> (five)
            four = Reshape (t, shape4)
            m = BatchNormalization (four, bs, bb, bm, bv)
            y = Conv (m, w2)
        }}""",
        {
            "w1": _weights(8, 3, 3, 3),
            "w2": _weights(8, 8, 1, 1),
            "shape5": np.array([-1, 2, 4, 12, 12]),
            "shape4": np.array([-1, 8, 12, 12]),
            **_norm("a", 8),
            **_norm("b", 8),
        },
    )


def dynamic_shuffle(path: Path) -> Path:
    """Write a shuffle whose shapes the graph computes of a tensor whose height and width are free."""
    return save(
        path,
        """<ir_version: 7, opset_import: ["" : 12]>
        net (float[N, 3, H, W] image) => (float[N, 8, h, w] y) {
            x = Conv <pads = [1, 1, 1, 1]> (image, w1)
            shape = Shape (x)
            n = Gather <axis = 0> (shape, zero)
            c = Gather <axis = 0> (shape, one)
            h = Gather <axis = 0> (shape, two)
            w = Gather <axis = 0> (shape, three)
            half = Div (c, two)
            n1 = Unsqueeze <axes = [0]> (n)
            half1 = Unsqueeze <axes = [0]> (half)
            h1 = Unsqueeze <axes = [0]> (h)
            w1d = Unsqueeze <axes = [0]> (w)
            c1 = Unsqueeze <axes = [0]> (c)
            split = Concat <axis = 0> (n1, twos, half1, h1, w1d)
            joined = Concat <axis = 0> (n1, c1, h1, w1d)
            five = Reshape (x, split)
            turned = Transpose <perm = [0, 2, 1, 3, 4]> (five)
            four = Reshape (turned, joined)
            y = Conv (four, w2)
        }""",
        {
            "w1": _weights(8, 3, 3, 3),
            "w2": _weights(8, 8, 1, 1),
            "zero": np.array(0),
            "one": np.array(1),
            "two": np.array(2),
            "three": np.array(3),
            "twos": np.array([2]),
        },
    )


def half_file(source: Path, path: Path) -> Path:
    """Write a file of fp32 as one that takes, computes and gives fp16."""
    model = onnx.load(source)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def nested(path: Path) -> Path:
    """Write a graph with an If whose branches are graphs."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["image"], [f"{op}_out"])],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [1, 3, 8, 8])],
        )
        for op in ("Relu", "Sigmoid")
    ]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
            helper.make_node("Greater", ["top", "limit"], ["large"]),
            helper.make_node("If", ["large"], ["y"], "branch", then_branch=branch[0], else_branch=branch[1]),
        ],
        "nested",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "limit")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
