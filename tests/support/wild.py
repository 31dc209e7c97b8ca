"""Networks as other people's code defines them: the names, shapes and computation of each, spelled anew.

Each is written after the source that its layout names (`shufflectl.models.checkpoints`), with all that its
checkpoints depend on: which module holds which layer, where the shuffle stands and which way it goes.
"""

import os
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from support.exporters import torchvision_v2
from support.nets import channel_shuffle

__all__ = [
    "MegviiV1",
    "MegviiV2",
    "MmV1",
    "MmV2",
    "pytorchcv_model",
    "torchvision_v2",
]

_UNITS = (4, 8, 4)


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(True))


class _MegviiV1Unit(nn.Module):
    def __init__(self, inp: int, oup: int, group: int, *, first: bool, stride: int) -> None:
        super().__init__()
        self.group, self.stride = group, stride
        mid, made = oup // 4, oup - inp if stride == 2 else oup
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(inp, mid, 1, groups=1 if first else group, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(True),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
        )
        self.branch_main_2 = nn.Sequential(
            nn.Conv2d(mid, made, 1, groups=group, bias=False), nn.BatchNorm2d(made)
        )
        if stride == 2:
            self.branch_proj = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch_main_1(x)
        n, c, h, w = y.shape
        # [N, C/g, g]: the paper has [N, g, C/g]
        y = y.reshape(n, c // self.group, self.group, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)
        y = self.branch_main_2(y)
        if self.stride == 1:
            return torch.relu(y + x)
        return torch.cat((self.branch_proj(x), torch.relu(y)), 1)


class MegviiV1(nn.Module):
    """ShuffleNetV1 of Megvii's ShuffleNet-Series."""

    CHANNELS: ClassVar = {
        (3, "0.5x"): (12, 120, 240, 480),
        (3, "1.0x"): (24, 240, 480, 960),
        (3, "1.5x"): (24, 360, 720, 1440),
        (3, "2.0x"): (48, 480, 960, 1920),
        (8, "0.5x"): (16, 192, 384, 768),
        (8, "1.0x"): (24, 384, 768, 1536),
        (8, "1.5x"): (24, 576, 1152, 2304),
        (8, "2.0x"): (48, 768, 1536, 3072),
    }

    def __init__(self, group: int, size: str, classes: int = 1000) -> None:
        super().__init__()
        inp, *stages = self.CHANNELS[group, size]
        self.first_conv = _stem(inp)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        features: list[nn.Module] = []
        for stage, (oup, repeats) in enumerate(zip(stages, _UNITS, strict=True)):
            for i in range(repeats):
                first = stage == 0 and i == 0
                features.append(_MegviiV1Unit(inp, oup, group, first=first, stride=1 if i else 2))
                inp = oup
        self.features = nn.Sequential(*features)
        self.globalpool = nn.AvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(inp, classes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.globalpool(self.features(self.maxpool(self.first_conv(x)))).flatten(1))


class _MegviiV2Unit(nn.Module):
    def __init__(self, inp: int, oup: int, mid: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.branch_main = nn.Sequential(
            nn.Conv2d(inp, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(True),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            nn.Conv2d(mid, oup - inp, 1, bias=False),
            nn.BatchNorm2d(oup - inp),
            nn.ReLU(True),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                nn.Conv2d(inp, inp, 3, 2, 1, groups=inp, bias=False),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, inp, 1, bias=False),
                nn.BatchNorm2d(inp),
                nn.ReLU(True),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        n, c, h, w = x.shape
        halves = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
        return torch.cat((halves[0], self.branch_main(halves[1])), 1)


class MegviiV2(nn.Module):
    """ShuffleNetV2 of Megvii's ShuffleNet-Series."""

    CHANNELS: ClassVar = {
        "0.5x": (48, 96, 192, 1024),
        "1.0x": (116, 232, 464, 1024),
        "1.5x": (176, 352, 704, 1024),
        "2.0x": (244, 488, 976, 2048),
    }

    def __init__(self, size: str, classes: int = 1000) -> None:
        super().__init__()
        inp = 24
        *stages, last = self.CHANNELS[size]
        self.first_conv = _stem(inp)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        features: list[nn.Module] = []
        for oup, repeats in zip(stages, _UNITS, strict=True):
            for i in range(repeats):
                features.append(_MegviiV2Unit(inp // 2 if i else inp, oup, oup // 2, 1 if i else 2))
                inp = oup
        self.features = nn.Sequential(*features)
        self.conv_last = nn.Sequential(
            nn.Conv2d(inp, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(True)
        )
        self.globalpool = nn.AvgPool2d(7)
        self.classifier = nn.Sequential(nn.Linear(last, classes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_last(self.features(self.maxpool(self.first_conv(x))))
        return self.classifier(self.globalpool(x).flatten(1))


class _ConvModule(nn.Module):
    """mmcv's: ``conv`` and ``bn``, and ReLU where there is an activation."""

    def __init__(
        self, inp: int, oup: int, size: int, stride: int = 1, groups: int = 1, *, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, oup, size, stride, size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(oup)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return torch.relu(y) if self.act else y


class _MmV1Unit(nn.Module):
    def __init__(self, inp: int, oup: int, groups: int, *, first: bool, concat: bool) -> None:
        super().__init__()
        self.groups, self.concat = groups, concat
        mid, made = oup // 4, oup - inp if concat else oup
        self.g_conv_1x1_compress = _ConvModule(inp, mid, 1, groups=1 if first else groups)
        self.depthwise_conv3x3_bn = _ConvModule(mid, mid, 3, 2 if concat else 1, mid, act=False)
        self.g_conv_1x1_expand = _ConvModule(mid, made, 1, groups=groups, act=False)
        self.avgpool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise_conv3x3_bn(self.g_conv_1x1_compress(x))
        if self.groups > 1:
            out = channel_shuffle(out, self.groups)
        out = self.g_conv_1x1_expand(out)
        if self.concat:
            return torch.cat((self.avgpool(x), torch.relu(out)), 1)
        return torch.relu(x + out)


class _MmBackbone(nn.Module):
    def __init__(self, stem: int) -> None:
        super().__init__()
        self.conv1 = _ConvModule(3, stem, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for layer in self.layers:
            x = layer(x)
        return x


class _MmClassifier(nn.Module):
    """mmpretrain's ``ImageClassifier``: backbone, global average pooling, ``LinearClsHead``."""

    def __init__(self, backbone: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.fc(self.backbone(x).mean([2, 3]))


class MmV1(_MmClassifier):
    """ShuffleNetV1 of mmpretrain and mmcls."""

    CHANNELS: ClassVar = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}

    def __init__(self, groups: int = 3, widen: float = 1.0, classes: int = 1000) -> None:
        inp = int(24 * widen)
        backbone = _MmBackbone(inp)
        for stage, repeats in enumerate(_UNITS):
            oup = self._divisible(self.CHANNELS[groups] * 2**stage * widen)
            units: list[nn.Module] = []
            for i in range(repeats):
                first = stage == 0 and i == 0
                units.append(_MmV1Unit(inp, oup, groups, first=first, concat=i == 0))
                inp = oup
            backbone.layers.append(nn.Sequential(*units))
        super().__init__(backbone, inp, classes)

    @staticmethod
    def _divisible(value: float) -> int:
        """Return the nearest multiple of 8 that is not more than a tenth below."""
        rounded = max(8, int(value + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * value else rounded


class _MmV2Unit(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        half = oup // 2
        self.stride = stride
        if stride > 1:
            self.branch1 = nn.Sequential(
                _ConvModule(inp, inp, 3, stride, inp, act=False), _ConvModule(inp, half, 1)
            )
        self.branch2 = nn.Sequential(
            _ConvModule(inp if stride > 1 else half, half, 1),
            _ConvModule(half, half, 3, stride, half, act=False),
            _ConvModule(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            out = torch.cat((self.branch1(x), self.branch2(x)), 1)
        else:
            half = x.shape[1] // 2
            out = torch.cat((x[:, :half], self.branch2(x[:, half:])), 1)
        return channel_shuffle(out, 2)


class MmV2(_MmClassifier):
    """ShuffleNetV2 of mmpretrain and mmcls."""

    CHANNELS: ClassVar = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 2.0: (244, 488, 976, 2048)}

    def __init__(self, widen: float = 1.0, classes: int = 1000) -> None:
        inp = 24
        backbone = _MmBackbone(inp)
        *stages, last = self.CHANNELS[widen]
        for oup, repeats in zip(stages, _UNITS, strict=True):
            units: list[nn.Module] = []
            for i in range(repeats):
                units.append(_MmV2Unit(inp, oup, 1 if i else 2))
                inp = oup
            backbone.layers.append(nn.Sequential(*units))
        backbone.layers.append(_ConvModule(inp, last, 1))
        super().__init__(backbone, last, classes)


def pytorchcv_model(name: str, **arguments: Any) -> nn.Module:
    """Return a network of pytorchcv itself."""
    torchvision_v2("shufflenet_v2_x0_5")  # pytorchcv imports torchvision: declare its operators, or skip
    try:
        from pytorchcv.model_provider import get_model
    except ModuleNotFoundError:
        reason = "pytorchcv is not installed: run `make venv`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return get_model(name, **arguments)
