"""ShuffleNet V2 (Ma et al., arXiv:1807.11164), with torchvision's module and state-dict names.

A checkpoint of torchvision's ``shufflenet_v2_x*`` loads as it is: ``conv1``, ``maxpool``, ``stage2`` to
``stage4`` with ``branch1`` and ``branch2`` in each unit, ``conv5``, ``fc``. The paper's larger networks
continue the scheme: ``stage5``, and the last convolution is ``conv6`` as in the appendix's table.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shufflectl.models.layers import (
    Residual,
    SqueezeExcitation,
    channel_shuffle,
    depthwise_conv,
    pointwise_conv,
    spatial_conv,
)

__all__ = [
    "BasicUnit",
    "DownsamplingUnit",
    "ResidualUnit",
    "ShuffleNetV2",
    "ShuffleNetV2Large",
    "build",
    "build_large",
]

_STAGE_UNITS = (4, 8, 4)


def _branch2(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return the convolutions of the right branch (figure 3c and 3d): 1x1, 3x3 depthwise, 1x1."""
    return nn.Sequential(
        pointwise_conv(inputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        depthwise_conv(outputs, stride),
        nn.BatchNorm2d(outputs),
        pointwise_conv(outputs, outputs),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class BasicUnit(nn.Module):
    """The basic unit (figure 3c): one half of the channels passes, the other goes through three convolutions.

    ``[N, C, H, W] -> [N, C, H, W]``. The channel shuffle mixes the halves for the next unit's split.

    Args:
        channels: ``C``, even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch2 = _branch2(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, C, H, W]``."""
        passed, worked = x.chunk(2, dim=1)  # [N, C, H, W] -> 2 x [N, C/2, H, W]
        return channel_shuffle(torch.cat((passed, self.branch2(worked)), dim=1), 2)


class DownsamplingUnit(nn.Module):
    """The unit for spatial down sampling (figure 3d): no split, both branches see all channels.

    ``[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]``. With stride 1 it opens a stage that keeps
    its size, as stage 2 of the larger networks does.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output, even.
        stride: 2, or 1 where only the number of channels changes.
        excite: Whether squeeze-and-excitation follows the right branch.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2, *, excite: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1 = nn.Sequential(
            depthwise_conv(inputs, stride),
            nn.BatchNorm2d(inputs),
            pointwise_conv(inputs, half),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )
        self.branch2 = _branch2(inputs, half, stride)
        if excite:
            self.branch2.append(SqueezeExcitation(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, outputs, H / stride, W / stride]``."""
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), dim=1), 2)


class ResidualUnit(nn.Module):
    """The basic unit with squeeze-and-excitation and a residual connection (appendix, figure 2c).

    ``[N, C, H, W] -> [N, C, H, W]``: the half that is worked on is added to the result of its convolutions
    before the last ReLU. The paper adds this path where a network is very deep (section 5, "Generalization to
    Large Models").

    Args:
        channels: ``C``, even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        *layers, _relu = _branch2(half, half, 1)  # the ReLU follows the sum
        self.branch2 = nn.Sequential(*layers, SqueezeExcitation(half, half))
        self.residual = Residual()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output, ``[N, C, H, W]``."""
        passed, worked = x.chunk(2, dim=1)  # [N, C, H, W] -> 2 x [N, C/2, H, W]
        worked = self.relu(self.residual(worked, self.branch2(worked)))
        return channel_shuffle(torch.cat((passed, worked), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """The network of table 5: 3x3 convolution, max pooling, three stages, 1x1 convolution, classifier.

    ``[N, 3, H, W] -> [N, num_classes]``.

    Args:
        stage_channels: Output channels of stages 2 to 4.
        last_channels: Output channels of ``conv5``.
        num_classes: Width of the classifier.
    """

    def __init__(self, stage_channels: Sequence[int], last_channels: int, num_classes: int) -> None:
        super().__init__()
        channels = 24
        self.conv1 = _conv_bn_relu(spatial_conv(3, channels, 2))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages: list[nn.Sequential] = []
        for outputs, units in zip(stage_channels, _STAGE_UNITS, strict=True):
            basic = [BasicUnit(outputs) for _ in range(units - 1)]
            stages.append(nn.Sequential(DownsamplingUnit(channels, outputs), *basic))
            channels = outputs
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = _conv_bn_relu(pointwise_conv(channels, last_channels))
        self.fc = nn.Linear(last_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        x = self.maxpool(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(x)))
        x = self.conv5(x).mean([2, 3])  # [N, C, H, W] -> [N, C]
        logits: Tensor = self.fc(x)
        return logits


class ShuffleNetV2Large(nn.Module):
    """The networks for comparison with ResNet-50 and SENet (table 6; channels in the appendix's table).

    ``[N, 3, H, W] -> [N, num_classes]``. Stage 2 works at a quarter of the input's height and width without
    reducing them, stages 3 to 5 halve them.

    Args:
        stem_channels: Output channels of the 3x3 convolutions of ``conv1``; the first has stride 2.
        stage_channels: Output channels of stages 2 to 5.
        stage_units: Units in stages 2 to 5.
        excite: Whether units have squeeze-and-excitation, and basic units a residual connection.
        num_classes: Width of the classifier.
    """

    def __init__(
        self,
        stem_channels: Sequence[int],
        stage_channels: Sequence[int],
        stage_units: Sequence[int],
        *,
        excite: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        channels = 3
        stem: list[nn.Module] = []
        for index, outputs in enumerate(stem_channels):
            stem += _conv_bn_relu(spatial_conv(channels, outputs, 1 if index else 2))
            channels = outputs
        self.conv1 = nn.Sequential(*stem)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        unit = ResidualUnit if excite else BasicUnit
        stages: list[nn.Sequential] = []
        for outputs, units in zip(stage_channels, stage_units, strict=True):
            first = DownsamplingUnit(channels, outputs, 2 if stages else 1, excite=excite)
            stages.append(nn.Sequential(first, *(unit(outputs) for _ in range(units - 1))))
            channels = outputs
        self.stage2, self.stage3, self.stage4, self.stage5 = stages
        self.conv6 = _conv_bn_relu(pointwise_conv(channels, 2048))
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        x = self.maxpool(self.conv1(x))
        x = self.stage5(self.stage4(self.stage3(self.stage2(x))))
        x = self.conv6(x).mean([2, 3])  # [N, C, H, W] -> [N, C]
        logits: Tensor = self.fc(x)
        return logits


def _conv_bn_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


def build(*, stage_channels: Sequence[int], last_channels: int, num_classes: int) -> ShuffleNetV2:
    """Return a network of table 5."""
    return ShuffleNetV2(stage_channels, last_channels, num_classes)


def build_large(
    *,
    stem_channels: Sequence[int],
    stage_channels: Sequence[int],
    stage_units: Sequence[int],
    excite: bool,
    num_classes: int,
) -> ShuffleNetV2Large:
    """Return a network of table 6."""
    return ShuffleNetV2Large(
        stem_channels, stage_channels, stage_units, excite=excite, num_classes=num_classes
    )
