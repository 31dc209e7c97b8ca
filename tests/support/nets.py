"""Small networks that are captured in a second, with torchvision's module names."""

import functools

import torch
from torch import Tensor, nn

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups, as torchvision spells it (rank 5)."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    """Return a 3x3 depthwise convolution."""
    return nn.Conv2d(channels, channels, 3, stride, 1, bias=False, groups=channels)


class InvertedResidual(nn.Module):
    """The V2 unit, stride 1 (basic) or 2 (downsampling)."""

    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = oup // 2
        self.branch1: nn.Module = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                depthwise(inp, stride),
                nn.BatchNorm2d(inp),
                nn.Conv2d(inp, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(inp if stride > 1 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            depthwise(half, stride),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """Torchvision's ShuffleNetV2 at any size."""

    def __init__(self, repeats: tuple[int, ...], channels: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        stem, *stages, last = channels
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        width = stem
        self.stage_names = [f"stage{i + 2}" for i in range(len(stages))]
        for name, count, out in zip(self.stage_names, repeats, stages, strict=True):
            units = [
                InvertedResidual(width, out, 2),
                *(InvertedResidual(out, out, 1) for _ in range(count - 1)),
            ]
            setattr(self, name, nn.Sequential(*units))
            width = out
        self.conv5 = nn.Sequential(
            nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for name in self.stage_names:
            x = getattr(self, name)(x)
        x = self.conv5(x)
        return self.fc(x.mean([2, 3]))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module well-conditioned weights and batch norms that are not the identity; eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                # No ReLU follows a depthwise convolution, so it keeps the variance with a gain of 1.
                gain = 1 if isinstance(part, nn.Conv2d) and part.groups == part.in_channels else 2
                std = (gain / part.weight[0].numel()) ** 0.5
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * std)
                if part.bias is not None:
                    part.bias.copy_(uniform(part.bias, -0.2, 0.2))
            elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                if part.affine:
                    part.weight.copy_(uniform(part.weight, 0.7, 1.3))
                    part.bias.copy_(uniform(part.bias, -0.2, 0.2))
                if part.running_mean is not None and part.running_var is not None:
                    part.running_mean.copy_(uniform(part.running_mean, -0.2, 0.2))
                    part.running_var.copy_(uniform(part.running_var, 0.7, 1.3))
    return module.eval()


def tiny_v2(seed: int = 0, num_classes: int = 10) -> nn.Module:
    """Return a ShuffleNetV2 of two stages, four units and about 6,000 parameters; any input from 16x16 up."""
    return randomise(ShuffleNetV2((2, 2), (8, 16, 24, 32), num_classes), seed)


def example(size: int = 32, batch: int = 1, seed: int = 0) -> Tensor:
    """Return a random image batch ``[batch, 3, size, size]``, float32."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@functools.cache
def tiny_graph(*, dynamic_batch: bool = False) -> Graph:
    """Return `tiny_v2` captured at 32x32, once a process; change a clone of it only."""
    return capture(tiny_v2(), (example(),), name="tiny", dynamic_batch=dynamic_batch)


def shufflenet_v2_x1_0(seed: int = 0) -> nn.Module:
    """Return torchvision's shufflenet_v2_x1_0 with random weights (input 224x224)."""
    return randomise(ShuffleNetV2((4, 8, 4), (24, 116, 232, 464, 1024), 1000), seed)
