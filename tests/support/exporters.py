"""ONNX files as others write them: torch's two exporters, with the modules that people export."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from support.nets import depthwise, randomise

__all__ = ["MegviiV1", "export", "quantise", "torchvision_v2"]


def torchvision_v2(name: str) -> nn.Module:
    """Return a ShuffleNetV2 of torchvision itself, with random weights.

    Torchvision of the index is built against CUDA's torch: with the CPU's, it imports once its operators are
    declared.
    """
    if not _declared("torchvision"):
        reason = "torchvision is not installed: run `make venv`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from torchvision import models

    return randomise(getattr(models, name)(weights=None))


_LIBRARIES: list[Any] = []
"""Declarations live as long as the object that made them."""


def _declared(package: str) -> bool:
    """Import torchvision; with its operators declared first where its own library does not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about image files, which nobody reads here
        try:
            __import__(package)
        except ModuleNotFoundError:
            return False
        except RuntimeError:
            library = torch.library.Library(package, "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
            for module in [m for m in sys.modules if m.partition(".")[0] == package]:
                del sys.modules[module]
            __import__(package)
    return True


def export(
    module: nn.Module, path: Path, *, opset: int, dynamo: bool, dynamic: bool, size: int = 64, **rest: Any
) -> Path:
    """Write a module as an official exporter does; the batch of a dynamic file is ``n``."""
    shapes: dict[str, Any] = {}
    if dynamic and dynamo:
        shapes = {"dynamic_shapes": ({0: torch.export.Dim("n", min=1)},)}
    elif dynamic:
        shapes = {"dynamic_axes": {"image": {0: "n"}, "logits": {0: "n"}}}
    if dynamo:
        shapes["verbose"] = False
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript's exporter is deprecated, and says so
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2 if dynamic else 1, 3, size, size),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            opset_version=opset,
            dynamo=dynamo,
            **shapes,
            **rest,
        )
    return path


class _MegviiUnit(nn.Module):
    """The unit of Megvii's V1 code: the shuffle stands behind the depthwise convolution."""

    def __init__(self, inp: int, oup: int, group: int, stride: int, *, first: bool = False) -> None:
        super().__init__()
        self.group, self.stride = group, stride
        mid, made = oup // 4, oup - inp if stride == 2 else oup
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(inp, mid, 1, groups=1 if first else group, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(inplace=True),
            depthwise(mid, stride),
            nn.BatchNorm2d(mid),
        )
        self.branch_main_2 = nn.Sequential(
            nn.Conv2d(mid, made, 1, groups=group, bias=False), nn.BatchNorm2d(made)
        )
        self.branch_proj = nn.AvgPool2d(3, 2, 1)

    def forward(self, old: Tensor) -> Tensor:
        x = self.channel_shuffle(self.branch_main_1(old))
        x = self.branch_main_2(x)
        if self.stride == 1:
            return torch.relu(x + old)
        return torch.cat((self.branch_proj(old), torch.relu(x)), 1)

    def channel_shuffle(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.size()
        x = x.reshape(batch, channels // self.group, self.group, height, width)
        x = x.permute(0, 2, 1, 3, 4)
        return x.reshape(batch, channels, height, width)


class MegviiV1(nn.Module):
    """Megvii's ShuffleNetV1 with one stage of three units."""

    def __init__(self, group: int, channels: int = 72) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        )
        self.features = nn.Sequential(
            _MegviiUnit(24, channels, group, 2, first=True),
            _MegviiUnit(channels, channels, group, 1),
            _MegviiUnit(channels, channels, group, 1),
        )
        self.globalpool = nn.AvgPool2d(2)
        self.classifier = nn.Linear(channels, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(self.first_conv(x)).mean([2, 3]))


class _Noise(CalibrationDataReader):
    def __init__(self, name: str, size: int) -> None:
        rng = np.random.default_rng(0)
        self._left: Iterator[dict[str, NDArray[np.float32]]] = iter(
            [{name: rng.standard_normal((1, 3, size, size), np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._left, None)


def quantise(source: Path, path: Path, size: int, form: QuantFormat = QuantFormat.QDQ) -> Path:
    """Let ONNX Runtime put a file with one static image input into codes, calibrated on noise."""
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    quantize_static(
        source, path, _Noise(name, size), quant_format=form, per_channel=True, weight_type=QuantType.QInt8
    )
    return path
